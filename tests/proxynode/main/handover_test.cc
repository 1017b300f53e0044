// Packets go to the worker that steering would have sent them to whole, and wait for nobody.
#include "proxynode/main/handover.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>

#include "tests/netnode/net/packet_builder.h"

namespace sanproxy::proxy {
namespace {

using net::testing::as_span;
using net::testing::Bytes;

constexpr std::uint32_t kWorkers = 3;
constexpr packet_io::QueueSteering kSteering{kWorkers, 4711};

class HandoverTest : public ::testing::Test {
 protected:
  HandoverTest() {
    std::vector<Handover::Ends> ends;
    for (std::uint32_t i = 0; i < kWorkers; ++i) {
      auto made = Handover::make_ends();
      EXPECT_TRUE(made.ok());
      ends.push_back(std::move(made).value());
    }
    for (std::uint32_t i = 0; i < kWorkers; ++i) {
      std::vector<UniqueFd> out;
      for (const auto& one : ends) out.emplace_back(dup(one.out.get()));
      workers_.push_back(std::make_unique<Handover>(kSteering, i, UniqueFd(dup(ends[i].in.get())),
                                                    std::move(out)));
    }
  }
  // From a client's port, with its owner.
  static Bytes packet(std::uint16_t port, bool v4, std::uint32_t& owner, std::size_t data = 100) {
    Bytes segment = net::testing::tcp(data);
    net::store_be16(segment.data(), port);
    Bytes out = v4 ? net::testing::ipv4(6, segment) : net::testing::ipv6(6, segment);
    net::ParsedPacket parsed;
    EXPECT_EQ(net::parse_packet(as_span(out), parsed), net::DropReason::kNone);
    owner = kSteering.queue_of({parsed.src_address(), port}, {parsed.dst_address(), 80});
    return out;
  }

  static Bytes bytes_of(const Handover::Received& got) {
    const auto* at = reinterpret_cast<const std::uint8_t*>(got.packet.data());
    return Bytes(at, at + got.packet.size());
  }

  std::vector<std::unique_ptr<Handover>> workers_;
};

TEST_F(HandoverTest, a_packet_goes_to_the_worker_of_its_ports_and_stays_as_it_is) {
  std::vector<int> owners(kWorkers);
  for (std::uint16_t port = 1000; port < 1200; ++port) {
    std::uint32_t owner = 0;
    const Bytes one = packet(port, port % 2 == 0, owner, port % 3 == 0 ? 60'000 : 100);
    ++owners[owner];
    for (std::uint32_t from = 0; from < kWorkers; ++from) {
      const bool verified = port % 4 == 0;
      const auto handed =
          workers_[from]->pass_on(static_cast<stack::InterfaceIndex>(from), as_span(one), verified);
      const Handover::Received got = workers_[owner]->receive();
      if (from == owner) {
        EXPECT_EQ(handed, stack::HandedOver::kOurs);
        EXPECT_TRUE(got.packet.empty());
        continue;
      }
      EXPECT_EQ(handed, stack::HandedOver::kPassedOn);
      EXPECT_EQ(got.interface, from);
      EXPECT_EQ(got.checksum_verified, verified);
      EXPECT_EQ(bytes_of(got), one);
    }
  }
  for (const int count : owners) EXPECT_GT(count, 20);
}

TEST_F(HandoverTest, what_the_other_one_does_not_take_is_lost_and_the_first_ones_are_there) {
  std::uint32_t owner = 0;
  const Bytes one = packet(1000, true, owner);
  const std::uint32_t from = (owner + 1) % kWorkers;
  int passed_on = 0;
  while (passed_on < 100'000 &&
         workers_[from]->pass_on(0, as_span(one), false) == stack::HandedOver::kPassedOn) {
    ++passed_on;
  }
  EXPECT_EQ(workers_[from]->pass_on(0, as_span(one), false), stack::HandedOver::kLost);
  EXPECT_GT(passed_on, 0);
  int received = 0;
  while (!workers_[owner]->receive().packet.empty()) ++received;
  EXPECT_EQ(received, passed_on);
  EXPECT_EQ(workers_[from]->pass_on(0, as_span(one), false), stack::HandedOver::kPassedOn);
}

TEST_F(HandoverTest, an_error_goes_to_the_worker_of_the_flow_that_it_is_about) {
  std::vector<int> owners(kWorkers);
  for (std::uint16_t port = 1000; port < 1100; ++port) {
    std::uint32_t owner = 0;
    Bytes quoted = packet(port, true, owner, 0);
    // As it was sent to the client: the other way.
    std::swap_ranges(quoted.begin() + 12, quoted.begin() + 16, quoted.begin() + 16);
    std::swap_ranges(quoted.begin() + 20, quoted.begin() + 22, quoted.begin() + 22);
    Bytes icmp = {3, 4, 0, 0, 0, 0, 5, 20};
    net::testing::append(icmp, quoted);
    const Bytes error = net::testing::ipv4(1, icmp);
    ++owners[owner];
    const std::uint32_t from = (owner + 1) % kWorkers;
    EXPECT_EQ(workers_[owner]->pass_on(0, as_span(error), true), stack::HandedOver::kOurs);
    EXPECT_EQ(workers_[from]->pass_on(0, as_span(error), true), stack::HandedOver::kPassedOn);
    EXPECT_EQ(bytes_of(workers_[owner]->receive()), error);
  }
  for (const int count : owners) EXPECT_GT(count, 10);
}

TEST_F(HandoverTest, what_is_no_tcp_is_left_to_whoever_has_it) {
  const Bytes udp = net::testing::ipv4(17, Bytes(20));
  const Bytes broken = net::testing::ipv4(6, Bytes(20));  // a header of 0 bytes
  const Bytes ping = net::testing::ipv4(1, {8, 0, 0, 0, 0, 1, 0, 1});
  const Bytes cut = net::testing::ipv4(1, {3, 4, 0, 0, 0, 0, 5, 20, 0x45});
  for (const Bytes& one : {udp, broken, ping, cut}) {
    EXPECT_EQ(workers_[0]->pass_on(0, as_span(one), false), stack::HandedOver::kOurs);
  }
}

}  // namespace
}  // namespace sanproxy::proxy
