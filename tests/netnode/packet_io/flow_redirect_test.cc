// Flows that the kernel carries: its programs do to a packet what the translation here does, and
// leave alone what is not to be carried.
#include "netnode/packet_io/flow_redirect.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <gtest/gtest.h>

#include <functional>
#include <random>
#include <tuple>

#include "lwproto/base/clock.h"
#include "netnode/steer/nat.h"
#include "tests/netnode/steer/steer_packets.h"

namespace sanproxy::packet_io {
namespace {

using namespace steer::testing;  // NOLINT: the test's own
using Hook = FlowRedirect::Hook;
using Way = FlowRedirect::Way;

constexpr std::uint32_t kRedirected = 7;  // TC_ACT_REDIRECT
constexpr auto kUntouched = static_cast<std::uint32_t>(-1);
constexpr std::uint32_t kMark = 7;
constexpr std::size_t kFrameBytes = net::kEthernetHeaderBytes;
// For the loopback interface, by which a program is tried.
constexpr std::array<std::uint8_t, kFrameBytes> kFrameIn = {0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 2};
constexpr std::array<std::uint8_t, kFrameBytes> kFrameOut = {2, 0, 0, 0, 0, 3, 2, 0, 0, 0, 0, 4};

std::array<std::uint8_t, kFrameBytes> typed(std::array<std::uint8_t, kFrameBytes> frame,
                                            Family family) {
  frame[12] = family == Family::kIpv4 ? 0x08 : 0x86;
  frame[13] = family == Family::kIpv4 ? 0x00 : 0xdd;
  return frame;
}

Bytes framed(const std::array<std::uint8_t, kFrameBytes>& header, const Bytes& packet) {
  Bytes out(header.begin(), header.end());
  out.insert(out.end(), packet.begin(), packet.end());
  return out;
}

// Takes what a translation asks to be carried into a table.
class Carrier : public steer::NatCarrier {
 public:
  explicit Carrier(FlowRedirect& to) : to_(to) {}
  std::uint32_t generation() const override { return to_.generation(); }
  bool carry(const net::FlowKey& client, const net::FlowKey& proxy, std::uint16_t addresses_delta,
             std::uint16_t ports_delta) override {
    const auto turned = [](std::uint16_t delta) { return static_cast<std::uint16_t>(~delta); };
    way.frame = typed(kFrameOut, client.family);
    return to_.put(client, {proxy.reversed(), addresses_delta, ports_delta, false}, way) &&
           to_.put(proxy, {client.reversed(), turned(addresses_delta), turned(ports_delta), true},
                   way);
  }
  void leave(const net::FlowKey& client, const net::FlowKey& proxy) override {
    to_.erase(client);
    to_.erase(proxy);
  }

  KernelWay way{.interface_index = 1, .mtu_bytes = 1500, .ethernet = true};

 private:
  FlowRedirect& to_;
};

class FlowRedirectTest : public ::testing::TestWithParam<std::tuple<Hook, Way>> {
 protected:
  static Hook hook() { return std::get<Hook>(GetParam()); }

  struct Outcome {
    std::uint32_t verdict = 0;
    Bytes bytes;
  };

  void SetUp() override {
    auto made = FlowRedirect::create(1024, std::get<Way>(GetParam()));
    if (made.status().code() == Code::kUnsupported) GTEST_SKIP() << made.status().to_string();
    ASSERT_TRUE(made.ok()) << made.status().to_string();
    redirect = std::move(made).value();
    redirect->set_time(now_s);
    const auto code = redirect->make_program(hook());
    program = UniqueFd(
        bpf_prog_load(BPF_PROG_TYPE_SCHED_CLS, "test", "GPL", code.data(), code.size(), nullptr));
    ASSERT_TRUE(program.valid());
    if (hook() == Hook::kIngress) {
      filter = std::move(redirect->load_filter()).value();
      frames = load_frames_program();
      ASSERT_TRUE(frames.valid());
    }
    carrier = std::make_unique<Carrier>(*redirect);
    steer::NatOptions options;
    options.addresses = {*IpAddress::parse("10.9.9.9"), *IpAddress::parse("fd99::9")};
    nat = std::make_unique<steer::Nat>(options, 42);
    nat->set_carrier(carrier.get());
  }

