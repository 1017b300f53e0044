// Receiving: order, windows, acknowledgements, and where the bytes stay meanwhile.
#include "tests/proxynode/stack/stack_harness.h"

namespace sanproxy::stack::testing {
namespace {

using StackReceiving = ConnectedStackTest;

TEST_F(StackReceiving, payload_stays_in_the_slot_it_arrived_in) {
  Peer peer;
  const ConnIndex conn = open(peer);
  recorder_.hold = true;
  send(peer, kTcpAck, pattern(1000));
  ASSERT_EQ(recorder_.conns[conn].held.size(), 1u);
  RxPayload& payload = recorder_.conns[conn].held[0];
  EXPECT_EQ(payload.length(), 1000u);
  EXPECT_EQ(payload.piece_count(), 1u);
  const std::byte* at = payload.front().data();
  EXPECT_TRUE(at >= memory_.data() && at + 1000 <= memory_.data() + memory_.size());
  EXPECT_EQ(pool_->received_count(), 1u);
  RxPayload::Piece piece = payload.pop_front();
  EXPECT_TRUE(payload.empty());
  payload.push_front(piece);
  EXPECT_EQ(payload.front().data(), at);
  recorder_.conns[conn].held.clear();
  EXPECT_EQ(pool_->received_count(), 0u);
  EXPECT_EQ(stack_->counters().bytes_copied, 0u);
}

TEST_F(StackReceiving, the_window_closes_by_what_is_not_consumed_and_opens_again) {
  const std::uint32_t kWindowBytes = StackOptions{}.receive_window_bytes;
  Peer peer;
  const ConnIndex conn = open(peer);
  recorder_.consume = false;
  std::uint32_t total = 0;
  std::uint32_t window = 0;
  for (int i = 0; i < 9; ++i) {
    send(peer, kTcpAck, pattern(50'000, total));
    total += 50'000;
    const auto sent = take();
    ASSERT_EQ(sent.size(), 1u) << "more than one segment is acknowledged at once";
    window = window_of(sent[0]);
    EXPECT_EQ(sent[0].tcp.ack, peer.snd);
    EXPECT_EQ(window, (kWindowBytes - total) & ~127u) << "in units of the scale";
  }
  stack_->consume(conn, 1000);
  EXPECT_TRUE(take().empty()) << "not worth a packet";
  stack_->consume(conn, total);  // more than there is: clamped
  const auto sent = take();
  ASSERT_EQ(sent.size(), 1u);
  EXPECT_EQ(window_of(sent[0]), kWindowBytes);
}

// A receiver takes the quick way for packets whose window is that of the one before.
TEST_F(StackReceiving, answers_to_small_requests_all_announce_the_same_window) {
  Peer peer;
  const ConnIndex conn = open(peer);
  const Bytes answer = pattern(100);
  for (int i = 0; i < 20; ++i) {
    send(peer, kTcpAck, pattern(300));
    ASSERT_TRUE(stack_->write(conn, as_span(answer), WriteMode::kCopy).ok());
    const auto sent = take();
    ASSERT_EQ(sent.size(), 1u);
    EXPECT_EQ(window_of(sent[0]), StackOptions{}.receive_window_bytes) << i;
    peer.rcv += 100;
  }
}

TEST_F(StackReceiving, a_window_that_is_mostly_open_is_updated_by_larger_steps) {
  const std::uint32_t kWindowBytes = StackOptions{}.receive_window_bytes;
  Peer peer;
  const ConnIndex conn = open(peer);
  recorder_.consume = false;
  std::uint32_t total = 0;
  const auto fill = [&](std::uint32_t bytes) {
    for (const std::uint32_t end = total + bytes; total < end; total += 50'000) {
      send(peer, kTcpAck, pattern(50'000, total));
    }
    take();
  };
  fill(kWindowBytes / 4);
  stack_->consume(conn, 256 * 1024 - 1);
  EXPECT_TRUE(take().empty()) << "the client has more than half of it left";
  stack_->consume(conn, 1);
  EXPECT_EQ(take().size(), 1u);
  fill(kWindowBytes / 2);
  stack_->consume(conn, 4 * 1460 - 1);
  EXPECT_TRUE(take().empty());
  stack_->consume(conn, 1);
  EXPECT_EQ(take().size(), 1u) << "the client has less than half of it left";
}

TEST_F(StackReceiving, an_acknowledgement_stands_for_a_burst_that_takes_several_rounds) {
  Peer peer;
  open(peer);
  std::uint32_t total = 0;
  const auto round = [&](bool more) {
    send(peer, kTcpAck, pattern(5'000, total));
    total += 5'000;
    stack_->flush(more);
    return std::exchange(io_.sent, {});
  };
  EXPECT_TRUE(round(true).empty());
  auto sent = round(false);
  ASSERT_EQ(sent.size(), 1u);
  EXPECT_EQ(sent[0].tcp.ack, peer.snd);
  for (unsigned i = 0; i < Stack::kAckRoundsMax; ++i) EXPECT_TRUE(round(true).empty()) << i;
  sent = round(true);
  ASSERT_EQ(sent.size(), 1u) << "a burst without an end does not stop the client";
  EXPECT_EQ(sent[0].tcp.ack, peer.snd);
}

TEST_F(StackReceiving, what_is_more_than_an_acknowledgement_waits_for_no_burst) {
  Peer peer;
  const ConnIndex conn = open(peer);
  send(peer, kTcpAck, pattern(5'000));
  const Bytes reply = pattern(10);
  ASSERT_TRUE(stack_->write(conn, as_span(reply), WriteMode::kCopy).ok());
  stack_->flush(true);
  ASSERT_EQ(io_.sent.size(), 1u);
  EXPECT_EQ(io_.sent[0].tcp.payload, reply);
  EXPECT_EQ(io_.sent[0].tcp.ack, peer.snd);
  io_.sent.clear();
  send(peer, kTcpAck | kTcpFin, pattern(5'000, 5'000));
  stack_->flush(true);
  ASSERT_EQ(io_.sent.size(), 1u) << "nor does the acknowledgement of the client's end";
  EXPECT_EQ(io_.sent[0].tcp.ack, peer.snd);
}

// Resets for strangers, which fill the interface's queue while the device takes nothing.
class StackFullDevice : public ConnectedStackTest {
 protected:
  void fill_device() {
    io_.accept_max = 0;
    for (int i = 0; i < 1'100; ++i) {
      Peer stranger;
      stranger.self.port = static_cast<std::uint16_t>(1'000 + i);
      Segment lost = stranger.segment(kTcpAck);
      lost.ack = 5;
      deliver(stranger.self, stranger.other, lost);
    }
  }
  std::vector<Sent> to_peer_once_it_empties(const Peer& peer) {
    advance_ms(60);
    EXPECT_TRUE(io_.sent.empty());
    io_.accept_max = SIZE_MAX;
    advance_ms(100);
    std::vector<Sent> out;
    for (Sent& packet : std::exchange(io_.sent, {})) {
      if (packet.dst == peer.self) out.push_back(std::move(packet));
    }
    return out;
  }
};

TEST_F(StackFullDevice, a_window_that_opens_meanwhile_is_announced_afterwards) {
  const std::uint32_t kWindowBytes = StackOptions{}.receive_window_bytes;
  Peer peer;
  const ConnIndex conn = open(peer);
  recorder_.consume = false;
  for (std::uint32_t total = 0; total < kWindowBytes;) {
    const std::uint32_t bytes = std::min(50'000u, kWindowBytes - total);
    send(peer, kTcpAck, pattern(bytes, total));
    total += bytes;
  }
  ASSERT_EQ(take().back().tcp.window, 0u);
  fill_device();
  stack_->consume(conn, kWindowBytes);
  const auto sent = to_peer_once_it_empties(peer);
  ASSERT_EQ(sent.size(), 1u);
  EXPECT_EQ(window_of(sent[0]), kWindowBytes);
}

TEST_F(StackFullDevice, one_segment_is_acknowledged_afterwards) {
  Peer peer;
  open(peer);
  fill_device();
  send(peer, kTcpAck, pattern(100));
  const auto sent = to_peer_once_it_empties(peer);
  ASSERT_EQ(sent.size(), 1u);
  EXPECT_EQ(sent[0].tcp.ack, peer.snd);
}

TEST_F(StackFullDevice, what_is_beyond_the_window_is_challenged_afterwards) {
  Peer peer;
  open(peer);
  fill_device();
  Segment far = peer.segment(kTcpAck, pattern(100));
  far.seq += StackOptions{}.receive_window_bytes + 1'000;
  deliver(peer.self, peer.other, far);
  const auto sent = to_peer_once_it_empties(peer);
  ASSERT_EQ(sent.size(), 1u);
  EXPECT_EQ(sent[0].tcp.ack, peer.snd);
}

TEST_F(StackReceiving, bytes_beyond_the_window_are_not_taken) {
  Peer peer;
  const ConnIndex conn = open(peer, -1);  // without scaling: 64 KB
  recorder_.consume = false;
  send(peer, kTcpAck, pattern(40'000));
  send(peer, kTcpAck, pattern(40'000, 40'000));
  EXPECT_EQ(recorder_.conns[conn].received.size(), 65'535u);
  auto sent = take();
  ASSERT_FALSE(sent.empty());
  EXPECT_EQ(sent.back().tcp.window, 0);
  // A probe of the closed window is answered, its byte not taken.
  peer.snd = sent.back().tcp.ack;
  send(peer, kTcpAck, pattern(1));
  sent = take();
  ASSERT_EQ(sent.size(), 1u);
  EXPECT_EQ(sent[0].tcp.ack, peer.snd - 1);
  stack_->consume(conn, 65'535);
  sent = take();
  ASSERT_EQ(sent.size(), 1u);
  EXPECT_EQ(sent[0].tcp.window, 65'535);
}

TEST_F(StackReceiving, one_small_segment_is_acknowledged_after_a_tick_and_two_at_once) {
  Peer peer;
  open(peer);
  send(peer, kTcpAck, pattern(100));
  EXPECT_TRUE(take().empty());
  advance_ms(40);
  EXPECT_EQ(take().size(), 1u);
  send(peer, kTcpAck, pattern(100));
  send(peer, kTcpAck, pattern(100));
  send(peer, kTcpAck, pattern(100));
  const auto sent = take();
  ASSERT_EQ(sent.size(), 1u) << "one acknowledgement for the burst";
  EXPECT_EQ(sent[0].tcp.ack, peer.snd);
}

TEST_F(StackReceiving, segments_out_of_order_are_put_in_order_with_sack) {
  Peer peer;
  Segment syn{.flags = kTcpSyn, .seq = peer.snd};
  syn.options = syn_options();
  syn.options.insert(syn.options.end(), {4, 2});
  deliver(peer.self, peer.other, syn);
  peer.snd += 1;
  peer.rcv = take().at(0).tcp.seq + 1;
  send(peer, kTcpAck);
  const ConnIndex conn = recorder_.last;
  const Bytes data = pattern(5000);
  const auto part = [&](std::size_t from, std::size_t to) {
    Segment out = peer.segment(kTcpAck, Bytes(data.begin() + static_cast<std::ptrdiff_t>(from),
                                              data.begin() + static_cast<std::ptrdiff_t>(to)));
    out.seq += static_cast<std::uint32_t>(from);
    deliver(peer.self, peer.other, out);
  };
  part(3000, 4000);
  auto sent = take();
  ASSERT_EQ(sent.size(), 1u);
  EXPECT_EQ(sent[0].tcp.ack, peer.snd);
  const Bytes& options = sent[0].tcp.options;
  ASSERT_EQ(options.size(), 12u);
  EXPECT_EQ(options[2], 5);
  EXPECT_EQ(net::load_be32(options.data() + 4), peer.snd + 3000);
  EXPECT_EQ(net::load_be32(options.data() + 8), peer.snd + 4000);
  part(1000, 2000);
  part(1500, 3500);  // overlaps both
  part(0, 1200);
  EXPECT_EQ(recorder_.conns[conn].received, Bytes(data.begin(), data.begin() + 4000));
  part(0, 5000);  // old and new
  EXPECT_EQ(recorder_.conns[conn].received, data);
  part(0, 5000);  // a duplicate
  EXPECT_EQ(recorder_.conns[conn].received, data);
  sent = take();
  EXPECT_EQ(sent.back().tcp.ack, peer.snd + 5000);
}

// RFC 2018 8: to drop what was acknowledged selectively has the client send all of it again.
TEST_F(StackReceiving, what_is_behind_a_gap_waits_for_a_client_that_is_slow_to_fill_it) {
  Peer peer;
  peer.selective = true;
  const ConnIndex conn = open(peer);
  Peer ahead = peer;
  ahead.snd += 100;
  send(ahead, kTcpAck, pattern(1000, 100));
  advance_ms(10'000);
  take();
  send(peer, kTcpAck, pattern(100));
  EXPECT_EQ(recorder_.conns[conn].received, pattern(1100));
  // Not for one that never comes back.
  peer.snd += 1000 + 100;
  send(peer, kTcpAck, pattern(1000));
  EXPECT_LT(pool_->free_count(), pool_->slot_count());
  advance_ms(61'000);
  EXPECT_EQ(pool_->free_count(), pool_->slot_count());
  take();
}

TEST_F(StackReceiving, a_fin_out_of_order_waits_for_the_bytes_before_it) {
  Peer peer;
  const ConnIndex conn = open(peer);
  Segment late = peer.segment(kTcpAck | kTcpFin, pattern(100, 100));
  late.seq += 100;
  deliver(peer.self, peer.other, late);
  EXPECT_FALSE(recorder_.conns[conn].fin);
  send(peer, kTcpAck, pattern(100));
  EXPECT_EQ(recorder_.conns[conn].received, pattern(200));
  EXPECT_TRUE(recorder_.conns[conn].fin);
  EXPECT_EQ(stack_->state(conn), TcpState::kCloseWait);
}

TEST_F(StackReceiving, a_super_packet_of_64_kilobytes_is_taken_whole) {
  Peer peer;
  const ConnIndex conn = open(peer);
  const Bytes data = pattern(65'495);
  send(peer, kTcpAck | kTcpPsh, data);
  EXPECT_EQ(recorder_.conns[conn].received, data);
}

TEST_F(StackReceiving, out_of_order_data_gives_way_when_slots_run_short) {
  make({.connections_max = 10, .heap_bytes_max = std::size_t{8} << 20}, 32);
  listen();
  Peer peer;
  const ConnIndex conn = open(peer);
  std::vector<buffer::SlotIndex> taken;
  // Gaps everywhere: each segment pins a slot.
  for (std::uint32_t i = 0; i < 40; ++i) {
    Segment out = peer.segment(kTcpAck, pattern(10));
    out.seq += 100 + i * 20;
    deliver(peer.self, peer.other, out);
  }
  EXPECT_GE(pool_->free_count(), 20u) << "a quarter of what is free at most";
  const std::size_t before = pool_->free_count();
  while (pool_->free_count() > 2) taken.push_back(pool_->acquire());
  send(peer, kTcpAck, pattern(10));  // brings the shortage to light
  EXPECT_EQ(recorder_.conns[conn].received.size(), 10u);
  EXPECT_EQ(pool_->free_count() + taken.size(), 32u) << "out of order data was dropped";
  EXPECT_LT(before, 32u);
  for (const buffer::SlotIndex slot : taken) pool_->release(slot);
}

TEST_F(StackReceiving, with_no_slot_left_acknowledgements_still_count) {
  make({.connections_max = 10, .heap_bytes_max = std::size_t{8} << 20}, 32);
  listen();
  Peer peer;
  const ConnIndex conn = open(peer);
  ASSERT_TRUE(stack_->write(conn, as_span(pattern(500)), WriteMode::kCopy).ok());
  take();
  std::vector<buffer::SlotIndex> taken;
  while (pool_->free_count() > 1) taken.push_back(pool_->acquire());
  peer.rcv += 500;
  Segment both = peer.segment(kTcpAck | kTcpFin, pattern(10));
  deliver(peer.self, peer.other, both);
  EXPECT_EQ(recorder_.conns[conn].acked, 500u);
  EXPECT_TRUE(recorder_.conns[conn].received.empty());
  EXPECT_FALSE(recorder_.conns[conn].fin);
  EXPECT_EQ(stack_->counters().dropped_no_slot, 1u);
  for (const buffer::SlotIndex slot : taken) pool_->release(slot);
  deliver(peer.self, peer.other, both);  // the client sends it again
  EXPECT_EQ(recorder_.conns[conn].received, pattern(10));
  EXPECT_TRUE(recorder_.conns[conn].fin);
}

TEST_F(StackReceiving, an_echo_request_is_answered) {
  const Bytes ping = echo_request();
  deliver_bytes(ping);
  EXPECT_TRUE(io_.other.empty());
  take();
  ASSERT_EQ(io_.other.size(), 1u);
  EXPECT_EQ(io_.other[0][20], 0) << "echo reply";
  EXPECT_EQ(Bytes(io_.other[0].end() - 8, io_.other[0].end()), Bytes(ping.end() - 8, ping.end()));
  EXPECT_EQ(stack_->counters().icmp_echo, 1u);
}

TEST_F(StackReceiving, what_is_not_for_us_is_dropped_and_counted) {
  Peer peer;
  const ConnIndex conn = open(peer);
  const Bytes good = make_packet(peer.self, peer.other, peer.segment(kTcpAck, pattern(10)));

  Bytes bad = good;
  bad.back() ^= 1;
  deliver_bytes(bad);
  EXPECT_EQ(stack_->counters().dropped_checksum, 1u);

  bad = good;
  bad[9] = 17;
  net::store_raw16(bad.data() + 10, 0);
  net::store_raw16(bad.data() + 10, net::ipv4_header_checksum(bad.data(), 20));
  net::store_be16(bad.data() + 24, static_cast<std::uint16_t>(bad.size() - 20));
  deliver_bytes(bad);
  EXPECT_EQ(stack_->counters().dropped_not_tcp, 1u);

  for (std::size_t bytes = 0; bytes < 40; ++bytes)
    deliver_bytes(Bytes(good.begin(), good.begin() + static_cast<std::ptrdiff_t>(bytes)));
  EXPECT_EQ(stack_->counters().dropped_malformed, 40u);
  EXPECT_TRUE(recorder_.conns[conn].received.empty());

  // A trusted checksum is not looked at.
  bad = good;
  bad[20 + 16] ^= 0xff;
  deliver_bytes(bad, {.checksum_verified = true});
  EXPECT_EQ(recorder_.conns[conn].received, pattern(10));
}

TEST_F(StackReceiving, an_acknowledgement_of_what_was_never_sent_is_challenged) {
  Peer peer;
  const ConnIndex conn = open(peer);
  peer.rcv += 1000;
  send(peer, kTcpAck, pattern(10));
  EXPECT_TRUE(recorder_.conns[conn].received.empty());
  const auto sent = take();
  ASSERT_EQ(sent.size(), 1u);
  EXPECT_EQ(sent[0].tcp.ack, peer.snd - 10);
}

TEST_F(StackReceiving, data_without_ack_and_far_outside_the_window_is_refused) {
  Peer peer;
  const ConnIndex conn = open(peer);
  deliver(peer.self, peer.other, {.flags = kTcpPsh, .seq = peer.snd, .payload = pattern(5)});
  EXPECT_TRUE(take().empty());
  deliver(peer.self, peer.other,
          {.flags = kTcpAck, .seq = peer.snd + (1u << 20), .ack = peer.rcv, .payload = pattern(5)});
  EXPECT_EQ(take().size(), 1u);
  EXPECT_TRUE(recorder_.conns[conn].received.empty());
}

}  // namespace
}  // namespace sanproxy::stack::testing
