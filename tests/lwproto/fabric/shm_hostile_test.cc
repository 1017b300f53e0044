// A connected peer that breaks the rules of the shm fabric: each breach ends its own channel with
// Code::kProtocol, and nothing else.
#include "lwproto/fabric/shm/unix_socket.h"
#include "tests/lwproto/fabric/shm_fixture.h"

namespace sanproxy::fabric::test {
namespace {

using shm::EntryHeader;
using shm::EntryRef;

constexpr std::size_t kRegionBytes = 64 * 1024;

struct Breach {
  const char* what;
  std::function<void(RawShmPeer&)> commit;
};

class ShmHostile : public ShmServer {
 protected:
  void run(const std::vector<Breach>& breaches) {
    start();
    for (const Breach& breach : breaches) {
      RawShmPeer raw;
      join(raw);
      if (HasFatalFailure()) return;
      breach.commit(raw);
      expect_breach(raw, breach.what);
      EXPECT_TRUE(victim_.received.empty()) << breach.what;
      expect_the_others_work();
    }
  }
};

Breach header(const char* what, EntryHeader bad) {
  return {what, [bad](RawShmPeer& raw) {
            raw.put_entry(bad, {});
            raw.head = 64;
            raw.publish();
          }};
}

TEST_F(ShmHostile, APeerIsPresentUntilItHasGoneWhateverItSaidBefore) {
  start();
  RawShmPeer raw;
  join(raw);
  EXPECT_TRUE(victim_.endpoint->peer_present());
  const int fd = raw.make_memfd(kRegionBytes, RawShmPeer::kSeals);
  ASSERT_TRUE(raw.send_region(fd, kRegionBytes));
  EXPECT_TRUE(victim_.endpoint->peer_present());
  raw.hang_up();  // as by its death: no word of it in its memory
  EXPECT_FALSE(victim_.endpoint->peer_present()) << "nothing was polled yet";
}

TEST_F(ShmHostile, ARingHeadThatJumpsIsABreach) {
  std::vector<Breach> breaches;
  for (const std::uint64_t head :
       {~0ull, ~0ull - 15, 1ull << 63, 64ull * 1024 + 16, 1ull << 32, 8ull, 1ull}) {
    breaches.push_back({"head", [head](RawShmPeer& raw) {
                          raw.head = head;
                          raw.publish();
                        }});
  }
  run(breaches);
}

TEST_F(ShmHostile, ARingHeadThatGoesBackIsABreach) {
  start();
  for (const std::uint64_t back : {16ull, 48ull, 80ull}) {
    RawShmPeer raw;
    join(raw);
    raw.put_transfer(bytes_of("one"));
    raw.put_transfer(bytes_of("two"));
    raw.put_transfer(bytes_of("three"));
    raw.publish();
    // Only the first is taken, so that the head can fall on either side of the reader.
    ASSERT_TRUE(eventually([&] { return victim_.poll(1) == 1; }));
    raw.head = back;
    raw.publish();
    expect_breach(raw, "head went back");
  }
}

TEST_F(ShmHostile, AMalformedEntryIsABreach) {
  run({
      header("length 0", {0, 16, 0, 0}),
      header("length of a header alone", {16, 0, 0, 0}),
      header("length not of its parts", {48, 16, 0, 0}),
      header("length beyond the head", {16 + 8192, 8192, 0, 0}),
      header("length all ones", {~0u, 16, 0, 0}),
      header("length that overlaps the next", {32, 32, 0, 0}),
      header("length not aligned", {24, 8, 0, 0}),
      header("inline part beyond the limit", {16 + 8208, 8208, 0, 0}),
      header("inline part all ones", {32, ~0u, 0, 0}),
      header("inline part that wraps the sum", {16, ~0u - 15, 0, 0}),
      header("too many references", {16 + 8 * 16, 0, 8, 0}),
      header("references all ones", {32, 0, ~0u, 0}),
      header("references that wrap the sum", {16, 0, 1u << 28, 0}),
  });
}

TEST_F(ShmHostile, ABadReferenceIsABreach) {
  std::vector<Breach> breaches;
  const auto add = [&](const char* what, EntryRef ref) {
    breaches.push_back({what, [ref](RawShmPeer& raw) {
                          const int fd = raw.make_memfd(kRegionBytes, RawShmPeer::kSeals);
                          raw.send_region(fd, kRegionBytes);
                          raw.put_transfer(bytes_of("x"), {&ref, 1}, 0);
                          raw.publish();
                        }});
  };
  add("region 0", {0, 1, 0});
  add("unknown region", {2, 1, 0});
  add("region all ones", {~0u, 1, 0});
  add("no bytes", {1, 0, 0});
  add("one byte too long", {1, kRegionBytes + 1, 0});
  add("one byte too far", {1, 1, kRegionBytes});
  add("offset and length past the end", {1, 4096, kRegionBytes - 4095});
  add("offset that overflows", {1, 16, ~0ull - 15});
  add("offset all ones", {1, 1, ~0ull});
  add("length all ones", {1, ~0u, 0});
  run(breaches);
}

TEST_F(ShmHostile, ATransferLongerThanAgreedIsABreach) {
  run({{"seven times the largest region", [](RawShmPeer& raw) {
          const int fd = raw.make_memfd(kRegionBytes, RawShmPeer::kSeals);
          raw.send_region(fd, kRegionBytes);
          const std::vector<EntryRef> refs(7, EntryRef{1, kRegionBytes, 0});
          raw.put_transfer({}, refs, 0);
          raw.publish();
        }}});
}

TEST_F(ShmHostile, ABadRegionIsABreach) {
  const auto region = [](const char* what, auto make_fd, std::uint64_t bytes) {
    return Breach{what, [=](RawShmPeer& raw) { raw.send_region(make_fd(raw), bytes); }};
  };
  const auto sealed = [](RawShmPeer& raw) {
    return raw.make_memfd(kRegionBytes, RawShmPeer::kSeals);
  };
  run({
      region(
          "unsealed", [](RawShmPeer& raw) { return raw.make_memfd(kRegionBytes, 0); },
          kRegionBytes),
      region(
          "sealed against writing only",
          [](RawShmPeer& raw) { return raw.make_memfd(kRegionBytes, F_SEAL_FUTURE_WRITE); },
          kRegionBytes),
      region("declared larger", sealed, kRegionBytes + 1),
      region("declared smaller", sealed, kRegionBytes - 1),
      region("declared empty", sealed, 0),
      region("declared endless", sealed, ~0ull),
      region(
          "a regular file",
          [](RawShmPeer& raw) {
            return raw.own(::open(unused_path().c_str(), O_RDWR | O_CREAT, 0600));
          },
          kRegionBytes),
      region(
          "a pipe",
          [](RawShmPeer& raw) {
            std::array<int, 2> ends{};
            EXPECT_EQ(::pipe(ends.data()), 0);
            raw.own(ends[0]);
            return raw.own(ends[1]);
          },
          kRegionBytes),
      region(
          "more than agreed in all",
          [](RawShmPeer& raw) { return raw.make_memfd((4ull << 30) + 4096, RawShmPeer::kSeals); },
          (4ull << 30) + 4096),
      {"a key twice",
       [=](RawShmPeer& raw) {
         raw.send_region(sealed(raw), kRegionBytes);
         raw.next_region_key = 1;
         raw.send_region(sealed(raw), kRegionBytes);
       }},
      {"a key from the future",
       [=](RawShmPeer& raw) {
         raw.next_region_key = 1000;
         raw.send_region(sealed(raw), kRegionBytes);
       }},
      {"more regions than agreed",
       [=](RawShmPeer& raw) {
         const int fd = sealed(raw);
         for (int i = 0; i < 65; ++i) raw.send_region(fd, kRegionBytes);
       }},
      {"a region without its memory",
       [](RawShmPeer& raw) {
         shm::RegionMessage message;
         message.key = 1;
         message.bytes = kRegionBytes;
         raw.send_raw(RawShmPeer::message(message), {});
       }},
      {"a region with too many descriptors",
       [=](RawShmPeer& raw) {
         shm::RegionMessage message;
         message.key = 1;
         message.bytes = kRegionBytes;
         raw.send_raw(RawShmPeer::message(message), std::vector<int>(253, sealed(raw)));
       }},
  });
}

TEST_F(ShmHostile, ABadEndOfARegionIsABreach) {
  const auto attached = [](const char* what, auto commit) {
    return Breach{what, [=](RawShmPeer& raw) {
                    const int fd = raw.make_memfd(kRegionBytes, RawShmPeer::kSeals);
                    raw.send_region(fd, kRegionBytes);
                    commit(raw, fd);
                  }};
  };
  const auto refer = [](RawShmPeer& raw, std::uint32_t key) {
    const EntryRef ref{key, 16, 0};
    raw.put_transfer({}, {&ref, 1}, 7);
    raw.publish();
  };
  run({
      attached("of none", [](RawShmPeer& raw, int) { raw.send_detach(0); }),
      attached("of an unknown one", [](RawShmPeer& raw, int) { raw.send_detach(2); }),
      attached("of another generation", [](RawShmPeer& raw, int) { raw.send_detach(0x10001); }),
      attached("twice",
               [](RawShmPeer& raw, int) {
                 raw.send_detach(1);
                 raw.send_detach(1);
               }),
      attached("with a descriptor", [](RawShmPeer& raw, int fd) { raw.send_detach(1, {fd}); }),
      attached("with a size", [](RawShmPeer& raw, int) { raw.send_detach(1, {}, kRegionBytes); }),
      attached("and a reference to it",
               [=](RawShmPeer& raw, int) {
                 raw.send_detach(1);
                 refer(raw, 1);
               }),
      attached("and the same key again",
               [](RawShmPeer& raw, int fd) {
                 raw.send_detach(1);
                 raw.next_region_key = 1;
                 raw.send_region(fd, kRegionBytes);
               }),
      attached("and a key of the generation after the next",
               [](RawShmPeer& raw, int fd) {
                 raw.send_detach(1);
                 raw.next_region_key = 0x20001;
                 raw.send_region(fd, kRegionBytes);
               }),
      attached("and a reference to the old one after the new one came",
               [=](RawShmPeer& raw, int fd) {
                 raw.send_detach(1);
                 raw.next_region_key = 0x10001;
                 raw.send_region(fd, kRegionBytes);
                 refer(raw, 1);
               }),
  });
}

TEST_F(ShmHostile, TheEndOfARegionThatIsOnLoanIsABreachAndTheLoanStaysReadable) {
  start();
  RawShmPeer raw;
  join(raw);
  const int fd = raw.make_memfd(kRegionBytes, RawShmPeer::kSeals);
  ASSERT_TRUE(raw.send_region(fd, kRegionBytes));
  const EntryRef ref{1, 16, 0};
  raw.put_transfer({}, {&ref, 1}, 7);
  raw.publish();
  ASSERT_TRUE(eventually([&] { return victim_.poll() == 1; }));
  ASSERT_TRUE(raw.send_detach(1));
  expect_breach(raw, "on loan");
  EXPECT_TRUE(victim_.received.front().intact());
  victim_.endpoint->release(victim_.received.front().loan);
}

TEST_F(ShmHostile, RegionsThatComeAndGoWithoutEndHarmNobody) {
  start();
  RawShmPeer raw;
  join(raw);
  const int fd = raw.make_memfd(kRegionBytes, RawShmPeer::kSeals);
  for (std::uint32_t i = 0; i < 1000; ++i) {
    const std::uint32_t key = (i << 16) | 1;
    raw.next_region_key = key;
    ASSERT_TRUE(raw.send_region(fd, kRegionBytes));
    if (i % 40 == 39) {  // a reference makes the server read all of it
      const EntryRef ref{key, 16, 0};
      raw.put_transfer({}, {&ref, 1}, 7);
      raw.publish();
      ASSERT_TRUE(eventually([&] { return victim_.poll() == 1; })) << i;
      victim_.endpoint->release(victim_.received.front().loan);
      victim_.received.clear();
      expect_the_others_work();
    }
    ASSERT_TRUE(raw.send_detach(key));
  }
  EXPECT_FALSE(victim_.disconnected);
}

// How many messages a socket of the fabric holds that nobody reads.
int socket_holds() {
  std::array<int, 2> ends{};
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends.data()) != 0) {
    return 0;
  }
  shm::bound_sending(ends[0]);
  const shm::RegionMessage message;
  int count = 0;
  while (::send(ends[0], &message, sizeof(message), 0) > 0) ++count;
  for (const int fd : ends) ::close(fd);
  return count;
}

