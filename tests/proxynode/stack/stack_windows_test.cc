// Sending to a client with a small or closed window: probes, cuts, and where FIN goes.
#include "tests/proxynode/stack/stack_sending.h"

namespace sanproxy::stack::testing {
namespace {

class StackWindows : public SendingTest {
 protected:
  // A connection whose client then takes nothing.
  ConnIndex open_shut(Peer& peer) {
    const ConnIndex conn = open(peer);
    peer.window = 0;
    send(peer, kTcpAck);
    return conn;
  }
  // What a client gets that takes no more than its window, until FIN or for 20,000 ticks.
  Bytes receive_to_the_end(Peer& peer) {
    Bytes stream;
    for (int i = 0; i < 20'000; ++i) {
      const auto sent = take();
      for (const Sent& packet : sent) {
        EXPECT_LE(packet.payload_bytes(), std::max<std::uint32_t>(peer.window, 1));
        accept(peer, packet, stream);
        const bool last = packet.tcp.seq + packet.payload_bytes() == peer.rcv;
        if (packet.has(kTcpFin) && last) return stream;
      }
      if (!sent.empty()) send(peer, kTcpAck);
      advance_ms(20);
    }
    ADD_FAILURE() << "no FIN came";
    return stream;
  }
};

TEST_F(StackWindows, a_closed_window_is_probed_and_its_opening_noticed) {
  Peer peer;
  const ConnIndex conn = open_shut(peer);
  const Bytes data = pattern(5000);
  ASSERT_TRUE(stack_->write(conn, as_span(data), WriteMode::kReference).ok());
  EXPECT_TRUE(take().empty());
  int probes = 0;
  Bytes stream;
  for (int i = 0; i < 500; ++i) {
    advance_ms(20);
    for (const Sent& packet : take()) {
      ++probes;
      EXPECT_LE(packet.payload_bytes(), 1u);
      send(peer, kTcpAck);  // still closed
    }
  }
  EXPECT_GE(probes, 3);
  EXPECT_TRUE(stack_->is_open(conn)) << "answered probes keep a connection alive";
  peer.window = 0xffff;
  send(peer, kTcpAck);
  EXPECT_EQ(drain(peer), data);
}

TEST_F(StackWindows, a_closed_window_that_nobody_answers_ends_the_connection) {
  Peer peer;
  const ConnIndex conn = open_shut(peer);
  const Bytes data = pattern(5000);
  ASSERT_TRUE(stack_->write(conn, as_span(data), WriteMode::kReference).ok());
  advance_ms(120'000);
  EXPECT_TRUE(recorder_.conns[conn].closed);
  EXPECT_EQ(recorder_.conns[conn].reason, EndReason::kTimedOut);
}

// RFC 9293 3.8.3: who does not answer is not given up for 100 seconds.
TEST_F(StackWindows, a_client_with_a_closed_window_may_be_away_for_a_minute_and_a_half) {
  Peer peer;
  const ConnIndex conn = open_shut(peer);
  const Bytes data = pattern(5000);
  ASSERT_TRUE(stack_->write(conn, as_span(data), WriteMode::kReference).ok());
  advance_ms(90'000);
  EXPECT_GE(take().size(), 12u);
  ASSERT_TRUE(stack_->is_open(conn));
  peer.window = 0xffff;
  send(peer, kTcpAck);
  EXPECT_EQ(drain(peer), data);
}

TEST_F(StackWindows, a_probe_that_takes_the_only_byte_ends_the_probing) {
  Peer peer;
  const ConnIndex conn = open_shut(peer);
  ASSERT_TRUE(stack_->write(conn, as_span(pattern(1)), WriteMode::kCopy).ok());
  bool probed = false;
  for (int i = 0; i < 100 && !probed; ++i) {
    advance_ms(20);
    for (const Sent& packet : take()) probed |= packet.payload_bytes() == 1;
  }
  ASSERT_TRUE(probed);
  peer.rcv += 1;
  send(peer, kTcpAck);  // taken, though the window stays closed
  EXPECT_EQ(recorder_.conns[conn].acked, 1u);
  advance_ms(2000);
  EXPECT_TRUE(take().empty());
  ASSERT_TRUE(stack_->write(conn, as_span(pattern(10)), WriteMode::kCopy).ok());
  peer.window = 100;
  send(peer, kTcpAck);
  EXPECT_EQ(drain(peer), pattern(10));
}

TEST_F(StackWindows, a_window_smaller_than_the_head_segment_is_filled_in_pieces) {
  for (const int window : {1, 10, 15, 100, 700, 5000}) {
    SCOPED_TRACE(window);
    Peer peer;
    peer.timestamps = window % 2 == 0;
    peer.self.port = static_cast<std::uint16_t>(41'000 + window);
    const ConnIndex conn = open(peer, 0);  // unscaled, so that windows can be small
    warm_up(peer, conn);
    peer.window = 0;
    send(peer, kTcpAck);
    const Bytes data = pattern(std::size_t{20} * static_cast<std::size_t>(window));
    ASSERT_TRUE(stack_->write(conn, as_span(data), WriteMode::kReference).ok());
    peer.window = static_cast<std::uint16_t>(window);
    send(peer, kTcpAck);
    Bytes stream;
    for (int i = 0; i < 20'000 && stream.size() < data.size(); ++i) {
      advance_ms(20);
      const auto sent = take();
      for (const Sent& packet : sent) {
        EXPECT_LE(packet.payload_bytes(), static_cast<std::uint32_t>(window));
        accept(peer, packet, stream);
      }
      if (!sent.empty()) send(peer, kTcpAck);
    }
    EXPECT_EQ(stream, data);
    stack_->abort(conn);
    take();
  }
}

TEST_F(StackWindows, a_window_that_was_tiny_from_the_start_makes_no_endless_segments) {
  for (const int window : {1, 12, 20, 24, 25, 30}) {
    SCOPED_TRACE(window);
    Peer peer;
    peer.timestamps = true;
    peer.window = static_cast<std::uint16_t>(window);
    peer.self.port = static_cast<std::uint16_t>(41'000 + window);
    const ConnIndex conn = open(peer, 0, 1);  // and an MSS of 1
    const Bytes data = pattern(300);
    ASSERT_TRUE(stack_->write(conn, as_span(data), WriteMode::kReference).ok());
    Bytes stream;
    for (int i = 0; i < 20'000 && stream.size() < data.size(); ++i) {
      advance_ms(20);
      const auto sent = take();
      for (const Sent& packet : sent) accept(peer, packet, stream);
      if (!sent.empty()) send(peer, kTcpAck);
    }
    EXPECT_EQ(stream, data);
  }
}

TEST_F(StackWindows, a_window_shrunk_below_what_is_under_way_recovers) {
  Peer peer;
  const ConnIndex conn = open(peer, 0);
  warm_up(peer, conn);
  const Bytes data = pattern(60'000);
  ASSERT_TRUE(stack_->write(conn, as_span(data), WriteMode::kReference).ok());
  ASSERT_FALSE(take().empty());  // all lost
  peer.window = 500;
  send(peer, kTcpAck);
  Bytes stream;
  for (int i = 0; i < 50'000 && stream.size() < data.size(); ++i) {
    advance_ms(20);
    const auto sent = take();
    for (const Sent& packet : sent) {
      const std::uint32_t right = packet.tcp.seq + packet.payload_bytes() - peer.rcv;
      if (static_cast<std::int32_t>(right) <= 500) accept(peer, packet, stream);
    }
    if (i == 2000) peer.window = 0xffff;
    if (!sent.empty() || i == 2000) send(peer, kTcpAck);
  }
  EXPECT_EQ(stream, data);
}

TEST_F(StackWindows, the_end_of_the_stream_is_behind_its_last_byte_however_it_is_cut) {
  std::uint16_t port = 41'000;
  for (const bool always_small : {true, false}) {
    for (const WriteMode mode : {WriteMode::kReference, WriteMode::kCopy}) {
      for (const int window : {1, 99, 700, 1000, 1461, 5000}) {
        SCOPED_TRACE(std::to_string(window) + (always_small ? " always" : " late") +
                     (mode == WriteMode::kCopy ? " copied" : " referenced"));
        Peer peer;
        peer.timestamps = window % 2 == 0;
        peer.self.port = port++;
        if (always_small) peer.window = static_cast<std::uint16_t>(window);
        const ConnIndex conn = open(peer, 0);
        if (!always_small) warm_up(peer, conn);
        peer.window = 0;
        send(peer, kTcpAck);
        const Bytes data = pattern(static_cast<std::size_t>(window) + 1460 + 1);
        for (std::size_t at = 0; at < data.size(); at += 1100) {
          const auto piece =
              as_span(data).subspan(at, std::min<std::size_t>(1100, data.size() - at));
          ASSERT_TRUE(stack_->write(conn, piece, mode).ok());
        }
        ASSERT_TRUE(stack_->shutdown_send(conn).ok());
        peer.window = static_cast<std::uint16_t>(window);
        send(peer, kTcpAck);
        EXPECT_EQ(receive_to_the_end(peer), data);
        stack_->abort(conn);
        take();
      }
    }
  }
}

TEST_F(StackWindows, a_client_whose_window_was_always_small_waits_for_no_timer) {
  for (const int window : {300, 1000, 1460, 2000, 9000}) {
    SCOPED_TRACE(window);
    Peer peer;
    peer.window = static_cast<std::uint16_t>(window);
    peer.self.port = static_cast<std::uint16_t>(41'000 + window);
    const ConnIndex conn = open(peer, 0);
    const Bytes data = pattern(100'000);
    ASSERT_TRUE(stack_->write(conn, as_span(data), WriteMode::kReference).ok());
    EXPECT_EQ(drain(peer), data) << "without a tick";
    EXPECT_EQ(stack_->counters().bytes_copied, 0u);
  }
}

TEST_F(StackWindows, a_window_that_shrinks_upon_the_last_segments_and_opens_again_goes_on) {
  for (const bool in_time : {false, true}) {
    SCOPED_TRACE(in_time);
    Peer peer;
    peer.timestamps = true;
    peer.self.port = in_time ? 40'001 : 40'002;
    const ConnIndex conn = open(peer, 0);
    warm_up(peer, conn);
    peer.window = 6 * 1448;
    send(peer, kTcpAck);
    const Bytes data = pattern(40'000);
    ASSERT_TRUE(stack_->write(conn, as_span(data), WriteMode::kReference).ok());
    auto sent = take();
    ASSERT_FALSE(sent.empty());
    Bytes stream;
    const std::uint32_t start = peer.rcv;
    peer.rcv += 1448;  // of the first packet; the rest does not fit any more
    stream.assign(data.begin(), data.begin() + 1448);
    peer.window = 120;
    send(peer, kTcpAck);
    send(peer, kTcpAck);
    if (in_time) {
      for (int i = 0; i < 30; ++i) {
        advance_ms(20);
        take();  // lost
      }
    }
    peer.window = 0x3000;
    send(peer, kTcpAck);
    const Bytes rest = receive_in_time(peer, data.size() - stream.size());
    stream.insert(stream.end(), rest.begin(), rest.end());
    EXPECT_EQ(stream, data);
    EXPECT_EQ(peer.rcv - start, data.size());
    stack_->abort(conn);
    take();
  }
}

TEST_F(StackWindows, probes_bear_the_timestamps_that_were_agreed) {
  for (const bool timestamps : {true, false}) {
    Peer peer;
    peer.timestamps = timestamps;
    peer.self.port = timestamps ? 40'001 : 40'002;
    const ConnIndex conn = open_shut(peer);
    const Bytes data = pattern(5000, 77);
    ASSERT_TRUE(stack_->write(conn, as_span(data), WriteMode::kReference).ok());
    std::deque<Sent> probes;
    for (int i = 0; i < 100 && probes.empty(); ++i) {
      advance_ms(20);
      probes = take();
    }
    ASSERT_EQ(probes.size(), 1u);
    EXPECT_EQ(probes[0].tcp.options.size(), timestamps ? 12u : 0u);
    EXPECT_EQ(probes[0].tcp.payload, Bytes{data[0]});
    stack_->abort(conn);
    take();
  }
}

// RFC 9293 3.10.7.4: what begins beyond the window is dropped, its acknowledgement with it.
TEST_F(StackWindows, acknowledgements_begin_inside_the_window_also_behind_a_probe_of_a_closed_one) {
  Peer peer;
  const ConnIndex conn = open_shut(peer);
  const Bytes data = pattern(5000);
  ASSERT_TRUE(stack_->write(conn, as_span(data), WriteMode::kReference).ok());
  std::deque<Sent> probes;
  for (int i = 0; i < 100 && probes.empty(); ++i) {
    advance_ms(20);
    probes = take();
  }
  ASSERT_EQ(probes.size(), 1u);
  ASSERT_EQ(probes[0].payload_bytes(), 1u);
  ASSERT_EQ(probes[0].tcp.seq, peer.rcv);
  for (int i = 0; i < 3; ++i) {
    send(peer, kTcpAck, pattern(3'000));  // it sends all the same
    const auto sent = take();
    ASSERT_EQ(sent.size(), 1u);
    EXPECT_EQ(sent[0].payload_bytes(), 0u);
    EXPECT_EQ(sent[0].tcp.ack, peer.snd);
    EXPECT_EQ(sent[0].tcp.seq, peer.rcv);
  }
  peer.window = 0xffff;
  send(peer, kTcpAck);
  EXPECT_EQ(drain(peer), data);
}

}  // namespace
}  // namespace sanproxy::stack::testing
