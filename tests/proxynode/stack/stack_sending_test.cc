// Sending: segments, super-segments, windows, retransmission, and whose memory is whose when.
#include "tests/proxynode/stack/stack_sending.h"

namespace sanproxy::stack::testing {
namespace {

using StackSending = SendingTest;

TEST_F(StackSending, a_first_window_of_ten_segments_then_more_with_each_acknowledgement) {
  Peer peer;
  const ConnIndex conn = open(peer);
  const Bytes data = pattern(400'000);
  ASSERT_TRUE(stack_->write(conn, as_span(data), WriteMode::kReference).ok());
  auto sent = take();
  std::size_t first = 0;
  for (const Sent& packet : sent) first += packet.payload_bytes();
  EXPECT_EQ(first, 14'600u);
  Bytes stream;
  for (const Sent& packet : sent) accept(peer, packet, stream);
  send(peer, kTcpAck);
  sent = take();
  std::size_t second = 0;
  for (const Sent& packet : sent) second += packet.payload_bytes();
  EXPECT_GE(second, 2 * 14'600u - 7'300u) << "slow start doubles";
  for (const Sent& packet : sent) accept(peer, packet, stream);
  send(peer, kTcpAck);
  const Bytes rest = drain(peer);
  stream.insert(stream.end(), rest.begin(), rest.end());
  EXPECT_EQ(stream, data);
  EXPECT_EQ(recorder_.conns[conn].acked, data.size());
  EXPECT_EQ(stack_->counters().bytes_copied, 0u);
  EXPECT_EQ(stack_->counters().retransmits, 0u);
}

TEST_F(StackSending, slow_start_is_the_same_when_the_handshake_was_answered_late) {
  Peer peer;
  ASSERT_TRUE(half_open(peer));
  advance_ms(1'100);
  ASSERT_EQ(take().size(), 1u) << "SYN+ACK again";
  send(peer, kTcpAck);
  const Bytes data = pattern(600'000);
  ASSERT_TRUE(stack_->write(recorder_.last, as_span(data), WriteMode::kReference).ok());
  Bytes stream;
  for (const std::size_t most : {10u, 20u, 40u, 80u}) {
    const std::size_t before = stream.size();
    for (const Sent& packet : take()) accept(peer, packet, stream);
    EXPECT_EQ(stream.size() - before, most * 1460);
    send(peer, kTcpAck);
  }
}

TEST_F(StackSending, super_segments_are_whole_multiples_of_the_wire_size) {
  for (const bool timestamps : {false, true}) {
    Peer peer;
    peer.timestamps = timestamps;
    peer.self.port = timestamps ? 40001 : 40002;
    const ConnIndex conn = open(peer);
    warm_up(peer, conn);
    const Bytes data = pattern(63'712);
    ASSERT_TRUE(stack_->write(conn, as_span(data), WriteMode::kReference).ok());
    const auto sent = take();
    ASSERT_EQ(sent.size(), 1u);
    EXPECT_EQ(sent[0].payload_bytes(), data.size());
    EXPECT_EQ(sent[0].offload.segmentation, packet_io::Segmentation::kTcp4);
    EXPECT_EQ(sent[0].offload.segment_bytes, timestamps ? 1448 : 1460);
    EXPECT_EQ(sent[0].tcp.options.size(), timestamps ? 12u : 0u);
    EXPECT_EQ(drain(peer).size(), 0u);
  }
}

TEST_F(StackSending, without_offload_every_packet_fits_the_mtu) {
  io_.set_segmentation(false);
  make({.connections_max = 10, .heap_bytes_max = std::size_t{64} << 20});
  listen();
  Peer peer;
  const ConnIndex conn = open(peer);
  const Bytes data = pattern(300'000);
  ASSERT_TRUE(stack_->write(conn, as_span(data), WriteMode::kReference).ok());
  EXPECT_EQ(drain(peer), data);  // MemoryIo checks the lengths
}

TEST_F(StackSending, write_is_all_or_nothing_and_send_room_says_which) {
  Peer peer;
  const ConnIndex conn = open(peer);
  const std::uint32_t room = stack_->send_room(conn);
  EXPECT_EQ(room, StackOptions{}.send_buffer_bytes);
  const Bytes data = pattern(room + 1);
  EXPECT_TRUE(stack_->write(conn, as_span(data), WriteMode::kReference).is_again());
  EXPECT_TRUE(take().empty());
  ASSERT_TRUE(stack_->write(conn, as_span(data).first(room), WriteMode::kReference).ok());
  EXPECT_EQ(stack_->send_room(conn), 0u);
  EXPECT_TRUE(stack_->write(conn, as_span(data).last(1), WriteMode::kReference).is_again());
  EXPECT_EQ(drain(peer).size(), room);
  EXPECT_EQ(stack_->send_room(conn), room);
}

TEST_F(StackSending, references_are_released_when_their_whole_segment_is_acknowledged) {
  Peer peer;
  const ConnIndex conn = open(peer);
  warm_up(peer, conn);
  const std::uint64_t before = recorder_.conns[conn].acked;
  const Bytes data = pattern(29'200);
  ASSERT_TRUE(stack_->write(conn, as_span(data), WriteMode::kReference).ok());
  const auto sent = take();
  ASSERT_EQ(sent.size(), 1u);
  peer.rcv += 20'000;
  send(peer, kTcpAck);
  EXPECT_EQ(recorder_.conns[conn].acked, before) << "the tail may still be sent again";
  peer.rcv += 9'200;
  send(peer, kTcpAck);
  EXPECT_EQ(recorder_.conns[conn].acked, before + 29'200);
}

TEST_F(StackSending, a_queued_retransmission_is_dropped_when_its_bytes_are_released) {
  Peer peer;
  const ConnIndex conn = open(peer);
  Bytes data = pattern(1000);
  ASSERT_TRUE(stack_->write(conn, as_span(data), WriteMode::kReference).ok());
  ASSERT_EQ(take().size(), 1u);
  clock_.advance_ns(300'000'000);
  stack_->on_time();
  clock_.advance_ns(300'000'000);
  stack_->on_time();
  clock_.advance_ns(300'000'000);
  stack_->on_time();  // the retransmission is queued, not sent
  recorder_.in_acked = [&](ConnIndex) { std::fill(data.begin(), data.end(), 0xee); };
  peer.rcv += 1000;
  send(peer, kTcpAck);
  recorder_.in_acked = nullptr;
  EXPECT_EQ(recorder_.conns[conn].acked, 1000u);
  for (const Sent& packet : take()) EXPECT_EQ(packet.payload_bytes(), 0u);
}

TEST_F(StackSending, queued_data_of_a_connection_that_ends_is_never_sent) {
  Peer peer;
  const ConnIndex conn = open(peer);
  Bytes data = pattern(1000);
  send(peer, kTcpAck, pattern(10));
  ASSERT_TRUE(stack_->write(conn, as_span(data), WriteMode::kReference).ok());
  // What flush() would send first is in the queue because the device was full.
  io_.accept_max = 0;
  stack_->flush();
  io_.accept_max = SIZE_MAX;
  recorder_.in_closed = [&](ConnIndex) { std::fill(data.begin(), data.end(), 0xee); };
  send(peer, kTcpRst);
  recorder_.in_closed = nullptr;
  EXPECT_TRUE(recorder_.conns[conn].closed);
  EXPECT_TRUE(take().empty());
}

TEST_F(StackSending, a_full_device_loses_nothing) {
  Peer peer;
  const ConnIndex conn = open(peer);
  const Bytes data = pattern(200'000);
  ASSERT_TRUE(stack_->write(conn, as_span(data), WriteMode::kReference).ok());
  Bytes stream;
  for (int i = 0; i < 2000 && stream.size() < data.size(); ++i) {
    io_.accept_max = 1;
    for (const Sent& packet : take()) accept(peer, packet, stream);
    io_.accept_max = SIZE_MAX;
    send(peer, kTcpAck);
  }
  EXPECT_EQ(stream, data);
  EXPECT_EQ(stack_->counters().retransmits, 0u);
}

TEST_F(StackSending, a_thousand_tiny_writes_make_few_packets) {
  Peer peer;
  const ConnIndex conn = open(peer);
  warm_up(peer, conn);
  const Bytes data = pattern(3000);
  for (std::size_t i = 0; i < data.size(); i += 3) {
    const WriteMode mode = i % 2 == 0 ? WriteMode::kCopy : WriteMode::kReference;
    ASSERT_TRUE(stack_->write(conn, as_span(data).subspan(i, 3), mode).ok());
  }
  stack_->flush();
  const std::size_t packets = io_.sent.size();
  EXPECT_LE(packets, 1000 / (packet_io::kSendPiecesMax - 2));
  EXPECT_EQ(drain(peer), data);
}

TEST_F(StackSending, tiny_copies_into_a_closed_window_share_blocks) {
  Peer peer;
  const ConnIndex conn = open(peer);
  warm_up(peer, conn);
  peer.window = 0;
  send(peer, kTcpAck);
  take();
  const std::size_t before = stack_->heap_bytes_used();
  const Bytes data = pattern(200'000);
  for (std::size_t i = 0; i < data.size(); ++i) {
    ASSERT_TRUE(stack_->write(conn, as_span(data).subspan(i, 1), WriteMode::kCopy).ok()) << i;
    if (i % 1000 == 0) stack_->flush();
  }
  EXPECT_LE(stack_->heap_bytes_used() - before, 2 * data.size());
  Bytes stream;
  for (const Sent& packet : take()) accept(peer, packet, stream);
  peer.window = 0xffff;
  send(peer, kTcpAck);
  const Bytes rest = drain(peer);
  stream.insert(stream.end(), rest.begin(), rest.end());
  EXPECT_EQ(stream, data);
}

TEST_F(StackSending, copies_and_references_of_any_length_keep_their_order_when_windows_change) {
  Peer peer;
  const ConnIndex conn = open(peer);
  warm_up(peer, conn);
  const Bytes data = pattern(700'000);
  Bytes stream;
  std::uint32_t random = 1;
  const auto next = [&random](std::uint32_t below) {
    random = random * 1664525 + 1013904223;
    return (random >> 8) % below;
  };
  for (std::size_t done = 0; done < data.size();) {
    const std::size_t bytes =
        std::min<std::size_t>(data.size() - done, 1 + next(next(8) == 0   ? 30'000
                                                           : next(2) == 0 ? 10
                                                                          : 400));
    const WriteMode mode = next(4) == 0 ? WriteMode::kReference : WriteMode::kCopy;
    const Status wrote = stack_->write(conn, as_span(data).subspan(done, bytes), mode);
    if (wrote.ok()) done += bytes;
    if (!wrote.ok() || next(20) == 0) {
      for (const Sent& packet : take()) {
        if (next(10) != 0) accept(peer, packet, stream);  // some are lost
      }
      const std::uint32_t pick = next(4);
      peer.window = static_cast<std::uint16_t>(pick == 0 ? 0 : pick == 1 ? 20 : 500);
      send(peer, kTcpAck);
    }
    if (next(100) == 0) advance_ms(40);
  }
  peer.window = 500;
  for (int i = 0; i < 5'000 && stream.size() < data.size(); ++i) {
    send(peer, kTcpAck);
    advance_ms(100);
    for (const Sent& packet : take()) accept(peer, packet, stream);
  }
  EXPECT_EQ(stream, data);
}

TEST_F(StackSending, a_small_window_after_a_large_segment_does_not_stall_later_writes) {
  // A later write with a smaller segment size than the last unsent one: lwIP's arithmetic.
  Peer peer;
  const ConnIndex conn = open(peer);
  warm_up(peer, conn);
  peer.window = 0;
  send(peer, kTcpAck);
  const Bytes first = pattern(60'000), second = pattern(500, 60'000);
  ASSERT_TRUE(stack_->write(conn, as_span(first), WriteMode::kReference).ok());
  take();
  // Loss recovery makes segments small.
  ASSERT_TRUE(stack_->write(conn, as_span(second).first(100), WriteMode::kCopy).ok());
  ASSERT_TRUE(stack_->write(conn, as_span(second).subspan(100), WriteMode::kReference).ok());
  peer.window = 0xffff;
  send(peer, kTcpAck);
  Bytes all = first;
  all.insert(all.end(), second.begin(), second.end());
  EXPECT_EQ(drain(peer), all);
}

// Of a burst only so much gets through, whatever comes again: a retransmission must not start with
// the same bytes each time.
TEST_F(StackSending, a_queue_on_the_way_that_is_shorter_than_a_super_segment_is_got_through) {
  Peer peer;
  const ConnIndex conn = open(peer);
  warm_up(peer, conn);
  const Bytes data = pattern(300'000);
  ASSERT_TRUE(stack_->write(conn, as_span(data), WriteMode::kReference).ok());
  ASSERT_TRUE(stack_->shutdown_send(conn).ok());
  constexpr std::uint32_t kQueueBytes = 5 * 1460;
  Bytes stream;
  bool ended = false;
  for (int i = 0; i < 5000 && !ended; ++i) {
    std::uint32_t room = kQueueBytes;
    const auto sent = take();
    for (Sent packet : sent) {
      const bool whole = packet.payload_bytes() <= room;
      if (!whole) packet.tcp.payload.resize(room);
      room -= packet.payload_bytes();
      accept(peer, packet, stream);
      const bool last = packet.tcp.seq + packet.payload_bytes() == peer.rcv;
      ended |= whole && last && packet.has(kTcpFin);
    }
    if (!sent.empty()) send(peer, kTcpAck);
    advance_ms(20);
  }
  EXPECT_TRUE(ended);
  EXPECT_EQ(stream, data);
}

TEST_F(StackSending, a_lost_packet_is_sent_again_after_three_duplicates) {
  Peer peer;
  const ConnIndex conn = open(peer);
  warm_up(peer, conn);
  const Bytes data = pattern(500'000);
  ASSERT_TRUE(stack_->write(conn, as_span(data), WriteMode::kReference).ok());
  auto sent = take();
  ASSERT_GE(sent.size(), 5u);
  const std::uint32_t lost = sent[0].tcp.seq;
  for (int i = 0; i < 3; ++i) send(peer, kTcpAck);
  const auto again = take();
  ASSERT_FALSE(again.empty());
  EXPECT_EQ(again[0].tcp.seq, lost);
  EXPECT_EQ(stack_->counters().retransmits, 1u);
  Bytes stream;
  accept(peer, again[0], stream);
  for (const Sent& packet : sent) accept(peer, packet, stream);
  send(peer, kTcpAck);
  const Bytes rest = drain(peer);
  stream.insert(stream.end(), rest.begin(), rest.end());
  EXPECT_EQ(stream, data);
}

TEST_F(StackSending, when_everything_is_lost_the_timer_sends_it_again_and_backs_off) {
  Peer peer;
  const ConnIndex conn = open(peer);
  warm_up(peer, conn);
  const Bytes data = pattern(60'000);
  ASSERT_TRUE(stack_->write(conn, as_span(data), WriteMode::kReference).ok());
  take();
  std::vector<std::uint64_t> times;
  for (int i = 0; i < 400; ++i) {
    advance_ms(20);
    if (!take().empty()) times.push_back(clock_.now_ns() / 1'000'000);
  }
  ASSERT_GE(times.size(), 4u) << "a head longer than the reduced window is still sent";
  for (std::size_t i = 2; i < times.size(); ++i) {
    EXPECT_GE(times[i] - times[i - 1], (times[i - 1] - times[i - 2]) * 3 / 2);
  }
  send(peer, kTcpAck);
  EXPECT_EQ(receive_in_time(peer, data.size()), data);
  // And it recovers its speed.
  warm_up(peer, conn);
}

// The window closes upon what is under way, so the fast retransmission cannot leave; then the timer
// requeues the rest. The lost head must still be the first to go when the window opens.
TEST_F(StackSending, a_time_out_after_a_held_back_retransmission_sends_the_lost_head_first) {
  Peer peer;
  const ConnIndex conn = open(peer);
  warm_up(peer, conn);
  const Bytes data = pattern(500'000);
  ASSERT_TRUE(stack_->write(conn, as_span(data), WriteMode::kReference).ok());
  ASSERT_GE(take().size(), 5u);  // all lost
  peer.window = 1;               // 128 bytes, less than the head
  for (int i = 0; i < 5; ++i) send(peer, kTcpAck);
  EXPECT_TRUE(take().empty()) << "the window holds the retransmission back";
  for (int i = 0; i < 100; ++i) {
    advance_ms(20);
    take();
  }
  peer.window = 0xffff;
  send(peer, kTcpAck);
  EXPECT_EQ(receive_in_time(peer, data.size()), data);
}

// Likewise for an error about the path. What the window took of the lost head is requeued with what
// is behind it; the rest of the head belongs between the two, or nothing would ever leave.
TEST_F(StackSending, a_narrower_path_during_a_recovery_sends_the_rest_of_the_lost_head_first) {
  Peer peer;
  const ConnIndex conn = open(peer);
  warm_up(peer, conn);
  const Bytes data = pattern(125'000);
  ASSERT_TRUE(stack_->write(conn, as_span(data), WriteMode::kReference).ok());
  ASSERT_EQ(take().size(), 2u);  // both lost
  peer.window = 64;              // 8 KB, a part of the head
  for (int i = 0; i < 5; ++i) send(peer, kTcpAck);
  const auto again = take();
  ASSERT_EQ(again.size(), 1u);
  ASSERT_LT(again[0].payload_bytes(), 8192u);
  deliver_bytes(too_big(peer.other, peer.self, peer.rcv, 1300));
  ASSERT_EQ(stack_->counters().path_mtu_lowered, 1u);
  peer.window = 0xffff;
  send(peer, kTcpAck);
  EXPECT_EQ(receive_in_time(peer, data.size()), data);
}

TEST_F(StackSending, a_first_segment_that_found_queue_and_device_full_leaves_by_the_timer) {
  Peer peer;
  const ConnIndex conn = open(peer);
  send(peer, kTcpAck, pattern(10));  // nothing of ours is under way when it is acknowledged
  advance_ms(100);
  (void)take();
  io_.accept_max = 0;
  const Bytes request = echo_request();
  while (stack_->counters().dropped_send_queue == 0) {
    deliver_lent(request, packet_io::kNoPacketLoan);
  }
  const Bytes data = pattern(500);
  ASSERT_TRUE(stack_->write(conn, as_span(data), WriteMode::kReference).ok());
  stack_->flush();
  io_.accept_max = SIZE_MAX;
  EXPECT_TRUE(take().empty()) << "it was not even in the queue";
  advance_ms(40);
  const auto sent = take();
  ASSERT_EQ(sent.size(), 1u) << "no answer can come, and no retransmission is due";
  EXPECT_EQ(sent[0].tcp.payload, data);
}

TEST_F(StackSending, the_first_retransmission_comes_no_sooner_than_the_minimum) {
  Peer peer;
  const ConnIndex conn = open(peer);
  warm_up(peer, conn);  // round trips of nothing
  ASSERT_TRUE(stack_->write(conn, as_span(pattern(10)), WriteMode::kCopy).ok());
  ASSERT_EQ(take().size(), 1u);
  advance_ms(140);
  EXPECT_TRUE(take().empty());
  advance_ms(160);
  EXPECT_EQ(stack_->counters().retransmits, 1u);
}

TEST_F(StackSending, without_answers_the_connection_times_out) {
  Peer peer;
  const ConnIndex conn = open(peer);
  ASSERT_TRUE(stack_->write(conn, as_span(pattern(10)), WriteMode::kCopy).ok());
  advance_ms(400'000);
  EXPECT_TRUE(recorder_.conns[conn].closed);
  EXPECT_EQ(recorder_.conns[conn].reason, EndReason::kTimedOut);
}

TEST_F(StackSending, fin_and_data_lost_together_are_sent_again_together) {
  Peer peer;
  const ConnIndex conn = open(peer);
  ASSERT_TRUE(stack_->write(conn, as_span(pattern(100)), WriteMode::kCopy).ok());
  stack_->close(conn);
  auto sent = take();
  ASSERT_EQ(sent.size(), 1u);
  advance_ms(1500);
  EXPECT_GE(stack_->counters().retransmits, 1u);
  peer.rcv += 101;
  send(peer, kTcpAck);
  EXPECT_EQ(stack_->state(conn), TcpState::kFinWait2);
}

}  // namespace
}  // namespace sanproxy::stack::testing
