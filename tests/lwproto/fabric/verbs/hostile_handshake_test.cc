// Peers that ask for a channel, and how they are kept from being in the way of others.
#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <deque>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "lwproto/base/clock.h"
#include "lwproto/fabric/address.h"
#include "lwproto/fabric/verbs/socket_address.h"
#include "tests/lwproto/fabric/verbs/hostile_fixture.h"

namespace sanproxy::fabric::verbs::test {
namespace {

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

// The guest's two addresses stand for two hosts.
bool two_hosts(std::string& one, std::string& other) {
  const char* ours = std::getenv("SANPROXY_VM_ADDRESS");
  const char* peers = std::getenv("SANPROXY_VM_PEER_ADDRESS");
  if (ours == nullptr || peers == nullptr) return false;
  one = ours;
  other = peers;
  return true;
}

TEST_F(VerbsHostile, AHostThatOpensManyMakesRoomForItselfAlone) {
  std::string one;
  std::string other;
  if (!two_hosts(one, other)) GTEST_SKIP() << "not in the guest";
  start({.half_open_max = 3});
  peer_.connect_from(one);
  std::deque<RawPeer> silent(6);
  for (RawPeer& peer : silent) peer.connect_from(other);
  while_serving([&] {
    EXPECT_TRUE(peer_.connect_honestly(address_));
    for (RawPeer& peer : silent) EXPECT_TRUE(peer.connect_honestly(address_, 8));
    EXPECT_TRUE(peer_.say_hello()) << "others have taken its place";
  });
  EXPECT_EQ(counters_.evicted_half_open, 4u);
}

TEST_F(VerbsHostile, AHostThatOpensManyQueuePairsMakesRoomForItselfAlone) {
  std::string one;
  std::string other;
  if (!two_hosts(one, other)) GTEST_SKIP() << "not in the guest";
  start({.further_queue_pairs_max = 3});
  std::deque<RawPeer> silent(6);
  for (RawPeer& peer : silent) peer.connect_from(other);
  RawPeer second;
  peer_.connect_from(one);
  second.connect_from(one);
  while_serving([&] {
    const ChannelToken token = open_channel(peer_, 2);
    EXPECT_TRUE(second.connect(address_, encode(header_of(1, 2, token)), 8));
    for (std::size_t i = 0; i < silent.size(); i += 2) {
      const ChannelToken theirs = open_channel(silent[i], 2);
      EXPECT_TRUE(silent[i + 1].connect(address_, encode(header_of(1, 2, theirs)), 8));
    }
    EXPECT_TRUE(peer_.say_hello(with_queue_pairs(2))) << "others have taken its place";
  });
  EXPECT_EQ(counters_.evicted_half_open, 1u);
}

;

TEST_F(VerbsHostile, AHostThatAsksTooFastIsTurnedAwayAndOthersAreNot) {
  std::string one;
  std::string other;
  if (!two_hosts(one, other)) GTEST_SKIP() << "not in the guest";
  ManualClock clock;
  start({.queue_pairs_per_s = 2, .clock = &clock});
  std::deque<RawPeer> fast(9);
  for (RawPeer& peer : fast) peer.connect_from(other);
  peer_.connect_from(one);
  RawPeer later;
  later.connect_from(other);
  while_serving([&] {
    for (std::size_t i = 0; i < 8; ++i) EXPECT_TRUE(fast[i].connect_honestly(address_, 8)) << i;
    EXPECT_FALSE(fast[8].connect_honestly(address_, 8));
    EXPECT_TRUE(peer_.connect_honestly(address_));
    EXPECT_TRUE(peer_.say_hello());
  });
  clock.advance_ns(1'000'000'000);
  while_serving([&] { EXPECT_TRUE(later.connect_honestly(address_, 8)); });
  const auto reply = decode_cm_header(fast[8].reply());
  EXPECT_TRUE(reply.ok() && reply->verdict == Verdict::kBusy);
  EXPECT_EQ(counters_.refused_too_fast, 1u);
}

TEST_F(VerbsHostile, WhoDoesNotTakeItsRefusalMakesRoomToo) {
  // They would go by themselves after seven times 4 s.
  start({.half_open_max = 3,
         .handshake_timeout_ms = 60'000,
         .ack_timeout_exponent = 20,
         .retry_count = 7});
  Bytes hello(kHandshakeBytesMax);
  hello.resize(encode_hello(with_queue_pairs(7), {}, hello));
  std::deque<RawPeer> silent(3);
  while_serving([&] {
    for (RawPeer& one : silent) EXPECT_TRUE(one.connect_honestly(address_, 8));
  });
  for (RawPeer& one : silent) {
    EXPECT_EQ(one.send(hello, make_immediate(Kind::kHello, 0)), IBV_WC_SUCCESS);
    EXPECT_TRUE(one.fall_silent());
  }
  EXPECT_TRUE(fabric::test::eventually({fabric_.get()}, [&] {
    serve();
    return counters_.refused_hellos == 3;
  }));
  expect_honest_peers_are_served();
  EXPECT_EQ(counters_.evicted_half_open, 1u);
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

}  // namespace
}  // namespace sanproxy::fabric::verbs::test
