// Memory that goes through a middleman: an owner gives a region to a server, which passes it on to
// a reader, who reads it without anybody's help.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <filesystem>

#include "lwproto/base/unique_fd.h"
#include "lwproto/fabric/lent_memory.h"
#include "tests/lwproto/fabric/descriptor_limit.h"
#include "tests/lwproto/fabric/shm_fixture.h"

namespace sanproxy::fabric::test {
namespace {

constexpr std::size_t kBytes = 64 * 1024;

class ShmPassOn : public testing::Test {
 protected:
  void SetUp() override {
    front_ = make([] { return make_shm_fabric(); });
    back_ = make([] { return make_shm_fabric(); });
    owner_fabric_ = make([] { return make_shm_fabric(); });
    reader_fabric_ = make([] { return make_shm_fabric(); });
    front_->watch_regions(&lent_);
    connect(*front_, *owner_fabric_, {}, owner_listener_, from_owner_, owner_);
  }
  void connect_reader(const EndpointOptions& reader = {}) {
    connect(*back_, *reader_fabric_, reader, reader_listener_, to_reader_, reader_);
  }
  static void connect(Fabric& server, Fabric& client, const EndpointOptions& options,
                      std::unique_ptr<Listener>& listener, Side& server_side, Side& client_side) {
    auto listening = server.listen("shm:" + unused_path(), {});
    ASSERT_TRUE(listening.ok()) << listening.status().to_string();
    listener = std::move(*listening);
    ASSERT_TRUE(connect_sides(server, *listener, client, options, server_side, client_side));
    server_side.replenish = client_side.replenish = true;
  }
  bool eventually(const std::function<bool()>& done) {
    return test::eventually({front_.get(), back_.get(), owner_fabric_.get(), reader_fabric_.get()},
                            [&] {
                              for (Side* side : {&from_owner_, &owner_, &to_reader_, &reader_}) {
                                if (side->endpoint && !side->disconnected) side->poll();
                              }
                              return done();
                            });
  }
  // The owner lends [offset, offset + length) of a region to the server.
  const Received* lend(const buffer::MemoryRegion& region, RegionKey key, std::uint32_t length,
                       std::uint64_t offset) {
    (void)region;
    const GatherRef ref{key, length, offset};
    EXPECT_TRUE(owner_.send({}, {&ref, 1}, 1).ok());
    const std::size_t before = from_owner_.received.size();
    EXPECT_TRUE(eventually([&] { return from_owner_.received.size() > before; }));
    return &from_owner_.received.back();
  }
  Result<RegionKey> pass_on(const std::byte* data) {
    const LentMemory::Place place = lent_.find(data, 1);
    if (place == LentMemory::kNoPlace) return Status::error(Code::kNotFound, "nothing to pass on");
    return to_reader_.endpoint->attach_passed(lent_.region(place).memory);
  }
  static buffer::MemoryRegion filled(unsigned seed) {
    auto region = buffer::MemoryRegion::create("pass-on-test", kBytes);
    EXPECT_TRUE(region.ok());
    const Bytes bytes = pattern(kBytes, seed);
    std::memcpy(region->data(), bytes.data(), bytes.size());
    return std::move(*region);
  }

