// Peers that connect and then do anything but what they should.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <deque>
#include <fstream>
#include <functional>
#include <thread>

#include "gtest/gtest.h"
#include "lwproto/fabric/address.h"
#include "lwproto/fabric/verbs/socket_address.h"
#include "lwproto/fabric/verbs/verbs_fabric.h"
#include "tests/lwproto/fabric/channel_pair.h"
#include "tests/lwproto/fabric/verbs/device_address.h"
#include "tests/lwproto/fabric/verbs/raw_peer.h"

namespace sanproxy::fabric::verbs::test {
namespace {

using fabric::test::Bytes;
using fabric::test::Side;

class VerbsHostile : public testing::Test {
 protected:
  void start(VerbsOptions options = {}) {
    options.counters = &counters_;
    auto made = make_verbs_fabric(options);
    ASSERT_TRUE(made.ok()) << made.status().to_string();
    fabric_ = std::move(*made);
    address_ = unused_device_address();
    auto listening = fabric_->listen(address_, endpoint_options());
    ASSERT_TRUE(listening.ok()) << listening.status().to_string();
    listener_ = std::move(*listening);
  }
  // Small slots: the guest's memory is small too.
  static EndpointOptions endpoint_options() {
    EndpointOptions options;
    options.receive_depth = 16;
    options.receive_memory = {};
    return options;
  }

  // Polls, and accepts whoever asks, until `work`, done in a thread of its own, is over.
  void while_serving(const std::function<void()>& work) {
    std::atomic<bool> done{false};
    std::thread thread([&] {
      work();
      done = true;
    });
    // Without sleeping: nothing would wake us when the thread is done.
    while (!done) {
      serve();
      fabric_->disarm();
      std::this_thread::yield();
    }
    thread.join();
  }
  void serve() {
    auto request = listener_->poll();
    if (request.ok()) {
      auto accepted = listener_->accept(*request, {});
      if (accepted.ok()) side_.endpoint = std::move(*accepted);
    }
    if (side_.endpoint) side_.poll();
  }
  // Until the endpoint has reported its end.
  Code served_to_the_end() {
    EXPECT_TRUE(fabric::test::eventually({fabric_.get()}, [&] {
      serve();
      return side_.disconnected.has_value();
    }));
    if (!side_.disconnected) return Code::kOk;
    end_ = side_.disconnected->to_string();
    return side_.disconnected->code();
  }
  // What `misdeed` does to an endpoint that was set up as it should be.
  Code after(const std::function<void(RawPeer&)>& misdeed) {
    while_serving([&] {
      EXPECT_TRUE(peer_.connect_honestly(address_));
      EXPECT_TRUE(peer_.say_hello());
      misdeed(peer_);
    });
    const Code code = served_to_the_end();
    expect_honest_peers_are_served();
    return code;
  }
  void expect_honest_peers_are_served() {
    side_ = Side();
    RawPeer honest;
    while_serving([&] {
      EXPECT_TRUE(honest.connect_honestly(address_));
      EXPECT_TRUE(honest.say_hello());
      EXPECT_EQ(honest.send(Kind::kInline, 0, 5), IBV_WC_SUCCESS);
    });
    EXPECT_TRUE(fabric::test::eventually({fabric_.get()}, [&] {
      serve();
      return side_.received.size() == 1;
    }));
    honest.close();
  }
  static CmHeader header_of(std::uint8_t queue_pair, std::uint8_t queue_pairs,
                            const ChannelToken& token) {
    CmHeader header = honest_header();
    header.queue_pairs = queue_pairs;
    header.queue_pair = queue_pair;
    header.token = token;
    return header;
  }
  // The token of the channel that `first` is the first queue pair of; zeros if it was turned away.
  ChannelToken open_channel(RawPeer& first, std::uint8_t queue_pairs) {
    if (!first.connect(address_, encode(header_of(0, queue_pairs, {})), 8)) return {};
    const auto reply = decode_cm_header(first.reply());
    return reply.ok() ? reply->token : ChannelToken();
  }
  void expect_turned_away(const CmHeader& header) {
    RawPeer stranger;
    EXPECT_FALSE(stranger.connect(address_, encode(header), 8));
    const auto reply = decode_cm_header(stranger.reply());
    EXPECT_TRUE(reply.ok() && reply->verdict == Verdict::kQueuePairs);
  }
  static LinkParameters with_queue_pairs(std::uint32_t count) {
    LinkParameters link;
    link.queue_pairs = count;
    return link;
  }
  void expect_dropped(const std::function<void(RawPeer&)>& misdeed) {
    while_serving([&] {
      EXPECT_TRUE(peer_.connect_honestly(address_, 8));
      misdeed(peer_);
      EXPECT_EQ(peer_.receive(), 0u) << "it was answered";
    });
    EXPECT_FALSE(side_.endpoint);
    expect_honest_peers_are_served();
  }

