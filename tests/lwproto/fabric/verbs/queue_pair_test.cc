// Devices that refuse, or that count otherwise than soft-RoCE: ibv_create_qp() and ibv_create_cq()
// of this program ask a rule of the test before the library's.
#include <dlfcn.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstdint>
#include <functional>
#include <memory>

#include "gtest/gtest.h"
#include "tests/lwproto/fabric/verbs/device_fixture.h"

namespace sanproxy::fabric::verbs::test {
namespace {

// An errno, or 0: the device makes it.
std::function<int(const ibv_qp_cap&)> queue_pair_rule;
int completion_queue_error = 0;

template <typename Function>
Function* next_of(const char* name) {
  return reinterpret_cast<Function*>(::dlsym(RTLD_NEXT, name));
}

}  // namespace

extern "C" ibv_qp* ibv_create_qp(ibv_pd* domain, ibv_qp_init_attr* attributes) {
  static auto* const next = next_of<decltype(ibv_create_qp)>("ibv_create_qp");
  const int error = queue_pair_rule ? queue_pair_rule(attributes->cap) : 0;
  if (error == 0) return next(domain, attributes);
  errno = error;
  return nullptr;
}

extern "C" ibv_cq* ibv_create_cq(ibv_context* context, int entries, void* owner,
                                 ibv_comp_channel* channel, int vector) {
  static auto* const next = next_of<decltype(ibv_create_cq)>("ibv_create_cq");
  if (completion_queue_error == 0) return next(context, entries, owner, channel, vector);
  errno = completion_queue_error;
  return nullptr;
}

namespace {

class VerbsOddDevice : public VerbsDevice {
 protected:
  ~VerbsOddDevice() override {
    queue_pair_rule = nullptr;
    completion_queue_error = 0;
  }
  // mlx5's: so many blocks of 64 bytes, of which each work request takes a power of two.
  static int blocks(const ibv_qp_cap& cap, std::uint32_t most) {
    const std::uint32_t bytes = 64 + std::max(cap.max_send_sge * 16, cap.max_inline_data);
    return cap.max_send_wr * std::bit_ceil((bytes + 63) / 64) > most ? EINVAL : 0;
  }
  Status refusal() {
    auto fabric = make_verbs_fabric();
    auto other = make_verbs_fabric();
    EXPECT_TRUE(fabric.ok() && other.ok());
    auto listener = (*fabric)->listen(address_, options());
    EXPECT_TRUE(listener.ok()) << listener.status().to_string();
    auto connecting = (*other)->connect(address_, {}, options());
    if (!connecting.ok()) return connecting.status();
    return fabric::test::finish(**connecting, {other->get()}).status();
  }
};

TEST_F(VerbsOddDevice, ASendQueueThatIsTooLongForTheDeviceIsCutAndWorks) {
  std::uint32_t deepest = 0;
  std::uint32_t inline_bytes = 0;
  queue_pair_rule = [&](const ibv_qp_cap& cap) {
    const int error = blocks(cap, 200);
    if (error == 0) {
      deepest = cap.max_send_wr;
      inline_bytes = cap.max_inline_data;
    }
    return error;
  };
  ASSERT_NO_FATAL_FAILURE(connect());
  // Each takes four blocks for its pieces alone, so neither 128 nor 64 go; 32 do, with half of the
  // inline bytes.
  EXPECT_EQ(deepest, 32u);
  EXPECT_EQ(inline_bytes, 128u);
  std::uint64_t sent = 0;
  std::uint32_t credits = options().receive_depth;
  ASSERT_TRUE(run_until([&] {
    while (credits != 0 && sent < 500 && client_.queue(pattern(500, 1)).ok()) ++sent, --credits;
    client_.endpoint->flush();
    credits += server_.endpoint->replenish();
    return server_.received.size() == 500;
  }));
  EXPECT_FALSE(client_.disconnected || server_.disconnected);
}

TEST_F(VerbsOddDevice, AFurtherQueuePairThatWouldBeShorterIsRefusedByName) {
  int made = 0;
  queue_pair_rule = [&made](const ibv_qp_cap& cap) {
    const int error = blocks(cap, made < 2 ? 1u << 20 : 128);
    made += error == 0;
    return error;
  };
  auto server_fabric = make_verbs_fabric();
  auto client_fabric = make_verbs_fabric();
  ASSERT_TRUE(server_fabric.ok() && client_fabric.ok());
  auto listener = (*server_fabric)->listen(address_, options());
  ASSERT_TRUE(listener.ok()) << listener.status().to_string();
  EndpointOptions asking = options();
  asking.link.queue_pairs = 2;
  auto connecting = (*client_fabric)->connect(address_, {}, asking);
  ASSERT_TRUE(connecting.ok());
  const Status refused =
      fabric::test::finish(**connecting, {server_fabric->get(), client_fabric->get()}).status();
  EXPECT_NE(refused.to_string().find("queue_pairs"), std::string::npos) << refused.to_string();
}

TEST_F(VerbsOddDevice, ADeviceThatTakesNoSendQueueAtAllIsAnError) {
  queue_pair_rule = [](const ibv_qp_cap&) { return EINVAL; };
  const Status status = refusal();
  EXPECT_EQ(status.code(), Code::kSystem);
  EXPECT_EQ(status.sys_errno(), EINVAL);
}

TEST_F(VerbsOddDevice, QueuesThatFindNoMemoryAreToldFromOtherFailures) {
  for (const int error : {ENOMEM, EAGAIN, EPERM}) {
    queue_pair_rule = [error](const ibv_qp_cap&) { return error; };
    EXPECT_EQ(refusal().code(), Code::kExhausted);
    queue_pair_rule = nullptr;
    completion_queue_error = error;
    EXPECT_EQ(refusal().code(), Code::kExhausted);
    completion_queue_error = 0;
  }
}

}  // namespace
}  // namespace sanproxy::fabric::verbs::test
