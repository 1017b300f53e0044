// What a proxy breaks: rules D and P of docs/wire_format.md, as far as an application node sees
// them.
#include "tests/appnode-lib/client/fake_proxy.h"

namespace sanproxy::app::test {
namespace {

using wire::MessageType;
using WireCode = wire::CloseCode;

class RulesTest : public Harness {
 protected:
  template <typename Body>
  void say(MessageType type, const Body& body, std::uint8_t flags = 0,
           WireCode code = WireCode::kNone) {
    ASSERT_TRUE(proxy_.channel().send_control(type, flags, code, body).ok());
  }
  void expect_the_channel_ends() {
    ASSERT_TRUE(pump_until([&] { return proxy_.closed_code != WireCode::kNone; }));
    EXPECT_EQ(proxy_.closed_code, WireCode::kProtocolError);
  }
  // The stream ends, told to both sides, and another one goes on.
  void expect_the_stream_ends(std::uint64_t id, Recorder& handler, std::uint64_t other) {
    ASSERT_TRUE(pump_until([&] { return handler.closes == 1; }));
    EXPECT_EQ(handler.code, CloseCode::kProtocolError);
    ASSERT_TRUE(pump_until([&] { return !proxy_.stream(id).closes.empty(); }));
    EXPECT_EQ(proxy_.stream(id).closes.size(), 1u);
    EXPECT_EQ(proxy_.stream(id).closes[0].first, WireCode::kProtocolError);
    proxy_.send(other, "still here");
    ASSERT_TRUE(pump_until([&] { return !others_.data.empty(); }));
    EXPECT_EQ(proxy_.closed_code, WireCode::kNone);
  }
  // Two connections of one service; the first has a handler of its own.
  std::uint64_t serve_two(Recorder& handler, std::uint64_t& other) {
    proxy_.start();
    make_node();
    service_ = *node_->join("10.77.0.10:80", [this, &handler](Request& request) {
      request.accept(requests_++ == 0 ? handler : others_);
    });
    EXPECT_TRUE(pump_until([&] { return service_.joined_count() == 1; }));
    const std::uint64_t id = open();
    other = open();
    return id;
  }
  Recorder others_;
  int requests_ = 0;
};

struct StreamBreach {
  const char* name;
  std::function<void(FakeProxy&, std::uint64_t)> act;
};

const StreamBreach kStreamBreaches[] = {
    {"P4_a_gap",
     [](FakeProxy& proxy, std::uint64_t id) {
       proxy.stream(id).sent = 10;
       proxy.send(id, "late");
     }},
    {"P4_an_overlap",
     [](FakeProxy& proxy, std::uint64_t id) {
       proxy.send(id, "twice");
       proxy.stream(id).sent = 4;
       proxy.send(id, "twice");
     }},
    {"P4_data_behind_fin",
     [](FakeProxy& proxy, std::uint64_t id) {
       proxy.send_close(id, WireCode::kFin);
       proxy.send(id, "one more thing");
     }},
    {"P5_fin_twice",
     [](FakeProxy& proxy, std::uint64_t id) {
       proxy.send_close(id, WireCode::kFin);
       proxy.send_close(id, WireCode::kFin);
     }},
    {"P5_fin_at_another_offset",
     [](FakeProxy& proxy, std::uint64_t id) {
       proxy.stream(id).sent = 1;
       proxy.send_close(id, WireCode::kFin);
     }},
    {"P6_credit_beyond_what_was_sent",
     [](FakeProxy& proxy, std::uint64_t id) { proxy.send_credit(id, 1, 0); }},
};

class StreamRules : public RulesTest, public ::testing::WithParamInterface<StreamBreach> {};

TEST_P(StreamRules, ABreachEndsItsStreamAlone) {
  Recorder& handler = recorder();
  handler.end_hook = [](Connection&) {};  // and goes on sending
  std::uint64_t other = 0;
  const std::uint64_t id = serve_two(handler, other);
  handler.data.clear();
  GetParam().act(proxy_, id);
  expect_the_stream_ends(id, handler, other);
}

INSTANTIATE_TEST_SUITE_P(Rules, StreamRules, ::testing::ValuesIn(kStreamBreaches),
                         [](const auto& param) { return std::string(param.param.name); });

TEST_F(RulesTest, P2_AnIdThatIsAliveIsNotGivenAgain) {
  serve(recorder());
  const std::uint64_t id = open();
  wire::ConnectionRequestBody body{};
  body.connection = id;
  body.service = proxy_.last_service;
  body.client = body.local = wire::to_wire(*SocketAddress::parse("192.0.2.7:4711"));
  body.send_window_bytes = 1;
  say(MessageType::kConnectionRequest, body);
  expect_the_channel_ends();
}

TEST_F(RulesTest, P1_AJoinIsAnsweredOnce) {
  serve(recorder());
  wire::JoinServiceBody body{};
  body.address = wire::to_wire(*SocketAddress::parse("10.77.0.10:80"));
  body.request = 1;
  body.service = proxy_.last_service;
  say(MessageType::kJoinService, body, wire::kFlagAnswer);
  expect_the_channel_ends();
}

TEST_F(RulesTest, P1_AnAnswerToALeaveThatWasNotSentIsABreach) {
  serve(recorder());
  say(MessageType::kLeaveService, wire::ServiceBody{4711, 1}, wire::kFlagAnswer);
  expect_the_channel_ends();
}

TEST_F(RulesTest, P1_AnAnswerWithAnotherNumberIsABreach) {
  proxy_.options.answer_joins = true;
  serve(recorder());
  proxy_.options.answer_joins = false;
  service_.leave();
  pump_some();
  say(MessageType::kLeaveService, wire::ServiceBody{proxy_.last_service, 2}, wire::kFlagAnswer);
  expect_the_channel_ends();
}

TEST_F(RulesTest, P7_TheAnswerToALeaveThatTheNewsHasCrossedIsNone) {
  serve(recorder());
  proxy_.options.answer_joins = false;
  service_.leave();
  pump_some();
  const wire::ServiceBody news{proxy_.last_service, 0}, answer{proxy_.last_service, 1};
  say(MessageType::kShutdownService, news, 0, WireCode::kServiceShutdown);
  say(MessageType::kLeaveService, answer, wire::kFlagAnswer, WireCode::kNotFound);
  ASSERT_TRUE(pump_until([&] { return service_.left(); }));
  pump_some();
  EXPECT_EQ(proxy_.closed_code, WireCode::kNone);
  say(MessageType::kLeaveService, answer, wire::kFlagAnswer, WireCode::kNotFound);
  expect_the_channel_ends();
}

TEST_F(RulesTest, D5_ALeaveIsNotTheProxys) {
  serve(recorder());
  say(MessageType::kLeaveService, wire::ServiceBody{proxy_.last_service, 1});
  expect_the_channel_ends();
}

TEST_F(RulesTest, D6_AShutdownIsAnAnswerOrHasACode) {
  serve(recorder());
  say(MessageType::kShutdownService, wire::ServiceBody{proxy_.last_service, 0});
  expect_the_channel_ends();
}

TEST_F(RulesTest, D7_AnActiveRequestIsNotTheProxys) {
  serve(recorder());
  wire::ConnectionRequestBody body{};
  body.request = 1;
  body.client = wire::to_wire(*SocketAddress::parse("192.0.2.7:4711"));
  body.send_window_bytes = 1;
  say(MessageType::kConnectionRequest, body, wire::kFlagActive);
  expect_the_channel_ends();
}

TEST_F(RulesTest, D8_TheApplicationAcceptsPassiveOnes) {
  serve(recorder());
  wire::AcceptConnectionBody body{};
  body.connection = open();
  body.send_window_bytes = 1;
  say(MessageType::kAcceptConnection, body);
  expect_the_channel_ends();
}

TEST_F(RulesTest, D9_ANodeStatusIsForNetworkNodes) {
  serve(recorder());
  say(MessageType::kNodeStatus, wire::NodeStatusBody{1, 0, 0});
  expect_the_channel_ends();
}

}  // namespace
}  // namespace sanproxy::app::test