  VerbsCounters counters_;
  std::unique_ptr<Fabric> fabric_;
  std::string address_;
  std::unique_ptr<Listener> listener_;
  Side side_;
  std::string end_;  // for people
  RawPeer peer_;
};

TEST_F(VerbsHostile, AStrangersHeaderIsTurnedAwayAndCounted) {
  start();
  const std::array<std::byte, 56> garbage{std::byte{0x77}};
  while_serving([&] { EXPECT_FALSE(peer_.connect(address_, garbage)); });
  RawPeer empty;
  while_serving([&] { EXPECT_FALSE(empty.connect(address_, {})); });
  EXPECT_EQ(counters_.refused_headers, 2u);
  expect_honest_peers_are_served();
}

TEST_F(VerbsHostile, AnotherVersionIsToldSo) {
  start();
  auto header = encode(honest_header());
  header[4] = std::byte{99};
  while_serving([&] { EXPECT_FALSE(peer_.connect(address_, header)); });
  const auto reply = decode_cm_header(peer_.reply());
  ASSERT_TRUE(reply.ok()) << reply.status().to_string();
  EXPECT_EQ(reply->verdict, Verdict::kBadVersion);
}

TEST_F(VerbsHostile, APeerThatTakesLessThanWeSendIsToldSo) {
  start();
  CmHeader small = honest_header();
  small.transfer_bytes_max = small.inline_bytes_max;
  while_serving([&] { EXPECT_FALSE(peer_.connect(address_, encode(small))); });
  const auto reply = decode_cm_header(peer_.reply());
  ASSERT_TRUE(reply.ok()) << reply.status().to_string();
  EXPECT_EQ(reply->verdict, Verdict::kBadSizes);
}

TEST_F(VerbsHostile, SilenceAfterConnectingIsDroppedInTime) {
  start({.handshake_timeout_ms = 200});
  expect_dropped([](RawPeer&) {});
  EXPECT_EQ(counters_.timed_out_half_open, 1u);
}

TEST_F(VerbsHostile, TheOldestSilentPeerMakesRoomForANewcomer) {
  start({.half_open_max = 3});
  std::deque<RawPeer> silent(5);
  while_serving([&] {
    for (RawPeer& one : silent) EXPECT_TRUE(one.connect_honestly(address_, 8));
  });
  expect_honest_peers_are_served();
  EXPECT_EQ(counters_.evicted_half_open, 3u);
}

// So many requests, without waiting for answers.
class Crowd {
 public:
  explicit Crowd(std::size_t count) : events_(::rdma_create_event_channel()), ids_(count) {}
  ~Crowd() {
    for (rdma_cm_id* id : ids_) {
      if (id != nullptr) ::rdma_destroy_id(id);
    }
    ::rdma_destroy_event_channel(events_);
  }
  Crowd(const Crowd&) = delete;
  Crowd& operator=(const Crowd&) = delete;

  bool ask(const std::string& address) {
    sockaddr_storage to = system_address(FabricAddress::parse(address)->socket);
    for (rdma_cm_id*& id : ids_) {
      if (::rdma_create_id(events_, &id, nullptr, RDMA_PS_TCP) != 0 ||
          ::rdma_resolve_addr(id, nullptr, reinterpret_cast<sockaddr*>(&to), 5000) != 0 ||
          !take(RDMA_CM_EVENT_ADDR_RESOLVED) || ::rdma_resolve_route(id, 5000) != 0 ||
          !take(RDMA_CM_EVENT_ROUTE_RESOLVED)) {
        return false;
      }
    }
    const std::byte garbage{0x77};
    for (rdma_cm_id* id : ids_) {
      rdma_conn_param param{};
      param.private_data = &garbage;
      param.private_data_len = 1;
      param.qp_num = ++queue_pair_;
      if (::rdma_connect(id, &param) != 0) return false;
    }
    return true;
  }