  LentMemory lent_{8};
  buffer::MemoryRegion region_, other_;
  std::unique_ptr<Fabric> front_, back_, owner_fabric_, reader_fabric_;
  std::unique_ptr<Listener> owner_listener_, reader_listener_;
  Side from_owner_, owner_, to_reader_, reader_;
};

TEST_F(ShmPassOn, TheReaderSeesTheOwnersBytesAlsoWhenTheOwnerIsGone) {
  connect_reader();
  region_ = filled(1);
  const Bytes expected(region_.data() + 512, region_.data() + 512 + 5000);
  auto key = owner_.endpoint->attach(region_);
  ASSERT_TRUE(key.ok());
  const Received* at_server = lend(region_, *key, 5000, 512);
  ASSERT_EQ(lent_.region_count(), 1u);
  auto passed = pass_on(at_server->segments[0].data);
  ASSERT_TRUE(passed.ok()) << passed.status().to_string();

  const GatherRef ref{*passed, 5000, 512};
  ASSERT_TRUE(to_reader_.send({}, {&ref, 1}, 7).ok());
  ASSERT_TRUE(eventually([&] { return reader_.received.size() == 1; }));
  EXPECT_EQ(reader_.received[0].content, expected);

  // The owner's process ends; the server lets go. What the reader has on loan stays readable.
  owner_.endpoint.reset();
  region_ = buffer::MemoryRegion();
  from_owner_.endpoint->release(at_server->loan);
  from_owner_.endpoint.reset();
  EXPECT_EQ(lent_.region_count(), 0u) << "the watcher was told";
  EXPECT_TRUE(reader_.received[0].intact());
  EXPECT_TRUE(to_reader_.sent.empty()) << "it is still the reader's";
  reader_.endpoint->release(reader_.received[0].loan);
  reader_.endpoint->flush();
  ASSERT_TRUE(eventually([&] { return to_reader_.sent.size() == 1; }));
  EXPECT_EQ(to_reader_.sent[0].first, 7u);
}

TEST_F(ShmPassOn, APlaceIsUsedAgainAfterItsRegionWasTakenBack) {
  connect_reader({.regions_max = 1});
  region_ = filled(1);
  other_ = filled(2);
  for (int round = 0; round < 3; ++round) {
    buffer::MemoryRegion& mine = round % 2 == 0 ? region_ : other_;
    auto key = to_reader_.endpoint->attach_passed({mine.data(), mine.size(), mine.fd()});
    ASSERT_TRUE(key.ok()) << key.status().to_string();
    EXPECT_EQ(
        to_reader_.endpoint->attach_passed({mine.data(), mine.size(), mine.fd()}).status().code(),
        Code::kExhausted);
    const GatherRef ref{*key, 100, 0};
    ASSERT_TRUE(to_reader_.send({}, {&ref, 1}, 1).ok());
    const std::size_t seen = reader_.received.size();
    ASSERT_TRUE(eventually([&] { return reader_.received.size() > seen; }));
    EXPECT_EQ(reader_.received.back().content, Bytes(mine.data(), mine.data() + 100));
    reader_.endpoint->release(reader_.received.back().loan);
    reader_.endpoint->flush();
    const std::size_t back = to_reader_.sent.size();
    ASSERT_TRUE(eventually([&] { return to_reader_.sent.size() > back; }));
    ASSERT_TRUE(to_reader_.endpoint->detach(*key).ok());
    EXPECT_EQ(to_reader_.endpoint->detach(*key).code(), Code::kInvalidArgument);
    ASSERT_TRUE(to_reader_.endpoint->begin_send(0).ok());
    EXPECT_EQ(to_reader_.endpoint->commit_send(0, {&ref, 1}, 1).code(), Code::kInvalidArgument);
  }
  EXPECT_FALSE(reader_.disconnected);
}

TEST_F(ShmPassOn, MemoryThatOthersCouldWriteIsReadAndNotPassedOn) {
  const UniqueFd fd(::memfd_create("writable", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  const Bytes bytes = pattern(kBytes, 1);
  ASSERT_EQ(::write(fd.get(), bytes.data(), bytes.size()), static_cast<ssize_t>(bytes.size()));
  ASSERT_EQ(::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW), 0);
  auto key = owner_.endpoint->attach_passed({bytes.data(), kBytes, fd.get()});
  ASSERT_TRUE(key.ok());
  const Received* at_server = lend(region_, *key, 5000, 0);
  EXPECT_TRUE(at_server->intact());
  EXPECT_EQ(lent_.find(at_server->segments[0].data, 1), LentMemory::kNoPlace);
  ASSERT_EQ(::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_FUTURE_WRITE), 0);
  key = owner_.endpoint->attach_passed({bytes.data(), kBytes, fd.get()});
  ASSERT_TRUE(key.ok());
  at_server = lend(region_, *key, 5000, 0);
  EXPECT_NE(lent_.find(at_server->segments[0].data, 1), LentMemory::kNoPlace);
}

TEST_F(ShmPassOn, NoDescriptorIsKeptOfWhatIsNotPassedOn) {
  const auto descriptors = [] {
    const std::filesystem::directory_iterator all("/proc/self/fd");
    return std::distance(begin(all), end(all));
  };
  region_ = filled(1);
  const auto before = descriptors();
  RegionKey last = 0;
  for (int i = 0; i < 20; ++i) {
    auto key = owner_.endpoint->attach(region_);
    ASSERT_TRUE(key.ok());
    last = *key;
  }
  (void)lend(region_, last, 100, 0);
  EXPECT_EQ(lent_.region_count(), 4u) << "half of the places";
  EXPECT_EQ(lent_.regions_refused(), 16u);
  EXPECT_EQ(descriptors() - before, 4);
}

TEST_F(ShmPassOn, ARegionIsFoundBehindAllThatWasSaidOfOthersThatWereNotUsed) {
  connect_reader({.regions_max = 1});
  region_ = filled(1);
  const PassedRegion memory{region_.data(), region_.size(), region_.fd()};
  for (int i = 0; i < 60; ++i) {
    auto key = to_reader_.endpoint->attach_passed(memory);
    ASSERT_TRUE(key.ok()) << key.status().to_string();
    ASSERT_TRUE(to_reader_.endpoint->detach(*key).ok());
  }
  auto key = to_reader_.endpoint->attach_passed(memory);
  ASSERT_TRUE(key.ok());
  const GatherRef ref{*key, 100, 0};
  ASSERT_TRUE(to_reader_.send({}, {&ref, 1}, 1).ok());
  reader_.poll();
  EXPECT_FALSE(reader_.disconnected);
  EXPECT_EQ(reader_.received.size(), 1u);
}

TEST_F(ShmPassOn, TheLastDescriptorIsNotKeptForIt) {
  region_ = filled(1);
  other_ = filled(2);
  {
    const DescriptorLimit full(lowest_free_descriptor());
    for (const buffer::MemoryRegion* region : {&region_, &other_}) {
      auto key = owner_.endpoint->attach(*region);
      ASSERT_TRUE(key.ok()) << key.status().to_string();
      const Received* at_server = lend(*region, *key, 5000, 0);
      EXPECT_EQ(lent_.region_count(), 0u);
      from_owner_.endpoint->release(at_server->loan);
    }
  }
  buffer::MemoryRegion third = filled(3);
  auto key = owner_.endpoint->attach(third);
  ASSERT_TRUE(key.ok()) << key.status().to_string();
  from_owner_.endpoint->release(lend(third, *key, 5000, 0)->loan);
  EXPECT_EQ(lent_.region_count(), 1u);
}

TEST_F(ShmPassOn, MoreRegionsThanTheReaderTakesAreRefusedBeforeTheyAreSent) {
  connect_reader({.regions_max = 2, .peer_region_bytes_max = 2 * kBytes});
  region_ = filled(1);
  const PassedRegion memory{region_.data(), region_.size(), region_.fd()};
  EXPECT_TRUE(to_reader_.endpoint->attach_passed(memory).ok());
  EXPECT_TRUE(to_reader_.endpoint->attach_passed(memory).ok());
  EXPECT_EQ(to_reader_.endpoint->attach_passed(memory).status().code(), Code::kExhausted);
  EXPECT_EQ(to_reader_.endpoint->attach_passed({}).status().code(), Code::kInvalidArgument);
}

}  // namespace
}  // namespace sanproxy::fabric::test
