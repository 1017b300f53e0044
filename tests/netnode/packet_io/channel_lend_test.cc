// Payload that a proxy passes on to network nodes where it lies, and what is copied instead.
#include "tests/netnode/packet_io/channel_fixture.h"

namespace sanproxy::packet_io {
namespace {

class PassedOnPackets : public ChannelPackets {};

TEST_P(PassedOnPackets, PayloadThatCanBePassedOnIsNotCopiedAndStaysInUseUntilTheNodeHasDoneWithIt) {
  lend_third();
  listen([&](ChannelIoOptions& options) { options.lent = &lent_; });
  Node& node = up();
  ASSERT_TRUE(until([&] { return send_lent(9000, 4096); }));
  EXPECT_EQ(io_->counters().tx_bytes_copied, 0u);
  EXPECT_EQ(io_->counters().tx_bytes_copied_unlent, passes_on() ? 0u : 8960u);
  EXPECT_EQ(io_->counters().tx_bytes_lent, passes_on() ? 8960u : 0u);
  LinkReceived received;
  ASSERT_TRUE(until([&] { return node.link->receive({&received, 1}) == 1; }));
  EXPECT_EQ(bytes_of(received), packet_of(9000));
  for (int i = 0; i < 10; ++i) round();
  EXPECT_EQ(lent_.all_done(), !passes_on()) << "the node has not released it";
  node.link->release_received();
  EXPECT_TRUE(until([&] { return lent_.all_done(); }));
}

TEST_P(PassedOnPackets, HeadersAreNeverPassedOnAndPiecesFromManyPlacesArriveWhole) {
  lend_third();
  listen([&](ChannelIoOptions& options) { options.lent = &lent_; });
  Node& node = up();
  // Of 20 pieces every second one can be passed on: more references than a transfer has.
  Bytes expected = packet_of(40 + 19 * 100);
  Bytes own = expected;
  std::memcpy(third_.data(), expected.data(), expected.size());
  SendPacket out;
  std::size_t at = 0;
  for (std::size_t i = 0; i < kSendPiecesMax; ++i) {
    const std::size_t length = i == 0 ? 40 : 100;
    void* from = i % 2 == 0 ? static_cast<void*>(own.data() + at) : third_.data() + at;
    out.pieces[out.piece_count++] = {from, length};
    at += length;
  }
  out.length = static_cast<std::uint32_t>(at);
  out.offload.checksum_partial = true;
  out.offload.checksum_start = 20;
  out.offload.checksum_offset = 16;
  ASSERT_TRUE(until([&] {
    const bool taken = io_->send({&out, 1}) == 1;
    io_->flush();
    return taken;
  }));
  std::memset(own.data(), 0, own.size());  // it was copied
  Bytes back;
  LinkReceived received;
  ASSERT_TRUE(next_at(node, back, received));
  EXPECT_EQ(back, expected);
  // One that begins in memory of others: they could change the header while it is checked.
  out.pieces[0].iov_base = third_.data();
  out.piece_count = 1;
  out.pieces[0].iov_len = out.length;
  const std::uint64_t lent_before = io_->counters().tx_bytes_lent;
  ASSERT_TRUE(until([&] {
    const bool taken = io_->send({&out, 1}) == 1;
    io_->flush();
    return taken;
  }));
  ASSERT_TRUE(next_at(node, back, received));
  EXPECT_EQ(back, expected);
  EXPECT_EQ(io_->counters().tx_bytes_lent, lent_before);
}

// Over a fabric that passes memory on.
class LentPackets : public ChannelPackets {};

TEST_P(LentPackets, ANodeThatKeepsWhatItWasLentIsCutOffAndThePayloadComesBack) {
  lend_third();
  listen([&](ChannelIoOptions& options) {
    options.lent = &lent_;
    options.lent_ms_max = 300;
  });
  Node& node = up();
  ASSERT_TRUE(until([&] { return send_lent(9000, 0); }));
  LinkReceived received;
  ASSERT_TRUE(until([&] { return node.link->receive({&received, 1}) == 1; }));
  // It goes on telling that it lives.
  ASSERT_TRUE(until([&] { return io_->counters().peers_cut_off == 1; }));
  EXPECT_TRUE(until([&] { return lent_.all_done(); }));
  EXPECT_EQ(bytes_of(received), packet_of(9000)) << "readable as long as it is not released";
  node.link->release_received();
  EXPECT_TRUE(until([&] { return node.link->state() == LinkState::kUp; })) << "and comes again";
}

TEST_P(LentPackets, OneThatKeepsAPacketIsCutOffAndNotAnotherThatGivesBackLaterOnes) {
  lend_third();
  listen([&](ChannelIoOptions& options) {
    options.lent = &lent_;
    options.lent_ms_max = 300;
  });
  Node& first = up();
  Node& second = up();
  LinkReceived kept, received;
  ASSERT_TRUE(until([&] { return send_lent(9000, 0, 1); }));
  ASSERT_TRUE(until([&] { return first.link->receive({&kept, 1}) == 1; }));
  int passed = 0;
  ASSERT_TRUE(until([&] {
    // While the second has no credit it goes to the first.
    (void)send_lent(9000, 16'384, 2);
    if (second.link->receive({&received, 1}) == 1) ++passed;
    second.link->release_received();
    return io_->counters().peers_cut_off != 0;
  }));
  EXPECT_GT(passed, 50) << "while the first kept its packet";
  EXPECT_TRUE(until([&] { return lent_.all_done(); }));
  first.link->release_received();
  EXPECT_TRUE(until([&] { return first.link->counters().disconnects == 1; }));
  EXPECT_EQ(second.link->counters().disconnects, 0u);
}

TEST_P(LentPackets, WhatRefersToTheMemoryOfAProxyThatIsGoneIsDroppedAndCounted) {
  lend_third();
  listen([&](ChannelIoOptions& options) { options.lent = &lent_; });
  Node& node = up();
  ASSERT_TRUE(until([&] { return send_lent(9000, 0); }));
  ASSERT_TRUE(send_from_proxy(packet_of(60), 1));
  io_.reset();  // the application has its memory back, and writes other things there
  std::vector<LinkReceived> out(4);
  ASSERT_TRUE(until([&] {
    EXPECT_LE(node.link->receive(out), 1u) << "the small one does not refer to anything";
    node.link->release_received();
    return node.link->counters().disconnects == 1;
  }));
  EXPECT_EQ(node.link->counters().rx_dropped_ended, 1u);
  EXPECT_EQ(node.link->counters().rx_packets, 1u);
}

TEST_P(LentPackets, WhoHasKeptWhatItWasLentIsLentNothingForLongHoweverOftenItConnects) {
  lend_third();
  listen([&](ChannelIoOptions& options) {
    options.lent = &lent_;
    options.lent_ms_max = 300;
    options.dead_after_ms = 3'000'000;
  });
  Node& node = up();
  Node& of_same_user = up();
  ASSERT_TRUE(until([&] { return send_lent(9000, 0); }));
  LinkReceived received;
  ASSERT_TRUE(until([&] { return node.link->receive({&received, 1}) == 1; }));
  ASSERT_TRUE(until([&] { return io_->counters().peers_cut_off == 1; }));
  const std::uint64_t lent = io_->counters().tx_bytes_lent;
  node.link->release_received();
  const auto connected = [&] {
    return node.link->counters().connects == 2 && node.link->state() == LinkState::kUp &&
           of_same_user.link->state() == LinkState::kUp;
  };
  const auto peer = [&] { return io_->peers().back().number; };
  ASSERT_TRUE(until(connected));
  const auto pass_one = [&](Node& to, PeerNumber number) {
    ASSERT_TRUE(until([&] { return send_lent(9000, 0, number); }));
    Bytes back;
    ASSERT_TRUE(next_at(to, back, received));
    EXPECT_EQ(back, packet_of(9000));
  };
  pass_one(node, peer());
  pass_one(of_same_user, 2);
  EXPECT_EQ(io_->counters().tx_bytes_lent, lent) << "copied for it, and for its user's others";
  for (std::uint64_t ms = 0; ms < kWithoutLendsShare * 300; ms += 100) {
    clock_.advance_ns(100'000'000);
    round();
  }
  ASSERT_TRUE(until(connected));
  pass_one(node, peer());
  EXPECT_GT(io_->counters().tx_bytes_lent, lent);
}

TEST_P(LentPackets, ANodeThatKeepsCopiesLeavesTheOthersTheirShareAndIsCutOffInTheEnd) {
  listen([](ChannelIoOptions& options) { options.dead_after_ms = 1'000; });
  Node& first = up();
  Node& second = up();
  LinkReceived kept;
  ASSERT_TRUE(until([&] { return send_from_proxy(packet_of(9000), 1); }));
  ASSERT_TRUE(until([&] { return first.link->receive({&kept, 1}) == 1; }));
  for (int i = 0; i < 30; ++i) (void)send_from_proxy(packet_of(9000), 1);
  EXPECT_LE(io_->peers()[0].packets_out, 8u) << "of 16 slots";
  Bytes back;
  LinkReceived received;
  ASSERT_TRUE(next_at(second, back, received));
  EXPECT_EQ(back, packet_of(9000)) << "what has no room goes by the other";
  ASSERT_TRUE(until([&] {
    while (second.link->receive({&received, 1}) == 1) second.link->release_received();
    return io_->counters().peers_cut_off == 1;
  }));
  EXPECT_EQ(second.link->counters().disconnects, 0u);
  first.link->release_received();
}

TEST_P(LentPackets, WhatTheNodeHadNoPlaceForIsOfferedAgainWhenThereIsOne) {
  const buffer::MemoryRegion other = std::move(buffer::MemoryRegion::create("a", 9000)).value();
  lend_third();
  (void)lent_.on_region({other.data(), other.size(), other.fd()});
  listen([&](ChannelIoOptions& options) { options.lent = &lent_; });
  Node& node = up([](ChannelLinkOptions& options) { options.endpoint.regions_max = 2; });
  const auto pass_one = [&] {
    ASSERT_TRUE(until([&] { return send_lent(9000, 0); }));
    Bytes back;
    LinkReceived received;
    ASSERT_TRUE(next_at(node, back, received));
    ASSERT_EQ(back, packet_of(9000));
    ASSERT_TRUE(until([&] { return lent_.all_done(); }));
  };
  const auto pass_other = [&] {
    const Bytes packet = packet_of(9000);
    SendPacket out = lent_packet(packet, other.data());
    ASSERT_TRUE(until([&] {
      const bool taken = io_->send({&out, 1}) == 1;
      io_->flush();
      return taken;
    }));
    Bytes back;
    LinkReceived received;
    ASSERT_TRUE(next_at(node, back, received));
    ASSERT_TRUE(until([&] { return lent_.all_done(); }));
  };
  pass_other();  // the node's second place; the first is for the proxy's own memory
  pass_one();
  EXPECT_EQ(io_->counters().tx_bytes_lent, 8960u);
  EXPECT_EQ(io_->counters().regions_not_taken, 1u);
  lent_.on_region_gone(other.data());
  ASSERT_TRUE(until([&] {
    pass_one();
    return io_->counters().tx_bytes_lent == 2 * 8960u;
  }));
}

TEST_P(LentPackets, ARegionThatGoesIsTakenBackFromTheNodeAndAnotherTakesItsPlace) {
  lend_third();
  listen([&](ChannelIoOptions& options) { options.lent = &lent_; });
  Node& node = up();
  LinkReceived received;
  Bytes back;
  for (int round_number = 0; round_number < 200; ++round_number) {  // more than its table holds
    ASSERT_TRUE(until([&] { return send_lent(3000, 0); }));
    ASSERT_TRUE(next_at(node, back, received));
    ASSERT_EQ(back, packet_of(3000));
    ASSERT_TRUE(until([&] { return lent_.all_done(); }));
    lent_.on_region_gone(third_.data());
    lend_third();
  }
  EXPECT_EQ(io_->counters().tx_bytes_copied_unlent, 0u);
  EXPECT_EQ(node.link->counters().disconnects, 0u);
}

TEST_P(PassedOnPackets, WithoutAPlaceForTheRegionPayloadIsCopiedAndCounted) {
  const buffer::MemoryRegion a = std::move(buffer::MemoryRegion::create("a", 4096)).value();
  const buffer::MemoryRegion b = std::move(buffer::MemoryRegion::create("b", 4096)).value();
  lent_.on_region({a.data(), a.size(), a.fd()});
  lent_.on_region({b.data(), b.size(), b.fd()});
  lend_third();
  listen([&](ChannelIoOptions& options) { options.lent = &lent_; });
  Node& node = up();
  ASSERT_TRUE(until([&] { return send_lent(9000, 0); }));
  Bytes back;
  LinkReceived received;
  ASSERT_TRUE(next_at(node, back, received));
  EXPECT_EQ(back, packet_of(9000));
  EXPECT_EQ(io_->counters().tx_bytes_copied_unlent, 8960u);
  EXPECT_EQ(lent_.regions_refused(), 1u);
  EXPECT_TRUE(lent_.all_done());
}

INSTANTIATE_TEST_SUITE_P(Fabrics, PassedOnPackets, ::testing::ValuesIn(all_ways()), name_of);
INSTANTIATE_TEST_SUITE_P(Fabrics, LentPackets, ::testing::Values(shm_way()), name_of);

}  // namespace
}  // namespace sanproxy::packet_io
