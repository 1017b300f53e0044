// A peer process that is killed at a random moment is a disconnected peer, and nothing worse.
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <filesystem>
#include <random>

#include "tests/lwproto/fabric/conformance_fixture.h"
#include "tests/lwproto/fabric/peer_plan.h"

namespace sanproxy::fabric::test {
namespace {

// The program of peer_main.cc. It lies with the tests, also when this is one of the guest's.
class PeerProcess {
 public:
  PeerProcess(const std::string& fabric, bool listens, const std::string& address,
              std::uint64_t seed) {
    const auto folder = std::filesystem::read_symlink("/proc/self/exe").parent_path();
    const auto program = folder.parent_path() / "tests" / "lwproto_fabric_test_peer";
    int ends[2];
    EXPECT_EQ(::pipe2(ends, O_CLOEXEC), 0);
    const std::string number = std::to_string(seed);
    const char* role = listens ? "listen" : "connect";
    pid_ = ::fork();
    if (pid_ == 0) {
      ::dup2(ends[1], STDOUT_FILENO);
      ::execl(program.c_str(), program.c_str(), fabric.c_str(), role, address.c_str(),
              number.c_str(), nullptr);
      ::_exit(127);
    }
    ::close(ends[1]);
    said_ = ends[0];
  }
  ~PeerProcess() {
    kill();
    ::close(said_);
  }
  PeerProcess(const PeerProcess&) = delete;
  PeerProcess& operator=(const PeerProcess&) = delete;
  // False if it ended instead.
  bool wait_until_it_listens() const {
    char byte = 0;
    return ::read(said_, &byte, 1) == 1;
  }
  void kill() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }

 private:
  pid_t pid_ = -1;
  int said_ = -1;
};

class ProcessConformance : public Conformance {
 protected:
  static std::vector<Fabric*> only(const std::unique_ptr<Fabric>& fabric) { return {fabric.get()}; }

  std::unique_ptr<Endpoint> meet(bool peer_listens, const EndpointOptions& with,
                                 const PeerProcess& peer) {
    if (peer_listens) {
      if (!peer.wait_until_it_listens()) return nullptr;
      auto connecting = server_fabric_->connect(address_, {}, with);
      EXPECT_TRUE(connecting.ok()) << connecting.status().to_string();
      if (!connecting.ok()) return nullptr;
      auto connected = finish(**connecting, only(server_fabric_));
      EXPECT_TRUE(connected.ok()) << connected.status().to_string();
      return connected.ok() ? std::move(*connected) : nullptr;
    }
    auto request = next_request(*listener_, only(server_fabric_));
    EXPECT_TRUE(request);
    if (!request) return nullptr;
    auto accepted = listener_->accept(*request, {});
    EXPECT_TRUE(accepted.ok()) << accepted.status().to_string();
    return accepted.ok() ? std::move(*accepted) : nullptr;
  }
  void kill_while_talking(std::uint64_t seed) {
    start(seed);
    std::mt19937_64 random(seed);
    const bool peer_listens = random() % 2 == 0;
    const TalkerPlan plan = endless_plan(seed, false);
    if (!peer_listens) listen(options_of(plan));
    PeerProcess peer(GetParam().name, peer_listens, address_, seed);
    Talker talker(plan);
    auto endpoint = meet(peer_listens, options_of(plan), peer);
    ASSERT_TRUE(endpoint);
    talker.start(std::move(endpoint));
    const std::uint64_t enough = random() % GetParam().scaled(2000);
    const auto talk = [&](const std::function<bool()>& done) {
      return test::eventually(only(server_fabric_), [&] {
        bool finished = false;
        while (!(finished = done() || !talker.wrong().empty()) && talker.round()) {
        }
        return finished;
      });
    };
    EXPECT_TRUE(talk([&] { return talker.received() >= enough || talker.disconnected(); }));
    EXPECT_FALSE(talker.disconnected()) << "the peer ended by itself: " << talker.state();
    peer.kill();
    EXPECT_TRUE(talk([&] { return talker.disconnected().has_value(); })) << talker.state();
    EXPECT_EQ(talker.wrong(), "");
    ASSERT_TRUE(talker.disconnected());
    EXPECT_EQ(talker.disconnected()->code(), Code::kDisconnected) << talker.state();
    EXPECT_EQ(talker.cookies_out(), 0u);
    EXPECT_TRUE(talker.held_is_intact()) << "what the dead have lent stays readable";
  }
};
INSTANTIATE_TEST_SUITE_P(Fabrics, ProcessConformance,
                         testing::ValuesIn(fabrics_under_test(&FabricUnderTest::processes)),
                         fabric_name);

TEST_P(ProcessConformance, APeerKilledAtARandomMomentLeavesEverythingInOrder) {
  for (const std::uint64_t seed : seeds(std::max(GetParam().scaled(20), 4u))) {
    kill_while_talking(seed);
    if (HasFailure()) return;
  }
  // The fabric goes on.
  address_ = GetParam().unused_address();
  listener_.reset();
  listen();
  EXPECT_TRUE(connect_more(options(), server_, client_));
}

}  // namespace
}  // namespace sanproxy::fabric::test
