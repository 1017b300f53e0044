// Random traffic: clients and nodes that send, stall, half-close, reset and die at random times.
// Every byte of every connection that nobody cut arrives; of the others, only a prefix.
#include <random>

#include "tests/proxynode/translate/world.h"

namespace sanproxy::translate::testing {
namespace {

struct Setting {
  const char* name;
  Delivery delivery;
  bool shm, lend;
};

struct Flow {
  Client* client = nullptr;
  Node* node = nullptr;
  std::uint64_t id = 0;
  Bytes up, down;
  std::size_t up_given = 0;
  bool cut = false;  // by whoever: only prefixes arrive
  bool complete() const {
    return cut ||
           (node != nullptr && client->finished() && client->received.size() == down.size() &&
            node->conns.at(id).received.size() == up.size());
  }
};

class Traffic : public World, public ::testing::WithParamInterface<Setting> {
 protected:
  static constexpr std::size_t kFlows = 40;

  std::uint32_t below(std::uint32_t n) { return static_cast<std::uint32_t>(random_() % n); }
  bool one_in(std::uint32_t n) { return below(n) == 0; }

  void start(unsigned seed) {
    random_.seed(seed);
    WorldOptions options;
    options.delivery = GetParam().delivery;
    options.shm = GetParam().shm;
    options.lend_ingress = GetParam().lend;
    options.credits = 16 + below(64);
    // Tight: regions and receive slots run out, and then connections may be reset for it.
    tight_ = seed % 2 == 0;
    options.ingress_slots = tight_ ? 24 + below(40) : 256;
    options.translator.channel_region_bytes = (tight_ ? 4 + below(12) : 256) * std::size_t{65'536};
    options.translator.nodes_max = 64;  // the dead stay while they have connections to finish
    options.translator.send_window_bytes = options.stack.send_buffer_bytes =
        65'536 * (1 + below(4));
    options.stack.receive_window_bytes = 65'536 * (1 + below(4));
    make(options);
    add_worker();
    add_worker();
  }
  void add_worker() {
    Node& node = add_node({.name = "w" + std::to_string(nodes_.size()),
                           .credits = 8 + below(56),
                           .reserve = 1 + below(4),
                           .window_bytes = 1 + below(300'000)});
    node.join(kWeb);
    (void)node.round();
    proxy_round();
    node.piece_bytes = 1 + below(65'536);
    members_.push_back(&node);
  }
  std::size_t size() {
    return one_in(3) ? below(50) + 1 : one_in(2) ? below(3000) + 1 : below(150'000) + 1;
  }

  void open_flow() {
    flows_.emplace_back();
    Flow& flow = flows_.back();
    flow.up = pattern(size(), random_());
    flow.down = pattern(size(), random_());
    clients_.emplace_back();
    flow.client = &clients_.back();
    flow.client->other = *SocketAddress::parse(kWeb);
    flow.client->self = {*IpAddress::parse("10.77.0.1"), next_port_++};
    flow.client->segment_bytes = one_in(3) ? 1 + below(60'000) : 1460;
    flow.client->connect();
  }
  void feed(Flow& flow) {
    const std::size_t left = flow.up.size() - flow.up_given;
    const std::size_t bytes = one_in(4) ? left : std::min<std::size_t>(left, 1 + below(20'000));
    const auto at = flow.up.begin() + static_cast<std::ptrdiff_t>(flow.up_given);
    flow.client->send(Bytes(at, at + static_cast<std::ptrdiff_t>(bytes)));
    flow.up_given += bytes;
    if (flow.up_given == flow.up.size()) flow.client->shut();
  }
  // The nodes' side of new connections.
  void answer_new() {
    for (Node* node : members_) {
      std::size_t& seen = seen_[node];
      for (; seen < node->order.size(); ++seen) {
        const std::uint64_t id = node->order[seen];
        const auto port = wire::from_wire(node->conns[id].request.client)->port;
        for (Flow& flow : flows_) {
          if (flow.client->self.port != port) continue;
          EXPECT_EQ(flow.node, nullptr) << "one connection, two nodes";
          flow.node = node;
          flow.id = id;
          node->send(id, flow.down);
          node->close(id);
        }
      }
    }
  }
  void disturb() {
    Flow& flow = flows_[below(static_cast<std::uint32_t>(flows_.size()))];
    Node& node = *members_[below(static_cast<std::uint32_t>(members_.size()))];
    switch (below(12)) {
      case 0:
        node.stopped = !node.stopped;
        break;
      case 1:
        node.free = !node.free;
        if (node.free) free_everything(node);
        break;
      case 2:
        node.hold = !node.hold;
        if (!node.hold) node.release_held();
        break;
      case 3:
        flow.client->acknowledge = !flow.client->acknowledge;
        break;
      case 4:
        flow.client->send_again();
        break;
      case 5:
        clock_.advance_ns(20'000'000);
        break;
      case 6:
        if (one_in(4)) cut_client(flow);
        break;
      case 7:
        if (one_in(4)) cut_application(flow);
        break;
      case 8:
        if (one_in(16)) kill(node);
        break;
      default:
        feed(flow);
    }
  }
  void cut_client(Flow& flow) {
    if (!flow.client->connected) return;
    flow.cut = true;
    flow.client->send_reset();
  }
  void cut_application(Flow& flow) {
    if (flow.node == nullptr || !flow.node->alive()) return;
    flow.cut = true;
    flow.node->close(flow.id, CloseCode::kReset);
  }
  void kill(Node& node) {
    for (Flow& flow : flows_) flow.cut = flow.cut || flow.node == &node;
    // Those that it has been given and not read of yet are cut as well.
    victims_killed_ = true;
    node.die();
    std::erase(members_, &node);
    step();
    if (members_.size() < 2) add_worker();
  }
  static void free_everything(Node& node) {
    for (auto& [id, conn] : node.conns) {
      if (!conn.ended()) node.free_all(id);
    }
  }

  // Its node has been told why, or has not heard of it at all.
  static bool for_memory(const Flow& flow) {
    if (flow.node == nullptr) return true;
    const auto& closes = flow.node->conns.at(flow.id).closes;
    return !closes.empty() && closes.back() == CloseCode::kLimitReached;
  }
  static std::string describe(const Flow& flow) {
    std::string out = "port " + std::to_string(flow.client->self.port) + ": down " +
                      std::to_string(flow.client->received.size()) + "/" +
                      std::to_string(flow.down.size()) + ", up ";
    if (flow.node != nullptr) {
      const Node::Conn& conn = flow.node->conns.at(flow.id);
      out += std::to_string(conn.received.size()) + "/" + std::to_string(flow.up.size()) +
             ", closed " + std::to_string(conn.closes.size()) + " times";
      if (!conn.closes.empty()) out += std::string(", ") + close_code_name(conn.closes.back());
    } else {
      out += "at no node, acknowledged " + std::to_string(flow.client->acknowledged());
    }
    return out + (flow.client->finished() ? ", finished" : ", open");
  }

  void finish() {
    for (Node* node : members_) {
      node->stopped = node->hold = false;
      node->free = true;
      node->release_held();
      free_everything(*node);
    }
    for (Flow& flow : flows_) flow.client->acknowledge = true;
    for (int round = 0; round < 3000; ++round) {
      bool done = true;
      for (Flow& flow : flows_) {
        if (flow.client->connected) feed(flow);
        // Bound to a node that died before it read of it.
        if (victims_killed_ && flow.client->reset && flow.node == nullptr) flow.cut = true;
        if (flow.client->reset && !flow.cut) {
          EXPECT_TRUE(tight_ && for_memory(flow))
              << "a reset that nobody asked for: " << describe(flow);
          flow.cut = true;
        }
        done = done && flow.complete();
        if (round % 8 == 7) flow.client->send_again();
      }
      if (done) return;
      run_ms(20);
      answer_new();
    }
    for (const Flow& flow : flows_) {
      EXPECT_TRUE(flow.complete()) << describe(flow);
    }
  }
  void verify() {
    const auto starts = [](const Bytes& whole, const Bytes& part) {
      return part.size() <= whole.size() && std::equal(part.begin(), part.end(), whole.begin());
    };
    std::size_t whole = 0;
    for (const Flow& flow : flows_) {
      EXPECT_TRUE(starts(flow.down, flow.client->received));
      if (flow.node != nullptr) {
        EXPECT_TRUE(starts(flow.up, flow.node->conns.at(flow.id).received));
      }
      if (!flow.cut) ++whole;
    }
    EXPECT_GT(whole, 0u);
    EXPECT_EQ(counters().closed_protocol, 0u);
    EXPECT_EQ(counters().channels_breached, 0u);
  }

  std::mt19937 random_;
  std::deque<Flow> flows_;
  std::vector<Node*> members_;
  std::map<Node*, std::size_t> seen_;
  bool victims_killed_ = false;
  bool tight_ = false;
};

class TrafficSeeds : public Traffic {};

TEST_P(TrafficSeeds, EveryByteOfEveryUncutConnectionArrives) {
  const unsigned seeds = GetParam().shm ? 15 : 40;
  for (unsigned seed = 1; seed <= seeds; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    start(seed);
    while (flows_.size() < kFlows) {
      if (flows_.empty() || one_in(6)) open_flow();
      disturb();
      step();
      answer_new();
    }
    finish();
    verify();
    flows_.clear();
    World::TearDown();
    members_.clear();
    seen_.clear();
    clients_.clear();
    strays_.clear();
    opened_.clear();
    closed_.clear();
    victims_killed_ = false;
    if (HasFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(Fabric, TrafficSeeds,
                         ::testing::Values(Setting{"Isolated", Delivery::kLoans, false, false},
                                           Setting{"Lent", Delivery::kLoans, false, true},
                                           Setting{"Copied", Delivery::kReceiveBuffers, false,
                                                   true},
                                           Setting{"IsolatedShm", Delivery::kLoans, true, false},
                                           Setting{"LentShm", Delivery::kLoans, true, true}),
                         [](const auto& param) { return std::string(param.param.name); });

}  // namespace
}  // namespace sanproxy::translate::testing
