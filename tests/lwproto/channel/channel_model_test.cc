// Random traffic between two channels: whatever the credits, the fabric and the timing, all that
// was sent arrives once and in order, and nobody waits for ever.
#include <deque>
#include <random>

#include "lwproto/channel/channel.h"
#include "lwproto/fabric/shm/shm_fabric.h"
#include "tests/lwproto/channel/channel_fixture.h"
#include "tests/lwproto/fabric/channel_pair.h"
#include "tests/lwproto/fabric/seed.h"
#include "tests/lwproto/fabric/temporary_path.h"

namespace sanproxy::channel::testing {
namespace {

enum class Kind { kInline, kReference, kCredit, kLeave, kKinds };

// One message of the plan. Each has a number, in its connection, service or offset.
struct Planned {
  Kind kind;
  std::uint32_t bytes;
};

struct Plan {
  std::uint32_t depth[2], reserve[2];
  std::vector<Planned> messages[2];
};

Plan make_plan(std::mt19937& random, std::uint32_t depth_max, int messages) {
  Plan plan;
  for (int side = 0; side < 2; ++side) {
    plan.depth[side] = 4 + static_cast<std::uint32_t>(random()) % (depth_max - 3);
    plan.reserve[side] = static_cast<std::uint32_t>(random()) % (plan.depth[side] / 2 + 1);
    // Some sides hardly speak: their credits come home by pure returns alone.
    const int count = random() % 4 == 0 ? 3 : messages;
    for (int i = 0; i < count; ++i) {
      const auto kind = static_cast<Kind>(random() % static_cast<unsigned>(Kind::kKinds));
      const std::uint32_t bytes = kind == Kind::kInline
                                      ? 1 + static_cast<std::uint32_t>(random()) % 1024
                                      : 1025 + static_cast<std::uint32_t>(random()) % 7000;
      plan.messages[side].push_back({kind, bytes});
    }
  }
  return plan;
}

// One side: sends its plan as far as it can, resumes only when it is told to, and checks what
// comes against the other's plan.
class Actor final : public Delegate {
 public:
  static constexpr std::size_t kPlaces = 32;
  static constexpr std::size_t kPlaceBytes = 8192;

  Actor(const std::vector<Planned>& mine, const std::vector<Planned>& theirs, unsigned seed)
      : mine_(mine), theirs_(theirs), random_(seed) {
    region_ = buffer::MemoryRegion::create("model", kPlaces * kPlaceBytes).value();
    for (std::size_t i = 0; i < kPlaces; ++i) free_places_.push_back(i);
  }
  void start(std::unique_ptr<fabric::Endpoint> endpoint, const wire::HelloBody& ours,
             const wire::HelloBody& peers) {
    key_ = *endpoint->attach(region_);
    channel_ = std::make_unique<Channel>(std::move(endpoint), ours, peers, *this);
    send_more();
  }
  // One round of a loop; true when something moved.
  bool round() {
    const std::size_t handled = channel_->poll(1 + random_() % 40);
    if (waits_for_place_ && !free_places_.empty()) send_more();
    while (!held_.empty() && random_() % 3 != 0) release_one();
    const std::uint64_t before = flushed_;
    channel_->flush();
    flushed_ = channel_->counters().transfers_out;
    return handled != 0 || flushed_ != before;
  }
  void release_one() {
    const std::size_t i = random_() % held_.size();
    channel_->release(held_[i]);
    held_.erase(held_.begin() + static_cast<std::ptrdiff_t>(i));
  }
  bool done() const {
    return next_ == mine_.size() && received_ == theirs_.size() && held_.empty() &&
           free_places_.size() == kPlaces;
  }
  std::string state() const {
    return "sent " + std::to_string(next_) + "/" + std::to_string(mine_.size()) + ", received " +
           std::to_string(received_) + "/" + std::to_string(theirs_.size()) + ", held " +
           std::to_string(held_.size()) + ", available " +
           std::to_string(channel_->ledger().available()) + ", unannounced " +
           std::to_string(channel_->ledger().unannounced());
  }
  Channel& channel() { return *channel_; }

