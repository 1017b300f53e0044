// Fragments put together: whatever the cuts and the order, the packet is the one that was cut; what
// could be read in two ways is refused; memory and time are bounded, and every fragment is counted.
#include "netnode/net/reassembly.h"

#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <set>

#include "tests/lwproto/base/sanitized.h"
#include "tests/netnode/net/fragments_of.h"

namespace sanproxy::net {
namespace {

using namespace testing;

constexpr std::uint64_t kMs = 1'000'000;

Bytes segment(std::size_t data, std::mt19937& random) {
  Bytes out = tcp(data, 8);
  for (std::size_t i = 20; i < out.size(); ++i) out[i] = static_cast<std::uint8_t>(random());
  return out;
}

// A whole packet that has the id of its fragments, which stays in IPv4's header.
Bytes whole_packet(bool v4, const Bytes& payload, std::uint16_t id, const Bytes& options = {}) {
  Bytes out = v4 ? ipv4(6, payload, options) : ipv6(6, payload);
  if (v4) {
    store_be16(out.data() + 4, id);
    fix_ipv4_checksum(out);
  }
  return out;
}

class ReassemblyTest : public ::testing::Test {
 protected:
  // The packet that `fragment` completes, or nothing.
  Bytes add(const Bytes& fragment) {
    ParsedPacket parsed;
    EXPECT_EQ(parse_packet(as_span(fragment), parsed), DropReason::kNone);
    EXPECT_TRUE(parsed.fragment);
    const auto whole = table_->add(parsed, as_span(fragment), as_span(fragment), now_ns_);
    check_counts();
    const auto* at = reinterpret_cast<const std::uint8_t*>(whole.data());
    return {at, at + whole.size()};
  }
  Bytes add_all(const std::vector<Bytes>& fragments) {
    Bytes whole;
    for (const Bytes& fragment : fragments) {
      EXPECT_TRUE(whole.empty()) << "whole before the last one";
      whole = add(fragment);
    }
    return whole;
  }
  // Each fragment is somewhere (invariant 4).
  void check_counts() {
    const ReassemblyCounters& c = table_->counters();
    EXPECT_EQ(c.received, c.put_together + c.disabled + c.not_tcp + c.malformed + c.tiny +
                              c.overlap + c.duplicate + c.timed_out + c.displaced +
                              table_->fragments_waiting());
  }
  void make(const ReassemblyOptions& options) {
    table_ = std::make_unique<Reassembly>(options, 77);
  }

