#include "proxynode/service/service_table.h"

#include <algorithm>

#include "lwproto/cluster/model.h"

namespace sanproxy::service {

const char* balance_name(Balance balance) {
  switch (balance) {
    case Balance::kRoundRobin:
      return "round-robin";
    case Balance::kWeighted:
      return "weighted";
    case Balance::kLeastConnections:
      return "least-connections";
  }
  return "unknown";
}

Service::Service(ServiceId id, const Policy& policy) : id_(id), policy_(policy) {}

bool Service::immediate() const {
  if (policy_.binding == Binding::kAsJoined) return immediate_members_ != 0;
  return policy_.binding == Binding::kImmediate;
}

Member* Service::find(NodeId node) {
  const auto it = std::find_if(members_.begin(), members_.end(),
                               [node](const Member& m) { return m.node == node; });
  return it == members_.end() ? nullptr : &*it;
}

void Service::for_each_member(const std::function<void(Member&)>& fn) {
  for (Member& member : members_) fn(member);
}

Member* Service::pick(const std::function<bool(NodeId)>& eligible) {
  const auto usable = [&](NodeId node) { return eligible(node); };
  Member* member = nullptr;
  switch (policy_.balance) {
    case Balance::kRoundRobin:
      member = pick_round_robin(usable);
      break;
    case Balance::kWeighted:
      member = pick_weighted(usable);
      break;
    case Balance::kLeastConnections:
      member = pick_least_connections(usable);
      break;
  }
  if (member == nullptr) return nullptr;
  ++member->connections;
  ++member->picked;
  return member;
}

namespace {

bool takes_none(const Member& m) {
  return m.health.down() || (m.connections_max != 0 && m.connections >= m.connections_max);
}

}  // namespace

Member* Service::pick_round_robin(const std::function<bool(NodeId)>& usable) {
  for (std::size_t tried = 0; tried < members_.size(); ++tried) {
    Member& m = members_[next_++ % members_.size()];
    if (!takes_none(m) && usable(m.node)) return &m;
  }
  return nullptr;
}

// Smooth weighted round-robin: each usable member gains its weight, the richest is picked and
// pays the sum. Over sum(weights) picks every member is picked exactly `weight` times. Nobody owns
// or owes more than the sum: what is beyond it is from other weights or other members, and would
// shut somebody out until it is paid.
Member* Service::pick_weighted(const std::function<bool(NodeId)>& usable) {
  candidates_.clear();
  std::int64_t total = 0;
  for (Member& m : members_) {
    if (takes_none(m) || !usable(m.node)) continue;
    candidates_.push_back(&m);
    total += m.weight;
  }
  Member* best = nullptr;
  for (Member* m : candidates_) {
    m->current_weight = std::clamp(m->current_weight, -total, total) + m->weight;
    if (best == nullptr || m->current_weight > best->current_weight) best = m;
  }
  if (best != nullptr) best->current_weight -= total;
  return best;
}

// Fewest connections for its weight; ties go round, so that idle members share new connections.
Member* Service::pick_least_connections(const std::function<bool(NodeId)>& usable) {
  Member* best = nullptr;
  const std::size_t start = next_++;
  for (std::size_t i = 0; i < members_.size(); ++i) {
    Member& m = members_[(start + i) % members_.size()];
    if (takes_none(m) || !usable(m.node)) continue;
    if (best == nullptr ||
        std::uint64_t{m.connections} * best->weight < std::uint64_t{best->connections} * m.weight) {
      best = &m;
    }
  }
  return best;
}

void Service::unbind(NodeId node, std::uint32_t membership) {
  Member* m = find(node);
  if (m != nullptr && m->membership == membership && m->connections > 0) --m->connections;
}

// By the whole name, or by what stands before the PID.
void Service::weigh(Member& member) const {
  const auto& weights = policy_.weights;
  auto found = weights.find(member.name);
  if (found == weights.end()) {
    found = weights.find(std::string(cluster::name_before_pid(member.name)));
  }
  member.weight = found != weights.end() ? found->second : member.joined_weight;
}

// Anew: nothing is known of it until the first result.
void Service::examine(Member& member) const {
  member.health = policy_.health ? flow::Health(policy_.health->thresholds) : flow::Health();
  member.probe_at_ns = 0;
  member.probe_trouble = "";
}

ServiceTable::ServiceTable(std::vector<Policy> policies, std::uint32_t services_max)
    : configured_(std::move(policies)), policies_(configured_), services_max_(services_max) {}

void ServiceTable::override_policy(const SocketAddress& address, std::optional<Policy> policy) {
  const auto is_it = [&](const Policy& one) { return one.address == address; };
  if (!policy) {
    const auto own = std::find_if(configured_.begin(), configured_.end(), is_it);
    if (own != configured_.end()) policy = *own;
  }
  Policy in_force = policy.value_or(Policy{});
  in_force.address = address;
  std::erase_if(policies_, is_it);
  if (policy) policies_.push_back(in_force);
  Service* const live = find(address);
  if (live == nullptr) return;
  Service& service = *live;
  const bool same_health = service.policy_.health == in_force.health;
  service.policy_ = std::move(in_force);
  for (Member& member : service.members_) {
    service.weigh(member);
    if (!same_health) service.examine(member);
  }
}

const Policy* ServiceTable::policy_for(const SocketAddress& address) const {
  for (const Policy& policy : policies_) {
    if (policy.address == address) return &policy;
  }
  return nullptr;
}

// The list of the address itself decides; without one that of "every address" at its port; without
// that one the fabric's. Who joins "every address" gets the connections of each that nobody serves
// by name, so the lists of all these must allow it as well.
bool ServiceTable::permits(const JoinRequest& request) const {
  const SocketAddress& address = request.address;
  const SocketAddress every = {{address.ip.family, {}}, address.port};
  const AllowList* list = &request.otherwise;
  for (const SocketAddress& at : {every, address}) {
    const Policy* policy = policy_for(at);
    if (policy != nullptr && policy->allow) list = &*policy->allow;
  }
  if (!allows(*list, request.who)) return false;
  if (address != every) return true;
  return std::all_of(policies_.begin(), policies_.end(), [&](const Policy& policy) {
    const bool covered =
        policy.address.port == address.port && policy.address.ip.family == address.ip.family;
    return !covered || !policy.allow || allows(*policy.allow, request.who);
  });
}

Result<ServiceTable::Joined> ServiceTable::join(const JoinRequest& request) {
  if (!permits(request)) {
    return Status::error(Code::kPermission, "no allow list of the service names this node");
  }
  const Policy* policy = policy_for(request.address);
  Service* service = nullptr;
  bool created = false;
  if (const auto it = by_address_.find(request.address); it != by_address_.end()) {
    service = services_.at(it->second).get();
    if (service->find(request.node) != nullptr) {
      return Status::error(Code::kExists, "this node has joined the service already");
    }
  } else {
    if (services_.size() >= services_max_) {
      return Status::error(Code::kExhausted, "services_max is reached");
    }
    Policy fresh;
    if (policy != nullptr) fresh = *policy;
    fresh.address = request.address;
    auto owned = std::make_unique<Service>(next_id_++, fresh);
    service = owned.get();
    by_address_[request.address] = service->id();
    services_[service->id()] = std::move(owned);
    created = true;
  }
  Member member;
  member.node = request.node;
  member.membership = ++service->memberships_;
  member.name = request.name;
  member.joined_weight = std::max<std::uint32_t>(request.weight, 1);
  service->weigh(member);
  service->examine(member);
  member.connections_max = request.connections_max;
  member.immediate = request.immediate;
  if (member.immediate) ++service->immediate_members_;
  service->members_.push_back(member);
  return Joined{service, created};
}

Result<bool> ServiceTable::leave(ServiceId id, NodeId node) {
  Service* service = find(id);
  if (service == nullptr) return Status::error(Code::kNotFound, "no such service");
  const Member* member = service->find(node);
  if (member == nullptr) {
    return Status::error(Code::kNotFound, "this node is no member of the service");
  }
  if (member->immediate) --service->immediate_members_;
  service->members_.erase(service->members_.begin() + (member - service->members_.data()));
  return service->members_.empty();
}

void ServiceTable::erase(ServiceId id) {
  const auto it = services_.find(id);
  if (it == services_.end()) return;
  by_address_.erase(it->second->address());
  services_.erase(it);
}

Service* ServiceTable::find(const SocketAddress& address) {
  const auto it = by_address_.find(address);
  return it == by_address_.end() ? nullptr : find(it->second);
}

Service* ServiceTable::find(ServiceId id) {
  const auto it = services_.find(id);
  return it == services_.end() ? nullptr : it->second.get();
}

std::vector<ServiceId> ServiceTable::services_of(NodeId node) const {
  std::vector<ServiceId> out;
  for (const auto& [id, service] : services_) {
    if (service->find(node) != nullptr) out.push_back(id);
  }
  return out;
}

void ServiceTable::for_each(const std::function<void(Service&)>& fn) {
  for (auto& [id, service] : services_) fn(*service);
}

}  // namespace sanproxy::service
