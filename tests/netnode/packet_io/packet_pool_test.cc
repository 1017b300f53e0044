#include "netnode/packet_io/packet_pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <vector>

namespace sanproxy::packet_io {
namespace {

constexpr std::size_t kSlotBytes = 4096;
constexpr std::size_t kFrameBytes = 256;

// A driver that lends frames, and notes which come back.
class Lender final : public PacketIo {
 public:
  explicit Lender(std::size_t frames) : memory_(frames * kFrameBytes) {}
  const InterfaceOptions& options() const override { return options_; }
  std::uint32_t mtu_bytes() const override { return 1500; }
  int fd() const override { return -1; }
  std::size_t receive(std::span<const ReceiveBuffer>, std::span<ReceivedPacket>) override {
    return 0;
  }
  std::size_t send(std::span<const SendPacket>) override { return 0; }
  void flush() override {}
  void add_local_address(const IpAddress&) override {}
  void remove_local_address(const IpAddress&) override {}
  bool lends() const override { return true; }
  void release(PacketLoan loan) override { back.push_back(loan); }
  FrameMemory frames() const override { return {memory_, kFrameBytes}; }
  const Counters& counters() const override { return counters_; }

  std::vector<PacketLoan> back;
  const std::byte* start() const { return memory_.data(); }

 private:
  InterfaceOptions options_;
  Counters counters_;
  mutable std::vector<std::byte> memory_;
};

class PacketPoolTest : public ::testing::Test {
 protected:
  std::vector<std::byte> memory_ = std::vector<std::byte>(4 * kSlotBytes);
  buffer::SlotPool slots_{memory_, kSlotBytes};
  PacketPool pool_{slots_};
  Lender one_{8}, two_{3};
};

TEST_F(PacketPoolTest, slots_are_those_of_the_slot_pool) {
  EXPECT_EQ(pool_.places(), 4u);
  std::array<buffer::SlotIndex, 4> all{};
  for (auto& slot : all) {
    slot = pool_.acquire();
    ASSERT_LT(slot, 4u);
    pool_.mark_received(slot);
    EXPECT_EQ(pool_.data(slot), slots_.data(slot));
    EXPECT_EQ(pool_.capacity(slot), kSlotBytes);
  }
  EXPECT_EQ(pool_.acquire(), buffer::kNoSlot);
  for (const auto slot : all) pool_.release(slot);
  EXPECT_EQ(slots_.free_count(), 4u);
}

TEST_F(PacketPoolTest, frames_are_numbered_behind_the_slots_and_go_back_to_their_driver) {
  const auto first = pool_.add_frames(one_), second = pool_.add_frames(two_);
  EXPECT_EQ(first, 4u);
  EXPECT_EQ(second, 12u);
  EXPECT_EQ(pool_.places(), 15u);
  EXPECT_EQ(pool_.slot_count(), 4u);
  for (PacketLoan loan = 1; loan <= 8; ++loan) {
    const auto slot = pool_.take(first, loan);
    EXPECT_EQ(slot, first + loan - 1);
    EXPECT_EQ(pool_.data(slot), one_.start() + (loan - 1) * kFrameBytes);
    EXPECT_EQ(pool_.capacity(slot), kFrameBytes);
  }
  const auto other = pool_.take(second, 3);
  EXPECT_EQ(pool_.data(other), two_.start() + 2 * kFrameBytes);
  pool_.release(first + 7);
  pool_.release(first);
  pool_.release(other);
  EXPECT_EQ(one_.back, (std::vector<PacketLoan>{8, 1}));
  EXPECT_EQ(two_.back, (std::vector<PacketLoan>{3}));
  EXPECT_EQ(pool_.take(first, 8), first + 7) << "once it is back it may be lent again";
  EXPECT_EQ(slots_.free_count(), 4u);
}

TEST_F(PacketPoolTest, a_frame_that_is_taken_or_released_twice_is_our_bug) {
  const auto first = pool_.add_frames(one_), second = pool_.add_frames(two_);
  pool_.take(first, 1);
  EXPECT_DEATH(pool_.take(first, 1), "invariant broken");
  EXPECT_DEATH(pool_.take(first, kNoPacketLoan), "invariant broken");
  EXPECT_DEATH(pool_.take(first, 9), "invariant broken") << "the other driver's";
  EXPECT_DEATH(pool_.take(second, 4), "invariant broken");
  EXPECT_DEATH(pool_.release(first + 1), "invariant broken");
  EXPECT_DEATH(pool_.release(99), "invariant broken");
  pool_.release(first);
  EXPECT_DEATH(pool_.release(first), "invariant broken");
}

}  // namespace
}  // namespace sanproxy::packet_io
