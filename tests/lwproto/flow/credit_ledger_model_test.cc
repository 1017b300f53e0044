// Two ledgers joined by two queues, in every interleaving that small windows have: the credits are
// never overrun, and whatever has happened, the channel comes back to where both may send data.
#include <gtest/gtest.h>

#include <array>
#include <deque>
#include <random>
#include <set>
#include <vector>

#include "lwproto/flow/credit_ledger.h"

namespace sanproxy::flow {
namespace {

struct Setting {
  std::uint32_t window[2];   // receive buffers of each side
  std::uint32_t reserve[2];  // of these, for control
};

// One side: its ledger, the transfers on their way to it, the buffers that it has not reposted.
struct Side {
  CreditLedger ledger;
  std::deque<std::uint32_t> inbox;  // granted_total() of each transfer
  std::uint32_t held = 0;
  std::uint32_t received = 0;  // mod 2^32, from the same start as the ledger
};

struct World {
  Side side[2];
};

enum Action { kSendData, kSendCredit, kSendControl, kReturnCredits, kDeliver, kRepost, kActions };

World make_world(const Setting& s, std::uint32_t start) {
  World world;
  for (int i = 0; i < 2; ++i) {
    world.side[i].ledger = CreditLedger(s.window[1 - i], s.reserve[1 - i], s.window[i], start);
    world.side[i].received = start;
  }
  return world;
}

void send(Side& from, Side& to) {
  to.inbox.push_back(from.ledger.granted_total());
  from.ledger.on_sent();
  from.ledger.on_grant_sent();
}

bool enabled(const World& world, int who, Action action) {
  const Side& me = world.side[who];
  switch (action) {
    case kSendData:
      return me.ledger.may_send_data();
    case kSendCredit:
      return me.ledger.may_send_credit();
    case kSendControl:
      return me.ledger.may_send_control();
    case kReturnCredits:
      return me.ledger.grant_due() && me.ledger.may_send_control();
    case kDeliver:
      return !me.inbox.empty();
    case kRepost:
      return me.held > 0;
    case kActions:
      break;
  }
  return false;
}

// False if a ledger took a legal peer for a breach or a transfer met no buffer.
bool act(World& world, int who, Action action) {
  Side& me = world.side[who];
  switch (action) {
    case kSendData:
    case kSendCredit:
    case kSendControl:
    case kReturnCredits:
      send(me, world.side[1 - who]);
      return true;
    case kDeliver: {
      const bool buffer = me.ledger.granted_total() != me.received;
      const bool legal =
          me.ledger.on_received().ok() && me.ledger.on_granted(me.inbox.front()).ok();
      me.inbox.pop_front();
      ++me.held;
      ++me.received;
      return buffer && legal;
    }
    case kRepost:
      --me.held;
      me.ledger.on_posted(1);
      return true;
    case kActions:
      break;
  }
  return false;
}

// What a state is, apart from how often the counters went round.
std::vector<std::uint32_t> key_of(const World& world) {
  std::vector<std::uint32_t> key;
  for (int i = 0; i < 2; ++i) {
    const Side& me = world.side[i];
    const Side& peer = world.side[1 - i];
    key.insert(key.end(), {me.ledger.available(), me.ledger.unannounced(), me.held,
                           me.ledger.granted_total() - me.received,
                           static_cast<std::uint32_t>(me.inbox.size())});
    for (const std::uint32_t total : me.inbox) key.push_back(peer.ledger.granted_total() - total);
  }
  return key;
}

// Lets the machinery run by itself: deliver, repost what is held beyond `keep`, return credits
// that are due. False if it never comes to rest.
bool settle(World& world, std::array<std::uint32_t, 2> keep) {
  for (int steps = 0; steps < 1000; ++steps) {
    bool moved = false;
    for (int who = 0; who < 2 && !moved; ++who) {
      for (const Action action : {kDeliver, kRepost, kReturnCredits}) {
        if (!enabled(world, who, action)) continue;
        if (action == kRepost && world.side[who].held <= keep[who]) continue;
        if (!act(world, who, action)) return false;
        moved = true;
        break;
      }
    }
    if (!moved) return true;
  }
  return false;
}

// At rest with buffers held for long: what is free is known to the peer, but for a single buffer,
// or the peer has credits enough anyway, or the news has to wait for a credit.
bool informed(const World& world, const Setting& setting, int who) {
  const Side& me = world.side[who];
  const Side& peer = world.side[1 - who];
  return me.ledger.unannounced() <= 1 || peer.ledger.available() > setting.window[who] / 4 ||
         !me.ledger.may_send_control();
}

void explore(const Setting& setting, std::uint32_t start, std::size_t& states) {
  std::set<std::vector<std::uint32_t>> seen;
  std::deque<World> open;
  open.push_back(make_world(setting, start));
  seen.insert(key_of(open.front()));
  while (!open.empty()) {
    const World world = open.front();
    open.pop_front();
    World held = world;
    ASSERT_TRUE(settle(held, {world.side[0].held, world.side[1].held}))
        << "credit returns answer each other for ever";
    ASSERT_TRUE(informed(held, setting, 0) && informed(held, setting, 1));
    World rest = world;
    ASSERT_TRUE(settle(rest, {0, 0}));
    for (const Side& side : rest.side) {
      ASSERT_TRUE(side.ledger.may_send_data()) << "stuck with " << side.ledger.available();
    }
    for (int who = 0; who < 2; ++who) {
      for (int action = 0; action < kActions; ++action) {
        if (!enabled(world, who, static_cast<Action>(action))) continue;
        World next = world;
        ASSERT_TRUE(act(next, who, static_cast<Action>(action))) << "action " << action;
        if (seen.insert(key_of(next)).second) open.push_back(std::move(next));
      }
    }
  }
  states += seen.size();
}

TEST(CreditLedgerModel, NoInterleavingOverrunsOrStalls) {
  std::size_t states = 0;
  // The first counter values lie in front of the wrap, so the walk goes across it.
  explore({{4, 4}, {2, 2}}, 0xffff'fffau, states);
  explore({{4, 4}, {0, 1}}, 0, states);
  explore({{5, 4}, {2, 1}}, 0xffff'fffau, states);
  explore({{6, 6}, {3, 3}}, 0, states);
  EXPECT_GT(states, 10'000u);
  RecordProperty("states", static_cast<int>(states));
}

// One side keeps every buffer that data came in, for as long as it hears no CREDIT.
TEST(CreditLedgerModel, CreditsGoOnWhenAllBuffersForDataAreHeld) {
  for (std::uint32_t window = 6; window <= 64; ++window) {
    for (std::uint32_t reserve = 3; reserve <= window / 2; ++reserve) {
      World world = make_world({{window, window}, {reserve, reserve}}, 0xffff'ff00u);
      Side& sender = world.side[0];
      while (enabled(world, 0, kSendData)) ASSERT_TRUE(act(world, 0, kSendData));
      while (enabled(world, 1, kDeliver)) ASSERT_TRUE(act(world, 1, kDeliver));
      const std::uint32_t kept = world.side[1].held;
      for (int i = 0; i < 200; ++i) {
        ASSERT_TRUE(sender.ledger.may_send_credit())
            << "CREDIT " << i << " of " << window << ", reserve " << reserve;
        ASSERT_TRUE(act(world, 0, kSendCredit));
        ASSERT_TRUE(settle(world, {0, kept}));
      }
    }
  }
}

TEST(CreditLedgerModel, LongRandomRunsOfLargerWindowsNeitherOverrunNorStall) {
  std::mt19937 random(7);
  for (int run = 0; run < 200; ++run) {
    const auto window = [&] { return static_cast<std::uint32_t>(4 + random() % 60); };
    Setting setting{{window(), window()}, {0, 0}};
    for (int i = 0; i < 2; ++i) setting.reserve[i] = setting.window[i] / 2;
    World world = make_world(setting, 0xffff'ff00u);
    for (int step = 0; step < 5000; ++step) {
      const int who = static_cast<int>(random() % 2);
      const auto action = static_cast<Action>(random() % kActions);
      if (enabled(world, who, action)) {
        ASSERT_TRUE(act(world, who, action)) << "run " << run << ", step " << step;
      }
    }
    ASSERT_TRUE(settle(world, {0, 0})) << "run " << run;
    for (const Side& side : world.side) ASSERT_TRUE(side.ledger.may_send_data()) << "run " << run;
  }
}

}  // namespace
}  // namespace sanproxy::flow
