// What drivers do with frames that no honest kernel sends.
#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <sys/socket.h>

#include <algorithm>
#include <random>

#include "netnode/net/ethernet.h"
#include "tests/netnode/packet_io/kernel_side.h"

namespace sanproxy::packet_io::testing {
namespace {

class DriverFramesTest : public DriverTest {
 protected:
  void SetUp() override {
    DriverTest::SetUp();
    if (IsSkipped()) {
      return;
    }
    side->kernel().enter();
    raw = UniqueFd(::socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0));
    index = static_cast<int>(::if_nametoindex(side->kernel_device().c_str()));
    side->kernel().leave();
    ASSERT_TRUE(raw.valid());
    udp = side->kernel_socket(SOCK_DGRAM);
    side->bind(udp.get(), side->kernel_ip(), 5555);
    // A first packet shows the MAC that the kernel knows us under.
    side->send_udp(udp.get(), 7777, "first");
    ASSERT_TRUE(arrives("first"));
    good = udp_packet(*side, 5555, 7777, "good");
    std::swap_ranges(good.begin() + (side->v4() ? 12 : 8), good.begin() + (side->v4() ? 16 : 24),
                     good.begin() + (side->v4() ? 16 : 24));
    find_our_mac();
    start = side->io().counters();
  }
  bool arrives(const std::string& text) {
    return side->receive_until(
        [&](const Received& received) { return udp_text(received.packet, 7777) == text; });
  }
  void find_our_mac() {
    if (!side->ethernet()) {
      return;
    }
    side->kernel().enter();
    FILE* pipe = ::popen(("ip neigh show " + side->our_ip().to_string()).c_str(), "r");
    side->kernel().leave();
    char line[256] = {};
    ASSERT_NE(::fgets(line, sizeof(line), pipe), nullptr);
    ::pclose(pipe);
    unsigned m[6];
    const char* at = std::strstr(line, "lladdr ");
    ASSERT_NE(at, nullptr) << line;
    ASSERT_EQ(std::sscanf(at, "lladdr %x:%x:%x:%x:%x:%x", m, m + 1, m + 2, m + 3, m + 4, m + 5), 6);
    for (std::size_t i = 0; i < 6; ++i) {
      our_mac.bytes[i] = static_cast<std::uint8_t>(m[i]);
    }
  }
  std::uint16_t ether_type() const {
    return side->v4() ? net::kEtherTypeIpv4 : net::kEtherTypeIpv6;
  }
  Bytes frame(const Bytes& packet, const net::MacAddress& dst, std::uint16_t type) const {
    if (!side->ethernet()) {
      return packet;
    }
    Bytes bytes(net::kEthernetHeaderBytes);
    net::write_ethernet(bytes.data(), dst, {{2, 0, 0, 0, 0, 0x77}}, type);
    net::testing::append(bytes, packet);
    return bytes;
  }
  bool inject(const Bytes& bytes) const {
    sockaddr_ll to{};
    to.sll_family = AF_PACKET;
    to.sll_ifindex = index;
    to.sll_protocol = htons(ether_type());
    return ::sendto(raw.get(), bytes.data(), bytes.size(), 0,
                    reinterpret_cast<const sockaddr*>(&to),
                    sizeof(to)) == static_cast<ssize_t>(bytes.size());
  }
  // Everything injected before has been looked at when this returns.
  std::vector<Received> drain() {
    std::vector<Received> seen;
    const std::string text = "marker " + std::to_string(++markers);
    side->send_udp(udp.get(), 7777, text);
    EXPECT_TRUE(side->receive_until([&](const Received& received) {
      if (udp_text(received.packet, 7777) == text) {
        return true;
      }
      seen.push_back(received);
      return false;
    }));
    return seen;
  }
  static std::uint64_t dropped(const Counters& c) {
    return c.rx_dropped_short + c.rx_dropped_not_ip + c.rx_dropped_not_for_us +
           c.rx_dropped_metadata + c.rx_truncated;
  }
  std::size_t copies_of_good(const std::vector<Received>& seen) const {
    std::size_t count = 0;
    for (const Received& received : seen) {
      count += udp_text(received.packet, 7777) == "good" ? 1 : 0;
    }
    return count;
  }

