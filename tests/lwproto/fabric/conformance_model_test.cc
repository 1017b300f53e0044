// Random conversations: whatever the timing, the rules of fabric.h hold, to the end and at it.
#include <atomic>

#include "tests/lwproto/fabric/conformance_fixture.h"
#include "tests/lwproto/fabric/talker.h"

namespace sanproxy::fabric::test {
namespace {

enum class End { kNone, kDisconnect, kDestroy };

class Conversation : public Conformance {
 protected:
  void prepare(std::uint64_t seed, std::uint32_t target) {
    start(seed);
    std::mt19937_64 random(seed);
    plan_.depth = 4 + static_cast<std::uint32_t>(random() % 60);
    plan_.seed = 2 * seed;
    plan_.peer_seed = 2 * seed + 1;
    plan_.target = target;
    plan_.peer_target = random() % 4 == 0 ? 3 : target;  // some hardly speak
    if (random() % 2 == 0) {
      plan_.inline_bytes_max = 1024;
      plan_.refs_bytes_max = 8192;
    }
    EndpointOptions with = options(plan_.depth);
    with.send_depth = 1 + static_cast<std::uint32_t>(random() % 16);
    with.inline_bytes_max = plan_.inline_bytes_max;
    with.transfer_bytes_max = plan_.inline_bytes_max + plan_.refs_bytes_max;
    TalkerPlan other = plan_;
    std::swap(other.seed, other.peer_seed);
    std::swap(other.target, other.peer_target);
    a_ = std::make_unique<Talker>(plan_);
    b_ = std::make_unique<Talker>(other);
    connect_pair(with);
    if (HasFatalFailure()) return;
    a_->start(std::move(server_.endpoint));
    b_->start(std::move(client_.endpoint));
  }
  std::string states() const { return "\na: " + a_->state() + "\nb: " + b_->state(); }
  void expect_right() const {
    EXPECT_EQ(a_->wrong(), "") << states();
    EXPECT_EQ(b_->wrong(), "") << states();
  }
  // One loop that drives both and sleeps when neither moves.
  void talk(const std::function<bool()>& done) {
    bool finished = false;
    EXPECT_TRUE(eventually([&] {
      for (bool moved = true; moved && !finished;) {
        moved = a_->round();
        moved = b_->round() || moved;
        finished = done() || !a_->wrong().empty() || !b_->wrong().empty();
      }
      return finished;
    })) << states();
    expect_right();
  }
  void expect_full_credits() {
    EXPECT_FALSE(a_->disconnected() || b_->disconnected()) << states();
    EXPECT_EQ(a_->ledger().available() + b_->ledger().unannounced(), plan_.depth) << states();
    EXPECT_EQ(b_->ledger().available() + a_->ledger().unannounced(), plan_.depth) << states();
  }
  bool settled() const {
    return a_->done() && b_->done() &&
           a_->ledger().available() + b_->ledger().unannounced() == plan_.depth &&
           b_->ledger().available() + a_->ledger().unannounced() == plan_.depth;
  }
  void TearDown() override {
    a_.reset();
    b_.reset();
    Conformance::TearDown();
  }

  TalkerPlan plan_;
  std::unique_ptr<Talker> a_, b_;
};
INSTANTIATE_TEST_SUITE_P(Fabrics, Conversation, testing::ValuesIn(fabrics_under_test()),
                         fabric_name);

// A simulation costs little, so it is run many times over.
unsigned rounds_of(const FabricUnderTest& fabric, unsigned real, unsigned simulated) {
  return fabric.threads ? fabric.scaled(real) : simulated;
}

TEST_P(Conversation, ComesToItsEndWithEverythingGivenBack) {
  for (const std::uint64_t seed : seeds(rounds_of(GetParam(), 10, 150))) {
    prepare(seed, GetParam().scaled(300));
    if (HasFatalFailure()) return;
    talk([&] { return settled(); });
    if (HasFailure()) return;
    expect_full_credits();
  }
}

TEST_P(Conversation, MayEndAtAnyPoint) {
  for (const std::uint64_t seed : seeds(rounds_of(GetParam(), 40, 400))) {
    prepare(seed, GetParam().scaled(200));
    if (HasFatalFailure()) return;
    std::mt19937_64 random(seed);
    const std::uint64_t after = random() % (2ull * GetParam().scaled(200));
    talk([&] { return a_->received() + b_->received() >= after || settled(); });
    if (HasFailure()) return;
    Talker& leaver = random() % 2 == 0 ? *a_ : *b_;
    Talker& left = &leaver == a_.get() ? *b_ : *a_;
    if (random() % 2 == 0) {
      leaver.disconnect();
      talk([&] { return leaver.disconnected() && left.disconnected(); });
    } else {
      leaver.destroy();
      EXPECT_TRUE(eventually([&] {
        while (left.round()) {
        }
        return left.disconnected() || !left.wrong().empty();
      })) << states();
      expect_right();
    }
    EXPECT_EQ(left.cookies_out(), 0u);
    EXPECT_EQ(left.disconnected()->code(), Code::kDisconnected) << left.state();
    if (HasFailure()) return;
  }
}

// The same with a loop of its own for each side: a lost wake-up leaves both asleep.
TEST_P(Conversation, LosesNoWakeUpWhenBothSidesSleep) {
  for (const std::uint64_t seed : seeds(rounds_of(GetParam(), 4, 50))) {
    prepare(seed, GetParam().scaled(1500));
    if (HasFatalFailure()) return;
    std::atomic<int> unfinished{2};
    // Who has finished goes on polling, because the other may need it, but sleeps no more.
    const auto loop = [&](Talker& talker, bool& finished) {
      do {
        while (talker.round()) {
        }
        if (!talker.wrong().empty()) unfinished = 0;
        if (talker.done() && !std::exchange(finished, true)) --unfinished;
        std::this_thread::yield();
      } while (finished && unfinished > 0 && GetParam().threads);
      return unfinished <= 0;
    };
    bool a_finished = false;
    bool b_finished = false;
    run_apart([&] { return loop(*a_, a_finished); }, [&] { return loop(*b_, b_finished); });
    expect_right();
    if (HasFailure()) return;
    talk([&] { return settled(); });
  }
}

}  // namespace
}  // namespace sanproxy::fabric::test