  // The part that an XDP program begins with.
  UniqueFd load_frames_program() const {
    BpfCode code;
    code.move(6, 1);
    redirect->match(code, FlowRedirect::Context::kFrame, kFrameBytes, BpfCode::kNoFlow);
    code.set(0, XDP_PASS);
    code.exit();
    code.here(BpfCode::kNoFlow);
    code.set(0, XDP_DROP);
    code.exit();
    const auto made = code.finish();
    return UniqueFd(
        bpf_prog_load(BPF_PROG_TYPE_XDP, "test", "GPL", made.data(), made.size(), nullptr));
  }
  // As it arrives: with a frame's header where the interface has one.
  Bytes arriving(const Bytes& packet) const {
    if (hook() == Hook::kEgress) return packet;
    auto header = typed(kFrameIn, packet[0] >> 4 == 4 ? Family::kIpv4 : Family::kIpv6);
    header[5] = station;
    return framed(header, packet);
  }
  static std::uint32_t verdict_of(const UniqueFd& one, const Bytes& in) {
    bpf_test_run_opts options{};
    options.sz = sizeof(options);
    options.data_in = in.data();
    options.data_size_in = static_cast<__u32>(in.size());
    EXPECT_EQ(bpf_prog_test_run_opts(one.get(), &options), 0);
    return options.retval;
  }
  // A trial of a socket's filter takes a frame's header off; a packet socket has it.
  bool is_heard(const Bytes& frame) const {
    Bytes heard(frame.begin(), frame.begin() + kFrameBytes);
    heard.insert(heard.end(), frame.begin(), frame.end());
    const std::uint32_t bytes = verdict_of(filter, heard);
    EXPECT_TRUE(bytes == 0 || bytes == ~0U) << bytes;
    return bytes != 0;
  }
  // What is in front of the program that carries a packet leaves it just those.
  void expect_agreement(const Bytes& in, bool carried, std::uint32_t segment_bytes) const {
    if (hook() != Hook::kIngress || segment_bytes != 0) return;
    EXPECT_EQ(is_heard(in), !carried && station == 0);
    // Which station's a frame is nobody asks there: what is another's the kernel drops.
    if (station == 0) {
      EXPECT_EQ(verdict_of(frames, in), carried ? XDP_PASS : XDP_DROP);
    }
  }
  Outcome run(const Bytes& packet, std::uint32_t segment_bytes = 0) const {
    const Bytes in = arriving(packet);
    Outcome out;
    out.bytes.resize(in.size() + 64);
    __sk_buff context{};
    context.gso_size = segment_bytes;
    context.mark = kMark;
    bpf_test_run_opts options{};
    options.sz = sizeof(options);
    options.data_in = in.data();
    options.data_size_in = static_cast<__u32>(in.size());
    options.data_out = out.bytes.data();
    options.data_size_out = static_cast<__u32>(out.bytes.size());
    options.ctx_in = &context;
    options.ctx_size_in = sizeof(context);
    __sk_buff after{};
    options.ctx_out = &after;
    options.ctx_size_out = sizeof(after);
    EXPECT_EQ(bpf_prog_test_run_opts(program.get(), &options), 0);
    out.verdict = options.retval;
    // A mark that led it to us would lead it here again.
    EXPECT_EQ(after.mark, out.verdict == kRedirected ? 0 : kMark);
    expect_agreement(in, out.verdict == kRedirected, segment_bytes);
    out.bytes.resize(options.data_size_out);
    return out;
  }
  void expect_untouched(const Bytes& packet, const char* what, std::uint32_t segment_bytes = 0) {
    const Outcome out = run(packet, segment_bytes);
    EXPECT_EQ(out.verdict, kUntouched) << what;
    EXPECT_EQ(out.bytes, arriving(packet)) << what;
  }

