// Segments that no TCP would send, and those that it might, in any order: nothing asserts, nothing
// leaks, the other connections do not notice.
#include <random>

#include "proxynode/stack/segment_guard.h"
#include "tests/proxynode/stack/stack_harness.h"

namespace sanproxy::stack::testing {
namespace {

using StackFuzz = ConnectedStackTest;

TEST_F(StackFuzz, random_bytes_are_dropped) {
  std::mt19937 random(1);
  for (int i = 0; i < 50'000; ++i) {
    Bytes packet(random() % 200);
    for (std::uint8_t& byte : packet) byte = static_cast<std::uint8_t>(random());
    if (!packet.empty()) packet[0] = i % 2 == 0 ? 0x45 : 0x60;
    deliver_bytes(packet, {.checksum_verified = true});
  }
  EXPECT_EQ(stack_->open_connections(), 0u);
}

TEST_F(StackFuzz, segments_near_the_state_of_a_connection_break_nothing) {
  Peer witness;
  witness.self.port = 39'999;
  const ConnIndex watched = open(witness);
  for (std::uint32_t seed = 1; seed <= 400; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    std::mt19937 random(seed);
    const auto pick = [&](std::uint32_t below) {
      return static_cast<std::uint32_t>(random() % below);
    };
    Peer peer;
    peer.timestamps = pick(2) == 0;
    peer.selective = pick(3) != 0;
    peer.self.port = static_cast<std::uint16_t>(10'000 + seed);
    ASSERT_TRUE(half_open(peer, static_cast<int>(pick(16)) - 1,
                          static_cast<std::uint16_t>(pick(2) == 0 ? 1460 : pick(2000))));
    std::uint32_t sent_seq = peer.rcv;
    recorder_.refuse = false;
    for (int i = 0; i < 120; ++i) {
      Segment segment;
      static constexpr std::uint8_t kFlags[] = {kTcpAck,           kTcpAck, kTcpAck | kTcpPsh,
                                                kTcpAck | kTcpFin, kTcpSyn, kTcpSyn | kTcpAck,
                                                kTcpRst,           kTcpPsh, 0xff,
                                                kTcpAck | 0x20,    0};
      segment.flags = pick(6) == 0 ? static_cast<std::uint8_t>(random()) : kFlags[pick(11)];
      if ((segment.flags & kTcpRst) != 0 && pick(4) != 0) segment.flags = kTcpAck;
      segment.seq = peer.snd + pick(6) * pick(3000) - pick(2) * pick(3000);
      segment.ack = pick(3) == 0 ? sent_seq : peer.rcv + pick(100'000) - pick(2) * pick(5000);
      segment.window = static_cast<std::uint16_t>(pick(3) == 0 ? pick(40) : random());
      segment.payload = pattern(pick(3) == 0 ? pick(20'000) : pick(50));
      segment.options.resize(pick(41));
      for (std::uint8_t& byte : segment.options) {
        byte = static_cast<std::uint8_t>(pick(3) == 0 ? random() : pick(11));
      }
      if (pick(2) == 0) segment.options.clear();
      if (pick(3) == 0) {
        Blocks blocks(1 + pick(4));
        for (auto& [left, right] : blocks) {
          left = peer.rcv + pick(pick(2) == 0 ? 3000 : 150'000) - pick(2) * pick(5000);
          right = pick(4) == 0 ? sent_seq : left + pick(pick(2) == 0 ? 10 : 30'000);
        }
        segment.options = sack_options(blocks);
      }
      deliver(peer.self, peer.other, segment);
      for (auto& [index, conn] : recorder_.conns) {
        if (conn.closed || index == watched || !stack_->is_open(index)) continue;
        static const Bytes data = pattern(70'000);
        const std::uint32_t bytes = pick(4) == 0 ? pick(66'000) : pick(600);
        (void)stack_->write(index, as_span(data).first(bytes),
                            pick(2) == 0 ? WriteMode::kReference : WriteMode::kCopy);
        if (pick(60) == 0) (void)stack_->shutdown_send(index);
        if (pick(120) == 0) stack_->close(index);
      }
      recorder_.refuse = pick(20) == 0;
      if (pick(3) == 0) advance_ms(20 * (1 + pick(20)));
      for (const Sent& packet : take()) {
        if (packet.dst == peer.self) sent_seq = packet.tcp.seq + packet.payload_bytes();
      }
    }
    recorder_.refuse = false;
    for (auto& [index, conn] : recorder_.conns) {
      if (index != watched && stack_->is_open(index)) stack_->abort(index);
    }
    std::erase_if(recorder_.conns, [&](const auto& entry) { return entry.first != watched; });
    take();
  }
  advance_ms(200);
  take();
  send(witness, kTcpAck, pattern(77));
  EXPECT_EQ(recorder_.conns[watched].received, pattern(77));
  advance_ms(30'000, 1000);
  EXPECT_EQ(stack_->open_connections(), 1u);
}

// After anything, in whatever state, with whatever in the queues: who is silent is gone in the end,
// and so is what we have closed, though its client answers for ever without taking anything.
class StackEnds : public ConnectedStackTest, public ::testing::WithParamInterface<bool> {
 protected:
  std::mt19937 random_;
  std::uint32_t pick(std::uint32_t below) { return static_cast<std::uint32_t>(random_() % below); }

  void something_comes(Peer& peer, std::uint32_t sent_seq) {
    Segment segment = peer.segment(kTcpAck);
    segment.ack = sent_seq - pick(4) / 3 * pick(20'000);
    segment.window = static_cast<std::uint16_t>(pick(3) == 0 ? pick(20) : random_());
    const std::uint32_t bytes = pick(3) == 0 ? pick(3000) : 0;
    segment.payload = pattern(bytes);
    if (pick(5) == 0) segment.seq += pick(3000);
    if (pick(30) == 0) segment.flags |= kTcpFin;
    const bool in_order = segment.seq == peer.snd;
    deliver(peer.self, peer.other, segment);
    if (in_order && pick(4) != 0) {
      peer.snd += bytes + ((segment.flags & kTcpFin) != 0 ? 1 : 0);
    }
  }
  void the_application_does_something(ConnIndex conn) {
    static const Bytes data = pattern(70'000);
    const std::uint32_t bytes = pick(4) == 0 ? pick(66'000) : pick(600);
    (void)stack_->write(conn, as_span(data).first(bytes),
                        pick(2) == 0 ? WriteMode::kReference : WriteMode::kCopy);
    if (pick(40) == 0) (void)stack_->shutdown_send(conn);
    if (pick(60) == 0) stack_->close(conn);
  }
};

TEST_P(StackEnds, no_state_is_for_ever) {
  const bool answers = GetParam();
  StackOptions options{.connections_max = 10, .heap_bytes_max = std::size_t{16} << 20};
  options.keepalive_idle_ms = 60'000;
  options.keepalive_interval_ms = 5'000;
  options.keepalive_probes = 3;
  make(options);
  listen();
  for (std::uint32_t seed = 1; seed <= 150 && !HasFailure(); ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    random_.seed(seed);
    Peer peer;
    peer.timestamps = pick(2) == 0;
    peer.selective = pick(2) == 0;
    peer.self.port = static_cast<std::uint16_t>(10'000 + seed);
    const ConnIndex conn = open(peer, static_cast<int>(pick(9)) - 1);
    std::uint32_t sent_seq = peer.rcv;
    for (std::uint32_t i = 0; i < 10 + seed; ++i) {
      recorder_.refuse = pick(10) == 0;
      something_comes(peer, sent_seq);
      the_application_does_something(conn);
      if (pick(3) == 0) advance_ms(20 * (1 + pick(20)));
      for (const Sent& packet : take()) {
        if (!packet.has(kTcpRst)) sent_seq = packet.tcp.seq + packet.payload_bytes();
      }
    }
    recorder_.refuse = false;
    if (answers) stack_->close(conn);
    const TcpState state = stack_->state(conn);
    peer.rcv = sent_seq;
    peer.window = 0;
    for (int ms = 0; ms < 1'200'000 && stack_->is_open(conn); ms += 800) {
      advance_ms(800, 80);
      const auto sent = take();
      if (answers && !sent.empty() && stack_->is_open(conn)) send(peer, kTcpAck);
    }
    EXPECT_FALSE(stack_->is_open(conn)) << tcp_state_name(state);
    EXPECT_EQ(stack_->open_connections(), 0u);
    recorder_.conns.clear();
    EXPECT_EQ(pool_->free_count(), pool_->slot_count());
    if (stack_->is_open(conn)) stack_->abort(conn);
    take();
  }
}

INSTANTIATE_TEST_SUITE_P(Clients, StackEnds, ::testing::Bool(), [](const auto& one) {
  return one.param ? "answer_and_take_nothing" : "are_silent";
});

TEST_F(StackFuzz, half_open_connections_are_hit_by_anything) {
  std::mt19937 random(7);
  for (int i = 0; i < 3000; ++i) {
    Peer peer;
    peer.self.port = static_cast<std::uint16_t>(1024 + random() % 200);
    Segment segment{.flags = static_cast<std::uint8_t>(random() % 3 == 0 ? random() : kTcpSyn),
                    .seq = static_cast<std::uint32_t>(1000 + random() % 4),
                    .ack = static_cast<std::uint32_t>(random())};
    segment.options.resize(random() % 41);
    for (std::uint8_t& byte : segment.options) byte = static_cast<std::uint8_t>(random() % 12);
    segment.payload.resize(random() % 30);
    deliver(peer.self, peer.other, segment);
    if (i % 50 == 0) advance_ms(100);
    take();
  }
  advance_ms(60'000, 100);
  EXPECT_EQ(count(TcpState::kSynReceived), 0u);
}

struct FlagCase {
  const char* name;
  std::uint8_t flags;
  bool possible;
};

TEST(SegmentGuard, impossible_flags_and_addresses_are_refused) {
  const FlagCase cases[] = {{"null", 0, false},
                            {"xmas", 0x29, false},
                            {"fin alone", kTcpFin, false},
                            {"syn fin", kTcpSyn | kTcpFin, false},
                            {"syn rst", kTcpSyn | kTcpRst, false},
                            {"everything", 0xff, false},
                            {"syn", kTcpSyn, true},
                            {"syn ece cwr", kTcpSyn | 0xc0, true},
                            {"syn ack", kTcpSyn | kTcpAck, true},
                            {"fin ack", kTcpFin | kTcpAck, true},
                            {"rst", kTcpRst, true}};
  const auto plausible = [](const std::string& src, const std::string& dst, std::uint8_t flags) {
    Bytes packet =
        make_packet(*SocketAddress::parse(src), *SocketAddress::parse(dst), {.flags = flags});
    net::ParsedPacket parsed;
    EXPECT_EQ(net::parse_packet(as_span(packet), parsed), net::DropReason::kNone);
    return plausible_segment(parsed, net::load_tcp_header(packet.data() + parsed.l3_header_bytes));
  };
  for (const FlagCase& c : cases) {
    EXPECT_EQ(plausible("10.0.0.1:5", "10.0.0.2:6", c.flags), c.possible) << c.name;
  }
  EXPECT_FALSE(plausible("10.0.0.1:5", "10.0.0.1:5", kTcpSyn)) << "land";
  EXPECT_TRUE(plausible("10.0.0.1:5", "10.0.0.1:6", kTcpSyn));
  EXPECT_FALSE(plausible("10.0.0.1:0", "10.0.0.2:6", kTcpSyn));
  EXPECT_FALSE(plausible("10.0.0.1:5", "10.0.0.2:0", kTcpSyn));
  EXPECT_FALSE(plausible("255.255.255.255:5", "10.0.0.2:6", kTcpSyn));
  EXPECT_FALSE(plausible("224.0.0.1:5", "10.0.0.2:6", kTcpSyn));
  EXPECT_FALSE(plausible("0.0.0.0:5", "10.0.0.2:6", kTcpSyn));
  EXPECT_FALSE(plausible("10.0.0.1:5", "239.0.0.2:6", kTcpSyn));
  EXPECT_FALSE(plausible("[ff02::1]:5", "[fd00::2]:6", kTcpSyn));
  EXPECT_FALSE(plausible("[::]:5", "[fd00::2]:6", kTcpSyn));
  EXPECT_FALSE(plausible("[fd00::1]:5", "[ff02::2]:6", kTcpSyn));
}

struct OptionCase {
  const char* name;
  bool syn;
  Bytes in, out;
};

TEST(SegmentGuard, options_are_kept_blanked_or_cut_off) {
  const OptionCase cases[] = {
      {"a usual SYN", true, syn_options(), syn_options()},
      {"MSS of 1", true, {2, 4, 0, 1}, {2, 4, 0, kPeerMssMin}},
      {"MSS outside of a SYN", false, {2, 4, 0, 1}, {1, 1, 1, 1}},
      {"scale outside of a SYN", false, {1, 3, 3, 14}, {1, 1, 1, 1}},
      {"SACK permitted outside of a SYN", false, {4, 2, 1, 1}, {1, 1, 1, 1}},
      {"MSS of a wrong length", true, {2, 3, 9, 1}, {1, 1, 1, 1}},
      {"length 0", true, {8, 0, 2, 4, 5, 6, 7, 8}, {0, 0, 0, 0, 0, 0, 0, 0}},
      {"length beyond the header", true, {1, 1, 2, 4}, {1, 1, 0, 0}},
      {"kind without length", true, {1, 1, 1, 8}, {1, 1, 1, 0}},
      {"rubbish behind the end", true, {0, 9, 9, 9}, {0, 0, 0, 0}},
      {"SACK blocks",
       false,
       {1, 1, 5, 10, 1, 2, 3, 4, 5, 6, 7, 8},
       {1, 1, 5, 10, 1, 2, 3, 4, 5, 6, 7, 8}},
      {"unknown", true, {254, 4, 1, 2}, {254, 4, 1, 2}},
  };
  for (const OptionCase& c : cases) {
    Bytes header(20 + c.in.size());
    std::copy(c.in.begin(), c.in.end(), header.begin() + 20);
    clean_options(header.data(), static_cast<std::uint32_t>(header.size()), c.syn);
    EXPECT_EQ(Bytes(header.begin() + 20, header.end()), c.out) << c.name;
  }
  Bytes header(32);
  const Bytes ts = ts_options(0xdeadbeef);
  std::copy(ts.begin(), ts.end(), header.begin() + 20);
  for (const bool syn : {false, true}) {
    const TcpOptions found = clean_options(header.data(), 32, syn);
    EXPECT_TRUE(found.timestamps);
    EXPECT_EQ(found.ts_value, 0xdeadbeefu);
  }
}

}  // namespace
}  // namespace sanproxy::stack::testing