// Says that regions come and go, an odd number of messages, and publishes a reference to the last.
void refer_behind(RawShmPeer& raw, int messages) {
  const int fd = raw.make_memfd(kRegionBytes, RawShmPeer::kSeals);
  std::uint32_t key = 1;
  for (int i = 1; i < messages; i += 2, key += 0x10000) {
    raw.next_region_key = key;
    ASSERT_TRUE(raw.send_region(fd, kRegionBytes));
    ASSERT_TRUE(raw.send_detach(key));
  }
  raw.next_region_key = key;
  ASSERT_TRUE(raw.send_region(fd, kRegionBytes));
  const EntryRef ref{key, 16, 0};
  raw.put_transfer({}, {&ref, 1}, 7);
  raw.publish();
}

TEST_F(ShmHostile, AReferenceBehindAsMuchAsASocketHoldsIsTaken) {
  const int holds = socket_holds();
  ASSERT_GT(holds, 100);
  ASSERT_LT(holds, static_cast<int>(shm::kSocketMessagesMax));
  start();
  RawShmPeer raw;
  join(raw);
  if (HasFatalFailure()) return;
  shm::bound_sending(raw.socket);
  refer_behind(raw, (holds - 1) | 1);
  if (HasFatalFailure()) return;
  ASSERT_EQ(victim_.poll(), 1u);
  victim_.endpoint->release(victim_.received.front().loan);
}

