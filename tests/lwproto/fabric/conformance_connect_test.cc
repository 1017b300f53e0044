// Connecting: private data, rejections, who may wait, what a link may be asked for.
#include "lwproto/fabric/link_parameters.h"
#include "tests/lwproto/fabric/conformance_fixture.h"

namespace sanproxy::fabric::test {
namespace {

INSTANTIATE_TEST_SUITE_P(Fabrics, Conformance, testing::ValuesIn(fabrics_under_test()),
                         fabric_name);

// Around the limits that carriers of it are known to have.
constexpr std::size_t kPrivateSizes[] = {0, 1, 55, 56, 57, 195, 196, 197, 255, 256, 1023, 1024};

TEST_P(Conformance, PrivateDataOfEverySizeTravelsBothWaysAndThePeerIsKnown) {
  listen(small_options());
  unsigned seed = 0;
  for (const std::size_t bytes : kPrivateSizes) {
    SCOPED_TRACE(bytes);
    const Bytes hello = pattern(bytes, ++seed);
    const Bytes welcome = pattern(kPrivateDataBytesMax - bytes, ++seed);
    auto connecting = client_fabric_->connect(address_, hello, small_options());
    ASSERT_TRUE(connecting.ok()) << connecting.status().to_string();
    auto request = next_request(*listener_, both());
    ASSERT_TRUE(request);
    EXPECT_EQ(request->private_data, hello);
    EXPECT_FALSE(request->peer.address.empty());
    EXPECT_TRUE((*connecting)->poll().status().is_again());
    auto accepted = listener_->accept(*request, welcome);
    ASSERT_TRUE(accepted.ok()) << accepted.status().to_string();
    EXPECT_EQ((*accepted)->peer().address, request->peer.address);
    auto connected = finish(**connecting, both());
    ASSERT_TRUE(connected.ok()) << connected.status().to_string();
    const auto answer = (*connecting)->private_data();
    EXPECT_EQ(Bytes(answer.begin(), answer.end()), welcome);
    EXPECT_FALSE((*connected)->peer().address.empty());
    EXPECT_TRUE((*accepted)->connected());
    EXPECT_TRUE((*connected)->connected());
  }
}

TEST_P(Conformance, ARejectionCarriesItsReasonOfAnySize) {
  listen();
  for (const std::size_t bytes : kPrivateSizes) {
    SCOPED_TRACE(bytes);
    auto connecting = client_fabric_->connect(address_, {}, options());
    ASSERT_TRUE(connecting.ok());
    auto request = next_request(*listener_, both());
    ASSERT_TRUE(request);
    const Bytes reason = pattern(bytes, 1);
    listener_->reject(*request, reason);
    auto connected = finish(**connecting, both());
    ASSERT_FALSE(connected.ok());
    EXPECT_EQ(connected.status().code(), Code::kRefused) << connected.status().to_string();
    const auto answer = (*connecting)->private_data();
    EXPECT_EQ(Bytes(answer.begin(), answer.end()), reason);
    EXPECT_FALSE(listener_->accept(*request, {}).ok()) << "a request is answered once";
  }
}

TEST_P(Conformance, MorePrivateDataThanTravelsIsRefusedBeforeAnythingIsSent) {
  listen();
  const Bytes large = pattern(kPrivateDataBytesMax + 1, 1);
  EXPECT_EQ(client_fabric_->connect(address_, large, options()).status().code(),
            Code::kInvalidArgument);
  auto connecting = client_fabric_->connect(address_, {}, options());
  ASSERT_TRUE(connecting.ok());
  auto request = next_request(*listener_, both());
  ASSERT_TRUE(request);
  EXPECT_EQ(listener_->accept(*request, large).status().code(), Code::kInvalidArgument);
  auto accepted = listener_->accept(*request, {});
  ASSERT_TRUE(accepted.ok()) << "the request can still be answered";
  EXPECT_TRUE(finish(**connecting, both()).ok());
}

TEST_P(Conformance, ConnectingToNobodyFails) {
  auto connecting = client_fabric_->connect(address_, {}, options());
  ASSERT_TRUE(connecting.ok());
  auto connected = finish(**connecting, {client_fabric_.get()});
  ASSERT_FALSE(connected.ok());
  EXPECT_NE(connected.status().code(), Code::kRefused);
  EXPECT_NE(connected.status().code(), Code::kAgain);
}

TEST_P(Conformance, AnAddressOfAnotherFabricIsRefused) {
  EXPECT_FALSE(server_fabric_->listen("nonsense:/x", options()).ok());
  EXPECT_FALSE(client_fabric_->connect("nonsense:/x", {}, options()).ok());
}

TEST_P(Conformance, AnAddressIsListenedAtOnceAndIsFreeAgainAfterwards) {
  listen();
  EXPECT_FALSE(server_fabric_->listen(address_, options()).ok());
  EXPECT_FALSE(client_fabric_->listen(address_, options()).ok());
  ASSERT_TRUE(connect_more(options(), server_, client_));
  listener_.reset();
  EXPECT_TRUE(server_.endpoint->connected()) << "a channel outlives its listener";
  listen();
  Side server;
  Side client;
  EXPECT_TRUE(connect_more(options(), server, client));
}

TEST_P(Conformance, AClientThatLeavesBeforeTheAnswerHarmsNobody) {
  listen();
  auto connecting = client_fabric_->connect(address_, {}, options());
  ASSERT_TRUE(connecting.ok());
  auto request = next_request(*listener_, both());
  ASSERT_TRUE(request);
  connecting->reset();
  auto accepted = listener_->accept(*request, {});
  if (accepted.ok()) {
    server_.endpoint = std::move(*accepted);
    EXPECT_TRUE(run_until([&] { return server_.disconnected.has_value(); }));
    server_ = Side();
  }
  EXPECT_TRUE(connect_more(options(), server_, client_));
}

TEST_P(Conformance, AClientThatLeavesAfterTheAnswerIsADisconnectedPeer) {
  listen();
  auto connecting = client_fabric_->connect(address_, {}, options());
  ASSERT_TRUE(connecting.ok());
  auto request = next_request(*listener_, both());
  ASSERT_TRUE(request);
  auto accepted = listener_->accept(*request, {});
  ASSERT_TRUE(accepted.ok());
  server_.endpoint = std::move(*accepted);
  connecting->reset();
  EXPECT_TRUE(run_until([&] { return server_.disconnected.has_value(); }));
  EXPECT_EQ(server_.disconnected->code(), Code::kDisconnected);
}

TEST_P(Conformance, AListenerThatLeavesBeforeTheAnswerFailsTheAttempt) {
  listen();
  auto connecting = client_fabric_->connect(address_, {}, options());
  ASSERT_TRUE(connecting.ok());
  ASSERT_TRUE(next_request(*listener_, both()));
  listener_.reset();
  auto connected = finish(**connecting, both());
  ASSERT_FALSE(connected.ok());
  EXPECT_NE(connected.status().code(), Code::kRefused);
  EXPECT_NE(connected.status().code(), Code::kAgain);
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

// However fast newcomers come.
TEST_P(Conformance, WhoTakesRequestsUntilThereIsNoneComesToAnEnd) {
  listen(small_options());
  std::vector<std::unique_ptr<Connecting>> attempts;
  const auto more = [&] {
    for (int i = 0; i < 4; ++i) {
      auto connecting = client_fabric_->connect(address_, {}, small_options());
      ASSERT_TRUE(connecting.ok());
      attempts.push_back(std::move(*connecting));
    }
  };
  more();
  auto request = next_request(*listener_, both());
  ASSERT_TRUE(request);
  int taken = 1;
  for (bool any = true; any && taken < 100; ++taken) {
    listener_->reject(*request, {});
    more();
    auto polled = listener_->poll();
    any = polled.ok();
    if (any) request = std::move(*polled);
  }
  EXPECT_LT(taken, 100);
  attempts.clear();
}

// Requests that nobody answers take the places that there are, and no more.
TEST_P(Conformance, UnansweredRequestsAreBoundedInNumber) {
  constexpr unsigned kMost = 6;
  server_fabric_ = make([&] { return GetParam().make_bounded(kMost); });
  ASSERT_TRUE(server_fabric_);
  listen(small_options());
  std::vector<std::unique_ptr<Connecting>> attempts;
  std::vector<ConnectRequest> requests;
  const auto look = [&] {
    for (auto polled = listener_->poll(); polled.ok(); polled = listener_->poll()) {
      requests.push_back(std::move(*polled));
    }
    // An attempt may take more than one place.
    std::erase_if(attempts, [](auto& attempt) { return !attempt->poll().status().is_again(); });
    EXPECT_LE(requests.size(), kMost);
  };
  // One after the other, each finds a place or is turned away.
  bool full = false;
  while (!full) {
    auto connecting = client_fabric_->connect(address_, {}, small_options());
    ASSERT_TRUE(connecting.ok());
    attempts.push_back(std::move(*connecting));
    const std::size_t held = requests.size();
    const std::size_t trying = attempts.size();
    ASSERT_TRUE(eventually([&] {
      look();
      full = attempts.size() < trying;
      return full || requests.size() > held;
    }));
    ASSERT_LE(requests.size(), kMost);
  }
  EXPECT_GE(requests.size(), 1u);
  // A crowd changes nothing about that.
  for (unsigned i = 0; i < 2 * kMost; ++i) {
    auto connecting = client_fabric_->connect(address_, {}, small_options());
    ASSERT_TRUE(connecting.ok());
    attempts.push_back(std::move(*connecting));
  }
  for (int i = 0; i < 100; ++i) {
    look();
    for (Fabric* fabric : both()) {
      (void)fabric->arm();
      fabric->disarm();
    }
  }
  attempts.clear();
  for (const ConnectRequest& request : requests) listener_->reject(request, {});
  // The places are free again. An attempt meets the leavers of before, at worst.
  bool connected = false;
  for (unsigned i = 0; i < 4 * kMost && !connected; ++i) {
    auto connecting = client_fabric_->connect(address_, bytes_of("late"), small_options());
    ASSERT_TRUE(connecting.ok());
    Result<std::unique_ptr<Endpoint>> answer = Status::again();
    ASSERT_TRUE(eventually([&] {
      if (auto polled = listener_->poll(); polled.ok()) {
        if (polled->private_data == bytes_of("late")) {
          if (auto accepted = listener_->accept(*polled, {}); accepted.ok()) {
            server_.endpoint = std::move(*accepted);
          }
        } else {
          listener_->reject(*polled, {});
        }
      }
      answer = (*connecting)->poll();
      return answer.ok() || !answer.status().is_again();
    }));
    connected = answer.ok();
  }
  EXPECT_TRUE(connected);
}

struct LinkCase {
  LinkField field;
  const char* text;  // asks for it, with what goes with it
};
constexpr LinkCase kLinkCases[] = {
    {kLinkWindow, "window=1MiB"},
    {kLinkStreams, "streams=3"},
    {kLinkQueuePairs, "queue_pairs=2"},
    {kLinkSkipSlowStart, "skip_slow_start,window=1MiB"},
    {kLinkCongestion, "congestion=reno"},
    {kLinkQuality, "quality=ubr"},
    {kLinkRate, "quality=cbr,rate=1Gbit"},
    {kLinkPeak, "quality=vbr,rate=100Mbit,peak=1Gbit,burst=64KiB"},
    {kLinkBurst, "quality=cbr,rate=1Gbit,burst=1MiB"},
    {kLinkDscp, "dscp=10"},
    {kLinkPriority, "priority=3"},
    {kLinkServiceLevel, "service_level=0"},
    {kLinkTrafficClass, "traffic_class=8"},
};

TEST_P(Conformance, EachLinkParameterIsHonouredAtBothEndsOrRefusedByName) {
  listen();
  for (const LinkCase& c : kLinkCases) {
    SCOPED_TRACE(c.text);
    EndpointOptions asking = options();
    const auto link = parse_link(c.text);
    ASSERT_TRUE(link.ok());
    asking.link = *link;
    const std::uint32_t refused = link_fields(*link) & ~GetParam().honours;
    Status status;
    if (refused == 0) {
      Side server;
      Side client;
      EXPECT_TRUE(connect_more(asking, server, client));
      if (!client.endpoint || !server.endpoint) continue;
      for (const Side* side : {&server, &client}) {
        LinkParameters in_force = side->endpoint->link();
        // A kernel counts its own overhead in the window that it reports.
        if (in_force.window_bytes <= link->window_bytes &&
            in_force.window_bytes > link->window_bytes / 4 * 3) {
          in_force.window_bytes = link->window_bytes;
        }
        const auto values = link_values(in_force);
        for (const auto& wanted : link_values(*link)) {
          EXPECT_NE(std::find(values.begin(), values.end(), wanted), values.end())
              << wanted.first << ": " << link_text(in_force);
        }
      }
      continue;
    }
    auto connecting = client_fabric_->connect(address_, {}, asking);
    status = connecting.status();
    if (connecting.ok()) status = finish(**connecting, both()).status();
    EXPECT_TRUE(status.code() == Code::kUnsupported || status.code() == Code::kRefused)
        << status.to_string();
    bool named = false;
    for (const auto& [name, value] : link_values(*link)) {
      named = named || status.to_string().find(name) != std::string::npos;
    }
    EXPECT_TRUE(named) << status.to_string();
  }
  EXPECT_TRUE(connect_more(options(), server_, client_)) << "nobody was harmed";
}

}  // namespace
}  // namespace sanproxy::fabric::test
