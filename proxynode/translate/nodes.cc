// Application nodes: how their channels come, are polled and flushed, and die.

#include <algorithm>

#include "lwproto/base/check.h"
#include "lwproto/daemon/log.h"
#include "proxynode/translate/peer_key.h"
#include "proxynode/translate/translator.h"

namespace sanproxy::translate {
namespace {

// Answers to joins and refused outgoing connections that may be owed beside those of streams.
constexpr std::size_t kAnswersOwedMax = 1024;
// Of one listener, in one go: who may connect at all can do so faster than requests are worked off.
constexpr int kRequestsMax = 16;

}  // namespace

Translator::Translator(const TranslatorOptions& options, buffer::SlotPool& ingress,
                       const buffer::MemoryRegion& ingress_region, buffer::SlotPool& egress,
                       std::vector<service::Policy> policies, std::uint32_t services_max,
                       Host& host)
    : options_(options),
      ingress_(ingress),
      ingress_region_(ingress_region),
      egress_(egress),
      host_(host),
      services_(std::move(policies), services_max),
      streams_(options.connections_max),
      records_(options.tx_records_max),
      clock_(options.clock != nullptr ? *options.clock : steady_clock_),
      limiter_(options.limits) {
  if (!options_.keys.empty()) {
    auto mac = auth::Mac::create();
    if (mac.ok()) mac_.emplace(std::move(*mac));
  }
  nodes_.resize(options.nodes_max);
  probes_.resize(options.probes_max);
  present_.reserve(options.nodes_max);
  dirty_.reserve(options.connections_max);
  starved_.reserve(options.connections_max);
}

Translator::~Translator() = default;

std::size_t Translator::poll_listeners() {
  std::size_t admitted = 0;
  for (FabricListener& from : listeners_) {
    for (int i = 0; i < kRequestsMax; ++i) {
      auto request = from.listener->poll();
      if (!request.ok()) break;
      admit(from, *request);
      ++admitted;
    }
  }
  return admitted;
}

void Translator::refuse(FabricListener& from, const fabric::ConnectRequest& request,
                        wire::CloseCode code, const char* why) {
  ++counters_.channels_refused;
  if (may_log()) {
    spdlog::warn("channel from {} refused: {} ({})", request.peer.address, why,
                 wire::close_code_name(code));
  }
  wire::MessageHeader reason{static_cast<std::uint8_t>(wire::MessageType::kError), 0,
                             static_cast<std::uint16_t>(code), sizeof(wire::MessageHeader)};
  from.listener->reject(request, std::as_bytes(std::span(&reason, 1)));
}

// Why this one may not come in: a code and a text, or nothing.
std::optional<std::pair<wire::CloseCode, const char*>> Translator::objection(
    const FabricListener& from, const fabric::PeerIdentity& peer, const wire::HelloBody& hello) {
  using Objection = std::pair<wire::CloseCode, const char*>;
  if (wire::role_of(hello) != wire::Role::kApplicationNode) {
    return Objection{wire::CloseCode::kNotPermitted,
                     "this address is for application nodes, and it is a network node"};
  }
  if (hello.workers != 0) {
    return Objection{wire::CloseCode::kProtocolError, "HELLO of a node names workers"};
  }
  if (draining_) return Objection{wire::CloseCode::kProxyShutdown, "the proxy is shutting down"};
  if (present_.size() >= options_.nodes_max) {
    evict_idle([](const AppNode*) { return true; });
    return Objection{wire::CloseCode::kLimitReached, "max_nodes is reached"};
  }
  const auto here = std::count_if(present_.begin(), present_.end(),
                                  [&](const AppNode* node) { return node->from == &from; });
  if (static_cast<std::size_t>(here) >= from.nodes_max) {
    evict_idle([&](const AppNode* node) { return node->from == &from; });
    return Objection{wire::CloseCode::kLimitReached, "max_nodes of the fabric is reached"};
  }
  const std::size_t free = std::min<std::size_t>(options_.nodes_max - present_.size(),
                                                 from.nodes_max - static_cast<std::size_t>(here));
  const std::string key = peer_key(peer);
  const auto unproven = [&](const AppNode* node) { return is_unproven(*node, key); };
  const auto held = std::count_if(present_.begin(), present_.end(), unproven);
  if (static_cast<std::size_t>(held) >= free) {
    // The newcomer may have a key, which it shows only when it is in.
    evict_idle(unproven);
    return Objection{wire::CloseCode::kLimitReached,
                     "others of the same peer have shown nothing yet, and few places are left"};
  }
  return std::nullopt;
}

// A channel of that peer that may join nothing so far, for all we know. A peer has no more of them
// than there are free places: it may be fast, and still leaves some to others.
bool Translator::is_unproven(const AppNode& node, const std::string& peer) const {
  return !node.dead && !node.has_joined && node.stream_count == 0 && node.peer_key == peer &&
         !allowed_anything(node);
}

void Translator::admit(FabricListener& from, const fabric::ConnectRequest& request) {
  const auto hello = wire::decode_hello(request.private_data);
  if (!hello.ok()) {
    return refuse(from, request,
                  hello.status().code() == Code::kUnsupported ? wire::CloseCode::kVersionMismatch
                                                              : wire::CloseCode::kProtocolError,
                  hello.status().text());
  }
  if (const auto no = objection(from, request.peer, *hello)) {
    return refuse(from, request, no->first, no->second);
  }

  std::unique_ptr<ChunkRegion> own_chunks;
  if (from.shared_chunks == nullptr) {
    auto region = buffer::MemoryRegion::create(
        "sanproxy-channel",
        from.channel_region_bytes != 0 ? from.channel_region_bytes : options_.channel_region_bytes);
    if (!region.ok()) {
      return refuse(from, request, wire::CloseCode::kLimitReached, region.status().text());
    }
    own_chunks = std::make_unique<ChunkRegion>(std::move(*region));
  }
  wire::HelloBody ours =
      channel::make_hello(options_.epoch, from.options, options_.send_window_bytes,
                          options_.connections_max, options_.name);
  ours.workers = static_cast<std::uint8_t>(options_.workers);
  std::array<std::byte, sizeof(wire::HelloBody)> bytes{};
  wire::encode_hello(ours, bytes);
  auto endpoint = from.listener->accept(request, bytes);
  Status status = endpoint.status();
  if (status.ok()) {
    auto node = std::make_unique<AppNode>();
    node->own_chunks = std::move(own_chunks);
    node->channel = std::make_unique<channel::Channel>(std::move(*endpoint), ours, *hello, *this);
    status = set_up(*node, from, request.peer, *hello);
    if (status.ok()) return enter(std::move(node));
  }
  ++counters_.channels_refused;
  if (may_log()) {
    spdlog::warn("channel from {} failed: {}", request.peer.address, status.to_string());
  }
}

// All of a node but its place in the tables.
Status Translator::set_up(AppNode& node, FabricListener& from, const fabric::PeerIdentity& peer,
                          const wire::HelloBody& hello) {
  node.peer = peer;
  node.from = &from;
  node.connected_ns = clock_.now_ns();
  node.peer_key = peer_key(peer);
  node.heartbeat = Heartbeat(options_.heartbeat, node.connected_ns);
  node.who.uid = peer.uid;
  node.who.certificate_name = peer.certificate_name;
  node.lend_ingress = from.lend_ingress;
  node.receives_into_egress = from.options.receive_memory.pool == &egress_;
  node.chunks = node.own_chunks ? node.own_chunks.get() : from.shared_chunks.get();
  node.channel->user = &node;
  if (options_.lent != nullptr && !node.receives_into_egress) node.channel->hold_end();
  node.name = node.channel->peer_name();
  node.drained = name_is_drained(node.name);
  node.owed_max = std::min(hello.streams_max, options_.connections_max) + kAnswersOwedMax;
  auto chunk_key = node.channel->endpoint().attach(node.chunks->region());
  if (!chunk_key.ok()) return chunk_key.status();
  node.chunk_key = *chunk_key;
  if (!from.lend_ingress) return {};
  auto ingress_key = node.channel->endpoint().attach(ingress_region_);
  if (ingress_key.ok()) node.ingress_key = *ingress_key;
  return ingress_key.status();
}

void Translator::enter(std::unique_ptr<AppNode> node) {
  // Indexes go round, so that a number in a log names one node for a long time.
  while (nodes_[node_search_ % options_.nodes_max] != nullptr) ++node_search_;
  node->index = node_search_++ % options_.nodes_max;
  present_.push_back(node.get());
  nodes_due_ns_ = std::min(nodes_due_ns_, node->heartbeat.due_ns());
  ++counters_.channels_opened;
  if (may_log_stranger()) {
    spdlog::info("application node {} \"{}\" connected from {}", node->index, node->name,
                 node->peer.address);
  }
  nodes_[node->index] = std::move(node);
}

// Channels that were opened and never used must not keep out those who would. The newcomer is
// refused all the same, because the place is free only when the channel has ended: it comes again.
void Translator::evict_idle(const std::function<bool(const AppNode*)>& may_go) {
  const std::uint64_t grace_ns = std::uint64_t{options_.join_grace_ms} * 1'000'000;
  const std::uint64_t now_ns = clock_.now_ns();
  AppNode* idlest = nullptr;
  for (AppNode* node : present_) {
    if (node->dead || node->has_joined || node->stream_count != 0) continue;
    if (!may_go(node)) continue;
    if (now_ns - node->connected_ns < grace_ns || node->channel->closed()) continue;
    if (idlest == nullptr || node->connected_ns < idlest->connected_ns) idlest = node;
  }
  if (idlest == nullptr) return;
  ++counters_.channels_evicted;
  idlest->channel->close(wire::CloseCode::kTimedOut, "it joined nothing, and its place is needed");
}

void Translator::flush_channels() {
  if (returns_first_ != kNone) give_back_returns();
  for (std::size_t i = 0; i < dirty_.size(); ++i) {
    Stream& s = streams_[dirty_[i]];
    if (!s.has(kDirty)) continue;
    s.clear(kDirty);
    emit_or_block(s, dirty_[i]);
  }
  dirty_.clear();
  for (AppNode* node : present_) {
    if (!node->dead) node->channel->publish();
  }
}

void Translator::replenish_channels() {
  if (!slots_released_) return;
  slots_released_ = false;
  for (AppNode* node : present_) {
    if (!node->receives_into_egress || node->dead) continue;
    node->channel->poll(0);
    node->channel->flush();  // those that waited may have sent something, and nobody comes by again
  }
}

std::size_t Translator::poll_channels() {
  slots_released_ = false;
  if (!starved_.empty()) feed_starved();
  if (must_wait_for_memory()) {
    postpone_health();
    return 0;
  }
  std::size_t handled = 0;
  for (AppNode* node : present_) {
    if (!node->dead) handled += node->channel->poll();
  }
  if (awaited_chunks_free_) serve_awaiting_chunks();
  if (any_dead_) reap_dead_nodes();
  look_after_health();
  return handled;
}

bool Translator::may_log_stranger() { return may_log_with(strangers_log_, clock_.now_ns()); }

// They come many at a time where a host starts, but without end only where one means mischief.
bool Translator::may_log_member() { return may_log_with(members_log_, clock_.now_ns()); }

bool Translator::may_log_with(flow::LogGate& gate, std::uint64_t now_ns) {
  if (!gate.open(now_ns)) return false;
  if (const std::uint64_t held = gate.take_held(); held != 0) {
    spdlog::info("{} comings and goings of application nodes before this one were not logged",
                 held);
  }
  return true;
}

void Translator::on_closed(channel::Channel& channel, wire::CloseCode code, const Status& status) {
  AppNode& node = node_of_channel(channel);
  SANPROXY_CHECK(!node.dead);
  node.dead = true;
  any_dead_ = true;
  if (channel.end_held()) {
    node.end_by_ns = clock_.now_ns() + std::uint64_t{options_.lent_ms_max} * 1'000'000;
    ends_due_ns_ = std::min(ends_due_ns_, node.end_by_ns);
  }
  ++counters_.channels_closed;
  const bool breached = status.code() == Code::kProtocol ||
                        code == wire::CloseCode::kProtocolError ||
                        code == wire::CloseCode::kNotFound;
  if (breached) ++counters_.channels_breached;
  if (!(node.has_joined ? may_log_member() : may_log_stranger())) {
    // Who comes and goes again and again must not fill the log.
  } else if (code == wire::CloseCode::kFinBoth) {
    spdlog::info("application node {} \"{}\" has ended in order, {} connections", node.index,
                 node.name, node.open_streams);
  } else {
    spdlog::log(breached ? spdlog::level::warn : spdlog::level::info,
                "application node {} \"{}\" is gone: {} ({}), {} connections", node.index,
                node.name, wire::close_code_name(code), status.text(), node.open_streams);
  }
  for (const service::ServiceId id : services_.services_of(node.index)) leave_service(id, node);
  drop_probes(node);
  // Its connections end now with RST; those that it had already finished run to their end.
  for (StreamIndex i = node.streams_head; i != kNone;) {
    const StreamIndex next = streams_[i].node_next;
    if (streams_[i].state != StreamState::kOrphan) {
      ++counters_.closed_node_died;
      reset_stream(streams_[i], i);
    }
    i = next;
  }
  node.owed.clear();
  node.ends.clear();
}

void Translator::reap_dead_nodes() {
  any_dead_ = false;
  ends_due_ns_ = UINT64_MAX;
  std::erase_if(present_, [this](const AppNode* node) {
    const bool finished = node->dead && node->stream_count == 0 && node->returns_due == 0;
    if (node->dead && node->channel->end_held()) {
      // Told of its end it takes its memory back, from which others may still read.
      node->channel->poll();
      if (finished || clock_.now_ns() >= node->end_by_ns) node->channel->finish_end();
      if (node->channel->end_held()) ends_due_ns_ = std::min(ends_due_ns_, node->end_by_ns);
    }
    any_dead_ = any_dead_ || (node->dead && !finished);
    if (finished) nodes_[node->index].reset();
    return finished;
  });
}

void Translator::start_drain() {
  draining_ = true;
  std::vector<service::ServiceId> ids;
  services_.for_each([&](service::Service& service) { ids.push_back(service.id()); });
  for (const service::ServiceId id : ids) {
    close_service(*services_.find(id), wire::CloseCode::kProxyShutdown, kNone);
  }
}

void Translator::close_all_channels(wire::CloseCode code, const char* text) {
  for (AppNode* node : present_) {
    if (!node->dead) node->channel->close(code, text);
  }
}

bool Translator::holds_ends() const {
  return std::any_of(present_.begin(), present_.end(),
                     [](const AppNode* node) { return node->channel->end_held(); });
}

void Translator::for_each_node(const std::function<void(const AppNode&)>& fn) const {
  for (const AppNode* node : present_) fn(*node);
}

const AppNode* Translator::node_of(stack::ConnIndex conn) const {
  const Stream& s = streams_[conn];
  const bool bound = s.state == StreamState::kRequested || s.state == StreamState::kOpen;
  return bound && s.node != kNone ? nodes_[s.node].get() : nullptr;
}

}  // namespace sanproxy::translate