TEST_F(ShmHostile, AReferenceBehindMoreThanASocketOfTheFabricHoldsIsABreach) {
  start();
  RawShmPeer raw;
  join(raw);
  if (HasFatalFailure()) return;
  const int bytes = 8 << 20;
  if (::setsockopt(raw.socket, SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof(bytes)) != 0) {
    GTEST_SKIP() << "needs CAP_NET_ADMIN";
  }
  refer_behind(raw, 2 * static_cast<int>(shm::kSocketMessagesMax) + 1);
  if (HasFatalFailure()) return;
  victim_.poll();
  expect_breach(raw, "behind 1,024 others");
}

TEST_F(ShmHostile, GarbageOnTheSocketIsABreach) {
  run({
      {"one byte", [](RawShmPeer& raw) { raw.send_raw(pattern(1, 1), {}); }},
      {"another hello", [](RawShmPeer& raw) { raw.send_hello(); }},
      {"a region's length of noise",
       [](RawShmPeer& raw) {
         raw.send_raw(pattern(sizeof(shm::RegionMessage), 1), {raw.memory_fd});
       }},
      {"a long message", [](RawShmPeer& raw) { raw.send_raw(pattern(100'000, 1), {}); }},
  });
}

TEST_F(ShmHostile, AnEmptyMessageEndsTheChannel) {
  start();
  RawShmPeer raw;
  join(raw);
  raw.send_raw({}, {});
  EXPECT_TRUE(eventually([&] {
    victim_.poll();
    return victim_.disconnected.has_value();
  }));
}

TEST_F(ShmHostile, MoreTransfersThanPostedReceivesAreABreach) {
  start({}, {.receive_depth = 4});
  RawShmPeer raw;
  join(raw);
  for (int i = 0; i < 5; ++i) raw.put_transfer(bytes_of("x"));
  raw.publish();
  expect_breach(raw, "five for four");
  EXPECT_EQ(victim_.received.size(), 4u);
}

TEST_F(ShmHostile, MoreLoansThanAgreedAreABreach) {
  start({}, {.receive_depth = 2000});
  RawShmPeer raw;
  join(raw);
  const int fd = raw.make_memfd(kRegionBytes, RawShmPeer::kSeals);
  ASSERT_TRUE(raw.send_region(fd, kRegionBytes));
  const EntryRef ref{1, 16, 0};
  for (int i = 0; i < 1025; ++i) raw.put_transfer({}, {&ref, 1}, 7);
  raw.publish();
  expect_breach(raw, "1025 loans");
  EXPECT_EQ(victim_.received.size(), 1024u);
  for (const Received& r : victim_.received) victim_.endpoint->release(r.loan);
}

TEST_F(ShmHostile, ABadReturnIsABreachAndEveryCookieStillComesBackOnce) {
  start();
  auto region = buffer::MemoryRegion::create("hostile-test", kRegionBytes);
  ASSERT_TRUE(region.ok());
  region_ = std::move(*region);
  const std::vector<std::pair<const char*, std::function<void(RawShmPeer&, std::uint32_t)>>> cases =
      {
          {"an unknown slot", [](RawShmPeer& raw, std::uint32_t) { raw.put_return(0xffff); }},
          {"an unused slot", [](RawShmPeer& raw, std::uint32_t) { raw.put_return(500); }},
          {"another generation",
           [](RawShmPeer& raw, std::uint32_t token) { raw.put_return(token + (1u << 16)); }},
          {"the same twice",
           [](RawShmPeer& raw, std::uint32_t token) {
             raw.put_return(token);
             raw.put_return(token);
           }},
          {"a head that jumps",
           [](RawShmPeer& raw, std::uint32_t) {
             raw.control().published.returns_head.store(1000);
             raw.kick();
           }},
          {"a head that goes back",
           [](RawShmPeer& raw, std::uint32_t) {
             raw.control().published.returns_head.store(~0ull);
             raw.kick();
           }},
      };
  for (const auto& [what, commit] : cases) {
    RawShmPeer raw;
    join(raw);
    auto key = victim_.endpoint->attach(region_);
    ASSERT_TRUE(key.ok());
    const GatherRef ref{*key, 64, 0};
    for (std::uint64_t i = 0; i < 3; ++i) ASSERT_TRUE(victim_.send({}, {&ref, 1}, i).ok());
    const auto first = raw.take();
    ASSERT_TRUE(first && first->refs.size() == 1);
    ASSERT_TRUE(raw.wait_readable()) << "the region's description";
    std::array<std::byte, 256> sink;
    ::recv(raw.socket, sink.data(), sink.size(), 0);
    commit(raw, first->header.token);
    expect_breach(raw, what);
    std::vector<std::uint64_t> cookies;
    for (const auto& [cookie, status] : victim_.sent) cookies.push_back(cookie);
    std::sort(cookies.begin(), cookies.end());
    EXPECT_EQ(cookies, (std::vector<std::uint64_t>{0, 1, 2})) << what;
    expect_the_others_work();
  }
}

TEST_F(ShmHostile, ATailThatFreesWhatWasNeverSentIsABreach) {
  for (const std::uint64_t tail : {16ull, ~0ull, 1ull << 40}) {
    start();
    RawShmPeer raw;
    join(raw);
    raw.control().room.ring_tail.store(tail);
    Status status;
    for (int i = 0; i < 10'000 && status.ok(); ++i) status = victim_.queue(pattern(8000, 1));
    // The lie is seen when room runs out; until then the tail is not looked at.
    EXPECT_EQ(status.code(), Code::kDisconnected) << status.to_string();
    expect_breach(raw, "tail");
  }
}

TEST_F(ShmHostile, APeerThatScribblesOverItsRingMeanwhileIsHarmless) {
  start();
  for (unsigned seed = 0; seed < 200; ++seed) {
    RawShmPeer raw;
    join(raw);
    const Bytes noise = pattern(shm::memory_bytes(raw.sizes) - shm::kPageBytes, seed);
    std::memcpy(raw.memory + shm::kPageBytes, noise.data(), noise.size());
    raw.head = 4096;
    raw.publish();
    expect_breach(raw, "noise");
  }
}

}  // namespace
}  // namespace sanproxy::fabric::test
