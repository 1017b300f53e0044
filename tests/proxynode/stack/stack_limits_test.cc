// Limits: what happens at each, and that the table of connections does not slow down.
#include "tests/proxynode/stack/stack_sending.h"

namespace sanproxy::stack::testing {
namespace {

using StackLimits = ConnectedStackTest;

Segment syn_of(const Peer& peer) {
  Segment syn{.flags = kTcpSyn, .seq = peer.snd};
  syn.options = syn_options();
  return syn;
}

using StackSendingLimits = SendingTest;

TEST_F(StackLimits, beyond_connections_max_a_syn_is_reset_or_left_unanswered) {
  for (const bool reset : {true, false}) {
    make(
        {.connections_max = 3, .refuse_with_reset = reset, .heap_bytes_max = std::size_t{8} << 20});
    listen();
    Peer peers[4];
    for (int i = 0; i < 4; ++i) peers[i].self.port = static_cast<std::uint16_t>(40'000 + i);
    for (int i = 0; i < 3; ++i) open(peers[i]);
    deliver(peers[3].self, peers[3].other, syn_of(peers[3]));
    const auto sent = take();
    ASSERT_EQ(sent.size(), reset ? 1u : 0u);
    if (reset) {
      EXPECT_EQ(sent[0].tcp.flags, kTcpRst | kTcpAck);
      EXPECT_EQ(sent[0].tcp.ack, peers[3].snd + 1);
    }
    EXPECT_EQ(stack_->counters().refused_connections_max, 1u);
    EXPECT_EQ(stack_->connect(peers[3].self, *SocketAddress::parse("10.77.0.10:0")).status().code(),
              Code::kExhausted);
    send(peers[0], kTcpRst);
    open(peers[3]);  // there is room again
  }
}

TEST_F(StackLimits, beyond_half_open_max_the_oldest_handshake_is_given_up) {
  make({.connections_max = 100, .half_open_max = 5, .heap_bytes_max = std::size_t{8} << 20});
  listen();
  Peer peers[6];
  for (int i = 0; i < 6; ++i) peers[i].self.port = static_cast<std::uint16_t>(40'000 + i);
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(half_open(peers[i]));
  send(peers[1], kTcpAck);
  EXPECT_EQ(recorder_.accepted, 1);
  EXPECT_TRUE(half_open(peers[5]));
  EXPECT_EQ(stack_->counters().refused_half_open_max, 0u) << "one has been established";
  Peer late;
  late.self.port = 41'000;
  EXPECT_TRUE(half_open(late));
  EXPECT_EQ(stack_->counters().refused_half_open_max, 1u);
  EXPECT_EQ(count(TcpState::kSynReceived), 5u);
  EXPECT_TRUE(take().empty()) << "in silence";
  send(peers[2], kTcpAck);
  send(late, kTcpAck);
  EXPECT_EQ(recorder_.accepted, 3);
  send(peers[0], kTcpAck);
  const auto sent = take();
  ASSERT_FALSE(sent.empty());
  EXPECT_TRUE(sent.back().has(kTcpRst)) << "it is the one that is not known any more";
  EXPECT_EQ(recorder_.accepted, 3);
}

// Where as many handshakes would fill all places, those go that are overdue, and no others.
TEST_F(StackLimits, made_up_syns_do_not_keep_all_places_for_long) {
  make({.connections_max = 20, .half_open_max = 1'000, .heap_bytes_max = std::size_t{8} << 20});
  listen();
  for (int i = 0; i < 20; ++i) {
    Peer made_up;
    made_up.self.port = static_cast<std::uint16_t>(40'000 + i);
    ASSERT_TRUE(half_open(made_up)) << i;
  }
  Peer early;
  early.self.port = 30'000;
  EXPECT_FALSE(half_open(early)) << "they may be somebody's";
  EXPECT_EQ(stack_->counters().refused_connections_max, 1u);
  advance_ms(StackOptions{}.initial_rto_ms + 100);
  EXPECT_EQ(take().size(), 20u) << "our answers go again";
  Peer peers[20];
  for (int i = 0; i < 20; ++i) {
    peers[i].self.port = static_cast<std::uint16_t>(31'000 + i);
    ASSERT_TRUE(half_open(peers[i])) << i;
    send(peers[i], kTcpAck);
    EXPECT_EQ(recorder_.accepted, i + 1);
  }
  EXPECT_EQ(stack_->counters().refused_half_open_max, 20u);
  Peer late;
  late.self.port = 32'000;
  EXPECT_FALSE(half_open(late)) << "connections give way to nobody";
  EXPECT_EQ(stack_->counters().refused_connections_max, 2u);
}

TEST_F(StackLimits, a_flood_of_syns_shuts_out_nobody_who_answers) {
  make({.connections_max = 1'000, .half_open_max = 50, .heap_bytes_max = std::size_t{8} << 20});
  listen();
  for (int round = 0; round < 20; ++round) {
    Peer peer;
    peer.self.port = static_cast<std::uint16_t>(30'000 + round);
    ASSERT_TRUE(half_open(peer)) << round;
    for (int i = 0; i < 40; ++i) {
      Peer made_up;
      made_up.self.port = static_cast<std::uint16_t>(40'000 + round * 40 + i);
      deliver(made_up.self, made_up.other, syn_of(made_up));
    }
    (void)take();
    send(peer, kTcpAck);
    EXPECT_EQ(recorder_.accepted, round + 1);
  }
  EXPECT_LE(count(TcpState::kSynReceived), 50u);
  EXPECT_GT(stack_->counters().refused_half_open_max, 700u);
}

TEST_F(StackLimits, nobody_listening_is_answered_with_a_reset) {
  Peer peer;
  peer.other.port = 81;
  deliver(peer.self, peer.other, syn_of(peer));
  deliver(peer.self, peer.other, {.flags = kTcpAck, .seq = 5, .ack = 77});
  deliver(peer.self, peer.other, {.flags = kTcpRst, .seq = 5});
  deliver(peer.self, peer.other, {.flags = kTcpFin | kTcpPsh | kTcpAck, .seq = 5, .ack = 78});
  const auto sent = take();
  ASSERT_EQ(sent.size(), 3u) << "never for a reset";
  EXPECT_EQ(sent[0].tcp.flags, kTcpRst | kTcpAck);
  EXPECT_EQ(sent[0].tcp.ack, peer.snd + 1);
  EXPECT_EQ(sent[1].tcp.flags, kTcpRst);
  EXPECT_EQ(sent[1].tcp.seq, 77u);
  EXPECT_EQ(sent[2].tcp.seq, 78u);
  EXPECT_EQ(stack_->counters().refused_no_listener, 3u);
}

TEST_F(StackLimits, for_a_moment_after_the_start_nobody_is_refused_for_want_of_a_listener) {
  make({.connections_max = 10, .start_hold_ms = 2'000, .heap_bytes_max = std::size_t{16} << 20});
  Peer peer;
  deliver(peer.self, peer.other, syn_of(peer));
  EXPECT_TRUE(take().empty());
  EXPECT_EQ(stack_->counters().refused_starting, 1u);
  deliver(peer.self, peer.other, {.flags = kTcpAck, .seq = 5, .ack = 77});
  EXPECT_EQ(take().size(), 1u) << "a connection of before is reset";
  advance_ms(1'000);
  listen();
  deliver(peer.self, peer.other, syn_of(peer));
  EXPECT_EQ(take().size(), 1u);
  peer.other.port = 81;
  advance_ms(2'000);
  deliver(peer.self, peer.other, syn_of(peer));
  const auto sent = take();
  ASSERT_FALSE(sent.empty());
  EXPECT_TRUE(sent.back().has(kTcpRst));
}

TEST_F(StackLimits, a_full_heap_refuses_connections_and_writes_and_recovers) {
  make({.connections_max = 100'000, .heap_bytes_max = std::size_t{1} << 20});
  listen();
  std::vector<Peer> peers;
  for (int i = 0; i < 20'000; ++i) {
    Peer peer;
    peer.self.port = static_cast<std::uint16_t>(1024 + i);
    if (!half_open(peer)) break;
    send(peer, kTcpAck);
    peers.push_back(peer);
  }
  EXPECT_GT(peers.size(), 500u);
  EXPECT_LT(peers.size(), 20'000u);
  EXPECT_GT(stack_->counters().refused_no_memory, 0u);
  EXPECT_LE(stack_->heap_bytes_used(), stack_->heap_bytes_max());
  const Bytes data = pattern(60'000);
  EXPECT_TRUE(stack_->write(0, as_span(data), WriteMode::kCopy).is_again());
  // Those that are open go on.
  send(peers[0], kTcpAck, pattern(5));
  EXPECT_EQ(recorder_.conns[0].received, pattern(5));
  for (std::size_t i = 0; i < 300; ++i) send(peers[i], kTcpRst);
  take();
  Peer late;
  late.self.port = 65'000;
  open(late);
  for (std::size_t i = 300; i < peers.size(); ++i) send(peers[i], kTcpRst);
  send(late, kTcpRst);
  EXPECT_EQ(stack_->open_connections(), 0u);
}

TEST_F(StackLimits, with_many_connections_a_burst_is_announced_and_garbage_in_it_does_no_harm) {
  make({.connections_max = 3'000, .heap_bytes_max = std::size_t{64} << 20});
  listen();
  std::vector<Peer> peers(2'500);
  std::vector<ConnIndex> conns;
  for (std::size_t i = 0; i < peers.size(); ++i) {
    peers[i].self.port = static_cast<std::uint16_t>(10'000 + i);
    conns.push_back(open(peers[i]));
  }
  Peer stranger;
  stranger.self.port = 9;
  std::vector<Bytes> packets;
  for (const std::size_t i : {7, 2'400, 7}) {
    packets.push_back(make_packet(peers[i].self, peers[i].other, peers[i].segment(kTcpAck)));
  }
  packets.push_back(make_packet(stranger.self, stranger.other, stranger.segment(kTcpSyn)));
  packets.push_back(Bytes(packets[0].begin(), packets[0].begin() + 21));
  packets.emplace_back();
  packets.push_back(pattern(60));
  std::vector<std::span<const std::byte>> spans;
  for (const Bytes& packet : packets) spans.push_back(as_span(packet));
  const std::vector<std::span<const std::byte>> twice_the_limit(130, spans[0]);

  stack_->expect(spans);
  EXPECT_EQ(recorder_.expected, (std::vector<ConnIndex>{conns[7], conns[2'400], conns[7]}));
  stack_->expect(twice_the_limit);
  stack_->expect({});
  EXPECT_TRUE(take().empty()) << "nothing has happened yet";
  send(peers[7], kTcpAck, pattern(5));
  EXPECT_EQ(recorder_.conns[conns[7]].received, pattern(5));
}

// The retransmission is held back by the client's window when FIN is tried again.
TEST_F(StackSendingLimits, an_end_that_waited_for_memory_comes_behind_all_bytes) {
  make({.connections_max = 10, .heap_bytes_max = std::size_t{1} << 20});
  listen();
  Peer peer;
  std::array<Peer, 2> others;
  std::array<ConnIndex, 2> conns{};
  const ConnIndex conn = open(peer);
  warm_up(peer, conn);
  for (std::size_t i = 0; i < others.size(); ++i) {
    others[i].self.port = static_cast<std::uint16_t>(41'000 + i);
    others[i].window = 1;
    conns[i] = open(others[i]);
  }
  const Bytes data = pattern(90 * 1460);
  ASSERT_TRUE(stack_->write(conn, as_span(data), WriteMode::kReference).ok());
  ASSERT_GE(take().size(), 2u);
  const Bytes filler = pattern(1000);
  for (const ConnIndex other : conns) {
    for (std::size_t at = 0;
         stack_->write(other, as_span(filler).subspan(at, 1), WriteMode::kReference).ok();) {
      at = 500 - at;
    }
  }
  io_.accept_max = 0;
  for (int i = 0; i < 1'000; ++i) {  // answers that the device does not take
    Segment beyond = others[0].segment(kTcpAck);
    beyond.seq += 0x4000'0000;
    deliver(others[0].self, others[0].other, beyond);
  }
  ASSERT_TRUE(stack_->shutdown_send(conn).ok());
  ASSERT_EQ(stack_->state(conn), TcpState::kEstablished) << "no memory for FIN";
  peer.window = 1;
  for (int i = 0; i < 5; ++i) send(peer, kTcpAck);
  io_.accept_max = SIZE_MAX;
  (void)take();
  advance_ms(20);
  peer.window = 0xffff;
  send(peer, kTcpAck);
  Bytes stream;
  bool ended = false;
  for (int i = 0; i < 500 && !ended; ++i) {
    advance_ms(20);
    for (const Sent& packet : take()) {
      if (packet.dst.port != peer.self.port) continue;
      accept(peer, packet, stream);
      ended |= packet.has(kTcpFin) && packet.tcp.seq + packet.payload_bytes() == peer.rcv;
    }
    send(peer, kTcpAck);
  }
  EXPECT_TRUE(ended);
  EXPECT_TRUE(stream == data);
}

TEST_F(StackLimits, all_of_the_heap_comes_back) {
  const std::size_t empty = stack_->heap_bytes_used();
  for (int i = 0; i < 200; ++i) {
    Peer peer;
    peer.self.port = static_cast<std::uint16_t>(10'000 + i);
    const ConnIndex conn = open(peer);
    const Bytes data = pattern(static_cast<std::size_t>(i) * 70);
    ASSERT_TRUE(stack_->write(conn, as_span(data), WriteMode::kReference).ok());
    ASSERT_TRUE(stack_->write(conn, as_span(pattern(50)), WriteMode::kCopy).ok());
    take();
    if (i % 3 == 0) stack_->abort(conn);
    if (i % 3 == 1) send(peer, kTcpRst);
    if (i % 3 == 2) {
      peer.rcv += static_cast<std::uint32_t>(data.size() + 50);
      send(peer, kTcpFin | kTcpAck);
      stack_->close(conn);
      take();
      peer.rcv += 1;
      send(peer, kTcpAck);
    }
    take();
  }
  EXPECT_EQ(stack_->open_connections(), 0u);
  EXPECT_EQ(stack_->heap_bytes_used(), empty);
}

TEST_F(StackLimits, twenty_thousand_connections_are_found_as_fast_as_one) {
  make({.connections_max = 20'000, .half_open_max = 100, .heap_bytes_max = std::size_t{64} << 20});
  listen();
  const std::size_t empty = stack_->heap_bytes_used();
  std::vector<Peer> peers(20'000);
  for (std::size_t i = 0; i < peers.size(); ++i) {
    peers[i].self.port = static_cast<std::uint16_t>(1024 + i % 60'000);
    peers[i].self.ip.bytes[3] = static_cast<std::uint8_t>(i % 200 + 1);
    open(peers[i]);
  }
  EXPECT_EQ(count(TcpState::kEstablished), 20'000u);
  EXPECT_LE((stack_->heap_bytes_used() - empty) / peers.size(), 400u) << "bytes of lwIP's heap";
  const StackCounters before = stack_->counters();
  for (Peer& peer : peers) send(peer, kTcpAck, pattern(1));
  const StackCounters& after = stack_->counters();
  EXPECT_EQ(after.flow_lookups - before.flow_lookups, 20'000u);
  EXPECT_LE(after.flow_probes - before.flow_probes, 20'000u * 3 / 2);
  take();
  for (Peer& peer : peers) send(peer, kTcpRst);
  EXPECT_EQ(stack_->open_connections(), 0u);
  EXPECT_EQ(recorder_.closed, 20'000);
}

TEST_F(StackLimits, impossible_options_are_refused) {
  stack_.reset();
  const auto refused = [&](StackOptions options) {
    return !Stack::create(options, clock_, *pool_, recorder_).ok();
  };
  EXPECT_TRUE(refused({.connections_max = 0}));
  EXPECT_TRUE(refused({.receive_window_bytes = 1000}));
  EXPECT_TRUE(refused({.receive_window_bytes = 8 << 20}));
  EXPECT_TRUE(refused({.send_buffer_bytes = 1}));
  EXPECT_TRUE(refused({.ephemeral_port_first = 5, .ephemeral_port_last = 4}));
  auto one = Stack::create({.connections_max = 1}, clock_, *pool_, recorder_);
  ASSERT_TRUE(one.ok());
  EXPECT_TRUE(refused({.connections_max = 1})) << "one stack a process";
}

TEST_F(StackLimits, calls_for_an_index_that_is_not_open_do_nothing) {
  for (const ConnIndex conn : {ConnIndex{0}, ConnIndex{999}, ConnIndex{5'000'000}, UINT32_MAX}) {
    EXPECT_FALSE(stack_->is_open(conn));
    EXPECT_EQ(stack_->send_room(conn), 0u);
    EXPECT_EQ(stack_->write(conn, as_span(pattern(1)), WriteMode::kCopy).code(),
              Code::kDisconnected);
    EXPECT_EQ(stack_->shutdown_send(conn).code(), Code::kDisconnected);
    stack_->consume(conn, 1);
    stack_->close(conn);
    stack_->abort(conn);
    EXPECT_EQ(stack_->state(conn), TcpState::kClosed);
  }
  EXPECT_EQ(recorder_.closed, 0);
}

}  // namespace
}  // namespace sanproxy::stack::testing
