#include "tests/appnode-lib/client/fake_proxy.h"

namespace sanproxy::app::test {
namespace {

using wire::CloseCode;
using AppCode = ::sanproxy::app::CloseCode;

class ConnectionTest : public Harness {};

TEST_F(ConnectionTest, AReplyReachesTheClientAndTheFirstBytesMayRideWithTheRequest) {
  Recorder& handler = recorder();
  handler.data_hook = [](Connection& c, Received&) { EXPECT_EQ(c.send("pong"), 4u); };
  serve(handler);
  const auto id = proxy_.request(proxy_.last_service);
  proxy_.send(id, "ping");
  ASSERT_TRUE(pump_until([&] { return proxy_.stream(id).data == "pong"; }));
  EXPECT_EQ(handler.data, "ping");
  EXPECT_EQ(proxy_.stream(id).window_bytes, 4u * 1024 * 1024);
  EXPECT_EQ(handler.connection->remote().to_string(), "192.0.2.7:4711");
  EXPECT_EQ(handler.connection->local().to_string(), "10.77.0.10:80");
  ASSERT_TRUE(pump_until([&] { return handler.connection->bytes_acknowledged() == 4; }));
}

TEST_F(ConnectionTest, ARejectedRequestTellsTheCodeAndItsEarlyDataIsDropped) {
  proxy_.start();
  make_node();
  auto service = node_->join("10.77.0.10:80",
                             [](Request& request) { request.reject(AppCode::kLimitReached); });
  ASSERT_TRUE(service.ok());
  ASSERT_TRUE(pump_until([&] { return service->joined_count() == 1; }));
  const auto id = proxy_.request(proxy_.last_service);
  proxy_.send(id, "early");
  ASSERT_TRUE(pump_until([&] { return proxy_.stream(id).rejected; }));
  EXPECT_EQ(proxy_.stream(id).reject_code, CloseCode::kLimitReached);
  EXPECT_EQ(node_->connection_count(), 0u);
  EXPECT_TRUE(proxy_.connected());
}

TEST_F(ConnectionTest, ARejectionWithACodeThatSaysNothingOfOneIsARefusal) {
  proxy_.start();
  make_node();
  AppCode code = AppCode::kNone;
  ASSERT_TRUE(node_->join("10.77.0.10:80", [&](Request& request) { request.reject(code); }).ok());
  ASSERT_TRUE(pump_until([&] { return proxy_.joins == 1; }));
  pump_some();
  for (const int value : {0, 1, 2, 6, 13, 16, 1000, 65535}) {
    code = static_cast<AppCode>(value);
    const auto id = proxy_.request(proxy_.last_service);
    ASSERT_TRUE(pump_until([&] { return proxy_.stream(id).rejected || !proxy_.connected(); }));
    ASSERT_TRUE(proxy_.connected()) << value;
    EXPECT_EQ(proxy_.stream(id).reject_code, wire::CloseCode::kRefused) << value;
  }
  code = AppCode::kAddressInUse;
  const auto id = proxy_.request(proxy_.last_service);
  ASSERT_TRUE(pump_until([&] { return proxy_.stream(id).rejected; }));
  EXPECT_EQ(proxy_.stream(id).reject_code, wire::CloseCode::kAddressInUse);
}

TEST_F(ConnectionTest, ARequestForAnUnknownServiceIsRejected) {
  Recorder& handler = recorder();
  serve(handler);
  const auto id = proxy_.request(4242);
  ASSERT_TRUE(pump_until([&] { return proxy_.stream(id).rejected; }));
  EXPECT_EQ(proxy_.stream(id).reject_code, CloseCode::kNotFound);
}

TEST_F(ConnectionTest, MoreThanConnectionsMaxAreRejectedAndASlotIsUsedAgain) {
  Recorder& handler = recorder();
  NodeOptions options;
  options.connections_max = 2;
  serve(handler, options);
  const auto first = open();
  open();
  const auto third = proxy_.request(proxy_.last_service);
  ASSERT_TRUE(pump_until([&] { return proxy_.stream(third).rejected; }));
  EXPECT_EQ(proxy_.stream(third).reject_code, CloseCode::kLimitReached);
  proxy_.send_close(first, CloseCode::kReset);
  ASSERT_TRUE(pump_until([&] { return handler.closes == 1; }));
  EXPECT_EQ(handler.code, AppCode::kReset);
  open();
}

TEST_F(ConnectionTest, WhoComesWithTheEndOfAnotherGetsItsPlace) {
  Recorder& handler = recorder();
  NodeOptions options;
  options.connections_max = 1;
  serve(handler, options);
  std::uint64_t last = open();
  for (int i = 1; i < 5; ++i) {
    proxy_.send_close(last, CloseCode::kReset);
    last = proxy_.request(proxy_.last_service);
    ASSERT_TRUE(
        pump_until([&] { return proxy_.stream(last).accepted || proxy_.stream(last).rejected; }));
    EXPECT_TRUE(proxy_.stream(last).accepted) << "it had ended before the other came";
    EXPECT_EQ(handler.closes, i);
  }
}

TEST_F(ConnectionTest, AHandlerThatPollsItsNodeGetsEveryByteOnceAndInOrder) {
  Recorder& handler = recorder();
  handler.data_hook = [this](Connection&, Received&) {
    EXPECT_EQ(node_->wait(0), 0u);
    EXPECT_EQ(node_->wait(-1), 0u);
    EXPECT_FALSE(node_->arm());
    node_->run();
  };
  serve(handler);
  const auto id = open();
  std::string all;
  for (int i = 0; i < 100; ++i) {
    const std::string piece(100, static_cast<char>('a' + i % 26));
    all += piece;
    proxy_.send(id, piece);
    proxy_.channel().flush();  // each in a transfer of its own
  }
  ASSERT_TRUE(pump_until([&] { return handler.data.size() >= all.size() || !proxy_.connected(); }));
  EXPECT_TRUE(proxy_.connected());
  EXPECT_TRUE(handler.data == all);
}

TEST_F(ConnectionTest, HalfCloseByTheClientLeavesOurDirectionOpen) {
  Recorder& handler = recorder();
  handler.data_hook = [](Connection&, Received&) {};
  serve(handler);
  const auto id = open();
  proxy_.send(id, "question");
  proxy_.send_close(id, CloseCode::kFin);
  ASSERT_TRUE(pump_until([&] { return handler.ends == 1; }));
  EXPECT_EQ(handler.connection->send("answer"), 6u);
  handler.connection->finish();
  ASSERT_TRUE(pump_until([&] { return handler.closes == 1; }));
  EXPECT_EQ(handler.code, AppCode::kFin);
  ASSERT_TRUE(pump_until([&] { return proxy_.stream(id).closes.size() == 1; }));
  EXPECT_EQ(proxy_.stream(id).data, "answer");
  EXPECT_EQ(proxy_.stream(id).closes[0], std::make_pair(CloseCode::kFin, std::uint64_t{6}));
}

TEST_F(ConnectionTest, HalfCloseByUsLeavesReceivingOpen) {
  Recorder& handler = recorder();
  handler.data_hook = [](Connection& c, Received&) { c.finish(); };
  serve(handler);
  const auto id = open();
  proxy_.send(id, "one");
  ASSERT_TRUE(pump_until([&] { return proxy_.stream(id).closes.size() == 1; }));
  EXPECT_EQ(handler.connection->send("too late"), 0u);
  proxy_.send(id, "two");
  proxy_.send_close(id, CloseCode::kFin);
  ASSERT_TRUE(pump_until([&] { return handler.closes == 1; }));
  EXPECT_EQ(handler.data, "onetwo");
  EXPECT_EQ(handler.ends, 1);
  EXPECT_EQ(proxy_.stream(id).closes.size(), 1u);
}

TEST_F(ConnectionTest, CloseIsOverWhenItHasLeftAndWhatCrossesItIsDropped) {
  Recorder& handler = recorder();
  handler.data_hook = [](Connection& c, Received&) {
    EXPECT_EQ(c.send("bye"), 3u);
    c.close();
    EXPECT_FALSE(c.is_open());
    EXPECT_EQ(c.send("more"), 0u);
  };
  serve(handler);
  const auto id = open();
  proxy_.send(id, "x");
  ASSERT_TRUE(pump_until([&] { return proxy_.stream(id).closes.size() == 1; }));
  EXPECT_EQ(proxy_.stream(id).data, "bye");
  EXPECT_EQ(proxy_.stream(id).closes[0], std::make_pair(CloseCode::kFinBoth, std::uint64_t{3}));
  proxy_.send(id, "crossing bytes are dropped");
  pump_some();
  EXPECT_EQ(handler.data, "x");
  ASSERT_TRUE(pump_until([&] { return handler.closes == 1; }));
  EXPECT_EQ(handler.code, AppCode::kFinBoth);
  EXPECT_EQ(node_->connection_count(), 0u);
}

TEST_F(ConnectionTest, MessagesForDeadConnectionsAreIgnored) {
  Recorder& handler = recorder();
  serve(handler);
  const auto id = open();
  proxy_.send_close(id, CloseCode::kTimedOut);
  proxy_.send(id, "ghost");
  proxy_.send_credit(id, 0, 0);
  proxy_.send_close(id, CloseCode::kReset);
  ASSERT_TRUE(pump_until([&] { return handler.closes == 1; }));
  pump_some();
  EXPECT_EQ(handler.code, AppCode::kTimedOut);
  EXPECT_EQ(handler.closes, 1);
  EXPECT_TRUE(proxy_.connected());
}

TEST_F(ConnectionTest, SendingStopsAtTheWindowAndGoesOnWhenItOpens) {
  Recorder& handler = recorder();
  serve(handler);
  proxy_.options.free_at_once = false;
  const auto id = open(100'000);
  proxy_.send(id, "go");
  ASSERT_TRUE(pump_until([&] { return handler.connection != nullptr; }));
  const std::string text(250'000, 'x');
  std::size_t sent = handler.connection->send(text);
  EXPECT_EQ(sent, 100'000u);
  EXPECT_EQ(handler.connection->writable_bytes(), 0u);
  handler.writable_hook = [&](Connection& c) {
    sent += c.send(std::string_view(text).substr(sent));
  };
  ASSERT_TRUE(pump_until([&] { return proxy_.stream(id).data.size() == 100'000; }));
  EXPECT_EQ(handler.writables, 0);
  proxy_.options.free_at_once = true;
  proxy_.send_credit(id, 100'000, 50'000);
  ASSERT_TRUE(pump_until([&] { return proxy_.stream(id).data.size() == text.size(); }));
  EXPECT_EQ(proxy_.stream(id).data, text);
  EXPECT_EQ(handler.connection->bytes_sent(), text.size());
}

TEST_F(ConnectionTest, ATinyOpeningOfTheWindowDoesNotMakeTinyPieces) {
  Recorder& handler = recorder();
  serve(handler);
  proxy_.options.free_at_once = false;
  const auto id = open(64'000);
  proxy_.send(id, "go");
  ASSERT_TRUE(pump_until([&] { return handler.connection != nullptr; }));
  EXPECT_EQ(handler.connection->send(std::string(80'000, 'x')), 64'000u);
  ASSERT_TRUE(pump_until([&] { return proxy_.stream(id).data.size() == 64'000; }));
  proxy_.send_credit(id, 100, 100);
  pump_some();
  EXPECT_EQ(handler.writables, 0);
  EXPECT_EQ(handler.connection->writable_bytes(), 100u);
  proxy_.send_credit(id, 16'000, 16'000);
  ASSERT_TRUE(pump_until([&] { return handler.writables == 1; }));
}

TEST_F(ConnectionTest, TheClientsWindowOpensAsBytesAreReturned) {
  Recorder& handler = recorder();
  NodeOptions options;
  options.receive_window_bytes = 64 * 1024;
  serve(handler, options);
  const auto id = open();
  std::uint64_t total = 0;
  while (total < 1'000'000) {
    proxy_.send_large(id, 16 * 1024);
    total += 16 * 1024;
    ASSERT_TRUE(pump_until([&] { return total - proxy_.stream(id).freed <= 48 * 1024; }));
  }
  ASSERT_TRUE(pump_until([&] { return handler.data.size() == total; }));
  for (std::size_t i = 0; i < handler.data.size(); ++i) {
    ASSERT_EQ(handler.data[i], static_cast<char>('a' + i % 26)) << i;
  }
}

TEST_F(ConnectionTest, AFloodOfConnectionsThatMeetsAFullChannelIsServedInTheEnd) {
  Recorder& handler = recorder();
  handler.data_hook = [](Connection& c, Received&) {
    c.send("r");
    c.finish();
  };
  handler.end_hook = [](Connection&) {};
  proxy_.options.endpoint.receive_depth = 8;  // the application runs out of credits at once
  serve(handler);
  std::vector<std::uint64_t> ids;
  for (int i = 0; i < 400; ++i) {
    ids.push_back(proxy_.request(proxy_.last_service));
    proxy_.send(ids.back(), "q");
  }
  proxy_.channel().flush();
  for (int i = 0; i < 3; ++i) node_->poll();  // without a turn of the proxy
  ASSERT_TRUE(pump_until([&] {
    return std::all_of(ids.begin(), ids.end(),
                       [&](auto id) { return proxy_.stream(id).closes.size() == 1; });
  }));
  for (const auto id : ids) EXPECT_EQ(proxy_.stream(id).data, "r");
  for (const auto id : ids) proxy_.send_close(id, CloseCode::kFin);
  ASSERT_TRUE(pump_until([&] { return node_->connection_count() == 0; }));
  EXPECT_EQ(handler.closes, 400);
}

TEST_F(ConnectionTest, WhoWaitsForACreditIsServedBeforeThoseWhoAskLater) {
  const std::string text(600'000, 'g');
  proxy_.options.endpoint.receive_depth = 8;
  Recorder& handler = recorder();
  serve(handler);
  std::vector<Connection*> connections;
  handler.data_hook = [&](Connection& c, Received&) { connections.push_back(&c); };
  const std::uint64_t greedy = open(8 << 20);
  const std::uint64_t modest = open(8 << 20);
  for (const std::uint64_t id : {greedy, modest}) proxy_.send(id, "x");
  ASSERT_TRUE(pump_until([&] { return connections.size() == 2; }));
  // One asks each time that something comes for it, in front of whoever waits.
  handler.data_hook = [&](Connection& c, Received&) { c.send(text); };
  EXPECT_LT(connections[0]->send(text), text.size());
  std::size_t sent = 0;
  handler.writable_hook = [&](Connection& c) {
    if (&c == connections[1]) sent += c.send(std::string_view(text).substr(sent));
  };
  sent = connections[1]->send(text);
  EXPECT_EQ(sent, 0u) << "there was no credit left";
  for (int round = 0; round < 300; ++round) {
    proxy_.send(greedy, "more");
    pump();
  }
  EXPECT_EQ(proxy_.stream(modest).data.size(), text.size());
}

TEST_F(ConnectionTest, AnOutgoingConnectionOpensCarriesBytesAndCloses) {
  Recorder& handler = recorder();
  serve(handler);
  auto connection = node_->connect("192.0.2.1:443", handler);
  ASSERT_TRUE(connection.ok());
  EXPECT_EQ((*connection)->send("too early"), 0u);
  ASSERT_TRUE(pump_until([&] {
    return !proxy_.messages.empty() &&
           proxy_.messages.back().type == wire::MessageType::kConnectionRequest;
  }));
  const wire::ConnectionRequestBody asked = proxy_.messages.back().request;
  EXPECT_EQ(asked.client.port, 443);
  wire::AcceptConnectionBody body{};
  body.connection = wire::make_connection_id(1, 1, 77);
  body.request = asked.request;
  body.send_window_bytes = 65536;
  body.local = wire::to_wire(*SocketAddress::parse("10.77.0.10:40001"));
  body.mss_bytes = 1448;
  proxy_.stream(body.connection).accepted = true;
  ASSERT_TRUE(proxy_.channel()
                  .send_control(wire::MessageType::kAcceptConnection, 0, CloseCode::kNone, body)
                  .ok());
  ASSERT_TRUE(pump_until([&] { return handler.opens == 1; }));
  EXPECT_EQ(handler.connection->local().to_string(), "10.77.0.10:40001");
  EXPECT_EQ(handler.connection->send("hello"), 5u);
  handler.connection->close();
  ASSERT_TRUE(pump_until([&] { return handler.closes == 1; }));
  EXPECT_EQ(proxy_.stream(body.connection).data, "hello");
}

TEST_F(ConnectionTest, AnOutgoingConnectionNeedsAnAddressToComeFrom) {
  Recorder& handler = recorder();
  proxy_.start();
  make_node();
  const auto connect = [&](const char* to) { return node_->connect(to, handler).status().code(); };
  EXPECT_EQ(connect("192.0.2.1:443"), Code::kDisconnected);
  auto every = node_->join("0.0.0.0:80", [](Request&) {});
  ASSERT_TRUE(pump_until([&] { return every->joined_count() == 1; }));
  EXPECT_EQ(connect("192.0.2.1:443"), Code::kNotFound);
  auto one = node_->join("10.77.0.10:80", [](Request&) {});
  ASSERT_TRUE(pump_until([&] { return one->joined_count() == 1; }));
  EXPECT_EQ(connect("[fd77::1]:443"), Code::kNotFound);
  EXPECT_EQ(connect("192.0.2.1:443"), Code::kOk);
}

TEST_F(ConnectionTest, WhoSendsBeforeAnOutgoingConnectionIsOpenIsToldWhenHeMay) {
  Recorder& handler = recorder();
  serve(handler);
  auto connection = node_->connect("192.0.2.1:443", handler);
  ASSERT_TRUE(connection.ok());
  EXPECT_EQ((*connection)->send("too early"), 0u);
  pump_some();
  EXPECT_EQ(handler.writables, 0);
  wire::AcceptConnectionBody body{};
  body.connection = wire::make_connection_id(1, 1, 77);
  body.request = 1;
  body.send_window_bytes = 65536;
  body.local = wire::to_wire(*SocketAddress::parse("10.77.0.10:40000"));
  ASSERT_TRUE(proxy_.channel()
                  .send_control(wire::MessageType::kAcceptConnection, 0, CloseCode::kNone, body)
                  .ok());
  ASSERT_TRUE(pump_until([&] { return handler.opens == 1; }));
  EXPECT_EQ(handler.writables, 1);
}

TEST_F(ConnectionTest, AnOutgoingConnectionThatFailsTellsWhyAndOneGivenUpIsTakenBack) {
  Recorder& failed = recorder();
  Recorder& dropped = recorder();
  serve(failed);
  ASSERT_TRUE(node_->connect("192.0.2.1:443", failed).ok());
  auto connection = node_->connect("192.0.2.2:443", dropped);
  ASSERT_TRUE(connection.ok());
  pump_some();
  (*connection)->reset();
  const wire::RejectConnectionBody refusal{0, 1, 0};
  ASSERT_TRUE(
      proxy_.channel()
          .send_control(wire::MessageType::kRejectConnection, 0, CloseCode::kUnreachable, refusal)
          .ok());
  ASSERT_TRUE(pump_until([&] { return failed.closes == 1 && dropped.closes == 1; }));
  EXPECT_EQ(failed.code, AppCode::kUnreachable);
  EXPECT_EQ(node_->connection_count(), 1u);  // the proxy still owes an answer
  wire::AcceptConnectionBody body{};
  body.connection = wire::make_connection_id(1, 1, 78);
  body.request = 2;
  body.send_window_bytes = 65536;
  body.local = wire::to_wire(*SocketAddress::parse("10.77.0.10:40001"));
  ASSERT_TRUE(proxy_.channel()
                  .send_control(wire::MessageType::kAcceptConnection, 0, CloseCode::kNone, body)
                  .ok());
  ASSERT_TRUE(pump_until([&] { return proxy_.stream(body.connection).closes.size() == 1; }));
  EXPECT_EQ(proxy_.stream(body.connection).closes[0].first, CloseCode::kReset);
  EXPECT_EQ(node_->connection_count(), 0u);
  EXPECT_EQ(dropped.opens, 0);
}

}  // namespace
}  // namespace sanproxy::app::test