  Bytes translated(Bytes packet, bool from_client = true) {
    const net::ParsedPacket p = parsed(packet);
    const steer::Nat::Packet what{std::as_writable_bytes(std::span(packet)), p};
    const SocketAddress target = at(p.family == Family::kIpv4 ? "10.5.0.1:8080" : "[fd05::1]:8080");
    EXPECT_EQ(from_client ? nat->to_proxy(what, flow_of(packet), 3, target, 1000)
                          : nat->to_client(what, flow_of(packet), 1000),
              steer::NatResult::kOk);
    return packet;
  }
  // An established session, in the table; returns what its client's packets look like behind us.
  Bytes established(const Bytes& packet) {
    Bytes there = translated(packet);
    for (int i = 0; i < 2 + steer::kNatCarryAfter; ++i) {
      translated(answer(there), false);
      there = translated(packet);
    }
    return there;
  }
  static Bytes answer(const Bytes& there, std::size_t payload = 10) {
    const net::FlowKey k = flow_of(there);
    const net::ParsedPacket p = parsed(there);
    return packet_of({.from = {p.dst_address(), k.dst_port},
                      .to = {p.src_address(), k.src_port},
                      .payload = payload});
  }
  static Bytes client_packet(Family family, std::size_t payload = 10) {
    return family == Family::kIpv4
               ? packet_of(
                     {.from = at("10.1.2.3:5555"), .to = at("10.0.0.10:80"), .payload = payload})
               : packet_of(
                     {.from = at("[fd01::7]:1"), .to = at("[fd00::10]:443"), .payload = payload});
  }

