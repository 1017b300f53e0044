// Random joins, leaves, picks and ends, against a model that counts everything the slow way.
#include <map>
#include <optional>
#include <random>
#include <set>

#include "tests/proxynode/service/service_fixture.h"

namespace sanproxy::service::testing {
namespace {

constexpr std::uint32_t kServicesMax = 4;
constexpr std::uint32_t kNodes = 6;

struct ModelMember {
  std::uint32_t weight = 1, connections_max = 0, connections = 0;
};
struct ModelService {
  ServiceId id = 0;
  Balance balance = Balance::kRoundRobin;
  std::map<NodeId, ModelMember> members;
};

class Model {
 public:
  explicit Model(unsigned seed)
      : random_(seed),
        table_({Policy{.address = at(0), .balance = Balance::kWeighted},
                Policy{.address = at(1), .balance = Balance::kLeastConnections},
                Policy{.address = at(2), .allow = AllowList{uid(33)}}},
               kServicesMax) {}

  void step() {
    switch (below(10)) {
      case 0:
      case 1:
        return join();
      case 2:
        return leave();
      case 3:
      case 4:
        return unbind();
      default:
        return pick();
    }
  }
  void check() {
    ASSERT_EQ(table_.size(), services_.size());
    for (const auto& [where, model] : services_) {
      Service* service = table_.find(model.id);
      ASSERT_NE(service, nullptr);
      EXPECT_EQ(service->address(), where);
      ASSERT_EQ(service->members().size(), model.members.size());
      for (const auto& [node, member] : model.members) {
        const Member* real = service->find(node);
        ASSERT_NE(real, nullptr);
        EXPECT_EQ(real->connections, member.connections);
      }
    }
    for (NodeId node = 0; node < kNodes; ++node) {
      std::set<ServiceId> expected;
      for (const auto& [where, model] : services_) {
        if (model.members.count(node) != 0) expected.insert(model.id);
      }
      const auto got = table_.services_of(node);
      EXPECT_EQ(std::set<ServiceId>(got.begin(), got.end()), expected);
    }
  }

 private:
  static SocketAddress at(std::uint32_t i) { return {kWeb.ip, static_cast<std::uint16_t>(80 + i)}; }
  std::uint32_t below(std::uint32_t n) { return static_cast<std::uint32_t>(random_() % n); }

  void join() {
    JoinRequest ask = request(below(kNodes), at(below(6)), 1 + below(5), below(4));
    ask.who.uid = below(2) == 0 ? 33 : 1000;
    const auto it = services_.find(ask.address);
    std::optional<Code> refusal;
    if (ask.address == at(2) && ask.who.uid != 33) {
      refusal = Code::kPermission;
    } else if (it != services_.end() && it->second.members.count(ask.node) != 0) {
      refusal = Code::kExists;
    } else if (it == services_.end() && services_.size() == kServicesMax) {
      refusal = Code::kExhausted;
    }
    auto joined = table_.join(ask);
    ASSERT_EQ(joined.ok(), !refusal);
    if (refusal) {
      ASSERT_EQ(joined.status().code(), *refusal);
      return;
    }
    ASSERT_EQ(joined->created, it == services_.end());
    ModelService& service = services_[ask.address];
    if (joined->created) {
      ASSERT_TRUE(ids_.insert(joined->service->id()).second) << "an id came back";
      service.id = joined->service->id();
      service.balance = joined->service->policy().balance;
    }
    service.members[ask.node] = {ask.weight, ask.connections_max, 0};
  }

  ModelService* any_service(SocketAddress* where = nullptr) {
    if (services_.empty()) return nullptr;
    auto it = services_.begin();
    std::advance(it, below(static_cast<std::uint32_t>(services_.size())));
    if (where != nullptr) *where = it->first;
    return &it->second;
  }

  void leave() {
    SocketAddress where;
    ModelService* service = any_service(&where);
    if (service == nullptr) return;
    const NodeId node = below(kNodes);
    const auto last = table_.leave(service->id, node);
    ASSERT_EQ(last.ok(), service->members.erase(node) == 1);
    if (!last.ok()) return;
    ASSERT_EQ(*last, service->members.empty());
    if (!*last) return;
    table_.erase(service->id);
    services_.erase(where);
  }

  void unbind() {
    ModelService* service = any_service();
    if (service == nullptr) return;
    for (auto& [node, member] : service->members) {
      if (member.connections == 0 || below(2) == 0) continue;
      --member.connections;
      Service& real = *table_.find(service->id);
      real.unbind(node, real.find(node)->membership);
      return;
    }
  }

  void pick() {
    ModelService* service = any_service();
    if (service == nullptr) return;
    const std::uint32_t mask = below(1u << kNodes) | below(1u << kNodes);
    const auto eligible = [mask](NodeId node) { return (mask >> node & 1) != 0; };
    std::map<NodeId, ModelMember*> usable;
    for (auto& [node, member] : service->members) {
      const bool full = member.connections_max != 0 && member.connections >= member.connections_max;
      if (eligible(node) && !full) usable[node] = &member;
    }
    const Member* picked = table_.find(service->id)->pick(eligible);
    ASSERT_EQ(picked != nullptr, !usable.empty());
    if (picked == nullptr) return;
    ASSERT_EQ(usable.count(picked->node), 1u);
    ModelMember& chosen = *usable.at(picked->node);
    if (service->balance == Balance::kLeastConnections) {
      for (const auto& [node, member] : usable) {
        ASSERT_LE(std::uint64_t{chosen.connections} * member->weight,
                  std::uint64_t{member->connections} * chosen.weight);
      }
    }
    ++chosen.connections;
  }

  std::mt19937 random_;
  ServiceTable table_;
  std::map<SocketAddress, ModelService> services_;
  std::set<ServiceId> ids_;
};

TEST(ServiceModel, RandomHistoriesAgreeWithTheSlowModel) {
  for (unsigned seed = 1; seed <= 60; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Model model(seed);
    for (int step = 0; step < 2000; ++step) {
      model.step();
      if (step % 16 == 0) model.check();
      if (::testing::Test::HasFatalFailure()) return;
    }
  }
}

}  // namespace
}  // namespace sanproxy::service::testing