  void on_data(Channel& channel, std::uint64_t connection, std::uint64_t offset,
               const Payload& payload) override {
    const Planned expected = next_expected();
    ASSERT_EQ(connection, received_) << "out of order";
    EXPECT_EQ(offset, received_ * 3);
    ASSERT_EQ(payload.length, expected.bytes);
    Bytes bytes;
    for (const auto& piece : payload.pieces) {
      bytes.insert(bytes.end(), piece.data, piece.data + piece.length);
    }
    ASSERT_TRUE(bytes == pattern(expected.bytes, static_cast<unsigned>(received_)));
    if (payload.loan != fabric::kNoLoan && random_() % 2 == 0) {
      channel.retain(payload.loan);
      held_.push_back(payload.loan);
    }
  }
  void on_message(Channel&, const wire::Message& message) override {
    const Planned expected = next_expected();
    if (expected.kind == Kind::kCredit) {
      ASSERT_EQ(message.type, wire::MessageType::kCredit);
      EXPECT_EQ(message.credit.connection, received_);
    } else {
      ASSERT_EQ(expected.kind, Kind::kLeave);
      ASSERT_EQ(message.type, wire::MessageType::kLeaveService);
      EXPECT_EQ(message.service.service, received_);
    }
  }
  void on_sent(Channel&, std::uint64_t cookie, bool ok) override {
    EXPECT_TRUE(ok);
    free_places_.push_back(static_cast<std::size_t>(cookie));
  }
  void on_writable(Channel&) override {
    waiting_ = false;
    send_more();
  }
  void on_closed(Channel&, wire::CloseCode, const Status& status) override {
    ADD_FAILURE() << "closed: " << status.to_string();
    closed = true;
  }

  bool closed = false;

 private:
  const Planned& next_expected() {
    static const Planned kNothing{Kind::kKinds, 0};
    return received_ < theirs_.size() ? theirs_[received_++] : kNothing;
  }
  void send_more() {
    waits_for_place_ = false;
    while (!waiting_ && next_ < mine_.size()) {
      const Status status = send(mine_[next_], next_ + 1);
      if (status.is_again()) {
        waiting_ = !waits_for_place_;
        return;
      }
      ASSERT_TRUE(status.ok()) << status.to_string();
      ++next_;
      if (random_() % 4 == 0) channel_->flush();
    }
  }
  Status send(const Planned& message, std::uint64_t number) {
    switch (message.kind) {
      case Kind::kInline:
        return channel_->send_data_inline(number, number * 3,
                                          pattern(message.bytes, static_cast<unsigned>(number)));
      case Kind::kReference:
        return refer(message, number);
      case Kind::kCredit:
        return channel_->send_credit({number, 0, 0});
      default:
        return channel_->send_control(wire::MessageType::kLeaveService, 0, wire::CloseCode::kNone,
                                      wire::ServiceBody{static_cast<std::uint32_t>(number), 0});
    }
  }
  Status refer(const Planned& message, std::uint64_t number) {
    if (free_places_.empty()) {
      waits_for_place_ = true;
      return Status::again();
    }
    const std::size_t place = free_places_.front();
    const Bytes bytes = pattern(message.bytes, static_cast<unsigned>(number));
    std::copy(bytes.begin(), bytes.end(), region_.data() + place * kPlaceBytes);
    const std::uint32_t half = message.bytes / 2;
    const fabric::GatherRef refs[] = {{key_, half, place * kPlaceBytes},
                                      {key_, message.bytes - half, place * kPlaceBytes + half}};
    const Status status = channel_->send_data_reference(number, number * 3, refs, place);
    if (status.ok()) free_places_.pop_front();
    return status;
  }

