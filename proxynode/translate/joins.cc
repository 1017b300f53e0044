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
      return refuse(wire::CloseCode::kAddressInUse, status.text());
    }
    host_.on_service_opened(*address);
  }
  answer.service = service.id();
  node.has_joined = true;
  if (service.policy().health) probes_due_ns_ = 0;
  ++counters_.joins;
  spdlog::info("node {} \"{}\" joined {} (weight {}, {} members)", node.index, node.name,
               address->to_string(), request.weight, service.members().size());
  send_or_owe(node, wire::MessageType::kJoinService, wire::kFlagAnswer, wire::CloseCode::kNone,
              answer, true);
}

void Translator::leave_service(service::ServiceId id, AppNode& node) {
  const auto last = services_.leave(id, node.index);
  if (!last.ok()) return;
  ++counters_.leaves;
  service::Service& service = *services_.find(id);
  spdlog::info("node {} \"{}\" left {} ({} members)", node.index, node.name,
               service.address().to_string(), service.members().size());
  if (*last) close_service(service, wire::CloseCode::kNone, kNone);
}

void Translator::on_leave(AppNode& node, const wire::Message& message) {
  service::Service* service = services_.find(message.service.service);
  const bool member = service != nullptr && service->find(node.index) != nullptr;
  if (member) leave_service(message.service.service, node);
  send_or_owe(node, wire::MessageType::kLeaveService, wire::kFlagAnswer,
              member ? wire::CloseCode::kNone : wire::CloseCode::kNotFound, message.service, true);
}

void Translator::on_shutdown_service(AppNode& node, const wire::Message& message) {
  service::Service* service = services_.find(message.service.service);
  const bool member = service != nullptr && service->find(node.index) != nullptr;
  if (member) {
    spdlog::info("node {} \"{}\" shuts down {}", node.index, node.name,
                 service->address().to_string());
    close_service(*service, wire::CloseCode::kServiceShutdown, node.index);
  }
  send_or_owe(node, wire::MessageType::kShutdownService, wire::kFlagAnswer,
              member ? wire::CloseCode::kNone : wire::CloseCode::kNotFound, message.service, true);
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
      send_or_owe(*node, wire::MessageType::kShutdownService, 0, announce, body, true);
    }
  }
  services_.erase(service.id());
  spdlog::info("service {} is closed", address.to_string());
}

}  // namespace sanproxy::translate
