// What only verbs has: gather limits, link parameters on a queue pair, addresses.
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <string>
#include <string_view>

#include "gtest/gtest.h"
#include "lwproto/fabric/verbs/verbs_fabric.h"
#include "tests/lwproto/fabric/verbs/device_fixture.h"

namespace sanproxy::fabric::verbs::test {
namespace {

TEST_F(VerbsDevice, AGatherListThatIsTooLongForTheDeviceArrivesWhole) {
  for (const std::uint32_t gather_max : {1u, 2u, 5u, 8u}) {
    SCOPED_TRACE(gather_max);
    address_ = unused_device_address();
    connect({}, {.gather_max = gather_max});
    for (std::size_t count = 1; count <= kGatherRefsMax; ++count) {
      for (const std::size_t inline_bytes : {0u, 100u, 8192u}) {
        Bytes expected = pattern(inline_bytes, 3);
        std::vector<GatherRef> refs;
        for (std::size_t i = 0; i < count; ++i) {
          refs.push_back({key_, static_cast<std::uint32_t>(1 + 1000 * i), 5000 * i});
          const std::byte* from = region_.data() + refs[i].offset;
          expected.insert(expected.end(), from, from + refs[i].length);
        }
        ASSERT_TRUE(client_.send(std::span(expected).first(inline_bytes), refs, count).ok());
        ASSERT_TRUE(run_until([&] { return server_.received.size() == 1; }));
        EXPECT_EQ(server_.received[0].content, expected);
        server_.endpoint->release(server_.received[0].loan);
        server_.received.clear();
        server_.endpoint->replenish();
      }
    }
    server_ = Side();
    client_ = Side();
  }
}

TEST_F(VerbsDevice, AWindowBoundsWhatIsUnderWay) {
  LinkParameters link;
  link.window_bytes = 64 * 1024;
  connect(link);
  EXPECT_EQ(client_.endpoint->link().window_bytes, link.window_bytes);
  EXPECT_EQ(server_.endpoint->link().window_bytes, link.window_bytes);
  const GatherRef ref{key_, 15'000, 0};
  std::uint64_t sent = 0;
  // Nobody polls, so nothing comes back.
  while (sent < 50 && client_.send({}, {&ref, 1}, sent).ok()) ++sent;
  EXPECT_EQ(sent, 5u);
  EXPECT_TRUE(client_.endpoint->begin_send(1).status().is_again());
  ASSERT_TRUE(run_until([&] {
    while (sent < 50 && client_.send({}, {&ref, 1}, sent).ok()) ++sent;
    return server_.received.size() == 50;
  }));
  for (const auto& received : server_.received) server_.endpoint->release(received.loan);
}

// Who spins never arms: poll() alone has to take what the device gives back, also right after a
// poll that has taken all there was.
TEST_F(VerbsDevice, AnEndedChannelGivesEverythingBackToAnOwnerWhoOnlyPolls) {
  connect();
  const auto poll_until = [&](const std::function<bool()>& done) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (!done() && std::chrono::steady_clock::now() < deadline) {
      client_.poll();
      if (!done()) server_.poll();
    }
    return done();
  };
  ASSERT_TRUE(server_.send(pattern(100, 1), {}, 0).ok());
  server_.endpoint->flush();
  ASSERT_TRUE(poll_until([&] { return client_.received.size() == 1; }));
  client_.endpoint->disconnect(Status::error(Code::kDisconnected, "that was it"));
  ASSERT_TRUE(poll_until([&] { return client_.disconnected && server_.disconnected; }));
  for (const Fabric* fabric : {client_fabric_.get(), server_fabric_.get()}) {
    for (const NamedCount& count : fabric->counts()) {
      if (std::string_view(count.name) == "unflushed_queues") {
        EXPECT_EQ(count.value, 0u) << "the last send of the server was not signalled";
      }
    }
  }
}

// The peer ends in order, and we come late: 600 ms after the device has broken the queue pair.
TEST_F(VerbsDevice, WhatHasArrivedIsDeliveredHoweverLateItIsLookedFor) {
  ManualClock clock;
  connect({}, {.clock = &clock});
  const auto give_up = std::chrono::steady_clock::now() + fabric::test::kGiveUp;
  const auto spin_until = [&](const std::function<bool()>& done) {
    while (!done()) {
      if (std::chrono::steady_clock::now() > give_up) return false;
    }
    return true;
  };
  const auto idle = [&] {
    const bool nothing = client_fabric_->arm();
    client_fabric_->disarm();
    return nothing;
  };
  ASSERT_TRUE(spin_until([&] {
    client_.poll();
    return idle();
  }));
  // It is seen, and alone, but not polled for.
  ASSERT_TRUE(server_.send(pattern(100, 0)).ok());
  ASSERT_TRUE(spin_until([&] { return !idle(); }));
  for (unsigned i = 1; i <= 10; ++i) ASSERT_TRUE(server_.send(pattern(100, i)).ok());
  server_.endpoint->disconnect(Status::error(Code::kDisconnected, "that was it"));
  ASSERT_TRUE(fabric::test::eventually({server_fabric_.get()}, [&] {
    server_.poll();
    return server_.disconnected.has_value();
  }));
  ASSERT_TRUE(spin_until([&] {
    client_fabric_->disarm();
    return !client_.endpoint->connected();
  }));
  clock.advance_ns(600'000'000);
  ASSERT_TRUE(spin_until([&] {
    client_.poll();
    return client_.disconnected.has_value();
  }));
  ASSERT_EQ(client_.received.size(), 11u);
  for (unsigned i = 0; i <= 10; ++i) EXPECT_EQ(client_.received[i].content, pattern(100, i)) << i;
}

// In KiB.
long pinned_memory() {
  std::ifstream status("/proc/self/status");
  std::string word;
  while (status >> word) {
    if (word != "VmPin:") continue;
    long kib = 0;
    status >> kib;
    return kib;
  }
  return -1;
}

// The kernel would take it, and nobody could ever come.
TEST_F(VerbsDevice, AnAddressOfNoDeviceCannotBeListenedAt) {
  auto fabric = make_verbs_fabric();
  ASSERT_TRUE(fabric.ok());
  for (const char* address : {"verbs://127.0.0.1:7471", "verbs://[::1]:7471"}) {
    EXPECT_EQ((*fabric)->listen(address, options()).status().code(), Code::kUnsupported) << address;
  }
}

TEST_F(VerbsDevice, AListenerAtAnyAddressPinsItsMemoryOnceAndAtTheStart) {
  constexpr long kKib = 65'536;  // far more than a channel's own
  auto memory = buffer::MemoryRegion::create("wildcard-test", kKib * 1024);
  ASSERT_TRUE(memory.ok());
  EndpointOptions serving = options();
  serving.send_regions.push_back(&*memory);
  auto server_fabric = make_verbs_fabric();
  auto client_fabric = make_verbs_fabric();
  ASSERT_TRUE(server_fabric.ok() && client_fabric.ok());
  const long before = pinned_memory();
  const std::string port = address_.substr(address_.rfind(':'));
  auto listening = (*server_fabric)->listen("verbs://0.0.0.0" + port, serving);
  ASSERT_TRUE(listening.ok()) << listening.status().to_string();
  EXPECT_GE(pinned_memory() - before, kKib);
  auto connecting = (*client_fabric)->connect(address_, {}, options());
  ASSERT_TRUE(connecting.ok());
  const std::vector<Fabric*> both{server_fabric->get(), client_fabric->get()};
  auto request = fabric::test::next_request(**listening, both);
  ASSERT_TRUE(request);
  auto accepted = (*listening)->accept(*request, {});
  ASSERT_TRUE(accepted.ok()) << accepted.status().to_string();
  EXPECT_TRUE((*accepted)->attach(*memory).ok());
  EXPECT_LT(pinned_memory() - before, 2 * kKib);
  accepted->reset();
  connecting->reset();
  EXPECT_GE(pinned_memory() - before, kKib);
  listening->reset();
  EXPECT_LT(pinned_memory() - before, kKib);
}

TEST_F(VerbsDevice, ARateHoldsTransfersBackUntilTheirTime) {
  ManualClock clock;
  LinkParameters link;
  link.quality = QualityClass::kConstant;
  link.rate_bytes_per_s = 1'000'000;
  connect(link, {.clock = &clock});
  const GatherRef ref{key_, 10'000, 0};
  ASSERT_TRUE(client_.send({}, {&ref, 1}, 1).ok());
  EXPECT_TRUE(client_.send({}, {&ref, 1}, 2).is_again());
  clock.advance_ns(9'000'000);
  EXPECT_TRUE(client_.send({}, {&ref, 1}, 2).is_again());
  clock.advance_ns(1'100'000);
  EXPECT_TRUE(client_.send({}, {&ref, 1}, 2).ok());
  ASSERT_TRUE(run_until([&] { return server_.received.size() == 2; }));
  for (const auto& received : server_.received) server_.endpoint->release(received.loan);
}

TEST_F(VerbsDevice, ASenderThatWaitsForItsRateIsWoken) {
  LinkParameters link;
  link.quality = QualityClass::kConstant;
  link.rate_bytes_per_s = 1'000'000;
  connect(link);
  const GatherRef ref{key_, 5'000, 0};
  std::uint64_t sent = 0;
  ASSERT_TRUE(run_until([&] {
    while (sent < 20 && client_.send({}, {&ref, 1}, sent).ok()) ++sent;
    return server_.received.size() == 20;
  }));
  for (const auto& received : server_.received) server_.endpoint->release(received.loan);
}

TEST_F(VerbsDevice, ClassesOfServiceAreInForceAtBothEnds) {
  LinkParameters link;
  link.service_level = 3;
  link.dscp = 46;
  connect(link);
  for (const Side* side : {&client_, &server_}) {
    EXPECT_EQ(side->endpoint->link().service_level, 3);
    EXPECT_EQ(side->endpoint->link().traffic_class, 184);
    EXPECT_EQ(side->endpoint->link().dscp, 46);
    EXPECT_EQ(side->endpoint->link().queue_pairs, 1u);
  }
}

TEST_F(VerbsDevice, SeveralQueuePairsMakeOneChannelThatKeepsTheOrder) {
  LinkParameters link;
  link.queue_pairs = 3;
  connect(link);
  EXPECT_EQ(client_.endpoint->link().queue_pairs, 3u);
  EXPECT_EQ(server_.endpoint->link().queue_pairs, 3u);
  std::uint64_t sent = 0;
  std::size_t received = 0;
  std::uint32_t credits = options().receive_depth;
  // Large ones are slow, and small ones behind them would overtake them on the other queue pairs.
  ASSERT_TRUE(run_until([&] {
    const GatherRef ref{key_, 60'000, 0};
    for (; sent < 300 && credits != 0; ++sent, --credits) {
      const Bytes number = fabric::test::bytes_of(std::to_string(sent));
      if (!client_.send(number, {&ref, sent % 3 == 1 ? 1u : 0u}, sent).ok()) break;
    }
    for (; received < server_.received.size(); ++received) {
      const auto& one = server_.received[received];
      const Bytes number = fabric::test::bytes_of(std::to_string(received));
      EXPECT_TRUE(std::equal(number.begin(), number.end(), one.content.begin())) << received;
      if (one.loan != kNoLoan) server_.endpoint->release(one.loan);
    }
    credits += server_.endpoint->replenish();
    return received == 300;
  }));
  EXPECT_TRUE(run_until([&] { return client_.sent.size() == 100; }));
}

TEST_F(VerbsDevice, ANarrowWindowOverSeveralQueuePairsNeverStandsStill) {
  LinkParameters link;
  link.queue_pairs = 4;
  link.window_bytes = 4096;
  connect(link);
  std::uint64_t sent = 0;
  std::uint32_t credits = options().receive_depth;
  ASSERT_TRUE(run_until([&] {
    const GatherRef ref{key_, 5'000, 0};
    for (; sent < 100 && credits != 0; ++sent, --credits) {
      if (!client_.send(Bytes(8), {&ref, sent % 5 == 4 ? 1u : 0u}, sent).ok()) break;
    }
    for (auto& one : server_.received) {
      if (one.loan != kNoLoan) server_.endpoint->release(std::exchange(one.loan, kNoLoan));
    }
    credits += server_.endpoint->replenish();
    return server_.received.size() == 100;
  }));
}

TEST_F(VerbsDevice, MoreQueuePairsThanAListenerHasAreRefusedByName) {
  for (const VerbsOptions& at_server :
       {VerbsOptions{.queue_pairs_max = 3}, VerbsOptions{.further_queue_pairs_max = 2}}) {
    auto server_fabric = make_verbs_fabric(at_server);
    auto client_fabric = make_verbs_fabric();
    ASSERT_TRUE(server_fabric.ok() && client_fabric.ok());
    auto listening = (*server_fabric)->listen(address_, options());
    ASSERT_TRUE(listening.ok()) << listening.status().to_string();
    EndpointOptions asking = options();
    asking.link.queue_pairs = 4;
    auto connecting = (*client_fabric)->connect(address_, {}, asking);
    ASSERT_TRUE(connecting.ok()) << connecting.status().to_string();
    const Status refused =
        fabric::test::finish(**connecting, {server_fabric->get(), client_fabric->get()}).status();
    EXPECT_EQ(refused.code(), Code::kRefused);
    EXPECT_NE(refused.to_string().find("queue_pairs"), std::string::npos) << refused.to_string();
    listening->reset();
  }
}

// What follows changes the machine's network: in the guest alone.
class VerbsInGuest : public VerbsDevice {
 protected:
  void SetUp() override {
    const char* interface = std::getenv("SANPROXY_VM_INTERFACE");
    if (interface == nullptr) GTEST_SKIP() << "not in the guest";
    interface_ = interface;
  }
  static bool run(const std::string& command) { return std::system(command.c_str()) == 0; }

  std::string interface_;
};

TEST_F(VerbsInGuest, AnIpv6AddressServesAsWell) {
  // An address that is there already is as good.
  (void)run("ip -6 address add fd09::1/64 dev " + interface_ + " nodad 2>/dev/null");
  address_ = "verbs://[fd09::1]:7999";
  connect();
  EXPECT_EQ(server_.endpoint->peer().address, "verbs:fd09::1");
  ASSERT_TRUE(client_.send(fabric::test::bytes_of("over IPv6")).ok());
  ASSERT_TRUE(run_until([&] { return !server_.received.empty(); }));
}

}  // namespace
}  // namespace sanproxy::fabric::verbs::test
