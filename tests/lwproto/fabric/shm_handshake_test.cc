// What is particular to shm: its socket file and its handshake, with well- and ill-behaved peers.
#include <sys/stat.h>
#include <sys/wait.h>

#include <filesystem>
#include <fstream>

#include "tests/lwproto/fabric/shm_fixture.h"

namespace sanproxy::fabric::test {
namespace {

std::size_t open_descriptors() {
  std::size_t count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    ++count;
  }
  return count;
}

TEST(ShmListen, MakesTheFolderAndTheSocketWithItsModeAndRemovesTheSocket) {
  auto fabric = make([] { return make_shm_fabric({.socket_mode = 0600}); });
  const std::string path = unused_path() + ".d/deep/proxy.sock";
  auto listener = fabric->listen("shm:" + path, {});
  ASSERT_TRUE(listener.ok()) << listener.status().to_string();
  struct stat info {};
  ASSERT_EQ(::stat(path.c_str(), &info), 0);
  EXPECT_TRUE(S_ISSOCK(info.st_mode));
  EXPECT_EQ(info.st_mode & 0777u, 0600u);
  listener->reset();
  EXPECT_NE(::stat(path.c_str(), &info), 0);
}

TEST(ShmConnect, ALinkThatIsAskedForAnythingIsRefusedByTheNameOfTheParameter) {
  auto fabric = make([] { return make_shm_fabric(); });
  EndpointOptions options;
  options.link.window_bytes = 1 << 20;
  const Status status = fabric->connect("shm:" + unused_path(), {}, options).status();
  EXPECT_EQ(status.code(), Code::kUnsupported);
  EXPECT_NE(std::string(status.text()).find("window"), std::string::npos) << status.text();
}

TEST(ShmListen, TheSocketOfADeadServerIsReplaced) {
  const std::string path = unused_path();
  const pid_t child = ::fork();
  if (child == 0) {
    auto fabric = make_shm_fabric();
    if (!fabric.ok() || !(*fabric)->listen("shm:" + path, {}).ok()) ::_exit(1);
    auto again = (*fabric)->listen("shm:" + path, {});
    ::_exit(again.ok() ? 0 : 2);  // without removing the socket
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_EQ(WEXITSTATUS(status), 0);
  struct stat info {};
  ASSERT_EQ(::stat(path.c_str(), &info), 0) << "the test wants a stale socket";
  auto fabric = make([] { return make_shm_fabric(); });
  auto listener = fabric->listen("shm:" + path, {});
  EXPECT_TRUE(listener.ok()) << listener.status().to_string();
}

TEST(ShmListen, TheSocketOfALiveServerAndOtherFilesAreLeftAlone) {
  auto fabric = make([] { return make_shm_fabric(); });
  const std::string path = unused_path();
  auto listener = fabric->listen("shm:" + path, {});
  ASSERT_TRUE(listener.ok());
  EXPECT_EQ(fabric->listen("shm:" + path, {}).status().code(), Code::kExists);
  const std::string file = unused_path();
  std::ofstream(file) << "precious";
  EXPECT_EQ(fabric->listen("shm:" + file, {}).status().code(), Code::kExists);
  EXPECT_TRUE(std::filesystem::exists(file));
}

TEST(ShmListen, NonsenseOptionsAreRefused) {
  auto fabric = make([] { return make_shm_fabric(); });
  EndpointOptions options;
  options.inline_bytes_max = 0;
  EXPECT_EQ(fabric->listen("shm:" + unused_path(), options).status().code(),
            Code::kInvalidArgument);
  options.inline_bytes_max = ~0u;
  EXPECT_EQ(fabric->listen("shm:" + unused_path(), options).status().code(),
            Code::kInvalidArgument);
  EXPECT_EQ(fabric->connect("shm:" + unused_path(), {}, options).status().code(),
            Code::kInvalidArgument);
}

TEST_F(ShmServer, PeersAreIdentifiedByTheKernel) {
  start();
  for (const Side* side : {&good_server_, &good_client_}) {
    const PeerIdentity& identity = side->endpoint->peer();
    EXPECT_EQ(identity.uid, ::getuid());
    EXPECT_EQ(identity.gid, ::getgid());
    EXPECT_EQ(identity.pid, ::getpid());
    EXPECT_EQ(identity.address, "shm:pid " + std::to_string(::getpid()));
  }
}

TEST_F(ShmServer, MemoryThatIsShownCannotBeWrittenOrResized) {
  start();
  RawShmPeer raw;
  join(raw);
  // The server's memory and sleep page are the first two descriptors of its answer.
  const auto first = raw.owned_fds.end() - static_cast<std::ptrdiff_t>(shm::kAnswerFds);
  for (auto fd = first; fd != first + 2; ++fd) {
    EXPECT_EQ(RawShmPeer::map(*fd, shm::kPageBytes, PROT_READ | PROT_WRITE), nullptr);
    EXPECT_LT(::pwrite(*fd, "x", 1, 0), 0);
    EXPECT_NE(::ftruncate(*fd, 0), 0);
    EXPECT_NE(::fallocate(*fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096), 0);
  }
}

// Each message is sent by a peer of its own and must be answered with a no or with the end.
TEST_F(ShmServer, EveryBadHelloIsTurnedAway) {
  start();
  struct Case {
    const char* what;
    std::function<void(RawShmPeer&, shm::HelloMessage&, std::vector<int>&)> spoil;
  };
  const auto sizes = [](const char* what, void (*change)(shm::Sizes&)) {
    return Case{
        what, [change](RawShmPeer&, shm::HelloMessage& h, std::vector<int>&) { change(h.sizes); }};
  };
  using Fds = std::vector<int>;
  using Hello = shm::HelloMessage;
  const std::vector<Case> cases = {
      {"wrong magic", [](RawShmPeer&, Hello& h, Fds&) { h.magic ^= 1; }},
      {"wrong version", [](RawShmPeer&, Hello& h, Fds&) { ++h.version; }},
      {"private length", [](RawShmPeer&, Hello& h, Fds&) { h.private_bytes = 5; }},
      {"huge private length", [](RawShmPeer&, Hello& h, Fds&) { h.private_bytes = ~0u; }},
      {"no descriptors", [](RawShmPeer&, Hello&, Fds& fds) { fds.clear(); }},
      {"one descriptor", [](RawShmPeer&, Hello&, Fds& fds) { fds.pop_back(); }},
      {"three descriptors", [](RawShmPeer&, Hello&, Fds& fds) { fds.push_back(fds[0]); }},
      {"a hundred descriptors", [](RawShmPeer&, Hello&, Fds& fds) { fds.resize(100, fds[0]); }},
      {"unsealed memory",
       [](RawShmPeer& raw, Hello&, Fds& fds) {
         fds[0] = raw.make_memfd(shm::memory_bytes(raw.sizes), 0);
       }},
      {"memory sealed against growing only",
       [](RawShmPeer& raw, Hello&, Fds& fds) {
         fds[0] = raw.make_memfd(shm::memory_bytes(raw.sizes), F_SEAL_GROW);
       }},
      {"unsealed sleep page",
       [](RawShmPeer& raw, Hello&, Fds& fds) { fds[1] = raw.make_memfd(shm::kPageBytes, 0); }},
      {"a small sleep page",
       [](RawShmPeer& raw, Hello&, Fds& fds) { fds[1] = raw.make_memfd(8, RawShmPeer::kSeals); }},
      {"too little memory",
       [](RawShmPeer& raw, Hello&, Fds& fds) {
         fds[0] = raw.make_memfd(shm::memory_bytes(raw.sizes) - 1, RawShmPeer::kSeals);
       }},
      {"empty memory",
       [](RawShmPeer& raw, Hello&, Fds& fds) { fds[0] = raw.make_memfd(0, RawShmPeer::kSeals); }},
      {"more memory than declared",
       [](RawShmPeer& raw, Hello&, Fds& fds) {
         fds[0] = raw.make_memfd(shm::memory_bytes(raw.sizes) + 4096, RawShmPeer::kSeals);
       }},
      {"a regular file",
       [](RawShmPeer& raw, Hello&, Fds& fds) {
         fds[0] = raw.own(::open(unused_path().c_str(), O_RDWR | O_CREAT, 0600));
         EXPECT_EQ(::ftruncate(fds[0], static_cast<off_t>(shm::memory_bytes(raw.sizes))), 0);
       }},
      {"a device",
       [](RawShmPeer& raw, Hello&, Fds& fds) { fds[0] = raw.own(::open("/dev/zero", O_RDWR)); }},
      {"a socket", [](RawShmPeer& raw, Hello&, Fds& fds) { fds[0] = raw.socket; }},
      sizes("a ring of no bytes", [](shm::Sizes& s) { s.ring_bytes = 0; }),
      sizes("a ring that is no power of two", [](shm::Sizes& s) { s.ring_bytes += 16; }),
      sizes("a ring too small", [](shm::Sizes& s) { s.ring_bytes = 4096; }),
      sizes("a ring too large", [](shm::Sizes& s) { s.ring_bytes = 1u << 31; }),
      sizes("no returns", [](shm::Sizes& s) { s.return_entries = 0; }),
      sizes("odd returns", [](shm::Sizes& s) { s.return_entries = 1025; }),
      sizes("too many returns", [](shm::Sizes& s) { s.return_entries = 1u << 31; }),
      sizes("no inline bytes", [](shm::Sizes& s) { s.inline_bytes_max = 0; }),
      sizes("inline parts beyond the ring", [](shm::Sizes& s) { s.inline_bytes_max = ~0u; }),
      sizes("transfers below inline parts", [](shm::Sizes& s) { s.transfer_bytes_max = 1; }),
      sizes("inline parts smaller than ours", [](shm::Sizes& s) { s.inline_bytes_max = 8191; }),
      sizes("transfers smaller than ours", [](shm::Sizes& s) { s.transfer_bytes_max = 73'727; }),
      sizes("reserved bits", [](shm::Sizes& s) { s.reserved = 1; }),
  };
  for (const Case& c : cases) {
    RawShmPeer raw;
    ASSERT_TRUE(raw.make_memory());
    ASSERT_TRUE(raw.dial(path_));
    shm::HelloMessage hello;
    hello.sizes = raw.sizes;
    std::vector<int> fds = {raw.memory_fd, raw.sleep_fd};
    c.spoil(raw, hello, fds);
    ASSERT_TRUE(raw.send_raw(RawShmPeer::message(hello), fds)) << c.what;
    pollfd readable{raw.socket, POLLIN, 0};
    ASSERT_TRUE(eventually([&] {
      EXPECT_TRUE(listener_->poll().status().is_again()) << c.what;
      return ::poll(&readable, 1, 0) == 1;
    })) << c.what;
    auto answer = raw.read_answer();
    if (answer) {
      EXPECT_NE(answer->verdict, shm::Verdict::kAccepted) << c.what;
      EXPECT_TRUE(raw.closed()) << c.what;
    }
    expect_the_others_work();
  }
}

TEST_F(ShmServer, AClientWhoseTransfersAreSmallerOrLargerThanTheServersIsTurnedAway) {
  start();
  EndpointOptions small_inline;
  small_inline.inline_bytes_max = 4096;
  EndpointOptions small_transfers;
  small_transfers.transfer_bytes_max = 8192;
  for (const EndpointOptions& options : {small_inline, small_transfers}) {
    auto connecting = client_fabric_->connect("shm:" + path_, {}, options);
    ASSERT_TRUE(connecting.ok());
    Status status = Status::again();
    ASSERT_TRUE(eventually([&] {
      EXPECT_TRUE(listener_->poll().status().is_again());
      status = (*connecting)->poll().status();
      return !status.is_again();
    }));
    EXPECT_EQ(status.code(), Code::kProtocol) << status.to_string();
  }
  EndpointOptions large;
  large.inline_bytes_max = 16384;
  large.transfer_bytes_max = 16384 + 65536;
  auto connecting = client_fabric_->connect("shm:" + path_, {}, large);
  ASSERT_TRUE(connecting.ok());
  auto request = next_request(*listener_, {fabric_.get(), client_fabric_.get()});
  ASSERT_TRUE(request);
  auto accepted = listener_->accept(*request, {});
  ASSERT_TRUE(accepted.ok());
  auto finished = finish(**connecting, {fabric_.get(), client_fabric_.get()});
  EXPECT_EQ(finished.status().code(), Code::kProtocol) << finished.status().to_string();
}

TEST_F(ShmServer, GarbageInsteadOfAHelloLeavesNothingOpen) {
  start();
  expect_the_others_work();
  const std::size_t before = open_descriptors();
  for (const std::size_t length : {1, 8, 63, 64, 5000, 60'000}) {
    RawShmPeer raw;
    ASSERT_TRUE(raw.make_memory());
    ASSERT_TRUE(raw.dial(path_));
    std::vector<int> fds(200, raw.memory_fd);
    ASSERT_TRUE(raw.send_raw(pattern(length, 1), fds));
    pollfd readable{raw.socket, POLLIN, 0};
    ASSERT_TRUE(eventually([&] {
      EXPECT_TRUE(listener_->poll().status().is_again());
      return ::poll(&readable, 1, 0) == 1;
    }));
  }
  expect_the_others_work();
  EXPECT_EQ(open_descriptors(), before);
}

TEST_F(ShmServer, ASilentPeerIsDroppedInTime) {
  ManualClock clock;
  start({.handshake_timeout_ms = 40, .clock = &clock});
  RawShmPeer raw;
  ASSERT_TRUE(raw.dial(path_));
  pollfd readable{raw.socket, POLLIN, 0};
  ASSERT_TRUE(eventually([&] {
    clock.advance_ns(1'000'000);
    EXPECT_TRUE(listener_->poll().status().is_again());
    return ::poll(&readable, 1, 0) == 1;
  }));
  EXPECT_TRUE(raw.closed());
}

TEST_F(ShmServer, AServerThatNeverAnswersIsGivenUp) {
  ManualClock clock;
  start({.handshake_timeout_ms = 40, .clock = &clock});
  auto connecting = fabric_->connect("shm:" + path_, {}, {});
  ASSERT_TRUE(connecting.ok());
  ASSERT_TRUE(next_request(*listener_, {fabric_.get()}));
  Status status = Status::again();
  ASSERT_TRUE(eventually([&] {
    clock.advance_ns(1'000'000);
    status = (*connecting)->poll().status();
    return !status.is_again();
  }));
  EXPECT_EQ(status.code(), Code::kTimeout);
}

TEST_F(ShmServer, ManySilentPeersDoNotKeepOthersOut) {
  start({.half_open_max = 16});
  std::vector<std::unique_ptr<RawShmPeer>> silent;
  for (int i = 0; i < 100; ++i) {
    silent.push_back(std::make_unique<RawShmPeer>());
    ASSERT_TRUE(silent.back()->dial(path_));
    fabric_->disarm();
    (void)listener_->poll();
    fabric_->arm();
    fabric_->disarm();
  }
  RawShmPeer raw;
  join(raw);
  raw.put_transfer(bytes_of("hello"));
  raw.publish();
  EXPECT_TRUE(eventually([&] { return victim_.poll() != 0; }));
}

TEST_F(ShmServer, ConnectAttemptsBeyondTheQueueWaitForTheirTurn) {
  start();
  constexpr std::size_t kAttempts = 300;  // more than the socket's backlog
  std::vector<std::unique_ptr<Connecting>> attempts;
  for (std::size_t i = 0; i < kAttempts; ++i) {
    auto connecting = client_fabric_->connect("shm:" + path_, {}, {});
    ASSERT_TRUE(connecting.ok());
    attempts.push_back(std::move(*connecting));
  }
  std::vector<std::unique_ptr<Endpoint>> accepted;
  std::vector<std::unique_ptr<Endpoint>> connected;
  ASSERT_TRUE(eventually([&] {
    for (auto request = listener_->poll(); request.ok(); request = listener_->poll()) {
      auto endpoint = listener_->accept(*request, {});
      if (endpoint.ok()) accepted.push_back(std::move(*endpoint));
    }
    for (auto& attempt : attempts) {
      if (!attempt) continue;
      auto endpoint = attempt->poll();
      if (!endpoint.ok() && endpoint.status().is_again()) continue;
      EXPECT_TRUE(endpoint.ok()) << endpoint.status().to_string();
      if (endpoint.ok()) connected.push_back(std::move(*endpoint));
      attempt.reset();
    }
    return connected.size() == kAttempts || testing::Test::HasFailure();
  }));
}

}  // namespace
}  // namespace sanproxy::fabric::test