  UniqueFd raw, udp;
  int index = 0;
  int markers = 0;
  net::MacAddress our_mac;
  Bytes good;
  Counters start;
};

TEST_P(DriverFramesTest, AGoodFrameArrives) {
  ASSERT_TRUE(inject(frame(good, our_mac, ether_type())));
  EXPECT_EQ(copies_of_good(drain()), 1U);
}

TEST_P(DriverFramesTest, MalformedPacketsAreDroppedAndCounted) {
  Bytes cut = good, version = good, longer = good;
  cut.resize(19);
  version[0] = 0x55;
  longer[side->v4() ? 2 : 4] = 0x20;  // claims 8 KB
  ASSERT_TRUE(inject(frame(cut, our_mac, ether_type())));
  ASSERT_TRUE(inject(frame(version, our_mac, ether_type())));
  ASSERT_TRUE(inject(frame(longer, our_mac, ether_type())));
  EXPECT_EQ(copies_of_good(drain()), 0U);
  const Counters& now = side->io().counters();
  // What is too short for its addresses is not ours to AF_XDP's filter: the kernel gets it.
  const bool filtered = std::string(GetParam().driver) == "xdp";
  EXPECT_EQ(now.rx_dropped_short - start.rx_dropped_short, filtered ? 1U : 2U);
  EXPECT_EQ(now.rx_dropped_not_ip - start.rx_dropped_not_ip, 1U);
}

TEST_P(DriverFramesTest, WrongLengthsAreDroppedAndCountedByReason) {
  const std::size_t field = side->v4() ? 2 : 4;
  std::vector<Bytes> wrong;
  for (const std::uint16_t said :
       {std::uint16_t{0xffff}, static_cast<std::uint16_t>(good.size() + 1)}) {
    wrong.push_back(good);
    net::store_be16(wrong.back().data() + field, said);
  }
  if (side->v4()) {
    for (const std::uint16_t said :
         {std::uint16_t{0}, std::uint16_t{1}, std::uint16_t{19}}) {  // less than a header
      wrong.push_back(good);
      net::store_be16(wrong.back().data() + field, said);
    }
  }
  for (const Bytes& one : wrong) ASSERT_TRUE(inject(frame(one, our_mac, ether_type())));
  EXPECT_EQ(copies_of_good(drain()), 0U);
  EXPECT_EQ(side->io().counters().rx_dropped_short - start.rx_dropped_short, wrong.size());
}

// What a router may pass on in good faith is the business of whoever gets it, not of a driver.
TEST_P(DriverFramesTest, FragmentsAndOptionsArriveAsTheyAre) {
  std::vector<Bytes> odd;
  if (side->v4()) {
    const auto fragment = [&](std::uint16_t word) {
      odd.push_back(good);
      net::store_be16(odd.back().data() + 6, word);
      net::testing::fix_ipv4_checksum(odd.back());
    };
    fragment(0x2000);  // the first of several
    fragment(0x2001);  // one that overlaps it
    fragment(0x1fff);  // one that ends behind byte 65,535
    Bytes options = good;
    options.insert(options.begin() + 20,
                   {1, 1, 1, 0, 0x94, 4, 0, 0});  // NOPs, an end, router alert
    options[0] = 0x47;
    net::store_be16(options.data() + 2, static_cast<std::uint16_t>(options.size()));
    net::testing::fix_ipv4_checksum(options);
    odd.push_back(options);
    Bytes nonsense = good;
    nonsense[0] = 0x4f;  // options beyond the packet's end: there is nothing to sum
    odd.push_back(nonsense);
  } else {
    const auto extended = [&](std::uint8_t type, Bytes header) {
      Bytes packet = good;
      header[0] = packet[6];
      packet[6] = type;
      packet.insert(packet.begin() + 40, header.begin(), header.end());
      net::store_be16(packet.data() + 4, static_cast<std::uint16_t>(packet.size() - 40));
      odd.push_back(packet);
    };
    extended(44, {0, 0, 0, 1, 0, 0, 0, 9});        // the first fragment of several
    extended(44, {0, 0, 0xff, 0xf9, 0, 0, 0, 9});  // one that ends behind byte 65,535
    extended(0, {0, 0, 5, 2, 0, 0, 1, 0});         // hop-by-hop: router alert
    extended(43, {0, 0, 0, 9, 0, 0, 0, 0});        // a routing header with segments left
    extended(60, {0, 99, 0, 0, 0, 0, 0, 0});       // longer than the packet
  }
  for (const Bytes& one : odd) ASSERT_TRUE(inject(frame(one, our_mac, ether_type())));
  const std::vector<Received> seen = drain();
  for (std::size_t i = 0; i < odd.size(); ++i) {
    const auto same = [&](const Received& received) { return received.packet == odd[i]; };
    EXPECT_EQ(std::count_if(seen.begin(), seen.end(), same), 1) << "number " << i;
  }
  EXPECT_EQ(side->io().counters().tx_errors, start.tx_errors);
}

TEST_P(DriverFramesTest, PaddingBehindThePacketIsCutOff) {
  Bytes padded = good;
  padded.resize(good.size() + 30);
  ASSERT_TRUE(inject(frame(padded, our_mac, ether_type())));
  bool found = false;
  for (const Received& received : drain()) {
    if (udp_text(received.packet, 7777) == "good") {
      EXPECT_EQ(received.packet.size(), good.size());
      found = true;
    }
  }
  EXPECT_TRUE(found);
}

TEST_P(DriverFramesTest, FramesThatAreNotOursNeverArrive) {
  if (!side->ethernet()) {
    return;
  }
  net::MacAddress other = our_mac;
  other.bytes[5] ^= 0x40;
  Bytes tagged = {0, 7, 0, 0};
  net::store_be16(tagged.data() + 2, ether_type());
  net::testing::append(tagged, good);
  ASSERT_TRUE(inject(frame(good, other, ether_type())));  // another station's
  ASSERT_TRUE(
      inject(frame(good, net::MacAddress::broadcast(), ether_type())));  // IP in a broadcast
  ASSERT_TRUE(inject(frame(tagged, our_mac, net::kEtherTypeVlan)));
  ASSERT_TRUE(inject(frame(good, our_mac, 0x88b5)));
  ASSERT_TRUE(inject(frame(good, our_mac, side->v4() ? net::kEtherTypeIpv6 : net::kEtherTypeIpv4)));
  EXPECT_EQ(copies_of_good(drain()), 0U);
  const Counters& now = side->io().counters();
  if (std::string(GetParam().driver) == "tap") {
    EXPECT_GE(dropped(now) - dropped(start), 5U);  // the kernel's own multicast is dropped as well
  } else {
    EXPECT_GE(dropped(now) - dropped(start), 2U) << "the rest is kept out by the kernel's filter";
  }
}

// IEEE 802.1Q: such a tag says no more than a priority, and switches of lossless networks add it.
TEST_P(DriverFramesTest, FramesOfVlan0Arrive) {
  if (std::string(GetParam().driver) != "packet") {
    return;
  }
  for (const int priority : {0, 3, 7}) {
    Bytes tagged = {static_cast<std::uint8_t>(priority << 5), 0, 0, 0};
    net::store_be16(tagged.data() + 2, ether_type());
    net::testing::append(tagged, good);
    ASSERT_TRUE(inject(frame(tagged, our_mac, net::kEtherTypeVlan)));
    EXPECT_EQ(copies_of_good(drain()), 1U) << "priority " << priority;
  }
}

TEST_P(DriverFramesTest, OnASharedInterfacePacketsToOtherAddressesAreLeftToTheKernel) {
  if (!side->on_veth()) {
    return;
  }
  const IpAddress service = ip(side->v4() ? "192.0.2.1" : "2001:db8::1");
  const std::size_t src = side->v4() ? 12 : 8, dst = side->v4() ? 16 : 24;
  const auto to_service = [&](const std::string& text) {
    Bytes packet = udp_packet(*side, 5555, 7777, text);
    std::copy_n(side->kernel_ip().bytes.begin(), service.size(),
                packet.begin() + static_cast<long>(src));
    std::copy_n(service.bytes.begin(), service.size(), packet.begin() + static_cast<long>(dst));
    if (side->v4()) {
      net::testing::fix_ipv4_checksum(packet);
    }
    return frame(packet, our_mac, ether_type());
  };
  const auto texts = [&] {
    std::string all;
    for (const Received& received : drain()) {
      all += udp_text(received.packet, 7777);
    }
    return all;
  };
  ASSERT_TRUE(inject(to_service("before")));
  EXPECT_EQ(texts(), "");
  if (std::string(GetParam().driver) == "packet") {
    EXPECT_GE(side->io().counters().rx_dropped_not_for_us - start.rx_dropped_not_for_us, 1U);
  }
  side->io().add_local_address(service);
  ASSERT_TRUE(inject(to_service("during")));
  EXPECT_EQ(texts(), "during");
  side->io().remove_local_address(service);
  ASSERT_TRUE(inject(to_service("after")));
  EXPECT_EQ(texts(), "");
}

TEST_P(DriverFramesTest, RandomFramesNeverBreakTheContractOrTheDriver) {
  std::mt19937 random(42);
  const std::size_t rounds = 3'000;
  for (std::size_t round = 0; round < rounds; ++round) {
    Bytes packet = good;
    if (random() % 4 == 0) {
      packet.resize(random() % 1'400);
    }
    Bytes bytes = frame(packet, our_mac, ether_type());
    for (auto flips = random() % 6; flips > 0 && !bytes.empty(); --flips) {
      bytes[random() % bytes.size()] = static_cast<std::uint8_t>(random());
    }
    inject(bytes);  // the kernel refuses some itself
    if (round % 100 == 99) {
      for (const Received& received : drain()) {
        ASSERT_GE(received.packet.size(), 20U);
        const int version = received.packet[0] >> 4;
        ASSERT_TRUE(version == 4 || version == 6);
        ASSERT_EQ(received.offload.segmentation, Segmentation::kNone);
      }
    }
  }
  EXPECT_GT(dropped(side->io().counters()), dropped(start));
  ASSERT_TRUE(inject(frame(good, our_mac, ether_type())));
  EXPECT_EQ(copies_of_good(drain()), 1U) << "and it still works";
}

INSTANTIATE_TEST_SUITE_P(
    EveryDriver, DriverFramesTest,
    ::testing::Values(DriverCase{"tun", Family::kIpv4}, DriverCase{"tun", Family::kIpv6},
                      DriverCase{"tap", Family::kIpv4}, DriverCase{"tap", Family::kIpv6},
                      DriverCase{"packet", Family::kIpv4}, DriverCase{"packet", Family::kIpv6},
                      DriverCase{"xdp", Family::kIpv4}, DriverCase{"xdp", Family::kIpv6}),
    case_name);

}  // namespace
}  // namespace sanproxy::packet_io::testing
