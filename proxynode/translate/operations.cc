// What operators change while the proxy runs: policies of services, and who is out for new
// connections (docs/cluster.md, docs/sanctl.md).

#include "lwproto/cluster/model.h"
#include "lwproto/daemon/log.h"
#include "proxynode/translate/translator.h"

namespace sanproxy::translate {
namespace {

constexpr std::uint64_t kListenPauseNs = 1'000'000'000;

}  // namespace

void Translator::set_policy(const SocketAddress& address, std::optional<service::Policy> policy) {
  service::Service* const live = services_.find(address);
  const auto check = live == nullptr ? std::nullopt : live->policy().health;
  services_.override_policy(address, std::move(policy));
  if (live != nullptr && live->policy().health != check) forget_probes(live->id());
  probes_due_ns_ = 0;
  // A list for every address, or for one of them, decides about members of other services as well.
  struct Member {
    service::ServiceId service;
    service::NodeId node;
  };
  std::vector<Member> out;
  services_.for_each([&](service::Service& service) {
    for (const service::Member& member : service.members()) {
      const AppNode& node = *nodes_[member.node];
      service::JoinRequest request;
      request.address = service.address();
      request.node = node.index;
      request.name = node.name;
      request.who = node.who;
      request.otherwise = node.from->allow;
      if (!services_.permits(request)) out.push_back({service.id(), member.node});
    }
  });
  for (const Member& one : out) {
    // The first may have been the last of its service.
    if (service::Service* service = services_.find(one.service)) {
      expel(*service, *nodes_[one.node]);
    }
  }
}

void Translator::expel(service::Service& service, AppNode& node) {
  spdlog::warn("node {} \"{}\" is not allowed at {} any more", node.index, node.name,
               service.address().to_string());
  ++counters_.expelled;
  tell_end(node, {wire::MessageType::kShutdownService, 0, wire::CloseCode::kNotPermitted,
                  wire::ServiceBody{service.id(), 0}, service.find(node.index)->membership});
  leave_service(service.id(), node);
}

void Translator::set_paused(bool paused) {
  if (paused_ == paused || draining_) return;
  paused_ = paused;
  if (!paused) return open_listeners(clock_.now_ns());
  services_.for_each([&](service::Service& service) { close_listener(service); });
}

// Those for which there is no memory are tried again later: to their nodes they are joined.
void Translator::open_listeners(std::uint64_t now_ns) {
  listeners_due_ns_ = UINT64_MAX;
  if (paused_ || draining_) return;
  services_.for_each([&](service::Service& service) {
    if (service.listening) return;
    if (const Status status = open_listener(service); !status.ok()) {
      listeners_due_ns_ = now_ns + kListenPauseNs;
      if (may_log()) {
        spdlog::error("service {} cannot be opened again yet: {}", service.address().to_string(),
                      status.to_string());
      }
    }
  });
}

// Like weights: by the whole name, or by what stands before its last ':'.
bool Translator::name_is_drained(const std::string& name) const {
  return drained_names_.contains(name) ||
         drained_names_.contains(std::string(cluster::name_before_pid(name)));
}

std::vector<std::string> Translator::drained_names() const {
  std::vector<std::string> out;
  for (const auto& [name, by] : drained_names_) out.push_back(name);
  return out;
}

bool Translator::is_drained(const std::string& node_name, DrainedBy by) const {
  const auto it = drained_names_.find(node_name);
  return it != drained_names_.end() && (it->second & static_cast<std::uint8_t>(by)) != 0;
}

void Translator::set_drained(const std::string& node_name, bool drained, DrainedBy by) {
  const auto bit = static_cast<std::uint8_t>(by);
  ++drain_changes_;
  std::uint8_t& all = drained_names_[node_name];
  all = static_cast<std::uint8_t>(drained ? all | bit : all & ~bit);
  if (all == 0) drained_names_.erase(node_name);
  for (AppNode* node : present_) {
    const bool now = name_is_drained(node->name);
    if (node->drained != now) {
      spdlog::info("node {} \"{}\" {}", node->index, node->name,
                   now ? "gets no new connections" : "gets connections again");
    }
    node->drained = now;
  }
}

}  // namespace sanproxy::translate