  const std::vector<Planned>& mine_;
  const std::vector<Planned>& theirs_;
  std::mt19937 random_;
  buffer::MemoryRegion region_;
  fabric::RegionKey key_ = 0;
  std::unique_ptr<Channel> channel_;
  std::deque<std::size_t> free_places_;
  std::vector<fabric::Loan> held_;
  std::size_t next_ = 0, received_ = 0;
  std::uint64_t flushed_ = 0;
  bool waiting_ = false, waits_for_place_ = false;
};

wire::HelloBody hello_for(const Plan& plan, int side) {
  fabric::EndpointOptions options;
  options.receive_depth = plan.depth[side];
  wire::HelloBody hello = make_hello(1, options, 1 << 20, 10, "model");
  hello.credits_reserved = plan.reserve[side];
  return hello;
}

std::string describe(const Plan& plan) {
  return "depths " + std::to_string(plan.depth[0]) + ", " + std::to_string(plan.depth[1]) +
         "; reserves " + std::to_string(plan.reserve[0]) + ", " + std::to_string(plan.reserve[1]);
}

void run_in_memory(unsigned seed, Delivery delivery, const fabric::sim::Weather& weather = {}) {
  std::mt19937 random(seed);
  const Plan plan = make_plan(random, seed % 3 == 0 ? 40 : 8, 200);
  SCOPED_TRACE("seed " + std::to_string(seed) + ": " + describe(plan));
  fabric::sim::LinkOptions link;
  link.delivery = delivery;
  link.transfers_max = random() % 3 == 0 ? 1 + random() % 4 : SIZE_MAX;
  std::array<fabric::EndpointOptions, 2> options;
  for (std::size_t i = 0; i < 2; ++i) {
    options[i].receive_depth = plan.depth[i];
    options[i].send_depth = 1 + static_cast<std::uint32_t>(random()) % 8;
  }
  const fabric::sim::WorldLife world(std::make_shared<fabric::sim::World>(seed, weather));
  Actor a(plan.messages[0], plan.messages[1], seed + 1);
  Actor b(plan.messages[1], plan.messages[0], seed + 2);
  auto pair = fabric::sim::make_pair(link, options, world.get());
  fabric::sim::SimEndpoint* raw[] = {pair.a.get(), pair.b.get()};
  a.start(std::move(pair.a), hello_for(plan, 0), hello_for(plan, 1));
  b.start(std::move(pair.b), hello_for(plan, 1), hello_for(plan, 0));
  for (int idle = 0; !(a.done() && b.done());) {
    if (random() % 8 == 0) raw[random() % 2]->refuse_sends = static_cast<int>(random() % 3);
    const int who = static_cast<int>(random() % 3);
    bool moved = false;
    if (who != 1) moved |= a.round();
    if (who != 0) moved |= b.round();
    idle = moved ? 0 : idle + 1;
    ASSERT_FALSE(a.closed || b.closed);
    ASSERT_LT(idle, 1000) << "stuck\na: " << a.state() << "\nb: " << b.state();
    if (::testing::Test::HasFatalFailure()) return;
  }
}

TEST(ChannelModel, RandomTrafficArrivesInOrderAndNobodyWaitsForEver) {
  for (unsigned seed = 1; seed <= 300; ++seed) {
    run_in_memory(seed, Delivery::kLoans);
    if (::testing::Test::HasFailure()) return;
  }
}

// With delays, refusals, completions in any order and receives that are posted bit by bit.
TEST(ChannelModel, RandomTrafficInRoughWeatherArrivesInOrder) {
  for (const std::uint64_t seed : fabric::test::seeds(300)) {
    run_in_memory(static_cast<unsigned>(seed),
                  seed % 2 == 0 ? Delivery::kLoans : Delivery::kReceiveBuffers,
                  fabric::sim::Weather::rough(seed));
    if (::testing::Test::HasFailure()) return;
  }
}

TEST(ChannelModel, RandomTrafficThroughReceiveBuffersArrivesInOrder) {
  for (unsigned seed = 1; seed <= 300; ++seed) {
    run_in_memory(seed, Delivery::kReceiveBuffers);
    if (::testing::Test::HasFailure()) return;
  }
}

// The same over shared memory, with a real sleep whenever nothing moves: a lost wake-up or a
// lost credit would leave both asleep.
void run_over_shm(unsigned seed) {
  std::mt19937 random(seed);
  const Plan plan = make_plan(random, seed % 3 == 0 ? 40 : 8, 400);
  SCOPED_TRACE("seed " + std::to_string(seed) + ": " + describe(plan));
  Actor a(plan.messages[0], plan.messages[1], seed + 1);
  Actor b(plan.messages[1], plan.messages[0], seed + 2);
  auto server = fabric::make_shm_fabric({.ring_bytes = 1u << 16}).value();
  auto client = fabric::make_shm_fabric({.ring_bytes = 1u << 16}).value();
  fabric::EndpointOptions options[2];
  for (int i = 0; i < 2; ++i) {
    options[i].receive_depth = plan.depth[i];
    options[i].send_depth = 1 + static_cast<std::uint32_t>(random()) % 8;
  }
  auto listening = server->listen("shm:" + fabric::test::unused_path(), options[0]);
  ASSERT_TRUE(listening.ok()) << listening.status().to_string();
  fabric::test::Side server_side, client_side;
  ASSERT_TRUE(fabric::test::connect_sides(*server, **listening, *client, options[1], server_side,
                                          client_side));
  a.start(std::move(server_side.endpoint), hello_for(plan, 0), hello_for(plan, 1));
  b.start(std::move(client_side.endpoint), hello_for(plan, 1), hello_for(plan, 0));
  for (int idle = 0; !(a.done() && b.done());) {
    const bool moved = a.round() | b.round();
    idle = moved ? 0 : idle + 1;
    ASSERT_FALSE(a.closed || b.closed);
    // A sleeper is woken or has nothing to do; held loans are let go a few rounds later.
    if (idle > 20) {
      server->disarm();
      client->disarm();
    }
    ASSERT_LT(idle, 200) << "stuck\na: " << a.state() << "\nb: " << b.state();
    if (::testing::Test::HasFatalFailure()) return;
  }
}

TEST(ChannelModel, RandomTrafficOverSharedMemoryArrivesInOrder) {
  for (unsigned seed = 1; seed <= 40; ++seed) {
    run_over_shm(seed);
    if (::testing::Test::HasFailure()) return;
  }
}

}  // namespace
}  // namespace sanproxy::channel::testing
