// Who has no free descriptor keeps its channels: what a peer passes comes in by the one that each
// fabric keeps.
#include <unistd.h>

#include "tests/lwproto/fabric/descriptor_limit.h"
#include "tests/lwproto/fabric/shm_fixture.h"

namespace sanproxy::fabric::test {
namespace {

constexpr std::size_t kShownBytes = 64 * 1024;

TEST_F(ShmServer, WhoHasNoDescriptorFreeTakesThePeersMemory) {
  start();
  std::vector<buffer::MemoryRegion> regions(3);
  for (auto& region : regions) {
    auto created = buffer::MemoryRegion::create("descriptors-test", kShownBytes);
    ASSERT_TRUE(created.ok());
    region = std::move(*created);
  }
  const DescriptorLimit full(lowest_free_descriptor());
  ASSERT_EQ(::dup(STDIN_FILENO), -1);
  for (const auto& region : regions) {
    auto key = good_client_.endpoint->attach(region);
    ASSERT_TRUE(key.ok()) << key.status().to_string();
    const GatherRef ref{*key, 2000, 0};
    ASSERT_TRUE(good_client_.send({}, {&ref, 1}, 1).ok());
    ASSERT_TRUE(eventually([&] {
      good_server_.poll();
      return !good_server_.received.empty() || good_server_.disconnected;
    }));
    ASSERT_FALSE(good_server_.disconnected) << good_server_.disconnected->to_string();
    good_server_.endpoint->release(good_server_.received.front().loan);
    good_server_.received.clear();
    ASSERT_EQ(::dup(STDIN_FILENO), -1) << "it is kept for the next one";
  }
}

TEST_F(ShmServer, WhereNotEvenThatOneMayBeOpenTheChannelEndsAndItsPeerIsNotToBlame) {
  start();
  {
    // A sanitizer looks at an object that is called for the first time through a pipe, for which
    // there is none below: one that ends here makes all calls that are made there.
    RawShmPeer first;
    join(first);
    ASSERT_TRUE(first.send_raw(bytes_of("nonsense"), {}));
    expect_breach(first, "nonsense on the socket");
  }
  RawShmPeer raw;
  join(raw);
  const int fd = raw.make_memfd(kShownBytes, RawShmPeer::kSeals);
  {
    const DescriptorLimit none(0);
    ASSERT_TRUE(raw.send_region(fd, kShownBytes));
    EXPECT_TRUE(eventually([&] {
      victim_.poll();
      return victim_.disconnected.has_value();
    }));
  }
  ASSERT_TRUE(victim_.disconnected);
  EXPECT_EQ(victim_.disconnected->code(), Code::kExhausted) << victim_.disconnected->to_string();
  EXPECT_EQ(raw.peer_control().published.close_code.load(),
            static_cast<std::uint32_t>(shm::CloseMark::kClosed));
}

}  // namespace
}  // namespace sanproxy::fabric::test
