// The proxy asks whether we live, and is expected to live itself.
#include <poll.h>

#include "tests/appnode-lib/client/fake_proxy.h"

namespace sanproxy::app::test {
namespace {

using wire::CloseCode;
using wire::MessageType;
using AppCode = ::sanproxy::app::CloseCode;

class HeartbeatTest : public Harness {
 protected:
  void ask(std::uint32_t number, std::uint32_t silence_ms = 0) {
    ASSERT_TRUE(proxy_.channel()
                    .send_control(MessageType::kHeartbeat, 0, CloseCode::kNone,
                                  wire::HeartbeatBody{number, silence_ms})
                    .ok());
    proxy_.channel().flush();
  }
  std::vector<std::uint32_t> answers() const {
    std::vector<std::uint32_t> out;
    for (const wire::Message& m : proxy_.messages) {
      if (m.type != MessageType::kHeartbeat) continue;
      EXPECT_EQ(m.flags, wire::kFlagAnswer);
      EXPECT_EQ(m.heartbeat.silence_ms, 0u);
      out.push_back(m.heartbeat.number);
    }
    return out;
  }
  // Time passes in steps, as it does where the timer wakes the node.
  void pass_ms(std::uint64_t ms) {
    for (std::uint64_t done = 0; done < ms; done += 500) {
      clock_.advance_ns(500'000'000);
      pump_some(2);
    }
  }
};

TEST_F(HeartbeatTest, EachIsAnsweredWithItsNumber) {
  serve(recorder());
  ask(7);
  ASSERT_TRUE(pump_until([&] { return answers().size() == 1; }));
  ask(8);
  ASSERT_TRUE(pump_until([&] { return answers().size() == 2; }));
  EXPECT_EQ(answers(), (std::vector<std::uint32_t>{7, 8}));
}

TEST_F(HeartbeatTest, AnAnswerFromTheProxyIsABreach) {
  serve(recorder());
  ASSERT_TRUE(proxy_.channel()
                  .send_control(MessageType::kHeartbeat, wire::kFlagAnswer, CloseCode::kNone,
                                wire::HeartbeatBody{1, 0})
                  .ok());
  proxy_.channel().flush();
  ASSERT_TRUE(pump_until([&] { return proxy_.closed_code != CloseCode::kNone; }));
  EXPECT_EQ(proxy_.closed_code, CloseCode::kProtocolError);
}

TEST_F(HeartbeatTest, AProxyThatPromisedToBeHeardAndIsNotIsGivenUp) {
  Recorder& handler = recorder();
  serve(handler);
  (void)open();
  ask(1, 20'000);
  ASSERT_TRUE(pump_until([&] { return answers().size() == 1; }));
  pass_ms(15'000);
  EXPECT_EQ(handler.closes, 0);
  ask(2, 20'000);
  pump_some();
  pass_ms(15'000);
  EXPECT_EQ(handler.closes, 0) << "it was heard in between";
  pass_ms(15'000);
  EXPECT_EQ(handler.closes, 1);
  EXPECT_EQ(handler.code, AppCode::kProxyLost);
  EXPECT_EQ(proxy_.closed_code, CloseCode::kTimedOut);
}

TEST_F(HeartbeatTest, WhatWaitedWhileTheApplicationWasBusyCountsAsHeard) {
  Recorder& handler = recorder();
  serve(handler);
  (void)open();
  ask(1, 20'000);
  ASSERT_TRUE(pump_until([&] { return answers().size() == 1; }));
  ask(2, 20'000);                     // it lies there while
  clock_.advance_ns(60'000'000'000);  // the application does something else
  pump_some();
  EXPECT_EQ(handler.closes, 0);
}

TEST_F(HeartbeatTest, WithoutAPromiseAProxyMayBeSilent) {
  Recorder& handler = recorder();
  serve(handler);
  (void)open();
  ask(1);
  pump_some();
  pass_ms(200'000);
  EXPECT_EQ(handler.closes, 0);
}

TEST_F(HeartbeatTest, ANodeThatSleepsWakesToLook) {
  Recorder& handler = recorder();
  serve(handler);
  (void)open();
  ask(1, 40);  // ms: the real timer is set to a quarter of it
  ASSERT_TRUE(pump_until([&] { return answers().size() == 1; }));
  ASSERT_TRUE(pump_until([&] { return node_->arm(); }));
  pollfd waiting{node_->fd(), POLLIN, 0};
  EXPECT_EQ(::poll(&waiting, 1, 10'000), 1);
}

}  // namespace
}  // namespace sanproxy::app::test
