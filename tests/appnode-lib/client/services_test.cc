#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <string>
#include <thread>

#include "lwproto/base/unique_fd.h"
#include "tests/appnode-lib/client/fake_proxy.h"

namespace sanproxy::app::test {
namespace {

using AppCode = ::sanproxy::app::CloseCode;

class ServicesTest : public Harness {};

TEST_F(ServicesTest, JoinCarriesItsOptions) {
  proxy_.start();
  make_node();
  JoinOptions options;
  options.weight = 7;
  options.connections_max = 99;
  options.immediate = true;
  ASSERT_TRUE(node_
                  ->join(
                      "[fd77::10]:443", [](Request&) {}, options)
                  .ok());
  ASSERT_TRUE(pump_until([&] { return proxy_.joins == 1; }));
  const wire::Message& join = proxy_.messages.back();
  EXPECT_EQ(join.flags, wire::kFlagImmediate);
  EXPECT_EQ(join.join.weight, 7u);
  EXPECT_EQ(join.join.connections_max, 99u);
  EXPECT_EQ(join.join.address.family, 6);
  EXPECT_EQ(join.join.address.port, 443);
}

TEST_F(ServicesTest, ImpossibleJoinsAndNodesAreRefusedWithAReason) {
  make_node();
  EXPECT_EQ(node_->join("10.0.0.1", [](Request&) {}).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(node_->join("10.0.0.1:0", [](Request&) {}).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(node_->join("10.0.0.1:1", nullptr).status().code(), Code::kInvalidArgument);
  ASSERT_TRUE(node_->join("10.0.0.1:1", [](Request&) {}).ok());
  EXPECT_EQ(node_->join("10.0.0.1:1", [](Request&) {}).status().code(), Code::kExists);
  NodeOptions options;
  options.proxies = {"pigeon://10.9.0.1:7471"};
  EXPECT_EQ(Node::create(options).status().code(), Code::kUnsupported);
  for (const char* address : {"nonsense", "tcp://10.9.0.1", "verbs:/path", "shm:relative"}) {
    options.proxies = {address};
    EXPECT_EQ(Node::create(options).status().code(), Code::kInvalidArgument) << address;
  }
  options.proxies = {"shm:/x"};
  options.link.dscp = 64;
  EXPECT_STREQ(Node::create(options).status().text(), "link parameter dscp: expected 0 to 63");
  options.link = {};
  options.tls.key = "/etc/key.pem";
  EXPECT_EQ(Node::create(options).status().code(), Code::kInvalidArgument) << "half of TLS";
}

TEST_F(ServicesTest, AProxyThatRefusesTheChannelSaysWhy) {
  proxy_.options.hello_code = wire::CloseCode::kLimitReached;
  proxy_.start();
  std::string why;
  NodeOptions options;
  options.on_proxy_down = [&](auto, std::string_view reason) { why = reason; };
  make_node(options);
  ASSERT_TRUE(pump_until([&] { return !why.empty(); }));
  EXPECT_NE(why.find(": limit_reached"), std::string::npos) << why;
}

TEST_F(ServicesTest, ANameThatIsTooLongIsCutBetweenCharactersAndOneThatCannotBeShownIsRefused) {
  NodeOptions options;
  options.proxies = {address_};
  for (const char* name : {"tab\there", "\xff\xfe", "half \xc3", "\x7f"}) {
    options.name = name;
    EXPECT_EQ(Node::create(options).status().code(), Code::kInvalidArgument) << name;
  }
  proxy_.start();
  const std::string fits(63, 'a');
  options.name = fits;
  options.name += "\u00e9";
  make_node(options);
  ASSERT_TRUE(pump_until([&] { return node_->proxies_up() == 1 && proxy_.connected(); }));
  EXPECT_EQ(proxy_.channel().peer_name(), fits);
}

TEST_F(ServicesTest, AHandleOfNoServiceHasLeft) {
  Service none;
  none.leave();
  none.shutdown();
  EXPECT_TRUE(none.left());
  EXPECT_EQ(none.joined_count(), 0u);
}

TEST_F(ServicesTest, ARefusedJoinIsReported) {
  proxy_.start();
  proxy_.options.join_code = wire::CloseCode::kNotPermitted;
  AppCode code = AppCode::kNone;
  NodeOptions options;
  options.on_join_refused = [&](auto, auto, AppCode why) { code = why; };
  make_node(options);
  auto service = node_->join("10.0.0.1:80", [](Request&) {});
  ASSERT_TRUE(pump_until([&] { return code == AppCode::kNotPermitted; }));
  EXPECT_EQ(service->joined_count(), 0u);
}

TEST_F(ServicesTest, WhoIsTakenOutOfAnAllowListAsksAgain) {
  Recorder& handler = recorder();
  int refusals = 0;
  NodeOptions options;
  options.on_join_refused = [&](auto, auto, AppCode why) {
    EXPECT_EQ(why, AppCode::kNotPermitted);
    ++refusals;
  };
  serve(handler, options);
  proxy_.options.join_code = wire::CloseCode::kNotPermitted;
  const wire::ServiceBody body{proxy_.last_service, 0};
  ASSERT_TRUE(proxy_.channel()
                  .send_control(wire::MessageType::kShutdownService, 0,
                                wire::CloseCode::kNotPermitted, body)
                  .ok());
  ASSERT_TRUE(pump_until([&] { return refusals == 1; }));
  EXPECT_EQ(service_.joined_count(), 0u);
  constexpr std::uint64_t kFirst = internal::Link::kAskAgainFirstNs;
  clock_.advance_ns(kFirst);
  ASSERT_TRUE(pump_until([&] { return refusals == 2; })) << "it asks, and is refused";
  proxy_.options.join_code = wire::CloseCode::kNone;
  clock_.advance_ns(2 * kFirst);
  ASSERT_TRUE(pump_until([&] { return service_.joined_count() == 1; }));
}

TEST_F(ServicesTest, AJoinThatMetALimitIsAskedForAgainWithGrowingPauses) {
  proxy_.start();
  proxy_.options.join_code = wire::CloseCode::kLimitReached;
  int refusals = 0;
  NodeOptions options;
  options.on_join_refused = [&](auto, auto, AppCode why) {
    EXPECT_EQ(why, AppCode::kLimitReached);
    ++refusals;
  };
  make_node(options);
  auto service = node_->join("10.0.0.1:80", [](Request&) {});
  constexpr std::uint64_t kFirst = internal::Link::kAskAgainFirstNs;
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(pump_until([&] { return refusals == i + 1; }));
    clock_.advance_ns((kFirst << i) - 1);
    pump_some();
    EXPECT_EQ(proxy_.joins, static_cast<std::uint32_t>(i + 1)) << "too early";
    if (i == 2) proxy_.options.join_code = wire::CloseCode::kNone;
    clock_.advance_ns(1);
  }
  ASSERT_TRUE(pump_until([&] { return service->joined_count() == 1; }));
  EXPECT_EQ(proxy_.joins, 4u);
  EXPECT_EQ(refusals, 3);
  bool armed = false;
  for (int i = 0; i < 1000 && !(armed = node_->arm()); ++i) pump();
  EXPECT_TRUE(armed) << "nothing is left to wait for";
}

TEST_F(ServicesTest, AJoinThatMetALimitIsOverWhenTheServiceIsLeft) {
  proxy_.start();
  proxy_.options.join_code = wire::CloseCode::kLimitReached;
  make_node();
  auto service = node_->join("10.0.0.1:80", [](Request&) {});
  ASSERT_TRUE(pump_until([&] { return proxy_.joins == 1; }));
  pump_some();
  service->leave();
  EXPECT_TRUE(service->left());
  clock_.advance_ns(internal::Link::kAskAgainMaxNs);
  pump_some();
  EXPECT_EQ(proxy_.joins, 1u);
}

TEST_F(ServicesTest, LeaveLetsOpenConnectionsGoOnAndDrainedComesAfterTheLast) {
  Recorder& handler = recorder();
  serve(handler);
  const auto id = open();
  service_.leave();
  ASSERT_TRUE(pump_until([&] { return service_.left(); }));
  EXPECT_FALSE(node_->drained());
  proxy_.send(id, "still here");
  ASSERT_TRUE(pump_until([&] { return handler.data == "still here"; }));
  proxy_.send_close(id, wire::CloseCode::kReset);
  ASSERT_TRUE(pump_until([&] { return node_->drained(); }));
}

TEST_F(ServicesTest, ARequestThatCrossesOurLeaveIsStillServed) {
  Recorder& handler = recorder();
  serve(handler);
  service_.leave();  // is on its way
  const auto id = proxy_.request(proxy_.last_service);
  proxy_.send(id, "crossing");
  ASSERT_TRUE(pump_until([&] { return handler.data == "crossing"; }));
  EXPECT_TRUE(proxy_.stream(id).accepted);
}

TEST_F(ServicesTest, ANodeThatEndsTellsItsProxySo) {
  Recorder& handler = recorder();
  serve(handler);
  (void)open();
  node_ = nullptr;
  impl_.reset();
  EXPECT_EQ(handler.closes, 1);
  for (int i = 0; i < 1000 && proxy_.closed_code == wire::CloseCode::kNone; ++i) proxy_.pump();
  EXPECT_EQ(proxy_.closed_code, wire::CloseCode::kFinBoth);
}

TEST_F(ServicesTest, AServiceThatHasLeftGivesItsPlaceToAnother) {
  proxy_.start();
  make_node();
  Service first;
  for (std::size_t i = 0; i < internal::NodeImpl::kServicesMax + 1; ++i) {
    auto service = node_->join("10.0.0.1:" + std::to_string(i + 1), [](Request&) {});
    ASSERT_TRUE(service.ok()) << i << ": " << service.status().to_string();
    ASSERT_TRUE(pump_until([&] { return service->joined_count() == 1; }));
    service->leave();
    ASSERT_TRUE(pump_until([&] { return service->left(); }));
    if (i == 0) first = *service;
  }
  auto last = node_->join("10.0.0.2:1", [](Request&) {});
  ASSERT_TRUE(pump_until([&] { return last->joined_count() == 1; }));
  EXPECT_EQ(first.address().port, 1);
  EXPECT_EQ(first.joined_count(), 0u);
  EXPECT_TRUE(first.left());
  first.leave();  // means nobody else
  pump_some();
  EXPECT_EQ(last->joined_count(), 1u);
}

TEST_F(ServicesTest, SoManyServicesAtATimeAndNoMore) {
  make_node();
  for (std::size_t i = 0; i < internal::NodeImpl::kServicesMax; ++i) {
    ASSERT_TRUE(node_->join("10.0.0.1:" + std::to_string(i + 1), [](Request&) {}).ok());
  }
  EXPECT_EQ(node_->join("10.0.0.2:1", [](Request&) {}).status().code(), Code::kExhausted);
}

TEST_F(ServicesTest, LeavingBeforeTheJoinIsAnsweredLeavesAfterwards) {
  proxy_.start();
  make_node();
  auto service = node_->join("10.0.0.1:80", [](Request&) {});
  service->leave();
  ASSERT_TRUE(pump_until([&] { return node_->proxies_up() == 1; }));
  pump_some();
  EXPECT_TRUE(service->left());
  EXPECT_EQ(proxy_.joins, 0u);
}

TEST_F(ServicesTest, AnAddressIsJoinedAnewOnlyWhenItHasBeenLeft) {
  proxy_.start();
  proxy_.options.answer_joins = false;
  make_node();
  const std::string address = "10.0.0.1:80";
  auto first = node_->join(address, [](Request&) {});
  ASSERT_TRUE(pump_until([&] { return proxy_.joins == 1; }));
  first->leave();
  auto second = node_->join(address, [](Request&) {});
  ASSERT_TRUE(second.ok());
  pump_some();
  EXPECT_EQ(proxy_.joins, 1u) << "the first JOIN is not answered";
  proxy_.answer_join(wire::Message(proxy_.messages.back()));
  ASSERT_TRUE(
      pump_until([&] { return proxy_.messages.back().type == wire::MessageType::kLeaveService; }));
  pump_some();
  EXPECT_EQ(proxy_.joins, 1u) << "the LEAVE is not answered";
  EXPECT_FALSE(first->left());
  proxy_.options.answer_joins = true;
  ASSERT_TRUE(proxy_.channel()
                  .send_control(wire::MessageType::kLeaveService, wire::kFlagAnswer,
                                wire::CloseCode::kNone, proxy_.messages.back().service)
                  .ok());
  ASSERT_TRUE(pump_until([&] { return second->joined_count() == 1; }));
  EXPECT_TRUE(first->left());
  EXPECT_EQ(proxy_.joins, 2u);
}

TEST_F(ServicesTest, AnAddressWhoseLeftJoinIsRefusedIsJoinedAnew) {
  proxy_.start();
  proxy_.options.answer_joins = false;
  make_node();
  auto first = node_->join("10.0.0.1:80", [](Request&) {});
  ASSERT_TRUE(pump_until([&] { return proxy_.joins == 1; }));
  first->leave();
  ASSERT_TRUE(node_->join("10.0.0.1:80", [](Request&) {}).ok());
  proxy_.options.join_code = wire::CloseCode::kNotPermitted;
  proxy_.answer_join(wire::Message(proxy_.messages.back()));
  ASSERT_TRUE(pump_until([&] { return proxy_.joins == 2; }));
}

TEST_F(ServicesTest, ShutdownTellsTheProxyAndAnAnnouncedShutdownEndsTheService) {
  Recorder& handler = recorder();
  AppCode code = AppCode::kNone;
  NodeOptions options;
  options.on_join_refused = [&](auto, auto, AppCode why) { code = why; };
  serve(handler, options);
  auto other = node_->join("10.77.0.11:80", [](Request&) {});
  ASSERT_TRUE(pump_until([&] { return other->joined_count() == 1; }));
  const wire::ServiceBody body{proxy_.last_service, 0};
  ASSERT_TRUE(proxy_.channel()
                  .send_control(wire::MessageType::kShutdownService, 0,
                                wire::CloseCode::kServiceShutdown, body)
                  .ok());
  ASSERT_TRUE(pump_until([&] { return code == AppCode::kServiceShutdown; }));
  EXPECT_EQ(other->joined_count(), 0u);
  service_.shutdown();
  ASSERT_TRUE(pump_until([&] { return service_.left(); }));
  EXPECT_EQ(proxy_.messages.back().type, wire::MessageType::kShutdownService);
}

TEST_F(ServicesTest, AProxyThatComesBackIsJoinedAgainAndItsOldConnectionsEndOnce) {
  Recorder& handler = recorder();
  int ups = 0;
  int downs = 0;
  NodeOptions options;
  options.on_proxy_up = [&](auto) { ++ups; };
  options.on_proxy_down = [&](auto, auto) { ++downs; };
  serve(handler, options);
  open();
  open();
  proxy_.stop();
  ASSERT_TRUE(pump_until([&] { return handler.closes == 2; }));
  EXPECT_EQ(handler.code, AppCode::kProxyLost);
  EXPECT_EQ(node_->proxies_up(), 0u);
  EXPECT_EQ(node_->connection_count(), 0u);
  EXPECT_EQ(node_->connect("192.0.2.1:1", handler).status().code(), Code::kDisconnected);
  for (int i = 0; i < 100; ++i) {  // ten seconds without a proxy: it keeps trying
    clock_.advance_ns(100'000'000);
    pump_some(2);
  }
  EXPECT_EQ(handler.closes, 2);
  proxy_.start();
  clock_.advance_ns(internal::Link::kRetryMaxNs);
  ASSERT_TRUE(pump_until([&] { return service_.joined_count() == 1; }));
  EXPECT_EQ(ups, 2);
  EXPECT_GE(downs, 1);
  const auto id = open();
  proxy_.send(id, "again");
  ASSERT_TRUE(pump_until([&] { return handler.data == "again"; }));
}

TEST_F(ServicesTest, WhyAProxyTakesNoChannelIsTold) {
  std::string reason;
  NodeOptions options;
  options.on_proxy_down = [&](auto, auto why) { reason = why; };
  proxy_.options.refuse_channels = wire::CloseCode::kLimitReached;
  proxy_.start();
  make_node(std::move(options));
  ASSERT_TRUE(pump_until([&] { return !reason.empty(); }));
  EXPECT_EQ(reason, "rejected by the server: limit_reached");
}

TEST_F(ServicesTest, AForeignLoopSleepsOnOneDescriptor) {
  Recorder& handler = recorder();
  serve(handler);
  const auto id = open();
  pollfd descriptor{node_->fd(), POLLIN, 0};
  const auto asleep = [&] { return node_->arm() && ::poll(&descriptor, 1, 0) == 0; };
  ASSERT_TRUE(pump_until(asleep));
  proxy_.send(id, "wake up");
  proxy_.channel().flush();
  EXPECT_EQ(::poll(&descriptor, 1, 10'000), 1);
  while (handler.data.empty()) node_->poll();
  EXPECT_EQ(handler.data, "wake up");
}

// Whoever listens may be stopped, or long in coming.
TEST_F(ServicesTest, WhileAProxyDoesNotAnswerTheNodeSleeps) {
  const std::string path = ::testing::TempDir() + "silent-" + std::to_string(::getpid()) + ".sock";
  UniqueFd silent(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  ASSERT_LT(path.size(), sizeof(address.sun_path));
  std::copy(path.begin(), path.end(), address.sun_path);
  ::unlink(path.c_str());
  ASSERT_EQ(::bind(silent.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  ASSERT_EQ(::listen(silent.get(), 1), 0);
  NodeOptions options;
  options.proxies = {"shm:" + path};
  auto created = Node::create(std::move(options));
  ASSERT_TRUE(created.ok());
  std::unique_ptr<Node> node = std::move(*created);
  pollfd arrived{silent.get(), POLLIN, 0};
  while (::poll(&arrived, 1, 0) == 0) node->poll();  // it has connected
  pollfd descriptor{node->fd(), POLLIN, 0};
  const auto asleep = [&] {
    if (!node->arm()) return false;
    for (int looks = 0; looks < 1000; ++looks) {
      if (::poll(&descriptor, 1, 0) != 0) return false;
    }
    return true;
  };
  int rounds = 0;
  while (!asleep()) {
    ASSERT_LT(++rounds, 100) << "it is woken again and again";
    node->poll();
  }
  node.reset();
  ::unlink(path.c_str());
}

TEST_F(ServicesTest, ArmingAgainSendsWhatWasSaidMeanwhileAndLeavesNoEndBehind) {
  Recorder& handler = recorder();
  serve(handler);
  const auto id = open();
  proxy_.send(id, "x");
  ASSERT_TRUE(pump_until([&] { return handler.connection != nullptr; }));
  pollfd descriptor{node_->fd(), POLLIN, 0};
  const auto asleep = [&] { return node_->arm() && ::poll(&descriptor, 1, 0) == 0; };
  ASSERT_TRUE(pump_until(asleep));
  ASSERT_TRUE(node_->arm());
  EXPECT_EQ(handler.connection->send("from a timer"), 12u);
  EXPECT_TRUE(node_->arm());  // a loop that has nothing to poll() for
  for (int i = 0; i < 100 && proxy_.stream(id).data.empty(); ++i) proxy_.pump();
  EXPECT_EQ(proxy_.stream(id).data, "from a timer");
  ASSERT_TRUE(pump_until(asleep));
  handler.connection->close();
  EXPECT_FALSE(node_->arm()) << "on_closed() is due";
  node_->poll();
  EXPECT_EQ(handler.closes, 1);
}

TEST_F(ServicesTest, StopWakesRunFromAnotherThread) {
  make_node();
  std::thread other([&] { node_->stop(); });
  node_->run();
  other.join();
  EXPECT_TRUE(node_->stopped());
}

TEST_F(ServicesTest, AChildThatDestroysItsCopyOfTheNodeDisturbsNobody) {
  Recorder& handler = recorder();
  serve(handler);
  const auto id = open();
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    impl_.reset();
    _exit(handler.closes);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  proxy_.send(id, "still here");
  ASSERT_TRUE(pump_until([&] { return handler.data == "still here" || handler.closes != 0; }));
  EXPECT_EQ(handler.closes, 0);
}

TEST_F(ServicesTest, DestroyingTheNodeClosesEveryConnectionOnce) {
  Recorder& handler = recorder();
  serve(handler);
  open();
  open();
  impl_.reset();
  EXPECT_EQ(handler.closes, 2);
  EXPECT_EQ(handler.code, AppCode::kNodeClosed);
}

}  // namespace
}  // namespace sanproxy::app::test
