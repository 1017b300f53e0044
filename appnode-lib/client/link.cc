#include "appnode-lib/client/link.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <span>

#include "appnode-lib/client/convert.h"
#include "appnode-lib/client/node_impl.h"
#include "lwproto/wire/codec.h"

namespace sanproxy::app::internal {

Link::Link(NodeImpl& node, LinkPlace place) : node_(node), place_(std::move(place)) {
  rejects_.reserve(64);
}

Link::~Link() = default;

std::uint64_t Link::deadline_ns() const {
  if (!up()) return retry_at_ns_;
  if (ask_again_at_ns_ == 0 || look_at_ns_ == 0) return ask_again_at_ns_ + look_at_ns_;
  return std::min(ask_again_at_ns_, look_at_ns_);
}

std::size_t Link::poll(std::uint64_t now_ns) {
  if (hold_ != nullptr) {
    const std::size_t handled = hold_->channel->poll(kPollBudget);
    if (lost_) {
      take_down();
      return handled;
    }
    if (ask_again_at_ns_ != 0 && now_ns >= ask_again_at_ns_) ask_again();
    look_for_silence(now_ns);
    return handled;
  }
  if (connecting_ != nullptr) return poll_connecting();
  if (retired_ || now_ns < retry_at_ns_) return 0;
  start_connecting();
  return 1;
}

void Link::move_to(LinkPlace place) {
  place.endpoint.receive_memory = place_.endpoint.receive_memory;
  place.pool = place_.pool;
  place_ = std::move(place);
  retired_ = false;
  workers_ = 1;
  retry_at_ns_ = 0;
  retry_pause_ns_ = kRetryFirstNs;
  our_reason_ = nullptr;
  last_reason_.clear();
}

void Link::publish() {
  if (up()) hold_->channel->publish();
}

void Link::flush() {
  if (up()) hold_->channel->flush();
}

void Link::replenish() {
  if (up() && place_.receives_into_pool) hold_->channel->replenish();
}

void Link::start_connecting() {
  std::array<std::byte, sizeof(wire::HelloBody)> hello;
  hello_ = node_.make_hello(place_.endpoint);
  wire::encode_hello(hello_, hello);
  auto attempt = place_.fabric->connect(place_.address, hello, place_.endpoint);
  if (!attempt.ok()) return retry_later(attempt.status().text());
  connecting_ = std::move(*attempt);
  retry_at_ns_ = 0;  // a proxy that hangs is given up by the fabric, which knows how far it is
}

std::size_t Link::poll_connecting() {
  auto endpoint = connecting_->poll();
  if (!endpoint.ok()) {
    if (endpoint.status().is_again()) return 0;
    const std::string reason = why_not(endpoint.status());
    connecting_.reset();
    retry_later(reason);
    return 1;
  }
  const BaseStatus status = come_up(std::move(*endpoint), connecting_->private_data());
  connecting_.reset();
  if (!status.ok()) {
    node_.bury(std::move(hold_));
    retry_later(status.text());
  }
  return 1;
}

// A proxy that refuses says why, with the header of an ERROR.
std::string Link::why_not(const BaseStatus& status) const {
  std::string out = status.text();
  const auto said = connecting_->private_data();
  wire::MessageHeader reason{};
  if (status.code() != BaseCode::kRefused || said.size() != sizeof(reason)) return out;
  std::memcpy(&reason, said.data(), sizeof(reason));
  if (reason.type != static_cast<std::uint8_t>(wire::MessageType::kError)) return out;
  return out + ": " + wire::close_code_name(static_cast<wire::CloseCode>(reason.code));
}

BaseStatus Link::come_up(std::unique_ptr<fabric::Endpoint> endpoint,
                         std::span<const std::byte> hello) {
  auto peer = wire::decode_hello(hello);
  if (!peer.ok()) return peer.status();
  if (wire::role_of(*peer) != wire::Role::kApplicationNode) {
    return BaseStatus::error(sanproxy::Code::kProtocol, "that address is for network nodes");
  }
  auto key = endpoint->attach(node_.send_region());
  if (!key.ok()) return key.status();
  send_memory_key_ = *key;
  hold_ = std::make_unique<ChannelHold>();
  hold_->receives_into_pool = place_.receives_into_pool;
  hold_->channel = std::make_unique<channel::Channel>(std::move(endpoint), hello_, *peer, *this);
  hold_->channel->wake_early();  // the proxy writes each reply to the network
  lost_ = false;
  keys_sent_ = keys_answered_ = 0;
  ends_crossed_ = 0;
  our_reason_ = nullptr;
  retry_pause_ns_ = kRetryFirstNs;
  last_reason_.clear();
  region_keys_.clear();
  for (const auto& region : node_.regions()) attach(*region);
  services_.assign(node_.services().size(), {});
  node_.link_up(*this);
  workers_ = std::max<std::uint32_t>(peer->workers, 1);
  if (place_.origin != LinkOrigin::kWorker) node_.follow_workers(*this, workers_);
  sync_services();
  return {};
}

void Link::retry_later(std::string_view reason) {
  retry_at_ns_ = node_.now_ns() + retry_pause_ns_;
  retry_pause_ns_ = std::min(retry_pause_ns_ * 2, kRetryMaxNs);
  if (last_reason_ == reason) return;
  last_reason_ = reason;
  node_.link_down(*this, reason);
}

void Link::attach(Region& region) {
  if (!up()) return;
  if (region_keys_.size() <= region.index) region_keys_.resize(region.index + 1);
  auto key = hold_->channel->endpoint().attach(region.memory);
  if (key.ok()) region_keys_[region.index] = {*key, true};
}

void Link::on_closed(channel::Channel&, wire::CloseCode code, const BaseStatus& status) {
  lost_ = true;
  last_reason_ = our_reason_ != nullptr               ? our_reason_
                 : code == wire::CloseCode::kNodeDied ? status.text()
                                                      : wire::close_code_name(code);
}

// Not inside on_closed(): the channel is still on the stack there.
void Link::take_down() {
  node_.end_connections(*this, CloseCode::kProxyLost);
  forget_limits();
  forget_heartbeats();
  rejects_.clear();
  services_.assign(node_.services().size(), {});
  services_blocked_ = false;
  region_keys_.clear();
  while (blocked_.pop_front() != nullptr) {
  }
  while (placeless_.pop_front() != nullptr) {
  }
  node_.bury(std::move(hold_));
  lost_ = false;
  node_.link_lost();
  retry_at_ns_ = node_.now_ns() + retry_pause_ns_;
  retry_pause_ns_ = std::min(retry_pause_ns_ * 2, kRetryMaxNs);
  node_.link_down(*this, last_reason_);
}

bool Link::say_goodbye() {
  if (!up()) return true;
  hold_->channel->close(wire::CloseCode::kFinBoth, "the application node has ended");
  fabric::Endpoint& endpoint = hold_->channel->endpoint();
  std::array<fabric::Completion, 16> completions;
  while (const std::size_t count = endpoint.poll(completions)) {
    for (const fabric::Completion& completion : std::span(completions).first(count)) {
      if (completion.kind == fabric::Completion::Kind::kDisconnected) lost_ = true;
      if (completion.kind == fabric::Completion::Kind::kReceive &&
          completion.loan != fabric::kNoLoan) {
        endpoint.release(completion.loan);
      }
    }
  }
  return lost_;
}

bool Link::receive_memory_is_short() const {
  return place_.pool != nullptr && place_.pool->free_count() < place_.pool->slot_count() / 4;
}

void Link::breach(const char* text) {
  hold_->channel->close(wire::CloseCode::kProtocolError, text);
}

}  // namespace sanproxy::app::internal
