// Recovery by selective acknowledgements: what goes again, when, and how much at a time.
#include "tests/proxynode/stack/stack_sending.h"

namespace sanproxy::stack::testing {
namespace {

constexpr std::uint32_t kWire = 1460;

class StackRecovery : public SendingTest {
 protected:
  // A client whose congestion window is far beyond what tests write, and that has taken all of it.
  ConnIndex start(Peer& peer) {
    peer.selective = true;
    const ConnIndex conn = open(peer);
    warm_up(peer, conn);
    first_ = peer.rcv;
    return conn;
  }
  void write(ConnIndex conn, const Bytes& data) {
    kept_.push_back(data);  // until the stack has no reference left
    ASSERT_TRUE(stack_->write(conn, as_span(kept_.back()), WriteMode::kReference).ok());
  }
  // An acknowledgement: all segments of the wire but these have come, up to `count` of them.
  void say(Peer& peer, std::uint32_t count, std::initializer_list<std::uint32_t> missing) {
    std::vector<bool> has(count, true);
    for (const std::uint32_t one : missing) has[one] = false;
    std::uint32_t at = 0;
    while (at < count && has[at]) ++at;
    peer.rcv = first_ + at * kWire;
    Blocks blocks;
    for (; at < count; ++at) {
      if (!has[at]) continue;
      const std::uint32_t left = at;
      while (at < count && has[at]) ++at;
      blocks.emplace_back(first_ + left * kWire, first_ + at * kWire);
    }
    std::reverse(blocks.begin(), blocks.end());
    if (blocks.size() > 4) blocks.resize(4);
    peer.blocks = blocks;
    send(peer, kTcpAck);
  }
  // The numbers of the wire's segments that were sent, with repetitions.
  std::vector<std::uint32_t> sent_numbers() {
    std::vector<std::uint32_t> out;
    for (const Sent& packet : take()) {
      for (std::uint32_t at = 0; at < packet.payload_bytes(); at += kWire) {
        EXPECT_EQ((packet.tcp.seq + at - first_) % kWire, 0u);
        out.push_back((packet.tcp.seq + at - first_) / kWire);
      }
    }
    return out;
  }
  std::uint32_t first_ = 0;
  std::deque<Bytes> kept_;
};

using Numbers = std::vector<std::uint32_t>;

TEST_F(StackRecovery, of_a_super_segment_only_what_was_lost_goes_again) {
  Peer peer;
  const ConnIndex conn = start(peer);
  const Bytes data = pattern(40 * kWire);
  write(conn, data);
  EXPECT_EQ(sent_numbers().size(), 40u);
  say(peer, 40, {3, 17, 18, 30});
  EXPECT_EQ(sent_numbers(), (Numbers{3, 17, 18, 30}));
  EXPECT_EQ(stack_->counters().recoveries, 1u);
  EXPECT_EQ(stack_->counters().bytes_copied, 0u);
  say(peer, 40, {3, 17, 18, 30});
  EXPECT_EQ(sent_numbers(), Numbers{}) << "once";
  say(peer, 40, {17, 18, 30});
  EXPECT_EQ(sent_numbers(), Numbers{});
  peer.blocks.clear();
  peer.rcv = first_ + 40 * kWire;
  send(peer, kTcpAck);
  EXPECT_EQ(recorder_.conns[conn].acked, 600'000 + data.size());
  EXPECT_EQ(stack_->counters().retransmits, 3u) << "17 and 18 went as one";
}

TEST_F(StackRecovery, fewer_than_three_segments_behind_a_hole_may_be_in_disorder) {
  Peer peer;
  const ConnIndex conn = start(peer);
  const Bytes data = pattern(40 * kWire);
  write(conn, data);
  (void)take();
  say(peer, 6, {3});
  EXPECT_EQ(sent_numbers(), Numbers{}) << "two have come behind it";
  say(peer, 7, {3});
  EXPECT_EQ(sent_numbers(), (Numbers{3}));
}

TEST_F(StackRecovery, what_is_under_way_falls_to_seven_tenths_of_the_window_and_new_bytes_go_on) {
  Peer peer;
  const ConnIndex conn = start(peer);
  const Bytes data = pattern(1'000'000);
  ASSERT_TRUE(stack_->write(conn, as_span(data), WriteMode::kReference).ok());
  const auto flight = static_cast<std::uint32_t>(sent_numbers().size());
  ASSERT_GE(flight, 40u);
  ASSERT_LT(flight, 600u) << "more waits";
  say(peer, 5, {0});
  EXPECT_EQ(sent_numbers(), (Numbers{0}));
  std::uint32_t next = flight;                 // what goes as new
  const std::uint32_t gone = flight * 3 / 10;  // have to have come before
  std::uint32_t early = 0, later = 0;
  for (std::uint32_t had = 6; had <= flight; ++had) {
    clock_.advance_ns(1'000'000);
    say(peer, had, {0});
    const Numbers sent = sent_numbers();
    for (const std::uint32_t number : sent) EXPECT_EQ(number, next++);
    (had < gone ? early : later) += static_cast<std::uint32_t>(sent.size());
  }
  EXPECT_EQ(early, 0u);
  EXPECT_GE(later, flight - gone - 4) << "one for one";
  EXPECT_LE(later, flight - gone + 4);
}

TEST_F(StackRecovery, a_window_full_of_holes_is_filled_by_one_segment_more_than_has_come) {
  Peer peer;
  const ConnIndex conn = start(peer);
  const Bytes data = pattern(100 * kWire);
  write(conn, data);
  ASSERT_EQ(sent_numbers().size(), 100u);
  // The last ten have come: ninety are lost.
  peer.blocks = {{first_ + 90 * kWire, first_ + 100 * kWire}};
  std::uint32_t delivered = 10, again = 0;
  while (again < 90) {
    send(peer, kTcpAck);
    const Numbers sent = sent_numbers();
    ASSERT_EQ(sent.size(), std::min(delivered + 1, 90 - again));
    for (const std::uint32_t number : sent) EXPECT_EQ(number, again++);
    delivered = static_cast<std::uint32_t>(sent.size());
    peer.rcv = first_ + again * kWire;
  }
  peer.blocks.clear();
  peer.rcv = first_ + 100 * kWire;
  send(peer, kTcpAck);
  EXPECT_EQ(recorder_.conns[conn].acked, 600'000 + data.size());
  EXPECT_EQ(stack_->counters().recoveries, 1u);
}

TEST_F(StackRecovery, what_fills_the_last_hole_lets_no_burst_go) {
  Peer peer;
  const ConnIndex conn = start(peer);
  write(conn, pattern(1'900'000));
  const auto flight = static_cast<std::uint32_t>(sent_numbers().size());
  ASSERT_GE(flight, 40u);
  std::uint32_t sent = flight;
  for (std::uint32_t had = 5; had <= flight; ++had) {
    say(peer, had, {0});
    for (const std::uint32_t number : sent_numbers()) sent += number >= flight ? 1 : 0;
  }
  const std::uint32_t under_way = sent - flight;
  ASSERT_GE(under_way, flight / 4);
  say(peer, flight, {});  // the first one has come
  const auto first = static_cast<std::uint32_t>(sent_numbers().size());
  EXPECT_LE(first, 4u);
  // On with what each acknowledgement says has come, and as CUBIC grows.
  std::uint32_t more = first;
  for (std::uint32_t had = flight + 1; had <= sent; ++had) {
    say(peer, had, {});
    more += static_cast<std::uint32_t>(sent_numbers().size());
  }
  EXPECT_GE(more, under_way - 2);
  EXPECT_LE(more, under_way + flight / 2);
}

TEST_F(StackRecovery, a_retransmission_that_is_lost_goes_again_when_later_bytes_tell) {
  Peer peer;
  const ConnIndex conn = start(peer);
  const Bytes data = pattern(1'000'000);
  write(conn, data);
  const auto flight = static_cast<std::uint32_t>(sent_numbers().size());
  say(peer, flight, {0, 1});
  const Numbers sent = sent_numbers();
  ASSERT_GE(sent.size(), 6u);
  EXPECT_EQ(sent[0], 0u);
  EXPECT_EQ(sent[1], 1u);
  EXPECT_EQ(sent[2], flight) << "new bytes behind them";
  say(peer, flight + 2, {0, 1});
  for (const std::uint32_t number : sent_numbers()) EXPECT_GE(number, flight);
  say(peer, flight + 3, {0, 1});
  const Numbers again = sent_numbers();
  ASSERT_GE(again.size(), 2u);
  EXPECT_EQ(again[0], 0u);
  EXPECT_EQ(again[1], 1u);
}

TEST_F(StackRecovery, the_first_of_a_short_answer_goes_again_when_all_others_have_come) {
  Peer peer;
  const ConnIndex conn = start(peer);
  write(conn, pattern(2 * kWire));
  ASSERT_EQ(sent_numbers().size(), 2u);
  say(peer, 2, {0});
  EXPECT_EQ(sent_numbers(), (Numbers{0})) << "nothing more will come to tell";
}

TEST_F(StackRecovery, small_segments_count_by_number) {
  Peer peer;
  const ConnIndex conn = start(peer);
  const Bytes data = pattern(50);
  std::vector<std::uint32_t> starts;
  for (int i = 0; i < 5; ++i) {
    write(conn, data);
    for (const Sent& packet : take()) starts.push_back(packet.tcp.seq);
  }
  ASSERT_EQ(starts.size(), 5u);
  for (std::uint32_t had = 2; had <= 4; ++had) {
    EXPECT_TRUE(take().empty());
    peer.blocks = {{starts[1], starts[had]}};
    send(peer, kTcpAck);
  }
  const auto again = take();
  ASSERT_EQ(again.size(), 1u);
  EXPECT_EQ(again[0].tcp.seq, starts[0]);
  EXPECT_EQ(again[0].payload_bytes(), 50u);
}

TEST_F(StackRecovery, blocks_that_cannot_be_change_nothing) {
  Peer peer;
  const ConnIndex conn = start(peer);
  const Bytes data = pattern(40 * kWire);
  write(conn, data);
  ASSERT_EQ(sent_numbers().size(), 40u);
  const std::uint32_t end = first_ + 40 * kWire;
  for (const Blocks& blocks :
       {Blocks{{first_ + kWire, end + 1}}, Blocks{{end, end + 9}}, Blocks{{first_ - 9, end}},
        Blocks{{first_ + 9, first_ + 9}}, Blocks{{first_ + 9000, first_ + 8000}},
        Blocks{{first_ - 3000, first_ - 1000}}, Blocks{{first_ + 0x7000'0000, first_}},
        // Less than any segment of the wire.
        Blocks{{first_ + 1, first_ + kWire}, {first_ + kWire + 1, first_ + 2 * kWire}}}) {
    peer.blocks = blocks;
    send(peer, kTcpAck);
    EXPECT_EQ(sent_numbers(), Numbers{});
  }
  EXPECT_EQ(stack_->counters().recoveries, 0u);
  peer.blocks.clear();
  peer.rcv = end;
  send(peer, kTcpAck);
  EXPECT_EQ(recorder_.conns[conn].acked, 600'000 + data.size());
}

TEST_F(StackRecovery, a_client_that_dropped_what_it_had_gets_all_of_it_after_the_time_out) {
  Peer peer;
  const ConnIndex conn = start(peer);
  const Bytes data = pattern(60'000);
  write(conn, data);
  (void)take();
  say(peer, 30, {0});
  EXPECT_EQ(sent_numbers(), (Numbers{0}));
  peer.blocks.clear();  // and it forgets
  EXPECT_EQ(receive_in_time(peer, data.size()), data);
  EXPECT_GE(stack_->counters().retransmits, 10u);
}

TEST_F(StackRecovery, a_probe_does_not_cut_off_what_the_client_has_already) {
  Peer peer;
  const ConnIndex conn = start(peer);
  const Bytes data = pattern(40 * kWire);
  write(conn, data);
  (void)take();
  peer.window = 23;  // two segments of the narrower path, all of which goes again
  send(peer, kTcpAck);
  deliver_bytes(too_big(peer.other, peer.self, first_, 1400));
  ASSERT_EQ(take().front().payload_bytes(), 2720u);
  peer.rcv = first_ + 1360 + 76;
  peer.window = 12;
  send(peer, kTcpAck);
  std::deque<Sent> probe;
  for (int i = 0; i < 9 && probe.empty(); ++i) {
    advance_ms(20);
    probe = take();
  }
  ASSERT_EQ(probe.size(), 1u);
  EXPECT_EQ(probe[0].tcp.seq + probe[0].payload_bytes(), first_ + 2720);
  peer.window = 0;
  send(peer, kTcpAck);
  advance_ms(1'000);
  (void)take();
  peer.window = 0xffff;
  send(peer, kTcpAck);
  const Bytes rest(data.begin() + 1360 + 76, data.end());
  EXPECT_EQ(receive_in_time(peer, rest.size()), rest);
}

TEST_F(StackRecovery, a_probe_of_long_ago_is_none_of_numbers_that_come_again) {
  Peer peer;
  const ConnIndex conn = start(peer);
  static const Bytes data = pattern(2'000'000);
  const auto probed = [&] {
    write(conn, pattern(2 * kWire));
    EXPECT_EQ(take().size(), 1u);
    std::deque<Sent> again;
    for (int i = 0; i < 9 && again.empty(); ++i) {
      advance_ms(20);
      again = take();
    }
    const bool last = again.size() == 1 && again[0].tcp.seq == peer.rcv + kWire;
    peer.rcv += 2 * kWire;
    send(peer, kTcpAck);
    return last;
  };
  EXPECT_TRUE(probed());
  for (std::uint64_t sent = 0; sent < std::uint64_t{1} << 31; sent += data.size()) {
    ASSERT_TRUE(stack_->write(conn, as_span(data), WriteMode::kReference).ok());
    for (auto burst = take(); !burst.empty(); burst = take()) {
      peer.rcv = burst.back().tcp.seq + burst.back().payload_bytes();
      send(peer, kTcpAck);
    }
  }
  EXPECT_TRUE(probed());
}

TEST_F(StackRecovery, a_hole_that_is_filled_makes_room_for_what_was_under_way_alone) {
  Peer peer;
  const ConnIndex conn = start(peer);
  const Bytes data = pattern(1'000'000);
  write(conn, data);
  const auto flight = static_cast<std::uint32_t>(sent_numbers().size());
  const std::uint32_t half = flight / 2;
  say(peer, half, {0});
  std::size_t sent = sent_numbers().size();
  say(peer, half, {});
  sent += sent_numbers().size();
  // Half is under way still, and seven tenths may be.
  EXPECT_LE(sent, flight * 7 / 10 - half + 3);
  EXPECT_GE(sent, flight * 7 / 10 - half - 3);
}

TEST_F(StackRecovery, two_new_segments_follow_what_may_be_in_disorder) {
  Peer peer;
  const ConnIndex conn = start(peer);
  const Bytes data = pattern(1'000'000);
  write(conn, data);
  const auto flight = static_cast<std::uint32_t>(sent_numbers().size());
  say(peer, 2, {0});
  Numbers sent = sent_numbers();  // with what the window had had room for
  ASSERT_FALSE(sent.empty());
  EXPECT_EQ(sent.front(), flight);
  const std::uint32_t next = sent.back() + 1;
  say(peer, 3, {0});
  EXPECT_EQ(sent_numbers(), (Numbers{next}));
  say(peer, 3, {0});
  EXPECT_EQ(sent_numbers(), Numbers{}) << "two";
  say(peer, 4, {0});
  EXPECT_EQ(sent_numbers(), (Numbers{0}));
}

TEST_F(StackRecovery, a_flood_of_acknowledgements_costs_no_more_than_so_much_a_millisecond) {
  Peer peer;
  const ConnIndex conn = start(peer);
  static const Bytes warm = pattern(2'000'000);
  for (int i = 0; i < 2; ++i) {
    ASSERT_TRUE(stack_->write(conn, as_span(warm), WriteMode::kReference).ok());
    ASSERT_EQ(drain(peer).size(), warm.size());
  }
  first_ = peer.rcv;
  const Bytes data = pattern(1'400 * kWire);
  write(conn, data);
  ASSERT_EQ(sent_numbers().size(), 1'400u);
  const auto flood = [&](std::uint32_t segment, int times) {
    const std::uint64_t before = stack_->counters().recovery_visits;
    for (int i = 0; i < times; ++i) {
      peer.blocks = {{first_ + segment * kWire, first_ + (segment + 1) * kWire}};
      peer.window = static_cast<std::uint16_t>(0xffff - i % 2);
      send(peer, kTcpAck);
      (void)take();
    }
    return stack_->counters().recovery_visits - before;
  };
  // Every second segment comes, and is said to have come one by one.
  for (std::uint32_t i = 1; i < 1'400; i += 2) {
    clock_.advance_ns(1'000'000);
    flood(i, 1);
  }
  EXPECT_EQ(stack_->counters().recoveries, 1u);
  clock_.advance_ns(1'000'000);
  EXPECT_LE(flood(1'399, 2'000), 65'536u + 3 * 1'400u);
  peer.rcv += 1;  // what is passed over stops nothing
  send(peer, kTcpAck);
  EXPECT_EQ(take().size(), 0u);
  peer.blocks = {};
  const Bytes rest(data.begin() + 1, data.end());
  EXPECT_EQ(receive_in_time(peer, rest.size()), rest);
}

TEST_F(StackRecovery, what_the_device_does_not_take_does_not_get_between_stream_and_end) {
  Peer peer;
  const ConnIndex conn = start(peer);
  const Bytes data = pattern(40 * kWire), more = pattern(3000, 40 * kWire);
  write(conn, data);
  ASSERT_EQ(sent_numbers().size(), 40u);
  io_.accept_max = 0;
  const Bytes request = echo_request();
  while (stack_->counters().dropped_send_queue == 0) {
    deliver_lent(request, packet_io::kNoPacketLoan);
  }
  say(peer, 40, {3, 20});  // neither goes
  ASSERT_TRUE(stack_->write(conn, as_span(more), WriteMode::kCopy).ok());
  ASSERT_TRUE(stack_->shutdown_send(conn).ok());
  io_.accept_max = SIZE_MAX;
  peer.blocks.clear();
  Bytes stream(data.begin(), data.begin() + 3 * kWire);
  bool ended = false;
  for (int i = 0; i < 500 && !ended; ++i) {
    advance_ms(20);
    const auto sent = take();
    for (const Sent& packet : sent) {
      accept(peer, packet, stream);
      ended |= packet.has(kTcpFin) && packet.tcp.seq + packet.payload_bytes() == peer.rcv;
    }
    if (!sent.empty()) send(peer, kTcpAck);
  }
  Bytes all = data;
  all.insert(all.end(), more.begin(), more.end());
  EXPECT_TRUE(ended);
  EXPECT_EQ(stream, all);
}

TEST_F(StackRecovery, a_held_back_retransmission_does_not_get_between_stream_and_end) {
  Peer peer;
  const ConnIndex conn = open(peer);  // without selective acknowledgements: lwIP's own
  warm_up(peer, conn);
  const Bytes data = pattern(40 * kWire), more = pattern(3000, 40 * kWire);
  write(conn, data);
  (void)take();
  peer.window = 1;
  for (int i = 0; i < 5; ++i) send(peer, kTcpAck);
  EXPECT_TRUE(take().empty());
  ASSERT_TRUE(stack_->write(conn, as_span(more), WriteMode::kCopy).ok());
  ASSERT_TRUE(stack_->shutdown_send(conn).ok());
  peer.window = 0xffff;
  send(peer, kTcpAck);
  Bytes all = data;
  all.insert(all.end(), more.begin(), more.end());
  EXPECT_EQ(receive_in_time(peer, all.size()), all);
}

}  // namespace
}  // namespace sanproxy::stack::testing