  const std::uint32_t now_s = static_cast<std::uint32_t>(SteadyClock().now_ns() / 1'000'000'000);
  std::uint8_t station = 0;
  std::unique_ptr<FlowRedirect> redirect;
  UniqueFd program, filter, frames;
  std::unique_ptr<Carrier> carrier;
  std::unique_ptr<steer::Nat> nat;
};

INSTANTIATE_TEST_SUITE_P(Hooks, FlowRedirectTest,
                         ::testing::Combine(::testing::Values(Hook::kIngress, Hook::kEgress),
                                            ::testing::Values(Way::kTcx, Way::kClsact)));

// Property: whatever the addresses, ports and bytes, both ways, as the translation here would have
// it.
TEST_P(FlowRedirectTest, ChangesAPacketAsTheTranslationDoes) {
  std::mt19937 random(11);
  for (int i = 0; i < 200; ++i) {
    const bool v4 = i % 2 == 0;
    const auto byte = [&] { return std::to_string(random() % 254 + 1); };
    const auto port = [&] { return std::to_string(random() % 65'535 + 1); };
    const std::string from = v4 ? "10." + byte() + "." + byte() + "." + byte() + ":" + port()
                                : "[fd01:" + byte() + "::" + byte() + "]:" + port();
    const std::string to =
        v4 ? "10.0.0." + byte() + ":" + port() : "[fd00::" + byte() + "]:" + port();
    const Bytes packet = packet_of({.from = at(from), .to = at(to), .payload = random() % 1400});
    const Bytes there = established(packet);
    const Family family = v4 ? Family::kIpv4 : Family::kIpv6;
    const auto header = typed(kFrameOut, family);
    Outcome out = run(packet);
    ASSERT_EQ(out.verdict, kRedirected) << from << " " << to;
    ASSERT_EQ(out.bytes, framed(header, there)) << from << " " << to;
    const Bytes back = answer(there, random() % 1400);
    out = run(back);
    ASSERT_EQ(out.verdict, kRedirected) << from << " " << to;
    ASSERT_EQ(out.bytes, framed(header, translated(back, false))) << from << " " << to;
    ASSERT_EQ(told(Bytes(out.bytes.begin() + kFrameBytes, out.bytes.end())),
              at(to).to_string() + " -> " + at(from).to_string());
    nat->erase_proxy(3);
    expect_untouched(packet, "its session is over");
  }
  EXPECT_EQ(redirect->counters().to_proxy, 200u);
  EXPECT_EQ(redirect->counters().to_client, 200u);
  EXPECT_EQ(redirect->counters().dropped, 0u);
}

TEST_P(FlowRedirectTest, LeavesAloneWhatIsNoPlainSegmentOfAnEstablishedConnection) {
  for (const Family family : {Family::kIpv4, Family::kIpv6}) {
    const bool v4 = family == Family::kIpv4;
    const std::size_t l4 = v4 ? 20 : 40;
    const Bytes packet = client_packet(family);
    established(packet);
    ASSERT_EQ(run(packet).verdict, kRedirected);
    const auto changed = [&](const char* what, const std::function<void(Bytes&)>& change) {
      Bytes other = packet;
      change(other);
      expect_untouched(other, what);
    };
    for (const int flags : {0x02, 0x12, 0x11, 0x14, 0x04, 0x01, 0x30, 0x00, 0x08}) {
      changed("flags", [&](Bytes& b) { b[l4 + 13] = static_cast<std::uint8_t>(flags); });
    }
    changed("the last hop", [&](Bytes& b) { b[v4 ? 8 : 7] = 1; });
    changed("no hop", [&](Bytes& b) { b[v4 ? 8 : 7] = 0; });
    changed("another protocol", [&](Bytes& b) { b[v4 ? 9 : 6] = 17; });
    changed("a short TCP header", [&](Bytes& b) { b[l4 + 12] = 0x40; });
    changed("a TCP header beyond the packet", [&](Bytes& b) { b[l4 + 12] = 0xf0; });
    changed("a packet longer than its frame", [&](Bytes& b) { ++b[v4 ? 3 : 5]; });
    changed("another port", [&](Bytes& b) { ++b[l4 + 1]; });
    changed("another address", [&](Bytes& b) { ++b[v4 ? 19 : 39]; });
    changed("another version", [&](Bytes& b) { b[0] ^= 0x20; });
    if (v4) {
      changed("a first fragment", [](Bytes& b) { b[6] = 0x20; });
      changed("a later fragment", [](Bytes& b) { b[7] = 1; });
      changed("a length below its headers", [](Bytes& b) { b[3] = 39; });
    } else {
      changed("a header in between", [](Bytes& b) { b[6] = 60; });
    }
    // Not set: that a fragment must not be made is nobody's concern here.
    Bytes whole = packet;
    if (v4) {
      whole[6] = 0x40;
      EXPECT_EQ(run(whole).verdict, kRedirected);
    }
    for (const int flags : {0x18, 0xd0}) {  // PSH; ECE and CWR
      whole = packet;
      whole[l4 + 13] = static_cast<std::uint8_t>(flags);
      EXPECT_EQ(run(whole).verdict, kRedirected);
    }
    for (std::size_t bytes = l4; bytes < l4 + 20; bytes += 3) {
      expect_untouched(Bytes(packet.begin(), packet.begin() + static_cast<std::ptrdiff_t>(bytes)),
                       "cut short");
    }
  }
}

TEST_P(FlowRedirectTest, LeavesAloneWhatIsForAnotherStation) {
  if (hook() == Hook::kEgress) return;  // has no frames
  const Bytes packet = client_packet(Family::kIpv4);
  established(packet);
  station = 9;
  expect_untouched(packet, "its frame is another's");
}

TEST_P(FlowRedirectTest, APacketSocketHearsWhoAsksForUsAndNoOtherProtocols) {
  if (hook() == Hook::kEgress) return;  // has no frames
  const Bytes packet = client_packet(Family::kIpv4);
  established(packet);
  const std::array<std::uint8_t, 6> all = {255, 255, 255, 255, 255, 255};
  const std::array<std::uint8_t, 6> group = {0x33, 0x33, 0, 0, 0, 1};
  const auto heard = [&](const std::array<std::uint8_t, 6>& to, std::uint16_t type) {
    Bytes frame = arriving(packet);
    std::copy(to.begin(), to.end(), frame.begin());
    net::store_be16(frame.data() + 12, type);
    return is_heard(frame);
  };
  for (const auto& to : {all, group}) {
    EXPECT_TRUE(heard(to, net::kEtherTypeArp));
    EXPECT_TRUE(heard(to, net::kEtherTypeIpv6));
    EXPECT_TRUE(heard(to, net::kEtherTypeIpv4)) << "that is carried for us alone";
    EXPECT_FALSE(heard(to, 0x88cc));
  }
  EXPECT_TRUE(heard({}, net::kEtherTypeArp));
  EXPECT_FALSE(heard({}, net::kEtherTypeIpv4)) << "carried";
  EXPECT_FALSE(heard({}, 0x88cc));
}

TEST_P(FlowRedirectTest, PaddingBehindAPacketIsNoPartOfIt) {
  Bytes packet = client_packet(Family::kIpv4, 0);
  const Bytes there = established(packet);
  packet.resize(packet.size() + 6);
  const Outcome out = run(packet);
  EXPECT_EQ(out.verdict, kRedirected);
  EXPECT_TRUE(std::equal(there.begin(), there.end(), out.bytes.begin() + kFrameBytes));
}

TEST_P(FlowRedirectTest, WhatDoesNotFitTheWayOutIsLeftToWhoCanAnswer) {
  for (const Family family : {Family::kIpv4, Family::kIpv6}) {
    const std::size_t headers = family == Family::kIpv4 ? 40 : 60;
    established(client_packet(family));
    EXPECT_EQ(run(client_packet(family, 1500 - headers)).verdict, kRedirected);
    const Bytes more = client_packet(family, 1501 - headers);
    expect_untouched(more, "a byte too long");
    EXPECT_EQ(run(more, static_cast<std::uint32_t>(1500 - headers)).verdict, kRedirected);
    expect_untouched(more, "segments of a byte too much",
                     static_cast<std::uint32_t>(1501 - headers));
  }
}

TEST_P(FlowRedirectTest, AnEntryHoldsForAWhileAndUntilAllAreTakenBack) {
  const Bytes packet = client_packet(Family::kIpv4);
  established(packet);
  redirect->set_time(now_s + FlowRedirect::kHoldsForS - 1);
  EXPECT_EQ(run(packet).verdict, kRedirected);
  redirect->set_time(now_s + FlowRedirect::kHoldsForS);
  expect_untouched(packet, "too old");
  redirect->set_time(now_s);
  EXPECT_EQ(run(packet).verdict, kRedirected);
  redirect->invalidate();
  expect_untouched(packet, "taken back");
  translated(packet);  // which has come by us, who puts it in again
  EXPECT_EQ(run(packet).verdict, kRedirected);
}

TEST_P(FlowRedirectTest, WhatOutlivesAProcessCarriesNothingForLong) {
  if (redirect->way() == Way::kTcx) return;  // ends with the process
  const Bytes packet = client_packet(Family::kIpv4);
  redirect->set_time(now_s - FlowRedirect::kLeaseS + 5);
  established(packet);
  EXPECT_EQ(run(packet).verdict, kRedirected);
  redirect->set_time(now_s - FlowRedirect::kLeaseS - 1);
  expect_untouched(packet, "nobody has told the time for a minute");
}

TEST_P(FlowRedirectTest, IntoTheHostGoesAPacketAsItIs) {
  carrier->way = {.interface_index = 1, .mtu_bytes = 1500, .into_host = true};
  const Bytes packet = client_packet(Family::kIpv6);
  const Bytes there = established(packet);
  const Outcome out = run(packet);
  EXPECT_EQ(out.verdict, kRedirected);
  EXPECT_EQ(out.bytes, arriving(there));  // the kernel takes a frame's header off by itself
}

TEST(FlowRedirect, WhatTheTableDoesNotTakeIsCounted) {
  auto redirect = FlowRedirect::create(1);
  if (redirect.status().code() == Code::kUnsupported) GTEST_SKIP() << "needs Linux 6.6";
  ASSERT_TRUE(redirect.ok()) << redirect.status().to_string();
  const FlowTranslation what;
  const KernelWay way;
  net::FlowKey flow;
  EXPECT_TRUE((*redirect)->put(flow, what, way));
  EXPECT_TRUE((*redirect)->put(flow, what, way));
  flow.src_port = 1;
  EXPECT_FALSE((*redirect)->put(flow, what, way));
  EXPECT_EQ((*redirect)->counters().put, 2u);
  EXPECT_EQ((*redirect)->counters().refused, 1u);
  // Each packet of a session that is not carried asks anew: that must cost no call of the kernel.
  (*redirect)->erase({});
  EXPECT_FALSE((*redirect)->put(flow, what, way)) << "not in the same second";
  EXPECT_EQ((*redirect)->counters().refused, 2u);
  (*redirect)->set_time(1);
  EXPECT_TRUE((*redirect)->put(flow, what, way));
}

// By clsact, where a filter's place is not its maker's alone.
class PlacesTest : public ::testing::Test {
 protected:
  static bpf_tc_hook hook() {
    bpf_tc_hook out{};
    out.sz = sizeof(out);
    out.ifindex = 1;  // the loopback interface, where an empty table changes nothing
    out.attach_point = BPF_TC_INGRESS;
    return out;
  }
  static int filters() {
    int out = 0;
    for (std::uint32_t place = 1; place <= InterfaceHook::kPlacesMax; ++place) {
      bpf_tc_opts options{};
      options.sz = sizeof(options);
      options.handle = place;
      options.priority = 0x5a10;
      const bpf_tc_hook where = hook();
      out += bpf_tc_query(&where, &options) == 0 ? 1 : 0;
    }
    return out;
  }
  void SetUp() override {
    for (auto* one : {&first, &second}) {
      auto made = FlowRedirect::create(16, Way::kClsact);
      if (!made.ok()) GTEST_SKIP() << made.status().to_string();
      *one = std::move(made).value();
    }
    libbpf_set_print(nullptr);
    bpf_tc_hook where = hook();
    made_here = bpf_tc_hook_create(&where) == 0;
  }
  void TearDown() override {
    first.reset();
    second.reset();
    bpf_tc_hook where = hook();
    where.attach_point = static_cast<bpf_tc_attach_point>(BPF_TC_INGRESS | BPF_TC_EGRESS);
    if (made_here) (void)bpf_tc_hook_destroy(&where);
  }

  std::unique_ptr<FlowRedirect> first, second;
  bool made_here = false;
};

TEST_F(PlacesTest, WhoComesLaterTakesNothingFromWhoLives) {
  ASSERT_TRUE(first->attach(1, Hook::kIngress).ok());
  ASSERT_EQ(filters(), 1);
  ASSERT_TRUE(second->attach(1, Hook::kIngress).ok());
  EXPECT_EQ(filters(), 2);
  second.reset();
  EXPECT_EQ(filters(), 1);
  first.reset();
  EXPECT_EQ(filters(), 0);
}

TEST_F(PlacesTest, AreBounded) {
  for (std::uint32_t i = 0; i < InterfaceHook::kPlacesMax; ++i) {
    ASSERT_TRUE(first->attach(1, Hook::kIngress).ok());
  }
  EXPECT_EQ(second->attach(1, Hook::kIngress).code(), Code::kExists);
}

}  // namespace
}  // namespace sanproxy::packet_io
