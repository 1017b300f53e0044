// Which queue a packet comes in by: our arithmetic and the kernel's program say the same.
#include "netnode/packet_io/queue_steering.h"

#include <gtest/gtest.h>
#include <linux/bpf.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <random>
#include <vector>

namespace sanproxy::packet_io {
namespace {

constexpr std::size_t kEthernetBytes = 14;

SocketAddress random_address(std::mt19937& random, Family family) {
  SocketAddress out;
  out.ip.family = family;
  for (std::size_t i = 0; i < out.ip.size(); ++i) {
    out.ip.bytes[i] = static_cast<std::uint8_t>(random());
  }
  out.port = static_cast<std::uint16_t>(random());
  return out;
}

void put_port(std::vector<std::uint8_t>& frame, std::size_t at, std::uint16_t port) {
  frame[at] = static_cast<std::uint8_t>(port >> 8);
  frame[at + 1] = static_cast<std::uint8_t>(port);
}

// An Ethernet frame with an IP header and the first bytes of TCP.
std::vector<std::uint8_t> frame_of(const SocketAddress& from, const SocketAddress& to,
                                   std::size_t option_bytes = 0) {
  const bool v4 = from.ip.family == Family::kIpv4;
  const std::size_t ip_bytes = v4 ? 20 + option_bytes : 40;
  std::vector<std::uint8_t> out(kEthernetBytes + ip_bytes + 20);
  out[12] = v4 ? 0x08 : 0x86;
  out[13] = v4 ? 0x00 : 0xdd;
  std::uint8_t* ip = out.data() + kEthernetBytes;
  ip[0] = v4 ? static_cast<std::uint8_t>(0x40 | ip_bytes / 4) : 0x60;
  ip[v4 ? 9 : 6] = 6;
  std::memcpy(ip + (v4 ? 12 : 8), from.ip.bytes.data(), from.ip.size());
  std::memcpy(ip + (v4 ? 16 : 24), to.ip.bytes.data(), to.ip.size());
  put_port(out, kEthernetBytes + ip_bytes, from.port);
  put_port(out, kEthernetBytes + ip_bytes + 2, to.port);
  return out;
}

class SteeringProgram : public ::testing::Test {
 protected:
  void SetUp() override {
    auto loaded = load_steering_program(steering_);
    if (loaded.status().code() == Code::kPermission) GTEST_SKIP() << "needs CAP_BPF";
    ASSERT_TRUE(loaded.ok()) << loaded.status().to_string();
    program_ = std::move(loaded).value();
  }
  std::uint32_t run(const std::vector<std::uint8_t>& frame) {
    bpf_attr attributes{};
    attributes.test.prog_fd = static_cast<std::uint32_t>(program_.get());
    attributes.test.data_in = reinterpret_cast<std::uintptr_t>(frame.data());
    attributes.test.data_size_in = static_cast<std::uint32_t>(frame.size());
    EXPECT_EQ(::syscall(SYS_bpf, BPF_PROG_TEST_RUN, &attributes, sizeof(attributes)), 0);
    return attributes.test.retval % steering_.queues;
  }

  QueueSteering steering_{7, 0x1234'5678'9abc'def0};
  UniqueFd program_;
};

TEST_F(SteeringProgram, AgreesWithTheArithmeticForBothFamiliesAndForIpOptions) {
  std::mt19937 random(1);
  for (int i = 0; i < 2000; ++i) {
    const Family family = i % 2 == 0 ? Family::kIpv4 : Family::kIpv6;
    const SocketAddress from = random_address(random, family);
    const SocketAddress to = random_address(random, family);
    const std::size_t options = family == Family::kIpv4 ? random() % 11 * 4 : 0;
    ASSERT_EQ(run(frame_of(from, to, options)), steering_.queue_of(from, to)) << i;
  }
}

TEST_F(SteeringProgram, SendsAllFragmentsOfAPacketToOneQueue) {
  std::mt19937 random(2);
  for (int i = 0; i < 200; ++i) {
    auto frame =
        frame_of(random_address(random, Family::kIpv4), random_address(random, Family::kIpv4));
    frame[kEthernetBytes + 6] = 0x20;  // the first, with more behind it
    const std::uint32_t first = run(frame);
    frame[kEthernetBytes + 6] = 0;
    frame[kEthernetBytes + 7] = 100;                                             // the last
    put_port(frame, kEthernetBytes + 20, static_cast<std::uint16_t>(random()));  // payload
    ASSERT_EQ(run(frame), first) << i;
  }
}

TEST_F(SteeringProgram, SendsWhatIsNoIpOrCutShortToTheFirstQueue) {
  std::vector<std::uint8_t> arp(60, 0);
  arp[12] = 0x08;
  arp[13] = 0x06;
  EXPECT_EQ(run(arp), 0u);
  std::mt19937 random(3);
  auto frame =
      frame_of(random_address(random, Family::kIpv4), random_address(random, Family::kIpv4));
  frame.resize(kEthernetBytes + 21);
  EXPECT_EQ(run(frame), 0u);
}

TEST(QueueSteering, SpreadsFlowsEvenly) {
  const QueueSteering steering{4, 99};
  std::array<int, 4> counts{};
  SocketAddress from = *SocketAddress::parse("10.0.0.1:1024");
  const SocketAddress to = *SocketAddress::parse("10.77.0.10:80");
  for (int i = 0; i < 40'000; ++i) {
    ++from.port;
    ++counts[steering.queue_of(from, to)];
  }
  for (const int count : counts) EXPECT_NEAR(count, 10'000, 500);
}

TEST(QueueSteering, OfOneQueueIsThatQueue) { EXPECT_EQ(QueueSteering{}.queue_of({}, {}), 0u); }

}  // namespace
}  // namespace sanproxy::packet_io
