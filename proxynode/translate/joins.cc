// JOIN, LEAVE and SHUTDOWN: services come and go with the application nodes that serve them.

#include "lwproto/daemon/log.h"
#include "proxynode/translate/translator.h"

namespace sanproxy::translate {
namespace {

wire::CloseCode code_of(const Status& status) {
  switch (status.code()) {
    case Code::kPermission:
      return wire::CloseCode::kNotPermitted;
    case Code::kExhausted:
      return wire::CloseCode::kLimitReached;
    case Code::kExists:
      return wire::CloseCode::kAddressInUse;
    default:
      return wire::CloseCode::kRefused;
  }
}

// 0 for who is no member.
std::uint32_t membership_of(service::Service* service, service::NodeId node) {
  const service::Member* member = service == nullptr ? nullptr : service->find(node);
  return member == nullptr ? 0 : member->membership;
}

}  // namespace

void Translator::on_join(AppNode& node, const wire::Message& message) {
  wire::JoinServiceBody answer = message.join;
  answer.service = 0;
  const auto address = wire::from_wire(message.join.address);
  const auto refuse = [&](wire::CloseCode code, const char* why) {
    ++counters_.joins_refused;
    if (code == wire::CloseCode::kNotPermitted) ++counters_.joins_not_permitted;
    if (code == wire::CloseCode::kLimitReached) ++counters_.joins_limited;
    if (may_log()) {
      spdlog::warn("node {} \"{}\" ({}) may not join {}: {} ({})", node.index, node.name,
                   node.peer.address, address.ok() ? address->to_string() : "?", why,
                   wire::close_code_name(code));
    }
    send_or_owe(node, wire::MessageType::kJoinService, wire::kFlagAnswer, code, answer, true);
  };
  if (!address.ok()) return refuse(wire::CloseCode::kProtocolError, "address");
  if (address->port == 0) return refuse(wire::CloseCode::kProtocolError, "port 0");
  // No segment to such an address is taken (RFC 9293, MUST-57), so no client would ever come.
  if (!address->ip.is_any() && !address->ip.is_unicast()) {
    return refuse(wire::CloseCode::kRefused, "it is the address of no host");
  }
  if (draining_) return refuse(wire::CloseCode::kProxyShutdown, "the proxy is shutting down");

  const std::uint64_t now_ns = clock_.now_ns();
  if (!limiter_.may_try(node.peer_key, now_ns)) {
    return refuse(wire::CloseCode::kLimitReached, "too many attempts");
  }

  service::JoinRequest request;
  request.address = *address;
  request.node = node.index;
  request.name = node.name;
  request.who = node.who;
  request.otherwise = node.from->allow;
  request.weight = message.join.weight;
  request.connections_max = message.join.connections_max;
  request.immediate = (message.flags & wire::kFlagImmediate) != 0;
  auto joined = services_.join(request);
  if (!joined.ok()) {
    if (joined.status().code() == Code::kPermission) limiter_.on_failure(node.peer_key, now_ns);
    return refuse(code_of(joined.status()), joined.status().text());
  }
  service::Service& service = *joined->service;
  if (joined->created) {
    if (const Status status = paused_ ? Status() : open_listener(service); !status.ok()) {
      (void)services_.leave(service.id(), node.index);
      services_.erase(service.id());
      return refuse(code_of(status), status.text());
    }
    host_.on_service_opened(*address);
  }
  answer.service = service.id();
  node.has_joined = true;
  if (service.policy().health) probes_due_ns_ = 0;
  ++counters_.joins;
  if (may_log_member()) {
    spdlog::info("node {} \"{}\" joined {} (weight {}, {} members)", node.index, node.name,
                 address->to_string(), request.weight, service.members().size());
  }
  send_or_owe(node, wire::MessageType::kJoinService, wire::kFlagAnswer, wire::CloseCode::kNone,
              answer, true);
}

void Translator::leave_service(service::ServiceId id, AppNode& node) {
  const auto last = services_.leave(id, node.index);
  if (!last.ok()) return;
  ++counters_.leaves;
  service::Service& service = *services_.find(id);
  if (may_log_member()) {
    spdlog::info("node {} \"{}\" left {} ({} members)", node.index, node.name,
                 service.address().to_string(), service.members().size());
  }
  if (*last) close_service(service, wire::CloseCode::kNone, kNone);
}

void Translator::on_leave(AppNode& node, const wire::Message& message) {
  service::Service* service = services_.find(message.service.service);
  const std::uint32_t membership = membership_of(service, node.index);
  if (membership != 0) leave_service(message.service.service, node);
  tell_end(node, {wire::MessageType::kLeaveService, wire::kFlagAnswer,
                  membership != 0 ? wire::CloseCode::kNone : wire::CloseCode::kNotFound,
                  message.service, membership});
}

void Translator::on_shutdown_service(AppNode& node, const wire::Message& message) {
  service::Service* service = services_.find(message.service.service);
  const std::uint32_t membership = membership_of(service, node.index);
  if (membership != 0) {
    if (may_log_member()) {
      spdlog::info("node {} \"{}\" shuts down {}", node.index, node.name,
                   service->address().to_string());
    }
    close_service(*service, wire::CloseCode::kServiceShutdown, node.index);
  }
  tell_end(node, {wire::MessageType::kShutdownService, wire::kFlagAnswer,
                  membership != 0 ? wire::CloseCode::kNone : wire::CloseCode::kNotFound,
                  message.service, membership});
}

// Behind the end of a membership the node takes no request that was bound in it, and may be gone.
// So the end waits for those that wait for a credit.
void Translator::tell_end(AppNode& node, AppNode::End end) {
  if (node.dead) return;
  if (end.membership == 0) {  // behind an end that waits already
    for (const AppNode::End& other : node.ends) {
      if (other.body.service != end.body.service) continue;
      end.membership = other.membership;
      end.requests = other.requests;
    }
  } else if (node.requests_pending != 0) {
    for (StreamIndex i = node.streams_head; i != kNone; i = streams_[i].node_next) {
      const Stream& s = streams_[i];
      const bool bound_in_it = s.service == end.body.service && s.membership == end.membership;
      if (bound_in_it && s.has(kRequestPending)) ++end.requests;
    }
  }
  if (end.requests == 0) {
    return send_or_owe(node, end.type, end.flags, end.code, end.body, true);
  }
  if (node.ends.size() + node.owed.size() >= node.owed_max) {
    node.channel->close(wire::CloseCode::kLimitReached, "it does not take what it is owed");
    return;
  }
  node.ends.push_back(end);
}

// The request has left, or never will.
void Translator::settle_request(Stream& s, AppNode& node) {
  s.clear(kRequestPending);
  --node.requests_pending;
  for (std::size_t i = 0; i < node.ends.size();) {
    AppNode::End& end = node.ends[i];
    const bool of_it = end.body.service == s.service && end.membership == s.membership;
    if (!of_it || --end.requests != 0) {
      ++i;
      continue;
    }
    send_or_owe(node, end.type, end.flags, end.code, end.body, true);
    node.ends.erase(node.ends.begin() + static_cast<std::ptrdiff_t>(i));
  }
}

Status Translator::open_listener(service::Service& service) {
  auto listener = stack_->listen(service.address(), service.id());
  if (!listener.ok()) return listener.status();
  service.listener = *listener;
  service.listening = true;
  return {};
}

void Translator::close_listener(service::Service& service) {
  if (service.listening) stack_->unlisten(service.listener);
  service.listening = false;
}

// The LISTEN endpoint goes; established connections stay. With a code, members are told.
void Translator::close_service(service::Service& service, wire::CloseCode announce,
                               NodeIndex except) {
  const SocketAddress address = service.address();
  close_listener(service);
  host_.on_service_closed(address);
  if (announce != wire::CloseCode::kNone) {
    const wire::ServiceBody body{service.id(), 0};
    for (const service::Member& member : service.members()) {
      AppNode* node = member.node < nodes_.size() ? nodes_[member.node].get() : nullptr;
      if (node == nullptr || node->dead || node->index == except) continue;
      tell_end(*node, {wire::MessageType::kShutdownService, 0, announce, body, member.membership});
    }
  }
  services_.erase(service.id());
  if (may_log_member()) spdlog::info("service {} is closed", address.to_string());
}

}  // namespace sanproxy::translate
