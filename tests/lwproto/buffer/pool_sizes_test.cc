#include "lwproto/buffer/pool_sizes.h"

#include <gtest/gtest.h>

#include <random>

#include "lwproto/buffer/slot_pool.h"

namespace sanproxy::buffer {
namespace {

PoolInputs inputs() {
  PoolInputs in;
  in.connections_max = 100;
  in.receive_window_bytes = 512 * 1024;
  in.send_window_bytes = 1024 * 1024;
  in.receives_posted = 4 * 512;
  in.rx_burst = 64;
  in.interfaces = 2;
  return in;
}

TEST(PoolSizes, WithoutCeilingsHoldEveryWindowAndEveryPostedBuffer) {
  const PoolSizes sizes = derive_pool_sizes(inputs());
  EXPECT_EQ(sizes.ingress_slots, 2u * 64 * 2 + 100 * (512 / 64 + 1));
  EXPECT_EQ(sizes.egress_slots, 4u * 512 + 100 * (1024 / 64 + 1));
}

TEST(PoolSizes, CountAWindowThatIsNoMultipleOfASlotAsOneSlotMore) {
  PoolInputs in = inputs();
  in.receive_window_bytes = 65536 + 1;
  EXPECT_EQ(derive_pool_sizes(in).ingress_slots, 2u * 64 * 2 + 100 * 3);
}

TEST(PoolSizes, AreCutByTheOperatorsCeilings) {
  PoolInputs in = inputs();
  in.connections_max = 100'000;
  in.ingress_bytes_max = std::size_t{256} << 20;
  in.egress_bytes_max = std::size_t{512} << 20;
  const PoolSizes sizes = derive_pool_sizes(in);
  EXPECT_LE(sizes.ingress_slots * sizes.ingress_slot_bytes, in.ingress_bytes_max);
  EXPECT_GT((sizes.ingress_slots + 1) * sizes.ingress_slot_bytes, in.ingress_bytes_max);
  EXPECT_LE(sizes.egress_slots * sizes.egress_slot_bytes, in.egress_bytes_max);
}

TEST(PoolSizes, HoldThePostedBuffersAndSomeMoreUnderAnyCeiling) {
  PoolInputs in = inputs();
  in.ingress_bytes_max = in.egress_bytes_max = 1;
  const PoolSizes sizes = derive_pool_sizes(in);
  EXPECT_EQ(sizes.ingress_slots, 2u * 64 * 2 + kSpareSlotsMin);
  EXPECT_EQ(sizes.egress_slots, 4u * 512 + kSpareSlotsMin);
}

TEST(PoolSizes, OfNothingAreTheSpareSlots) {
  const PoolSizes sizes = derive_pool_sizes({});
  EXPECT_EQ(sizes.ingress_slots, kSpareSlotsMin);
  EXPECT_EQ(sizes.egress_slots, kSpareSlotsMin);
}

TEST(PoolSizes, HaveSlotsOfWholeCacheLines) {
  const PoolSizes sizes = derive_pool_sizes(inputs());
  EXPECT_EQ(sizes.ingress_slot_bytes % 64, 0u);
  EXPECT_EQ(sizes.egress_slot_bytes % 64, 0u);
}

TEST(PoolSizes, NeverShrinkWhenMoreIsAskedForAndNeverOverflow) {
  std::mt19937 random(5);
  const auto any = [&] { return static_cast<std::uint32_t>(random() >> (random() % 32)); };
  for (int i = 0; i < 20'000; ++i) {
    PoolInputs in;
    std::uint32_t channels = 0;
    std::uint32_t* fields[] = {&in.connections_max,   &in.receive_window_bytes,
                               &in.send_window_bytes, &channels,
                               &in.rx_burst,          &in.interfaces};
    for (std::uint32_t* field : fields) *field = any();
    in.receives_posted = std::uint64_t{channels} * 65'536;
    if (random() % 2 == 0) in.ingress_bytes_max = in.egress_bytes_max = any();
    const PoolSizes before = derive_pool_sizes(in);
    std::uint32_t* grown = fields[random() % 6];
    *grown = random() % 2 == 0 ? UINT32_MAX : *grown + (UINT32_MAX - *grown) / 2;
    in.receives_posted = std::uint64_t{channels} * 65'536;
    const PoolSizes after = derive_pool_sizes(in);
    ASSERT_GE(after.ingress_slots, before.ingress_slots);
    ASSERT_GE(after.egress_slots, before.egress_slots);
    ASSERT_GE(before.ingress_slots, kSpareSlotsMin);
    ASSERT_LE(after.egress_slots, kNoSlot);
  }
}

}  // namespace
}  // namespace sanproxy::buffer
