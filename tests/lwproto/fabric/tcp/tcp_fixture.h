// TcpServer: a listening tcp fabric, a healthy channel on it that must survive everything, and raw
// peers that misbehave.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "gtest/gtest.h"
#include "lwproto/base/clock.h"
#include "lwproto/buffer/memory_region.h"
#include "lwproto/fabric/tcp/tcp_fabric.h"
#include "tests/lwproto/fabric/channel_pair.h"
#include "tests/lwproto/fabric/tcp/raw_tcp_peer.h"

namespace sanproxy::fabric::test {

inline constexpr const char* kAnyPort = "tcp://127.0.0.1:0";

class TcpServer : public testing::Test {
 protected:
  void start(TcpOptions options = {}, const EndpointOptions& endpoint_options = {}) {
    options.counters = &counters_;
    fabric_ = make([&] { return make_tcp_fabric(options); });
    client_fabric_ = make([] { return make_tcp_fabric(); });
    auto listening = fabric_->listen(kAnyPort, endpoint_options);
    ASSERT_TRUE(listening.ok()) << listening.status().to_string();
    listener_ = std::move(*listening);
    ASSERT_TRUE(connect_sides(*fabric_, *listener_, *client_fabric_, endpoint_options, good_server_,
                              good_client_));
    good_server_.replenish = good_client_.replenish = true;
    counters_ = {};
  }
  bool eventually(const std::function<bool()>& done) {
    return test::eventually({fabric_.get(), client_fabric_.get()}, done);
  }
  // Lets the fabric work until the counter has the value.
  bool counted(const std::uint64_t& counter, std::uint64_t value = 1) {
    return eventually([&] {
             (void)listener_->poll();
             return counter >= value;
           }) &&
           counter == value;
  }
  // The listener's owner says yes; the raw peer has said all that it has to.
  void accept() {
    auto request = next_request(*listener_, {fabric_.get()});
    ASSERT_TRUE(request);
    auto accepted = listener_->accept(*request, {});
    ASSERT_TRUE(accepted.ok()) << accepted.status().to_string();
    victim_ = Side();
    victim_.endpoint = std::move(*accepted);
  }
  // The raw peers connect properly, as the connections of the other end of `victim_`.
  void join(RawTcpPeer& raw, std::vector<RawTcpPeer*> others = {}) {
    ASSERT_TRUE(raw.dial(listener_->address()));
    ASSERT_TRUE(raw.say_hello(static_cast<std::uint32_t>(1 + others.size())));
    if (!others.empty()) {
      ASSERT_TRUE(answered(raw));
      auto welcome = raw.read_message<tcp::WelcomeBody>(tcp::MessageType::kWelcome);
      ASSERT_TRUE(welcome);
      for (std::uint32_t i = 0; i < others.size(); ++i) {
        ASSERT_TRUE(others[i]->dial(listener_->address()));
        ASSERT_TRUE(others[i]->say_join(welcome->token, i + 1));
      }
    }
    accept();
    auto answer = raw.read_message<tcp::AnswerBody>(tcp::MessageType::kAnswer);
    ASSERT_TRUE(answer && answer->verdict == tcp::Verdict::kAccepted);
  }
  // Works until something can be read at `raw`.
  bool answered(const RawTcpPeer& raw) {
    pollfd wait{raw.fd(), POLLIN, 0};
    return eventually([&] {
      (void)listener_->poll();
      return ::poll(&wait, 1, 0) == 1;
    });
  }
  bool victim_ends() {
    return eventually([&] {
      victim_.poll();
      return victim_.disconnected.has_value();
    });
  }
  void expect_breach(RawTcpPeer& raw, const char* what) {
    EXPECT_TRUE(victim_ends()) << what;
    if (!victim_.disconnected) return;
    EXPECT_EQ(victim_.disconnected->code(), Code::kProtocol)
        << what << ": " << victim_.disconnected->to_string();
    const auto last = raw.read_as<tcp::FrameHeader>();
    ASSERT_TRUE(last) << what;
    EXPECT_EQ(last->kind(), tcp::FrameKind::kEnd) << what;
    EXPECT_EQ(last->inline_bytes, static_cast<std::uint32_t>(tcp::CloseMark::kProtocol)) << what;
    EXPECT_TRUE(raw.ends()) << what;
    EXPECT_EQ(victim_.poll(), 0u);
  }
  // Bytes still go round on the healthy channel.
  void expect_the_others_work() {
    const Bytes question = pattern(1000, ++round_);
    ASSERT_TRUE(good_client_.send(question).ok());
    ASSERT_TRUE(eventually([&] {
      good_server_.poll();
      return !good_server_.received.empty();
    }));
    EXPECT_EQ(good_server_.received.front().content, question);
    good_server_.received.clear();
    ASSERT_TRUE(good_server_.send(bytes_of("answer")).ok());
    ASSERT_TRUE(eventually([&] {
      good_client_.poll();
      return !good_client_.received.empty();
    }));
    good_client_.received.clear();
  }
  void TearDown() override {
    if (good_client_.endpoint) expect_the_others_work();
  }

  // Declared before the fabrics and endpoints that use them.
  ManualClock clock_;
  buffer::MemoryRegion slot_memory_;
  std::unique_ptr<buffer::SlotPool> slots_;
  TcpCounters counters_;
  std::unique_ptr<Fabric> fabric_;
  std::unique_ptr<Fabric> client_fabric_;
  std::unique_ptr<Listener> listener_;
  Side good_server_;
  Side good_client_;
  Side victim_;
  unsigned round_ = 0;
};

}  // namespace sanproxy::fabric::test
