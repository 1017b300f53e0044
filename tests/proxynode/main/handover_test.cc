// Packets go to the worker that steering would have sent them to whole, and wait for nobody.
#include "proxynode/main/handover.h"

#include <gtest/gtest.h>

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

  std::vector<std::unique_ptr<Handover>> workers_;
};

TEST_F(HandoverTest, a_packet_goes_to_the_worker_of_its_ports_and_stays_as_it_is) {
  std::vector<int> owners(kWorkers);
  for (std::uint16_t port = 1000; port < 1200; ++port) {
    std::uint32_t owner = 0;
    const Bytes one = packet(port, port % 2 == 0, owner, port % 3 == 0 ? 60'000 : 100);
    ++owners[owner];
    for (std::uint32_t from = 0; from < kWorkers; ++from) {
      const auto handed =
          workers_[from]->pass_on(static_cast<stack::InterfaceIndex>(from), as_span(one));
      stack::InterfaceIndex interface = 77;
      const auto got = workers_[owner]->receive(interface);
      if (from == owner) {
        EXPECT_EQ(handed, stack::HandedOver::kOurs);
        EXPECT_TRUE(got.empty());
        continue;
      }
      EXPECT_EQ(handed, stack::HandedOver::kPassedOn);
      EXPECT_EQ(interface, from);
      const auto* at = reinterpret_cast<const std::uint8_t*>(got.data());
      EXPECT_EQ(Bytes(at, at + got.size()), one);
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
         workers_[from]->pass_on(0, as_span(one)) == stack::HandedOver::kPassedOn) {
    ++passed_on;
  }
  EXPECT_EQ(workers_[from]->pass_on(0, as_span(one)), stack::HandedOver::kLost);
  EXPECT_GT(passed_on, 0);
  stack::InterfaceIndex interface = 0;
  int received = 0;
  while (!workers_[owner]->receive(interface).empty()) ++received;
  EXPECT_EQ(received, passed_on);
  EXPECT_EQ(workers_[from]->pass_on(0, as_span(one)), stack::HandedOver::kPassedOn);
}

TEST_F(HandoverTest, what_is_no_tcp_is_left_to_whoever_has_it) {
  const Bytes udp = net::testing::ipv4(17, Bytes(20));
  const Bytes broken = net::testing::ipv4(6, Bytes(20));  // a header of 0 bytes
  for (const Bytes& one : {udp, broken}) {
    EXPECT_EQ(workers_[0]->pass_on(0, as_span(one)), stack::HandedOver::kOurs);
  }
}

}  // namespace
}  // namespace sanproxy::proxy
