#include "netnode/packet_io/channel_io.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "lwproto/daemon/log.h"
#include "netnode/packet_io/channel_packet.h"
#include "netnode/packet_io/vnet_header.h"

namespace sanproxy::packet_io {
namespace {

// Of one node, in one go: a super-packet each, or many small packets. Few enough that what they
// bring is still in a core's own cache when it is copied to an application's channel.
constexpr std::size_t kTransfersMax = 4;
// Sent and not published: few enough that the node finds it in the cache.
constexpr std::size_t kUnpublishedBytesMax = 192 * 1024;
constexpr std::size_t kRequestsMax = 16;   // in one go, however many want in
constexpr std::uint64_t kBeatsMissed = 5;  // by ourselves: we were away
constexpr std::size_t kPacketsPerTransferMax =
    wire::kTransferInlineBytesMax / (wire::kPacketHeaderBytes + wire::kPacketBytesMin) + 1;
constexpr std::size_t kSlotBytes = wire::kPacketBytesMax;

constexpr std::uint64_t ns(std::uint32_t ms) { return std::uint64_t{ms} * 1'000'000; }

// The bytes of a gather list, one behind the other. False: more than there is room for.
bool gather(const SendPacket& packet, std::byte* out, std::size_t room) {
  std::size_t at = 0;
  for (std::uint32_t i = 0; i < packet.piece_count; ++i) {
    const iovec& piece = packet.pieces[i];
    if (piece.iov_len > room - at) return false;
    std::memcpy(out + at, piece.iov_base, piece.iov_len);
    at += piece.iov_len;
  }
  return at == packet.length;
}

}  // namespace

Result<std::unique_ptr<ChannelIo>> ChannelIo::open(const InterfaceOptions& options,
                                                   ChannelIoOptions channel_options,
                                                   fabric::Fabric& fabric, const Clock& clock) {
  auto region =
      buffer::MemoryRegion::create("sanproxy-packets", channel_options.send_slots * kSlotBytes);
  if (!region.ok()) return region.status();
  auto joined =
      buffer::MemoryRegion::create("sanproxy-joined", channel_options.joined_max * kSlotBytes);
  if (!joined.ok()) return joined.status();
  std::unique_ptr<ChannelIo> io(new ChannelIo(options, std::move(channel_options),
                                              std::move(region).value(), std::move(joined).value(),
                                              clock));
  io->channel_options_.endpoint.send_regions = {&io->region_};
  auto listener = fabric.listen(io->channel_options_.listen, io->channel_options_.endpoint);
  if (!listener.ok()) return listener.status();
  io->listener_ = std::move(listener).value();
  return io;
}

ChannelIo::ChannelIo(const InterfaceOptions& options, ChannelIoOptions channel_options,
                     buffer::MemoryRegion region, buffer::MemoryRegion joined_region,
                     const Clock& clock)
    : options_(options),
      channel_options_(std::move(channel_options)),
      clock_(clock),
      region_(std::move(region)),
      slots_(region_.bytes(), kSlotBytes),
      joined_region_(std::move(joined_region)),
      joined_(joined_region_.bytes(), kSlotBytes),
      sent_(slots_.slot_count()),
      loans_(std::size_t{channel_options_.loans_max} + 1),
      next_beat_ns_(clock.now_ns()) {
  for (PacketLoan i = channel_options_.loans_max; i > 0; --i) {
    loans_[i].next_free = free_loan_;
    free_loan_ = i;
  }
  pending_.reserve(kTransfersMax * kPacketsPerTransferMax);
  nodes_.reserve(std::size_t{channel_options_.nodes_max} * 2);
  without_lends_.reserve(channel_options_.nodes_max);
}

ChannelIo::~ChannelIo() {
  for (Loan& entry : loans_) {
    if (entry.node != nullptr && entry.loan != fabric::kNoLoan) {
      entry.node->channel->release(entry.loan);
    }
  }
  end_batch();
}

// --- who comes and goes

std::size_t ChannelIo::poll_listener() {
  std::size_t count = 0;
  for (; count < kRequestsMax; ++count) {
    auto request = listener_->poll();
    if (!request.ok()) break;
    admit(*request);
  }
  return count;
}

void ChannelIo::refuse(const fabric::ConnectRequest& request, wire::CloseCode code,
                       const char* why) {
  ++counters_.peers_refused;
  if (refusals_log_.open(clock_.now_ns())) {
    spdlog::warn("network node from {} refused: {} ({}); not logged before it: {}",
                 request.peer.address, why, wire::close_code_name(code), refusals_log_.take_held());
  }
  wire::MessageHeader reason{static_cast<std::uint8_t>(wire::MessageType::kError), 0,
                             static_cast<std::uint16_t>(code), sizeof(wire::MessageHeader)};
  listener_->reject(request, std::as_bytes(std::span(&reason, 1)));
}

void ChannelIo::admit(const fabric::ConnectRequest& request) {
  const auto hello = wire::decode_hello(request.private_data);
  if (!hello.ok()) {
    const bool version = hello.status().code() == Code::kUnsupported;
    return refuse(request,
                  version ? wire::CloseCode::kVersionMismatch : wire::CloseCode::kProtocolError,
                  hello.status().text());
  }
  if (wire::role_of(*hello) != wire::Role::kNetworkNode) {
    return refuse(request, wire::CloseCode::kNotPermitted,
                  "this address is for network nodes, and it is an application node");
  }
  if (!channel_options_.allow || !channel_options_.allow(request.peer)) {
    return refuse(request, wire::CloseCode::kNotPermitted, "not on the interface's allow list");
  }
  const auto live = static_cast<std::size_t>(
      std::count_if(nodes_.begin(), nodes_.end(), [](const auto& node) { return !node->dead; }));
  if (live >= channel_options_.nodes_max ||
      nodes_.size() >= std::size_t{channel_options_.nodes_max} * 2) {
    return refuse(request, wire::CloseCode::kLimitReached, "max_nodes of the interface is reached");
  }
  wire::HelloBody ours = channel::make_hello(channel_options_.epoch, channel_options_.endpoint, 0,
                                             0, channel_options_.proxy_name);
  ours.role = static_cast<std::uint16_t>(wire::Role::kNetworkNode);
  std::array<std::byte, sizeof(wire::HelloBody)> bytes{};
  wire::encode_hello(ours, bytes);
  auto endpoint = listener_->accept(request, bytes);
  Status status = endpoint.status();
  fabric::RegionKey key = 0;
  if (endpoint.ok()) {
    auto attached = (*endpoint)->attach(region_);
    status = attached.status();
    if (attached.ok()) key = *attached;
  }
  if (!status.ok()) {
    ++counters_.peers_refused;
    spdlog::warn("network node from {} failed: {}", request.peer.address, status.to_string());
    return;
  }
  auto node = std::make_unique<Node>();
  do {
    ++last_number_;
  } while (last_number_ == 0 || find(last_number_) != nullptr);
  node->channel = std::make_unique<channel::Channel>(std::move(endpoint).value(), ours, *hello,
                                                     static_cast<channel::Delegate&>(*this));
  node->channel->wake_early();  // the network node writes each packet to the network
  node->channel->user = node.get();
  node->about = {.number = last_number_,
                 .name = node->channel->peer_name(),
                 .address = request.peer.address,
                 .connected = true};
  node->region_key = key;
  node->heard_ns = clock_.now_ns();
  node->uid = request.peer.uid;
  for (const WithoutLends& one : without_lends_) {
    if (one.uid == node->uid) node->lend_from_ns = one.until_ns;
  }
  if (channel_options_.lent != nullptr) {
    node->attached.resize(channel_options_.lent->regions_max());
  }
  node->batch_loans.reserve(kTransfersMax);
  ++counters_.peers_admitted;
  spdlog::info("network node {} \"{}\" connected from {}", node->about.number, node->about.name,
               node->about.address);
  say_status(*node);
  nodes_.push_back(std::move(node));
}

void ChannelIo::on_closed(channel::Channel& channel, wire::CloseCode code, const Status& status) {
  Node& node = *static_cast<Node*>(channel.user);
  node.dead = true;
  node.about.connected = false;
  any_dead_ = true;
  ++counters_.peers_ended;
  const bool breached = status.code() == Code::kProtocol || code == wire::CloseCode::kProtocolError;
  if (breached) ++counters_.peers_breached;
  spdlog::log(breached ? spdlog::level::warn : spdlog::level::info,
              "network node {} \"{}\" is gone: {} ({})", node.about.number, node.about.name,
              wire::close_code_name(code), status.text());
}

// Nodes that are gone, nothing of whose memory is in use any more.
void ChannelIo::reap() {
  any_dead_ = false;
  std::erase_if(nodes_, [this](const auto& node) {
    const bool finished = node->dead && node->about.loans_out == 0;
    any_dead_ = any_dead_ || (node->dead && !finished);
    return finished;
  });
}

ChannelIo::Node* ChannelIo::find(PeerNumber number) {
  for (const auto& node : nodes_) {
    if (node->about.number == number) return node.get();
  }
  return nullptr;
}

std::vector<PacketPeer> ChannelIo::peers() const {
  std::vector<PacketPeer> out;
  for (const auto& node : nodes_) out.push_back(node->about);
  return out;
}

// --- status

void ChannelIo::say_status(Node& node) {
  const wire::NodeStatusBody body{channel_options_.weight, channel_options_.proxy_id, 0};
  const std::uint8_t flags = draining_ ? wire::kFlagDraining : std::uint8_t{0};
  // Without a credit the node has much to read already; the next beat says it again.
  (void)node.channel->send_control(wire::MessageType::kNodeStatus, flags, wire::CloseCode::kNone,
                                   body);
  node.channel->flush();
}

void ChannelIo::on_time() {
  const std::uint64_t now = clock_.now_ns();
  if (now < next_beat_ns_) return;
  next_beat_ns_ = now + ns(channel_options_.heartbeat_ms);
  // Who was away himself (stopped, or a virtual machine that was paused) cannot tell who is silent.
  const bool was_away = now - looked_ns_ >= kBeatsMissed * ns(channel_options_.heartbeat_ms);
  looked_ns_ = now;
  judge_sent(now, was_away);
  for (const auto& node : nodes_) {
    if (node->dead || node->channel->closed()) continue;
    node->socket_full = false;
    if (was_away) node->heard_ns = now;
    const std::uint64_t heard = node->channel->counters().transfers_in;
    if (heard != node->transfers_heard) {
      node->transfers_heard = heard;
      node->heard_ns = now;
    } else if (now - node->heard_ns >= ns(channel_options_.dead_after_ms)) {
      node->channel->close(wire::CloseCode::kTimedOut, "nothing was heard of the network node");
      continue;
    }
    say_status(*node);
  }
  if (channel_options_.lent != nullptr) take_back_gone_regions();
}

void ChannelIo::set_draining(bool draining) {
  draining_ = draining;
  next_beat_ns_ = 0;
  on_time();
}

void ChannelIo::set_weight(std::uint32_t weight) {
  channel_options_.weight = std::clamp<std::uint32_t>(weight, 1, 65535);
  next_beat_ns_ = 0;
  on_time();
}

void ChannelIo::close_all(wire::CloseCode code, const char* text) {
  for (const auto& node : nodes_) {
    if (!node->dead) node->channel->close(code, text);
  }
}

// --- receiving

void ChannelIo::on_data(channel::Channel& channel, std::uint64_t, std::uint64_t,
                        const channel::Payload&) {
  channel.close(wire::CloseCode::kProtocolError, "DATA on a channel for packets");
}

void ChannelIo::on_message(channel::Channel& channel, const wire::Message& message) {
  const Status status = wire::check_direction(message, wire::Receiver::kPacketProxy);
  if (!status.ok()) channel.close(wire::CloseCode::kProtocolError, status.text());
}

PacketLoan ChannelIo::lend(Node& node, fabric::Loan loan, buffer::SlotIndex slot) {
  const PacketLoan token = free_loan_;
  free_loan_ = loans_[token].next_free;
  loans_[token] = {&node, loan, slot, kNoPacketLoan};
  ++node.about.loans_out;
  return token;
}

void ChannelIo::release(PacketLoan token) {
  Loan& entry = loans_[token];
  if (token == kNoPacketLoan || entry.node == nullptr) return;
  if (entry.loan != fabric::kNoLoan) entry.node->channel->release(entry.loan);
  if (entry.slot != buffer::kNoSlot) joined_.release(entry.slot);
  --entry.node->about.loans_out;
  entry = {nullptr, fabric::kNoLoan, buffer::kNoSlot, free_loan_};
  free_loan_ = token;
}

// A fabric may deliver a reference in several pieces; the stack wants one.
const std::byte* ChannelIo::put_together(const channel::Payload& payload, buffer::SlotIndex& slot) {
  slot = joined_.acquire();
  if (slot == buffer::kNoSlot) return nullptr;
  joined_.mark_received(slot);
  std::byte* at = joined_.data(slot);
  for (const fabric::Segment& piece : payload.pieces) {
    std::memcpy(at, piece.data, piece.length);
    at += piece.length;
  }
  counters_.rx_bytes_copied += payload.length;
  return joined_.data(slot);
}

void ChannelIo::on_packet(channel::Channel& channel, const channel::PacketInfo& info,
                          const channel::Payload& payload) {
  Node& node = *static_cast<Node*>(channel.user);
  if ((info.flags & wire::kFlagUnknownFlow) != 0) {
    return channel.close(wire::CloseCode::kProtocolError,
                         "a PACKET to the proxy says that its flow is unknown");
  }
  ReceivedPacket packet;
  const auto first = static_cast<std::uint8_t>(payload.pieces[0].data[0]);
  if (first >> 4 != 4 && first >> 4 != 6) {
    ++counters_.rx_dropped_not_ip;
    return;
  }
  if (!offload_from_info(info, first, packet.offload)) {
    ++counters_.rx_dropped_metadata;
    return;
  }
  packet.length = payload.length;
  packet.from = node.about.number;
  packet.others_may_know = (info.flags & wire::kFlagFinal) == 0;
  packet.lent = payload.pieces[0].data;
  const bool by_reference = payload.length > wire::kInlinePayloadBytesMax;
  if (payload.pieces.size() > 1) {
    buffer::SlotIndex slot = buffer::kNoSlot;
    packet.lent = free_loan_ == kNoPacketLoan ? nullptr : put_together(payload, slot);
    if (packet.lent == nullptr) {
      ++counters_.rx_dropped_joined;
      return;
    }
    packet.loan = lend(node, fabric::kNoLoan, slot);
  } else if (payload.loan != fabric::kNoLoan) {
    channel.retain(payload.loan);
    const bool shared = !node.batch_loans.empty() && node.batch_loans.back() == payload.loan;
    if (by_reference && free_loan_ != kNoPacketLoan) {
      // The last packet of its transfer: those in front of it are used before it is.
      if (shared) node.batch_loans.pop_back();
      packet.loan = lend(node, payload.loan, buffer::kNoSlot);
    } else if (!shared) {
      node.batch_loans.push_back(payload.loan);
    }
  }
  ++node.about.packets_in;
  node.about.bytes_in += packet.length;
  pending_.push_back(packet);
}

void ChannelIo::end_batch() {
  for (const auto& node : nodes_) {
    for (const fabric::Loan loan : node->batch_loans) node->channel->release(loan);
    node->batch_loans.clear();
  }
}

// Takes a batch of transfers from the first node that has one, beginning with the one whose turn
// it is.
void ChannelIo::collect() {
  end_batch();
  pending_.clear();
  yielded_ = 0;
  if (any_dead_) reap();
  for (std::size_t i = 0; i < nodes_.size() && pending_.empty(); ++i) {
    if (next_node_ >= nodes_.size()) next_node_ = 0;
    Node& node = *nodes_[next_node_++];
    if (node.dead) continue;
    node.channel->poll(kTransfersMax);
    node.channel->publish();  // returned credits and loans, also when nothing is sent
  }
}

std::size_t ChannelIo::receive(std::span<const ReceiveBuffer>, std::span<ReceivedPacket> out) {
  if (yielded_ == pending_.size()) collect();
  const std::size_t count = std::min(out.size(), pending_.size() - yielded_);
  for (std::size_t i = 0; i < count; ++i) {
    out[i] = pending_[yielded_++];
    counters_.rx_bytes += out[i].length;
  }
  counters_.rx_packets += count;
  if (count != 0) ++counters_.rx_calls;
  return count;
}

// --- sending

Status ChannelIo::send_by(Node& node, const SendPacket& packet, std::uint8_t flags) {
  auto info = info_from_offload(packet.offload, packet.length);
  if (!info || packet.length > wire::kPacketBytesMax || packet.length < wire::kPacketBytesMin) {
    return Status::error(Code::kInvalidArgument, "no packet that a channel can carry");
  }
  info->flags |= flags;
  Status status;
  if (packet.length <= wire::kInlinePayloadBytesMax) {
    std::array<std::byte, wire::kInlinePayloadBytesMax> block;
    if (!gather(packet, block.data(), block.size())) {
      return Status::error(Code::kInvalidArgument, "the pieces are not what the length says");
    }
    info->can_wait = is_mere_ack({block.data(), packet.length});
    status = node.channel->send_packet_inline(*info, {block.data(), packet.length});
    if (status.ok()) counters_.tx_bytes_copied += packet.length;
  } else {
    status = send_by_reference(node, packet, *info);
  }
  if (!status.ok()) return status;
  ++node.about.packets_out;
  node.about.bytes_out += packet.length;
  node.unpublished_bytes += packet.length;
  if (node.unpublished_bytes >= kUnpublishedBytesMax) publish(node);
  return status;
}

void ChannelIo::publish(Node& node) {
  node.unpublished_bytes = 0;
  node.channel->publish();
}

// False: nobody has room.
bool ChannelIo::send_one(const SendPacket& packet) {
  Node* const first = packet.to == 0 ? nullptr : find(packet.to);
  bool full = false;
  for (std::size_t i = 0; i <= nodes_.size(); ++i) {
    Node* const node = i == 0 ? first : nodes_[(next_sender_ + i - 1) % nodes_.size()].get();
    if (node == nullptr || node->dead || node->channel->closed() || (i > 0 && node == first)) {
      continue;
    }
    const Status status = send_by(*node, packet, 0);
    if (status.ok()) {
      ++counters_.tx_packets;
      counters_.tx_bytes += packet.length;
      if (i > 0) next_sender_ += i - 1;  // what has no node of its own goes the same way
      return true;
    }
    if (status.code() == Code::kInvalidArgument) {
      ++counters_.tx_errors;
      return true;
    }
    full = full || status.is_again();
  }
  if (full) return false;
  ++counters_.tx_dropped_no_peer;
  return true;
}

std::size_t ChannelIo::send(std::span<const SendPacket> packets) {
  for (std::size_t i = 0; i < packets.size(); ++i) {
    if (!send_one(packets[i])) return i;
  }
  return packets.size();
}

void ChannelIo::send_back(const ReceivedPacket& packet) {
  Node* const node = find(packet.from);
  SendPacket out;
  out.pieces[0] = {const_cast<std::byte*>(packet.lent), packet.length};
  out.piece_count = 1;
  out.length = packet.length;
  out.offload = packet.offload;
  if (node == nullptr || node->dead || !send_by(*node, out, wire::kFlagUnknownFlow).ok()) {
    ++counters_.send_back_dropped;
    return;
  }
  ++counters_.sent_back;
}

void ChannelIo::flush() {
  ++counters_.tx_calls;
  for (const auto& node : nodes_) {
    if (!node->dead) publish(*node);
  }
}

void ChannelIo::on_sent(channel::Channel&, std::uint64_t cookie, bool) {
  const auto slot = static_cast<buffer::SlotIndex>(cookie);
  slots_.release(slot);
  const SentSlot sent = std::exchange(sent_[slot], {});
  --sent.node->slots_out;
  if (sent.lend != 0) channel_options_.lent->end(sent.lend);
}

}  // namespace sanproxy::packet_io
