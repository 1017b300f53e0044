// Rules 5, 6 and 8 of fabric.h: how a channel ends.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <set>

#include "tests/lwproto/fabric/conformance_fixture.h"

namespace sanproxy::fabric::test {
namespace {

const Status kEnough = Status::error(Code::kDisconnected, "enough");

void expect_each_cookie_once(const Side& side, std::uint64_t count) {
  std::set<std::uint64_t> cookies;
  for (const auto& [cookie, status] : side.sent) {
    EXPECT_TRUE(cookies.insert(cookie).second) << "cookie " << cookie << " came twice";
    EXPECT_FALSE(status.ok());
    EXPECT_FALSE(status.is_again());
  }
  EXPECT_EQ(cookies.size(), count);
}

TEST_P(Conformance, ATransferWithoutAPostedReceiveEndsTheChannelOnBothSides) {
  EndpointOptions options;
  options.receive_depth = 8;
  connect_pair(options);
  Status status;
  for (unsigned i = 0; i < 9; ++i) status = client_.send(pattern(16, i));
  ASSERT_TRUE(run_until([&] { return server_.disconnected && client_.disconnected; }));
  EXPECT_EQ(server_.disconnected->code(), Code::kProtocol) << server_.disconnected->to_string();
  EXPECT_EQ(client_.disconnected->code(), Code::kProtocol) << client_.disconnected->to_string();
  EXPECT_LE(server_.received.size(), 8u);
}

TEST_P(Conformance, DisconnectingCompletesEverySendThenReportsOnceThenNothing) {
  for (const bool by_client : {true, false}) {
    SetUp();
    connect_pair();
    regions_.push_back(make_region(4096));
    const GatherRef ref{attach(client_, regions_.back()), 64, 0};
    for (std::uint64_t i = 0; i < 50; ++i) ASSERT_TRUE(client_.send({}, {&ref, 1}, i).ok());
    ASSERT_TRUE(run_until([&] { return server_.received.size() == 50; }));
    (by_client ? client_ : server_).endpoint->disconnect(kEnough);
    (by_client ? client_ : server_).endpoint->disconnect(Status::error(Code::kTimeout, "late"));
    EXPECT_FALSE((by_client ? client_ : server_).endpoint->connected());
    ASSERT_TRUE(run_until([&] { return server_.disconnected && client_.disconnected; }));
    EXPECT_STREQ((by_client ? client_ : server_).disconnected->text(), "enough");
    EXPECT_EQ((by_client ? server_ : client_).disconnected->code(), Code::kDisconnected);
    expect_each_cookie_once(client_, 50);
    for (int i = 0; i < 3; ++i) EXPECT_EQ(client_.poll() + server_.poll(), 0u);
    EXPECT_EQ(client_.completions_after_disconnected, 0);
    EXPECT_EQ(client_.endpoint->begin_send(1).status().code(), Code::kDisconnected);
    EXPECT_EQ(client_.endpoint->replenish(), 0u);
    for (const Received& r : server_.received) server_.endpoint->release(r.loan);
    server_ = Side();
    client_ = Side();
    listener_.reset();
  }
}

TEST_P(Conformance, CompletionsOfAnEndFitAnySizeOfPoll) {
  connect_pair();
  regions_.push_back(make_region(4096));
  const GatherRef ref{attach(client_, regions_[0]), 64, 0};
  for (std::uint64_t i = 0; i < 20; ++i) ASSERT_TRUE(client_.send({}, {&ref, 1}, i).ok());
  client_.endpoint->disconnect(kEnough);
  ASSERT_TRUE(eventually([&] {
    EXPECT_LE(client_.poll(1), 1u);
    return client_.disconnected.has_value();
  }));
  expect_each_cookie_once(client_, 20);
  EXPECT_EQ(client_.poll(1), 0u);
}

TEST_P(Conformance, WhatWasSentBeforeTheEndArrivesBeforeIt) {
  connect_pair();
  regions_.push_back(make_region(1 << 20));
  fill(regions_[0], 2);
  const RegionKey key = attach(client_, regions_[0]);
  for (unsigned i = 0; i < 100; ++i) {
    const GatherRef ref{key, 512, i * 512ull};
    ASSERT_TRUE(client_.queue(pattern(40, i), {&ref, i % 2}, i).ok());
  }
  client_.endpoint->flush();
  client_.endpoint->disconnect(kEnough);
  client_ = Side();  // the endpoint is gone too
  ASSERT_TRUE(eventually([&] {
    server_.poll(7);
    return server_.disconnected.has_value();
  }));
  ASSERT_EQ(server_.received.size(), 100u);
  for (unsigned i = 0; i < 100; ++i) {
    Bytes expected = pattern(40, i);
    const std::byte* from = regions_[0].data() + i * 512;
    if (i % 2 == 1) expected.insert(expected.end(), from, from + 512);
    EXPECT_EQ(server_.received[i].content, expected) << i;
  }
  EXPECT_EQ(server_.disconnected->code(), Code::kDisconnected);
}

TEST_P(Conformance, LoansStayReadableAfterTheEnd) {
  connect_pair();
  regions_.push_back(make_region(64 * 1024));
  fill(regions_[0], 6);
  const GatherRef ref{attach(client_, regions_[0]), 65536, 0};
  ASSERT_TRUE(client_.send({}, {&ref, 1}, 1).ok());
  ASSERT_TRUE(run_until([&] { return server_.received.size() == 1; }));
  client_ = Side();
  ASSERT_TRUE(eventually([&] {
    server_.poll();
    return server_.disconnected.has_value();
  }));
  const Received& r = server_.received[0];
  EXPECT_EQ(std::memcmp(r.segments[0].data, r.content.data(), r.segments[0].length), 0);
  server_.endpoint->release(r.loan);
}

TEST_P(Conformance, AClientThatLeavesBeforeTheAnswerHarmsNobody) {
  listen();
  auto connecting = client_fabric_->connect(address_, {}, {});
  ASSERT_TRUE(connecting.ok());
  auto request = next_request(*listener_, {server_fabric_.get(), client_fabric_.get()});
  ASSERT_TRUE(request);
  connecting->reset();
  auto accepted = listener_->accept(*request, {});
  if (accepted.ok()) {
    server_.endpoint = std::move(*accepted);
    EXPECT_TRUE(run_until([&] { return server_.disconnected.has_value(); }));
    server_ = Side();
  }
  EXPECT_TRUE(connect_sides(*server_fabric_, *listener_, *client_fabric_, {}, server_, client_));
}

TEST_P(Conformance, AListenerThatLeavesBeforeTheAnswerFailsTheAttempt) {
  listen();
  auto connecting = client_fabric_->connect(address_, {}, {});
  ASSERT_TRUE(connecting.ok());
  ASSERT_TRUE(next_request(*listener_, {server_fabric_.get(), client_fabric_.get()}));
  listener_.reset();
  auto connected = finish(**connecting, {server_fabric_.get(), client_fabric_.get()});
  ASSERT_FALSE(connected.ok());
  EXPECT_NE(connected.status().code(), Code::kRefused);
}

TEST_P(Conformance, AFabricMayBeDestroyedBeforeItsEndpoints) {
  connect_pair();
  listener_.reset();
  client_fabric_.reset();
  client_ = Side();
  ASSERT_TRUE(test::eventually({server_fabric_.get()}, [&] {
    server_.poll();
    return server_.disconnected.has_value();
  }));
}

// A client process that takes loans, has sends outstanding, then waits to be killed.
[[noreturn]] void run_victim(const FabricUnderTest& fabric_under_test, const std::string& address) {
  auto fabric = fabric_under_test.make();
  auto region = buffer::MemoryRegion::create("victim", 65536);
  if (!fabric.ok() || !region.ok()) ::_exit(1);
  std::fill(region->data(), region->data() + 65536, std::byte{0x5a});
  auto connecting = (*fabric)->connect(address, {}, {});
  if (!connecting.ok()) ::_exit(2);
  auto connected = finish(**connecting, {fabric->get()});
  if (!connected.ok()) ::_exit(3);
  Side side;
  side.endpoint = std::move(*connected);
  auto key = side.endpoint->attach(*region);
  if (!key.ok()) ::_exit(4);
  test::eventually({fabric->get()}, [&] {
    side.poll();
    return side.received.size() == 10;
  });
  for (unsigned i = 0; i < 10; ++i) {
    const GatherRef ref{*key, 4096, i * 4096ull};
    if (!side.send(pattern(16, i), {&ref, 1}, i).ok()) ::_exit(5);
  }
  for (;;) ::pause();
}

TEST_P(Conformance, AKilledPeerEndsTheChannelAndLeavesItsLoansReadable) {
  listen();
  const pid_t victim = ::fork();
  ASSERT_GE(victim, 0);
  if (victim == 0) {
    server_fabric_.reset();
    run_victim(GetParam(), address_);
  }
  auto request = next_request(*listener_, {server_fabric_.get()});
  ASSERT_TRUE(request);
  auto accepted = listener_->accept(*request, {});
  ASSERT_TRUE(accepted.ok());
  server_.endpoint = std::move(*accepted);
  regions_.push_back(make_region(4096));
  const GatherRef ref{attach(server_, regions_[0]), 64, 0};
  for (std::uint64_t i = 0; i < 10; ++i) ASSERT_TRUE(server_.send({}, {&ref, 1}, i).ok());
  ASSERT_TRUE(test::eventually({server_fabric_.get()}, [&] {
    server_.poll();
    return server_.received.size() == 10;
  }));
  ::kill(victim, SIGKILL);
  ASSERT_TRUE(test::eventually({server_fabric_.get()}, [&] {
    server_.poll();
    return server_.disconnected.has_value();
  }));
  ::waitpid(victim, nullptr, 0);
  EXPECT_EQ(server_.disconnected->code(), Code::kDisconnected);
  expect_each_cookie_once(server_, 10);
  for (const Received& r : server_.received) {
    const Segment& lent = r.segments.back();
    EXPECT_EQ(lent.data[lent.length - 1], std::byte{0x5a});
    server_.endpoint->release(r.loan);
  }
  // The fabric goes on.
  server_ = Side();
  EXPECT_TRUE(connect_sides(*server_fabric_, *listener_, *client_fabric_, {}, server_, client_));
}

}  // namespace
}  // namespace sanproxy::fabric::test
