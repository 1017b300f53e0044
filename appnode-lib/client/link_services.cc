// Link: services joined and left at one proxy (docs/wire_format.md).
//
// What the application wants stands in the Node's ServiceImpl; what the proxy knows stands in
// ServiceState. sync_services() sends what leads from one to the other, so that nothing has to be
// remembered across a lost channel or a full queue.
#include <algorithm>

#include "appnode-lib/client/convert.h"
#include "appnode-lib/client/link.h"
#include "appnode-lib/client/node_impl.h"
#include "lwproto/wire/codec.h"

namespace sanproxy::app::internal {
namespace {

// The same join may be taken later.
bool passes(wire::CloseCode code) {
  return code == wire::CloseCode::kLimitReached || code == wire::CloseCode::kNotPermitted;
}

}  // namespace

void Link::sync_services() {
  if (!up()) return;
  services_.resize(node_.services().size());
  services_blocked_ = false;
  if (!prove_keys()) return;
  for (std::size_t i = 0; i < services_.size(); ++i) {
    if (sync_service(i).is_again()) {
      services_blocked_ = true;  // on_writable() comes back here
      return;
    }
  }
}

BaseStatus Link::sync_service(std::size_t index) {
  const ServiceImpl& wanted = *node_.services()[index];
  ServiceState& state = services_[index];
  channel::Channel& channel = *hold_->channel;
  const auto request = static_cast<std::uint32_t>(index + 1);
  if (state.phase == Phase::kNone && !wanted.leaving) {
    if (waits_for_another(index)) return {};
    wire::JoinServiceBody body{};
    body.address = wire::to_wire(to_base(wanted.address));
    body.request = request;
    body.weight = wanted.options.weight;
    body.connections_max = wanted.options.connections_max;
    const std::uint8_t flags = wanted.options.immediate ? wire::kFlagImmediate : 0;
    const BaseStatus status =
        channel.send_control(wire::MessageType::kJoinService, flags, wire::CloseCode::kNone, body);
    if (status.ok()) state.phase = Phase::kJoining;
    return status;
  }
  if (state.phase != Phase::kJoined || !wanted.leaving) return {};
  const wire::ServiceBody body{state.id, request};
  const auto type =
      wanted.shutting_down ? wire::MessageType::kShutdownService : wire::MessageType::kLeaveService;
  const BaseStatus status = channel.send_control(type, 0, wire::CloseCode::kNone, body);
  if (status.ok()) state.phase = Phase::kLeaving;
  return status;
}

// The proxy knows a service by its address: who leaves it must have left before it is joined anew.
bool Link::waits_for_another(std::size_t index) const {
  const auto& all = node_.services();
  for (std::size_t i = 0; i < services_.size(); ++i) {
    const bool leaving = i != index && all[i]->leaving && !service_settled(i);
    if (leaving && all[i]->address == all[index]->address) return true;
  }
  return false;
}

bool Link::service_joined(std::size_t index) const {
  return up() && index < services_.size() && services_[index].phase == Phase::kJoined;
}

bool Link::has_source(std::uint8_t family) const {
  for (std::size_t i = 0; i < services_.size(); ++i) {
    const Address& address = node_.services()[i]->address;
    if (service_joined(i) && address.family == family && !to_base(address).ip.is_any()) return true;
  }
  return false;
}

bool Link::service_settled(std::size_t index) const {
  if (!up() || index >= services_.size()) return true;
  const Phase phase = services_[index].phase;
  return phase != Phase::kJoining && phase != Phase::kJoined && phase != Phase::kLeaving;
}

void Link::forget_service(std::size_t index) {
  if (index < services_.size()) services_[index] = {};
}

// services_.size() if no service has this id. There are few, and a node that serves many has the
// requests spread over all of them.
std::size_t Link::service_index(std::uint32_t id) const {
  for (std::size_t i = 0; i < services_.size(); ++i) {
    const ServiceState& state = services_[i];
    if (state.id == id && (state.phase == Phase::kJoined || state.phase == Phase::kLeaving)) {
      return i;
    }
  }
  return services_.size();
}

void Link::on_join_answer(const wire::JoinServiceBody& body, wire::CloseCode code) {
  const std::size_t index = body.request - 1;  // 0 becomes out of range
  if (index >= services_.size() || services_[index].phase != Phase::kJoining) {
    return breach("join answer to no request");
  }
  ServiceState& state = services_[index];
  if (code != wire::CloseCode::kNone) {
    // Limits pass, and operators change lists. Other refusals stand as long as the channel.
    state.phase = passes(code) ? Phase::kLimited : Phase::kRefused;
    if (passes(code)) ask_again_later();
    node_.join_refused(index, *this, to_public(code));
    return sync_services();  // another may have waited for this one
  }
  ask_again_pause_ns_ = kAskAgainFirstNs;
  state.phase = Phase::kJoined;
  state.id = body.service;
  node_.joined(index, *this);
  sync_services();  // it may have been left meanwhile
}

void Link::ask_again_later() {
  if (ask_again_at_ns_ != 0) return;
  ask_again_at_ns_ = node_.now_ns() + ask_again_pause_ns_;
  ask_again_pause_ns_ = std::min(ask_again_pause_ns_ * 2, kAskAgainMaxNs);
  node_.links_waiting(1);
}

void Link::ask_again() {
  ask_again_at_ns_ = 0;
  node_.links_waiting(-1);
  keys_limited_ = false;
  for (ServiceState& state : services_) {
    if (state.phase == Phase::kLimited) state.phase = Phase::kNone;
  }
  sync_services();
}

void Link::forget_limits() {
  if (ask_again_at_ns_ != 0) node_.links_waiting(-1);
  ask_again_at_ns_ = 0;
  ask_again_pause_ns_ = kAskAgainFirstNs;
  keys_limited_ = false;
}

// The answer to our LEAVE or SHUTDOWN, or the news that the service has ended for all. Where the
// two cross, the news comes first, and the answer to what means nothing any more behind it.
void Link::on_service_end(const wire::ServiceBody& body, bool answer, wire::CloseCode code) {
  const std::size_t index = service_index(body.service);
  const bool leaving = index != services_.size() && services_[index].phase == Phase::kLeaving;
  if (answer && (!leaving || body.request != index + 1)) {
    if (leaving || ends_crossed_ == 0) return breach("answer to no request");
    --ends_crossed_;
    return;
  }
  if (index == services_.size()) return;  // it crossed our LEAVE
  if (!answer && leaving) ++ends_crossed_;
  services_[index].phase = !answer && passes(code) ? Phase::kLimited : Phase::kGone;
  if (!answer && passes(code)) ask_again_later();
  if (!answer) node_.join_refused(index, *this, to_public(code));
  sync_services();  // another may have waited for this one
}

}  // namespace sanproxy::app::internal