  std::uint64_t now_ns_ = 0;
  std::unique_ptr<Reassembly> table_ = std::make_unique<Reassembly>(ReassemblyOptions{}, 77);
};

TEST_F(ReassemblyTest, any_cut_in_any_order_gives_the_packet_that_was_cut) {
  const int rounds = static_cast<int>(3000 / test::kSanitizedShare);
  for (int seed = 0; seed < rounds; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(static_cast<unsigned>(seed));
    const std::size_t data = 1 + random() % (seed % 10 == 0 ? 65'000 : 3'000);
    const Bytes payload = segment(data, random);
    const auto id = static_cast<std::uint16_t>(seed);
    const Bytes whole =
        whole_packet(seed % 2 == 0, payload, id, Bytes((random() % 3) * 4, 1));  // options: NOP
    std::set<std::size_t> cuts{32 + random() % 2 * 8};
    if (payload.size() <= 40) cuts = {32};
    for (std::size_t i = 0; i < random() % 20; ++i) {
      const std::size_t at = random() % payload.size() / 8 * 8;
      if (at >= 32) cuts.insert(at);
    }
    auto fragments = in_fragments(whole, {cuts.begin(), cuts.end()}, id);
    for (const Bytes& one : std::vector<Bytes>(fragments)) {
      if (random() % 4 == 0) fragments.push_back(one);
    }
    std::shuffle(fragments.begin(), fragments.end(), random);
    Bytes got;
    std::size_t left = 0;
    for (; left < fragments.size() && got.empty(); ++left) got = add(fragments[left]);
    ASSERT_EQ(got, whole);
    now_ns_ += 20'000 * kMs;  // what was repeated behind the end is of no datagram
  }
  EXPECT_EQ(table_->counters().whole, static_cast<std::uint64_t>(rounds));
  EXPECT_EQ(table_->counters().overlap, 0u);
  EXPECT_GT(table_->counters().duplicate, 0u);
  table_->expire(now_ns_);
  EXPECT_EQ(table_->datagrams_waiting(), 0u);
  EXPECT_EQ(table_->next_timer_ns(), UINT64_MAX);
}

TEST_F(ReassemblyTest, extension_headers_in_front_stay_and_the_fragment_header_goes) {
  std::mt19937 random(1);
  Bytes headers(8);  // hop-by-hop, filled with PadN
  headers[0] = 60;
  headers[2] = 1;
  headers[3] = 4;
  Bytes destination(16);
  destination[0] = 6;
  destination[1] = 1;
  destination[2] = 1;
  destination[3] = 12;
  append(headers, destination);
  Bytes payload = headers;
  append(payload, segment(500, random));
  const Bytes whole = ipv6(0, payload);
  const std::size_t front = 64, next_at = 48;
  EXPECT_TRUE(add(fragment6(whole, 256, 532, false, 9, front, next_at)).empty());
  EXPECT_EQ(add(fragment6(whole, 0, 256, true, 9, front, next_at)), whole);
}

TEST_F(ReassemblyTest, datagrams_with_other_ids_or_addresses_are_apart) {
  std::mt19937 random(1);
  std::vector<Bytes> wholes, firsts, lasts;
  for (int i = 0; i < 8; ++i) {
    const std::uint16_t id = i % 4 < 2 ? 5 : 6;
    Bytes whole = whole_packet(i % 2 == 0, segment(100, random), id);
    if (i >= 4) whole[i % 2 == 0 ? 19 : 39] = 200;  // another destination
    if (i % 2 == 0) fix_ipv4_checksum(whole);
    const auto parts = in_fragments(whole, {64}, id);
    wholes.push_back(whole);
    firsts.push_back(parts[0]);
    lasts.push_back(parts[1]);
  }
  for (const Bytes& last : lasts) EXPECT_TRUE(add(last).empty());
  EXPECT_EQ(table_->datagrams_waiting(), 8u);
  for (std::size_t i = 0; i < 8; ++i) {
    EXPECT_EQ(add(firsts[i]), wholes[i]) << i;
  }
}

struct Fragment {
  std::size_t from, to;
  bool more = true;
};

class ReassemblyRefuses : public ReassemblyTest,
                          public ::testing::WithParamInterface<std::vector<Fragment>> {};

// The rest of the datagram comes too, and does not help.
TEST_P(ReassemblyRefuses, a_fragment_that_overlaps_ends_its_datagram) {
  for (const bool v4 : {true, false}) {
    SCOPED_TRACE(v4 ? "IPv4" : "IPv6");
    std::mt19937 random(1);
    const Bytes whole = whole_packet(v4, segment(368, random), 3);  // 400 bytes to be cut
    Bytes other = whole;
    for (std::size_t i = other.size() - 360; i < other.size(); ++i) other[i] ^= 0xff;
    make({});
    const auto& fragments = GetParam();
    for (std::size_t i = 0; i < fragments.size(); ++i) {
      const bool last = i + 1 == fragments.size();
      EXPECT_TRUE(add(fragment_of(last ? other : whole, fragments[i].from, fragments[i].to,
                                  fragments[i].more, 3))
                      .empty());
    }
    EXPECT_EQ(table_->counters().overlap, fragments.size());
    for (const Bytes& one : in_fragments(whole, {80, 160, 240, 320}, 3))
      EXPECT_TRUE(add(one).empty());
    EXPECT_EQ(table_->counters().overlap, fragments.size() + 5);
    EXPECT_EQ(table_->fragments_waiting(), 0u);
    // The id is free again when its time is over.
    now_ns_ += 15'000 * kMs;
    EXPECT_EQ(add_all(in_fragments(whole, {80, 160, 240, 320}, 3)), whole);
    now_ns_ = 0;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Overlaps, ReassemblyRefuses,
    ::testing::Values(
        std::vector<Fragment>{{0, 80}, {80, 160}, {80, 160}},         // other bytes in its place
        std::vector<Fragment>{{0, 80}, {80, 160}, {72, 168}},         // around it
        std::vector<Fragment>{{0, 80}, {80, 160}, {96, 104}},         // inside it
        std::vector<Fragment>{{0, 80}, {80, 160}, {152, 240}},        // over its end
        std::vector<Fragment>{{240, 320}, {160, 248}},                // over its beginning
        std::vector<Fragment>{{320, 400, false}, {320, 400}},         // the last one, and more
        std::vector<Fragment>{{240, 320, false}, {320, 400}},         // behind the end
        std::vector<Fragment>{{240, 320, false}, {320, 400, false}},  // another end
        std::vector<Fragment>{{320, 400}, {240, 320, false}},         // an end before what is here
        std::vector<Fragment>{{240, 320}, {240, 320, false}}));       // an end after all

TEST_F(ReassemblyTest, what_is_said_twice_is_dropped_alone) {
  std::mt19937 random(1);
  const Bytes whole = ipv6(6, segment(368, random));
  EXPECT_TRUE(add(fragment_of(whole, 320, 400, false, 3)).empty());
  EXPECT_TRUE(add(fragment_of(whole, 320, 400, false, 3)).empty());
  EXPECT_TRUE(add(fragment_of(whole, 0, 80, true, 3)).empty());
  EXPECT_TRUE(add(fragment_of(whole, 0, 80, true, 3)).empty());
  EXPECT_TRUE(add(fragment_of(whole, 0, 40, true, 3)).empty());
  EXPECT_EQ(table_->counters().duplicate, 3u);
  EXPECT_EQ(add(fragment_of(whole, 80, 320, true, 3)), whole);
}

TEST_F(ReassemblyTest, a_first_fragment_without_the_whole_tcp_header_is_refused) {
  for (const bool v4 : {true, false}) {
    std::mt19937 random(1);
    const Bytes payload = segment(368, random);  // a header of 32 bytes
    const Bytes whole = v4 ? ipv4(6, payload) : ipv6(6, payload);
    make({});
    for (const std::size_t bytes : {8u, 16u, 24u}) {
      EXPECT_TRUE(add(fragment_of(whole, 0, bytes, true, 3)).empty());
    }
    EXPECT_TRUE(add(fragment_of(whole, 8, 200, true, 3)).empty());  // RFC 3128
    EXPECT_TRUE(add(fragment_of(whole, 16, 200, true, 3)).empty());
    Bytes wrong = whole;
    wrong[(v4 ? 20 : 40) + 12] = 4 << 4;  // a header of 16 bytes
    EXPECT_TRUE(add(fragment_of(wrong, 0, 80, true, 3)).empty());
    EXPECT_EQ(table_->counters().tiny, 6u);
    EXPECT_EQ(table_->datagrams_waiting(), 0u);
    EXPECT_TRUE(add(fragment_of(whole, 0, 32, true, 3)).empty());
    EXPECT_FALSE(add(fragment_of(whole, 32, 400, false, 3)).empty());
  }
}

TEST_F(ReassemblyTest, a_fragment_that_fits_nowhere_is_refused) {
  std::mt19937 random(1);
  const Bytes whole = ipv4(6, segment(368, random));
  EXPECT_TRUE(add(fragment_of(whole, 80, 84, true, 3)).empty());  // no multiple of eight
  EXPECT_TRUE(add(fragment_of(whole, 80, 80, true, 3)).empty());  // nothing in it
  Bytes far = fragment_of(whole, 80, 160, false, 3);
  store_be16(far.data() + 6, 8191);
  fix_ipv4_checksum(far);
  EXPECT_TRUE(add(far).empty());  // ends behind 65,535
  EXPECT_EQ(table_->counters().malformed, 3u);
  EXPECT_EQ(table_->datagrams_waiting(), 0u);
}

TEST_F(ReassemblyTest, a_packet_that_would_be_longer_than_an_ip_packet_may_be_is_refused) {
  std::mt19937 random(1);
  for (const bool v4 : {true, false}) {
    make({});
    // IPv4 counts its header, IPv6 does not, but for extension headers.
    const std::size_t most = v4 ? 65'515 : 65'535;
    const Bytes payload = segment(65'535 - 32, random);
    const Bytes start = v4 ? ipv4(6, Bytes(payload.begin(), payload.begin() + 1000))
                           : ipv6(6, Bytes(payload.begin(), payload.begin() + 1000));
    Bytes long_enough = start;
    long_enough.insert(long_enough.end(), payload.begin() + 1000, payload.end());
    EXPECT_TRUE(add(fragment_of(long_enough, 0, 32'000, true, 3)).empty());
    const Bytes got = add(fragment_of(long_enough, 32'000, most, false, 3));
    if (v4) {
      EXPECT_EQ(got.size(), 65'535u);
      EXPECT_TRUE(add(fragment_of(long_enough, 0, 32'000, true, 4)).empty());
      EXPECT_TRUE(add(fragment_of(long_enough, 32'000, most + 1, false, 4)).empty());
    } else {
      // 40 bytes of header make it longer than the stack can count.
      EXPECT_TRUE(got.empty());
    }
    EXPECT_EQ(table_->counters().malformed, 2u);
    EXPECT_TRUE(add(fragment_of(long_enough, 0, 32'000, true, v4 ? 4 : 3)).empty());
    EXPECT_EQ(table_->fragments_waiting(), 0u);
  }
}

TEST_F(ReassemblyTest, other_protocols_are_dropped_and_so_is_everything_when_it_is_switched_off) {
  std::mt19937 random(1);
  for (const std::uint8_t protocol : {std::uint8_t{17}, std::uint8_t{1}, std::uint8_t{58}}) {
    EXPECT_TRUE(add(fragment_of(ipv4(protocol, segment(368, random)), 0, 80, true, 3)).empty());
  }
  EXPECT_EQ(table_->counters().not_tcp, 3u);
  make({.datagrams_max = 0});
  EXPECT_TRUE(add(fragment_of(ipv4(6, segment(368, random)), 0, 80, true, 3)).empty());
  EXPECT_EQ(table_->counters().disabled, 1u);
  EXPECT_EQ(table_->datagrams_waiting(), 0u);
}

TEST_F(ReassemblyTest, what_stays_incomplete_is_dropped_in_time) {
  std::mt19937 random(1);
  const Bytes whole = ipv4(6, segment(368, random));
  make({.timeout_ms = 1000});
  now_ns_ = 5 * kMs;
  EXPECT_EQ(table_->next_timer_ns(), UINT64_MAX);
  (void)add(fragment_of(whole, 0, 80, true, 3));
  (void)add(fragment_of(whole, 80, 160, true, 3));
  now_ns_ = 300 * kMs;
  (void)add(fragment_of(whole, 0, 80, true, 4));
  (void)add(fragment_of(whole, 240, 320, true, 3));  // does not make it last longer
  EXPECT_EQ(table_->next_timer_ns(), 1005 * kMs);
  table_->expire(1004 * kMs);
  EXPECT_EQ(table_->datagrams_waiting(), 2u);
  table_->expire(1005 * kMs);
  check_counts();
  EXPECT_EQ(table_->counters().timed_out, 3u);
  EXPECT_EQ(table_->next_timer_ns(), 1300 * kMs);
  now_ns_ = 1301 * kMs;
  EXPECT_TRUE(add(fragment_of(whole, 80, 400, false, 4)).empty()) << "its first one was too old";
}

TEST_F(ReassemblyTest, a_flood_of_one_source_displaces_its_own_and_leaves_others_alone) {
  std::mt19937 random(1);
  Bytes whole = ipv4(6, segment(368, random));
  // 64 clients, each with one packet under way.
  const auto of_client = [&](std::uint8_t client) {
    Bytes out = whole;
    out[14] = client;
    fix_ipv4_checksum(out);
    return out;
  };
  for (std::uint8_t i = 0; i < 64; ++i) (void)add(fragment_of(of_client(i), 0, 80, true, 3));
  const std::uint64_t before = table_->counters().displaced;
  EXPECT_LT(before, 4u);
  Bytes hostile = of_client(255);
  for (int id = 0; id < 20'000; ++id) {
    (void)add(fragment_of(hostile, 80, 160, true, static_cast<std::uint16_t>(id)));
  }
  EXPECT_LE(table_->datagrams_waiting(), 64u + Reassembly::kWays);
  int whole_ones = 0;
  for (std::uint8_t i = 0; i < 64; ++i) {
    whole_ones += add(fragment_of(of_client(i), 80, 400, false, 3)).empty() ? 0 : 1;
  }
  EXPECT_GE(whole_ones, 50);  // but for those in the same set: 4 of 64 on average
}

TEST_F(ReassemblyTest, a_flood_of_many_sources_stays_within_the_bound) {
  std::mt19937 random(1);
  make({.datagrams_max = 40});  // two sets
  for (int i = 0; i < 20'000; ++i) {
    Bytes whole = ipv4(6, segment(8, random));
    store_be32(whole.data() + 12, static_cast<std::uint32_t>(random()));
    fix_ipv4_checksum(whole);
    (void)add(fragment_of(whole, 32, 40, false, static_cast<std::uint16_t>(random())));
    ASSERT_LE(table_->datagrams_waiting(), 40u);
  }
  EXPECT_GT(table_->counters().displaced, 19'000u);
  table_->expire(UINT64_MAX - 1);
  EXPECT_EQ(table_->datagrams_waiting(), 0u);
  EXPECT_EQ(table_->fragments_waiting(), 0u);
  check_counts();
}

TEST_F(ReassemblyTest, bytes_that_make_no_sense_do_no_harm) {
  const unsigned rounds = 300'000 / test::kSanitizedShare;
  std::mt19937 random(5);
  make({.timeout_ms = 20});
  const Bytes four = ipv4(6, segment(368, random)), six = ipv6(6, segment(368, random));
  for (unsigned i = 0; i < rounds; ++i) {
    now_ns_ += kMs;
    const bool last = random() % 2 == 0;
    std::size_t from = last ? 200 : 0, to = last ? 400 : 200;
    if (random() % 16 == 0) {
      from = random() % 50 * 8;
      to = from + random() % (401 - from);
    }
    Bytes packet = fragment_of(i % 2 == 0 ? four : six, from, to, !last,
                               static_cast<std::uint16_t>(random() % 12));
    for (unsigned flips = random() % 8 == 0 ? 3 : 0; flips > 0; --flips) {
      packet[random() % packet.size()] = static_cast<std::uint8_t>(random());
    }
    if (i % 2 == 0 && (packet[0] & 15U) * 4U <= packet.size()) fix_ipv4_checksum(packet);
    ParsedPacket parsed;
    if (parse_packet(as_span(packet), parsed) != DropReason::kNone || !parsed.fragment) continue;
    const auto whole = table_->add(parsed, as_span(packet), as_span(packet), now_ns_);
    if (whole.empty()) continue;
    ASSERT_EQ(parse_packet(whole, parsed), DropReason::kNone);
    ASSERT_FALSE(parsed.fragment);
    ASSERT_EQ(parsed.total_bytes, whole.size());
  }
  check_counts();
  EXPECT_GT(table_->counters().whole, 100u);
}

}  // namespace
}  // namespace sanproxy::net
