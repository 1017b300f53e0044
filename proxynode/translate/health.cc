// Health of application nodes: heartbeats of all, requests to the members of services that ask for
// it (docs/operating.md "Health of application nodes").

#include <algorithm>

#include "lwproto/daemon/log.h"
#include "proxynode/translate/translator.h"

namespace sanproxy::translate {
namespace {

constexpr std::uint64_t kNsPerMs = 1'000'000;
// However many nodes are due, they are looked through no more often than this.
constexpr std::uint64_t kLookEveryNs = 10 * kNsPerMs;

}  // namespace

bool first_line_complete(const std::string& answer) {
  return answer.size() >= Probe::kAnswerBytesMax || answer.find('\n') != std::string::npos;
}

bool answer_is_as_expected(const std::string& answer, const std::string& expect) {
  const std::string line = answer.substr(0, answer.find('\n'));
  return !answer.empty() && line.find(expect) != std::string::npos;
}

// Once channels have been polled: whoever has spoken meanwhile is not judged by an old silence.
void Translator::look_after_health() {
  const std::uint64_t now_ns = clock_.now_ns();
  if (now_ns >= nodes_due_ns_) look_after_nodes(now_ns);
  if (now_ns >= probes_due_ns_) look_after_probes(now_ns);
  if (now_ns >= listeners_due_ns_) open_listeners(now_ns);
}

// While channels are not polled nobody can be judged.
void Translator::postpone_health() {
  const std::uint64_t later_ns = clock_.now_ns() + kLookEveryNs;
  nodes_due_ns_ = std::max(nodes_due_ns_, later_ns);
  probes_due_ns_ = std::max(probes_due_ns_, later_ns);
}

// --- heartbeats

void Translator::look_after_nodes(std::uint64_t now_ns) {
  std::uint64_t next_ns = UINT64_MAX;
  for (AppNode* node : present_) {
    if (node->dead || node->channel->closed()) continue;
    if (node->heartbeat.due_ns() <= now_ns) look_after_node(*node, now_ns);
    next_ns = std::min(next_ns, node->heartbeat.due_ns());
  }
  nodes_due_ns_ = std::max(next_ns, now_ns + kLookEveryNs);
}

void Translator::look_after_node(AppNode& node, std::uint64_t now_ns) {
  const channel::ChannelCounters& c = node.channel->counters();
  const Heartbeat::Step step = node.heartbeat.look(now_ns, c.transfers_in, c.transfers_out);
  if (step.good) take_result(node, *step.good);
  const std::uint64_t dead_after_ns = node.from->dead_after_ms * kNsPerMs;
  if (dead_after_ns != 0 && node.heartbeat.silent_ns(now_ns) >= dead_after_ns) {
    ++counters_.channels_timed_out;
    node.channel->close(wire::CloseCode::kTimedOut, "it has not answered for dead_after_ms");
    return;
  }
  if (!step.ask) return;
  ++counters_.heartbeats;
  const wire::HeartbeatBody body{node.heartbeat.number(), node.from->dead_after_ms};
  send_or_owe(node, wire::MessageType::kHeartbeat, 0, wire::CloseCode::kNone, body, true);
}

void Translator::take_result(AppNode& node, bool good) {
  if (!good) ++counters_.heartbeats_missed;
  if (!node.heartbeat.on_result(good)) return;
  if (good) {
    ++counters_.nodes_came_up;
    spdlog::info("node {} \"{}\" answers again: it gets new connections", node.index, node.name);
  } else {
    ++counters_.nodes_went_down;
    spdlog::warn("node {} \"{}\" does not answer: no new connections for it; {} open ones stay",
                 node.index, node.name, node.open_streams);
  }
}

void Translator::on_heartbeat(AppNode& node, const wire::Message& message) {
  const channel::ChannelCounters& c = node.channel->counters();
  if (!node.heartbeat.answered(message.heartbeat.number, clock_.now_ns(), c.transfers_in,
                               c.transfers_out)) {
    node.channel->close(wire::CloseCode::kProtocolError, "an answer to no HEARTBEAT");
    return;
  }
  take_result(node, true);
  // With an interval below the time-out the next question is due before the answer would have been.
  nodes_due_ns_ = std::min(nodes_due_ns_, node.heartbeat.due_ns());
}

void Translator::set_heartbeat(const HeartbeatOptions& options) {
  if (options_.heartbeat == options) return;
  options_.heartbeat = options;
  for (AppNode* node : present_) node->heartbeat.set_options(options, clock_.now_ns());
  nodes_due_ns_ = 0;
}

// --- requests

void Translator::look_after_probes(std::uint64_t now_ns) {
  std::uint64_t next_ns = UINT64_MAX;
  for (Probe& probe : probes_) {
    if (probe.in_use && !probe.asked) send_probe(probe);
    if (probe.in_use && now_ns >= probe.deadline_ns) {
      end_probe(probe, false, "no answer in time", true);
    }
  }
  services_.for_each([&](service::Service& service) {
    if (!service.policy().health) return;
    service.for_each_member([&](service::Member& member) {
      if (member.being_probed) return;
      if (member.probe_at_ns <= now_ns && !draining_) begin_probe(service, member, now_ns);
      if (!member.being_probed) next_ns = std::min(next_ns, member.probe_at_ns);
    });
  });
  for (const Probe& probe : probes_) {
    if (probe.in_use) next_ns = std::min(next_ns, probe.deadline_ns);
  }
  probes_due_ns_ = next_ns == UINT64_MAX ? next_ns : std::max(next_ns, now_ns + kLookEveryNs);
}

void Translator::begin_probe(service::Service& service, service::Member& member,
                             std::uint64_t now_ns) {
  const service::HealthCheck& check = *service.policy().health;
  AppNode& node = *nodes_[member.node];
  member.probe_at_ns = now_ns + check.interval_ms * kNsPerMs;
  // Who does not answer at all need not be asked for more; the probe goes on when it does.
  if (node.dead || !node.heartbeat.up()) return;
  if (node.open_streams + node.open_probes >= node.channel->peer_hello().streams_max) return;
  // It takes not even what it is owed: that must not become more and more.
  if (!node.owed.empty()) return take_probe_result(service, member, false, "it takes nothing");
  const auto free = std::find_if(probes_.begin(), probes_.end(),
                                 [](const Probe& probe) { return !probe.in_use; });
  if (free == probes_.end()) {
    ++counters_.probes_deferred;
    member.probe_at_ns = now_ns;  // first come, first served, as soon as one ends
    return;
  }
  Probe& probe = *free;
  if ((++probe.generation & 0xff'ffffu) == 0) ++probe.generation;  // no id has generation 0
  const auto index = static_cast<std::uint32_t>(streams_.capacity() +
                                                static_cast<std::size_t>(free - probes_.begin()));
  probe.id = wire::make_connection_id(options_.epoch, probe.generation, index);
  probe.deadline_ns = now_ns + check.timeout_ms * kNsPerMs;
  probe.to_app = flow::SendWindow(node.channel->peer_hello().stream_window_bytes);
  probe.from_app = flow::ReceiveWindow(Probe::kAnswerBytesMax);
  probe.service = service.id();
  probe.membership = member.membership;
  probe.node = node.index;
  probe.in_use = true;
  probe.announced = probe.asked = probe.accepted = false;
  probe.answer.clear();
  ++probes_in_use_;
  ++node.open_probes;
  member.being_probed = true;
  ++counters_.probes;
  send_probe(probe);
}

// CONNECTION_REQUEST and the request, as far as there are credits.
void Translator::send_probe(Probe& probe) {
  AppNode& node = *nodes_[probe.node];
  service::Service* service = services_.find(probe.service);
  if (service == nullptr || !service->policy().health) {
    return end_probe(probe, false, "", probe.announced);
  }
  // Who has left meanwhile was told so, and is asked for nothing behind that.
  const service::Member* member = service->find(probe.node);
  if (!probe.announced && (member == nullptr || member->membership != probe.membership)) {
    return end_probe(probe, false, "", false);
  }
  const SocketAddress& local = service->address();
  if (!probe.announced) {
    wire::ConnectionRequestBody body{};
    body.connection = probe.id;
    body.service = probe.service;
    body.client = wire::to_wire(SocketAddress{{local.ip.family, {}}, 0});  // nobody: it is us
    body.local = wire::to_wire(local);
    body.send_window_bytes = Probe::kAnswerBytesMax;
    if (!node.channel
             ->send_stream_control(wire::MessageType::kConnectionRequest, 0, wire::CloseCode::kNone,
                                   body)
             .ok()) {
      return;
    }
    probe.announced = true;
  }
  const std::string& request = service->policy().health->request;
  if (request.size() > probe.to_app.available()) {
    return end_probe(probe, false, "its window is too small for the request", true);
  }
  if (!node.channel->send_data_inline(probe.id, 0, std::as_bytes(std::span(request))).ok()) return;
  probe.to_app.on_sent(static_cast<std::uint32_t>(request.size()));
  probe.asked = true;
}

void Translator::end_probe(Probe& probe, bool good, const char* why, bool say) {
  service::Member* const member = finish_probe(probe, say);
  service::Service* const service = services_.find(probe.service);
  if (member != nullptr && service->policy().health) {
    take_probe_result(*service, *member, good, why);
  }
}

// `say`: the application node does not know of the end yet. Returns who was asked.
service::Member* Translator::finish_probe(Probe& probe, bool say) {
  AppNode& node = *nodes_[probe.node];
  probe.in_use = false;
  --probes_in_use_;
  --node.open_probes;
  if (say && probe.announced) say_farewell(node, probe.id, 0, wire::CloseCode::kReset);
  service::Service* service = services_.find(probe.service);
  service::Member* member = service == nullptr ? nullptr : service->find(probe.node);
  // Those who have left meanwhile, or left and joined again, are others.
  if (member == nullptr || member->membership != probe.membership) return nullptr;
  member->being_probed = false;
  probes_due_ns_ = std::min(probes_due_ns_, member->probe_at_ns);
  return member;
}

// The service has another check now, by which the answer to an old question says nothing.
void Translator::forget_probes(service::ServiceId service) {
  for (Probe& probe : probes_) {
    if (probe.in_use && probe.service == service) (void)finish_probe(probe, true);
  }
}

void Translator::take_probe_result(service::Service& service, service::Member& member, bool good,
                                   const char* why) {
  ++(good ? counters_.probes_good : counters_.probes_bad);
  member.probe_trouble = good ? "" : why;
  const bool was_down = member.health.down();
  if (!member.health.on_result(good)) return;
  if (good) {
    if (was_down) ++counters_.members_came_up;
    spdlog::info("node {} \"{}\" is well at {}", member.node, member.name,
                 service.address().to_string());
  } else {
    ++counters_.members_went_down;
    spdlog::warn("node {} \"{}\" is not well at {} ({}): no new connections of it", member.node,
                 member.name, service.address().to_string(), why);
  }
}

void Translator::drop_probes(const AppNode& node) {
  if (node.open_probes == 0) return;
  for (Probe& probe : probes_) {
    if (probe.in_use && probe.node == node.index) end_probe(probe, false, "", false);
  }
}

void Translator::send_unsent_probes(const AppNode& node) {
  if (node.open_probes == 0) return;
  for (Probe& probe : probes_) {
    if (probe.in_use && !probe.asked && probe.node == node.index) send_probe(probe);
  }
}

// --- what application nodes say of probes

bool Translator::is_probe(std::uint64_t connection) const {
  const std::size_t index = wire::connection_index(connection);
  return index >= streams_.capacity() && index - streams_.capacity() < probes_.size();
}

// The probe that `node` may talk about under this id; nullptr after having dealt with it.
Probe* Translator::probe_for(AppNode& node, std::uint64_t connection) {
  Probe& probe = probes_[wire::connection_index(connection) - streams_.capacity()];
  const bool alive = probe.in_use && probe.id == connection;
  if (alive && probe.node == node.index && probe.announced) return &probe;
  const auto generation =
      static_cast<std::uint32_t>(connection >> wire::kConnectionIndexBits) & 0xff'ffffu;
  const bool reached = generation <= probe.generation || probe.generation > 0xff'ffffu;
  if (!alive && (connection >> 48) == options_.epoch && generation != 0 && reached) {
    ++counters_.late_messages;
    return nullptr;
  }
  node.channel->close(wire::CloseCode::kNotFound, "unknown connection");
  return nullptr;
}

void Translator::breach_probe(AppNode& node, Probe& probe) {
  ++counters_.closed_protocol;
  if (may_log()) {
    spdlog::warn("node {} broke the protocol on connection {:x}, a probe", node.index, probe.id);
  }
  say_farewell(node, probe.id, 0, wire::CloseCode::kProtocolError);
  end_probe(probe, false, "it broke the protocol", false);
}

void Translator::on_probe_data(AppNode& node, std::uint64_t connection, std::uint64_t offset,
                               const channel::Payload& payload) {
  Probe* probe = probe_for(node, connection);
  if (probe == nullptr) return;
  if (!probe->accepted || !probe->from_app.on_data(offset, payload.length).ok()) {
    return breach_probe(node, *probe);
  }
  for (const fabric::Segment& piece : payload.pieces) {
    probe->answer.append(reinterpret_cast<const char*>(piece.data), piece.length);
  }
  if (first_line_complete(probe->answer)) judge_probe(*probe, true);
}

void Translator::judge_probe(Probe& probe, bool say) {
  const service::Service* service = services_.find(probe.service);
  const bool good = service != nullptr && service->policy().health &&
                    answer_is_as_expected(probe.answer, service->policy().health->expect);
  end_probe(probe, good, good ? "" : "another answer than expected", say);
}

// ACCEPT, REJECT, CLOSE and CREDIT: each begins with the connection.
void Translator::on_probe_message(AppNode& node, const wire::Message& message) {
  Probe* probe = probe_for(node, message.close.connection);
  if (probe == nullptr) return;
  using wire::MessageType;
  switch (message.type) {
    case MessageType::kAcceptConnection:
      if (probe->accepted ||
          message.accept.send_window_bytes != node.channel->peer_hello().stream_window_bytes) {
        return breach_probe(node, *probe);
      }
      probe->accepted = true;
      return;
    case MessageType::kRejectConnection:
      if (probe->accepted) return breach_probe(node, *probe);
      return end_probe(*probe, false, "it rejects", false);
    case MessageType::kCloseConnection: {
      const bool fin = message.code == wire::CloseCode::kFin;
      if (!fin && message.code != wire::CloseCode::kFinBoth) {
        return end_probe(*probe, false, "it ended the connection", false);
      }
      if (!probe->accepted || message.close.offset != probe->from_app.received()) {
        return breach_probe(node, *probe);
      }
      return judge_probe(*probe, fin);  // after kFinBoth there is nothing to say
    }
    case MessageType::kCredit:
      if (message.credit.acked_offset != 0 ||
          !probe->to_app.on_credit(message.credit.freed_offset, 0).ok()) {
        return breach_probe(node, *probe);
      }
      return;
    default:
      return;
  }
}

}  // namespace sanproxy::translate