 private:
  bool take(rdma_cm_event_type expected) {
    rdma_cm_event* event = nullptr;
    if (::rdma_get_cm_event(events_, &event) != 0) return false;
    const bool as_expected = event->event == expected;
    ::rdma_ack_cm_event(event);
    return as_expected;
  }

  rdma_event_channel* events_;
  std::vector<rdma_cm_id*> ids_;
  std::uint32_t queue_pair_ = 1000;
};

TEST_F(VerbsHostile, ACrowdIsLetInAFewAtATimeAndNobodyIsForgotten) {
  const char* device = std::getenv("SANPROXY_VM_DEVICE");
  if (device == nullptr) GTEST_SKIP() << "not in the guest";
  const auto requests_arrived = [path = "/sys/class/infiniband/" + std::string(device) +
                                        "/ports/1/cm_rx_msgs/req"] {
    std::uint64_t count = 0;
    std::ifstream(path) >> count;
    return count;
  };
  constexpr std::uint64_t kCrowd = 40;
  start();
  const std::uint64_t before = requests_arrived();
  Crowd crowd(kCrowd);
  ASSERT_TRUE(crowd.ask(address_));
  const auto give_up = std::chrono::steady_clock::now() + fabric::test::kGiveUp;
  while (requests_arrived() < before + kCrowd) {
    ASSERT_LT(std::chrono::steady_clock::now(), give_up);
    std::this_thread::yield();
  }
  std::uint64_t most = 0;
  EXPECT_TRUE(fabric::test::eventually({fabric_.get()}, [&, seen = std::uint64_t{0}]() mutable {
    most = std::max(most, counters_.refused_headers - seen);
    seen = counters_.refused_headers;
    return seen == kCrowd;
  }));
  EXPECT_LE(most, 8u);
}

TEST_F(VerbsHostile, AFirstTransferThatIsNoHelloIsDropped) {
  start();
  expect_dropped([](RawPeer& p) { p.send(Kind::kInline, 0, 100); });
  EXPECT_EQ(counters_.refused_hellos, 1u);
}

TEST_F(VerbsHostile, AHelloWithoutAMarkIsDropped) {
  start();
  expect_dropped([](RawPeer& p) { p.send(Bytes(kHelloHeaderBytes), std::nullopt); });
}

TEST_F(VerbsHostile, AHelloWithAWrongLengthIsDropped) {
  start();
  expect_dropped(
      [](RawPeer& p) { p.send(Bytes(kHelloHeaderBytes + 7), make_immediate(Kind::kHello, 0)); });
}

TEST_F(VerbsHostile, AHelloThatIsTooLargeIsDropped) {
  start();
  expect_dropped([](RawPeer& p) { p.send(Kind::kHello, 0, 9000); });
}

TEST_F(VerbsHostile, ALinkThatCannotBeHonouredIsRefusedByName) {
  start();
  LinkParameters link;
  link.queue_pairs = 7;
  Bytes hello(kHandshakeBytesMax);
  hello.resize(encode_hello(link, {}, hello));
  while_serving([&] {
    EXPECT_TRUE(peer_.connect_honestly(address_, 8));
    EXPECT_EQ(peer_.send(hello, make_immediate(Kind::kHello, 0)), IBV_WC_SUCCESS);
    const std::uint32_t answer = peer_.receive();
    EXPECT_EQ(kind_of(answer), Kind::kReject);
    EXPECT_EQ(number_of(answer), kLinkQueuePairs);
  });
}

TEST_F(VerbsHostile, NobodyGetsAQueuePairIntoAChannelOfOthers) {
  start();
  RawPeer second;
  while_serving([&] {
    const ChannelToken token = open_channel(peer_, 2);
    EXPECT_NE(token, ChannelToken());
    ChannelToken guess = token;
    guess.bytes[7] ^= std::byte{1};
    expect_turned_away(header_of(1, 2, guess));
    expect_turned_away(header_of(1, 2, {}));
    expect_turned_away(header_of(1, 3, token));
    expect_turned_away(header_of(2, 3, token));
    EXPECT_TRUE(second.connect(address_, encode(header_of(1, 2, token)), 8));
    expect_turned_away(header_of(1, 2, token));
    EXPECT_TRUE(peer_.say_hello(with_queue_pairs(2)));
    expect_turned_away(header_of(1, 2, token));
    // Its transfer number 1, after the hello.
    EXPECT_EQ(second.send(Kind::kInline, 0, 5), IBV_WC_SUCCESS);
  });
  EXPECT_EQ(counters_.refused_queue_pairs, 6u);
  EXPECT_TRUE(fabric::test::eventually({fabric_.get()}, [&] {
    serve();
    return side_.received.size() == 1;
  }));
  EXPECT_FALSE(side_.disconnected);
}

TEST_F(VerbsHostile, ATransferThatOvertookAnotherWaitsForItsTurn) {
  start();
  RawPeer second;
  while_serving([&] {
    const ChannelToken token = open_channel(peer_, 2);
    EXPECT_TRUE(second.connect(address_, encode(header_of(1, 2, token)), 8));
    EXPECT_TRUE(peer_.say_hello(with_queue_pairs(2)));
    for (std::size_t number : {2, 4, 6}) {
      EXPECT_EQ(peer_.send(Kind::kInline, 0, number), IBV_WC_SUCCESS);
    }
  });
  EXPECT_TRUE(side_.received.empty());
  while_serving([&] {
    for (std::size_t number : {1, 3, 5}) {
      EXPECT_EQ(second.send(Kind::kInline, 0, number), IBV_WC_SUCCESS);
    }
  });
  EXPECT_TRUE(fabric::test::eventually({fabric_.get()}, [&] {
    serve();
    return side_.received.size() == 6;
  }));
  for (std::size_t i = 0; i < side_.received.size(); ++i) {
    EXPECT_EQ(side_.received[i].content.size(), i + 1);
  }
  // One of them is enough to end the channel.
  second.close();
  EXPECT_EQ(served_to_the_end(), Code::kDisconnected) << end_;
  expect_honest_peers_are_served();
}

TEST_F(VerbsHostile, AHelloBeforeAllItsQueuePairsAreThereIsRefusedByName) {
  start();
  while_serving([&] {
    EXPECT_NE(open_channel(peer_, 2), ChannelToken());
    Bytes hello(kHandshakeBytesMax);
    hello.resize(encode_hello(with_queue_pairs(2), {}, hello));
    EXPECT_EQ(peer_.send(hello, make_immediate(Kind::kHello, 0)), IBV_WC_SUCCESS);
    const std::uint32_t answer = peer_.receive();
    EXPECT_EQ(kind_of(answer), Kind::kReject);
    EXPECT_EQ(number_of(answer), kLinkQueuePairs);
  });
  expect_honest_peers_are_served();
}

TEST_F(VerbsHostile, QueuePairsOfSilentPeersMakeRoomForThoseOfANewcomer) {
  start({.further_queue_pairs_max = 2});
  std::deque<RawPeer> silent(3);
  RawPeer second;
  while_serving([&] {
    const ChannelToken theirs = open_channel(silent[0], 3);
    EXPECT_TRUE(silent[1].connect(address_, encode(header_of(1, 3, theirs)), 8));
    EXPECT_TRUE(silent[2].connect(address_, encode(header_of(2, 3, theirs)), 8));
    const ChannelToken token = open_channel(peer_, 2);
    EXPECT_TRUE(second.connect(address_, encode(header_of(1, 2, token)), 8));
    EXPECT_TRUE(peer_.say_hello(with_queue_pairs(2)));
  });
  EXPECT_EQ(counters_.evicted_half_open, 1u);
  EXPECT_FALSE(side_.disconnected);
}

TEST_F(VerbsHostile, ATransferThatIsTooLargeEndsItsChannel) {
  start();
  EXPECT_EQ(after([](RawPeer& p) { p.send(Kind::kReferenced, 8, 100'000); }), Code::kProtocol)
      << end_;
}

TEST_F(VerbsHostile, AnInlinePartThatIsTooLargeEndsItsChannel) {
  start();
  EXPECT_EQ(after([](RawPeer& p) { p.send(Kind::kInline, 0, 8193); }), Code::kProtocol) << end_;
}

TEST_F(VerbsHostile, AnEmptyTransferEndsItsChannel) {
  start();
  EXPECT_EQ(after([](RawPeer& p) { p.send(Kind::kInline, 0, 0); }), Code::kProtocol) << end_;
}

TEST_F(VerbsHostile, AnInlinePartLongerThanItsTransferEndsItsChannel) {
  start();
  EXPECT_EQ(after([](RawPeer& p) { p.send(Kind::kReferenced, 100, 100); }), Code::kProtocol)
      << end_;
}

TEST_F(VerbsHostile, AnInlinePartBeyondItsLimitEndsItsChannel) {
  start();
  EXPECT_EQ(after([](RawPeer& p) { p.send(Kind::kReferenced, 8193, 9000); }), Code::kProtocol)
      << end_;
}

TEST_F(VerbsHostile, AnUnknownKindEndsItsChannel) {
  start();
  EXPECT_EQ(after([](RawPeer& p) { p.send(static_cast<Kind>(200), 0, 10); }), Code::kProtocol)
      << end_;
}

TEST_F(VerbsHostile, AnInlineTransferWithImmediateDataEndsItsChannel) {
  start();
  const std::uint32_t immediate = make_immediate(Kind::kInline, 0);
  EXPECT_EQ(after([=](RawPeer& p) { p.send(Bytes(10), immediate); }), Code::kProtocol) << end_;
}

TEST_F(VerbsHostile, MoreTransfersThanCreditsEndTheirChannel) {
  start();
  EXPECT_EQ(after([](RawPeer& p) { p.send_burst(Kind::kInline, 0, 10, 40); }), Code::kProtocol)
      << end_;
  EXPECT_LE(side_.received.size(), 16u);
}

TEST_F(VerbsHostile, AByeWithAnyNumberEndsItsChannel) {
  start();
  EXPECT_EQ(after([](RawPeer& p) { p.send(Kind::kBye, 77, 0); }), Code::kDisconnected) << end_;
}

TEST_F(VerbsHostile, AWriteIntoOurMemoryBreaksOnlyItsQueuePair) {
  start();
  EXPECT_EQ(after([](RawPeer& p) { EXPECT_NE(p.write_where_nothing_is(), IBV_WC_SUCCESS); }),
            Code::kDisconnected)
      << end_;
}

TEST_F(VerbsHostile, APeerThatVanishesEndsItsChannel) {
  start();
  EXPECT_EQ(after([](RawPeer& p) { p.close(); }), Code::kDisconnected) << end_;
}

TEST_F(VerbsHostile, APeerThatPostsNoReceivesGetsNoMoreAndOurCookiesComeBack) {
  start();
  auto region = buffer::MemoryRegion::create("hostile", 65'536);
  ASSERT_TRUE(region.ok());
  while_serving([&] {
    EXPECT_TRUE(peer_.connect_honestly(address_, 1));  // for our answer
    EXPECT_TRUE(peer_.say_hello());
  });
  ASSERT_TRUE(side_.endpoint);
  auto key = side_.endpoint->attach(*region);
  ASSERT_TRUE(key.ok());
  for (std::uint64_t i = 0; i < 5; ++i) {
    const GatherRef ref{*key, 1000, i * 1000};
    EXPECT_TRUE(side_.queue(fabric::test::pattern(10, 1), {&ref, 1}, i).ok());
  }
  side_.endpoint->flush();
  EXPECT_EQ(served_to_the_end(), Code::kProtocol);
  EXPECT_EQ(side_.sent.size(), 5u);
  for (const auto& [cookie, status] : side_.sent) EXPECT_FALSE(status.ok()) << cookie;
  side_ = Side();
}

}  // namespace
}  // namespace sanproxy::fabric::verbs::test
