#include "netnode/packet_io/channel_link.h"

#include <algorithm>
#include <cstring>
#include <optional>

#include "lwproto/base/check.h"
#include "lwproto/channel/channel.h"
#include "netnode/packet_io/channel_packet.h"
#include "netnode/packet_io/vnet_header.h"

namespace sanproxy::packet_io {
namespace {

// Transfers looked at in one go, a super-packet each or many small packets. What they bring is kept
// in an array of a fixed size, and goes out before the next are looked at.
constexpr std::size_t kTransfersMax = 4;
constexpr std::size_t kPacketsPerTransferMax =
    wire::kTransferInlineBytesMax / (wire::kPacketHeaderBytes + wire::kPacketBytesMin) + 1;

constexpr std::uint64_t ns(std::uint32_t ms) { return std::uint64_t{ms} * 1'000'000; }

}  // namespace

const char* link_state_name(LinkState state) {
  switch (state) {
    case LinkState::kDown:
      return "down";
    case LinkState::kConnecting:
      return "connecting";
    case LinkState::kUp:
      return "up";
    case LinkState::kSilent:
      return "silent";
  }
  return "unknown";
}

struct ChannelLink::Impl final : channel::Delegate {
  Impl(fabric::Fabric& to, ChannelLinkOptions link_options, PacketPool& slots,
       const buffer::MemoryRegion& memory, const Clock& time)
      : fabric(to),
        options(std::move(link_options)),
        pool(slots),
        region(memory),
        clock(time),
        retry_ms(options.retry_ms_min),
        act_at_ns(time.now_ns()) {
    options.endpoint.send_regions = {&region};
    incoming.reserve(kTransfersMax * kPacketsPerTransferMax);
    loans.reserve(kTransfersMax);
  }

  // --- channel::Delegate
  void on_data(channel::Channel& from, std::uint64_t, std::uint64_t,
               const channel::Payload&) override {
    from.close(wire::CloseCode::kProtocolError, "DATA on a channel for packets");
  }
  void on_packet(channel::Channel& from, const channel::PacketInfo& info,
                 const channel::Payload& payload) override;
  void on_message(channel::Channel& from, const wire::Message& message) override;
  void on_sent(channel::Channel&, std::uint64_t cookie, bool ok) override {
    pool.release(static_cast<buffer::SlotIndex>(cookie));
    --slots_out;
    if (!ok) ++counters.tx_lost;
  }
  void on_writable(channel::Channel&) override {}
  void on_closed(channel::Channel&, wire::CloseCode code, const Status& status) override {
    last_error = status.code() == Code::kProtocol || code == wire::CloseCode::kNodeDied
                     ? status
                     : Status::error(Code::kDisconnected, wire::close_code_name(code));
    closed = true;
    ++counters.disconnects;
  }

  void begin_connecting();
  void poll_connecting();
  Status come_up(std::unique_ptr<fabric::Endpoint> endpoint, std::span<const std::byte> answer);
  void fail(const Status& status);
  void pause();
  void pump();
  void release_all();
  bool received_all();
  bool peer_present();
  void look_after_channel();
  bool send_one(const LinkSend& packet);

  fabric::Fabric& fabric;
  ChannelLinkOptions options;
  PacketPool& pool;
  const buffer::MemoryRegion& region;
  const Clock& clock;

  LinkState state = LinkState::kDown;
  bool stopped = false;
  std::uint32_t retry_ms;
  std::uint64_t act_at_ns;  // kDown: connect; kConnecting: give up; else: say that we live
  std::uint64_t heard_ns = 0;
  std::uint64_t looked_ns = 0;
  std::uint64_t transfers_heard = 0;
  std::unique_ptr<fabric::Connecting> connecting;
  wire::HelloBody hello{};
  std::unique_ptr<channel::Channel> channel;
  fabric::RegionKey region_key = 0;
  bool closed = false;  // the channel has ended; it goes when what it lent is released
  ProxyStatus proxy;
  Status last_error;

  std::vector<LinkReceived> incoming;
  std::vector<fabric::Loan> loans;
  std::optional<bool> present;  // whether the peer is, as this pump() has found
  std::size_t handed_out = 0;   // of incoming
  bool unreleased = false;
  std::uint32_t slots_out = 0;
  ChannelLinkCounters counters;
};

// --- connecting

void ChannelLink::Impl::begin_connecting() {
  hello = channel::make_hello(options.epoch, options.endpoint, 0, 0, options.node_name);
  hello.role = static_cast<std::uint16_t>(wire::Role::kNetworkNode);
  std::array<std::byte, sizeof(wire::HelloBody)> bytes{};
  wire::encode_hello(hello, bytes);
  auto attempt = fabric.connect(options.address, bytes, options.endpoint);
  if (!attempt.ok()) return fail(attempt.status());
  connecting = std::move(attempt).value();
  state = LinkState::kConnecting;
  act_at_ns = clock.now_ns() + ns(options.connect_timeout_ms);
}

void ChannelLink::Impl::poll_connecting() {
  auto endpoint = connecting->poll();
  Status status = endpoint.status();
  if (status.is_again()) {
    if (clock.now_ns() < act_at_ns) return;
    status = Status::error(Code::kTimeout, "the proxy does not answer");
  } else if (status.code() == Code::kRefused) {
    wire::MessageHeader reason{};
    const std::span<const std::byte> answer = connecting->private_data();
    if (answer.size() == sizeof(reason)) {
      std::memcpy(&reason, answer.data(), sizeof(reason));
      const auto code = static_cast<wire::CloseCode>(reason.code);
      status = Status::error(Code::kRefused, wire::close_code_name(code));
    }
  }
  if (endpoint.ok()) {
    const std::span<const std::byte> answer = connecting->private_data();
    status = come_up(std::move(endpoint).value(), answer);
  }
  connecting.reset();
  if (!status.ok()) fail(status);
}

Status ChannelLink::Impl::come_up(std::unique_ptr<fabric::Endpoint> endpoint,
                                  std::span<const std::byte> answer) {
  const auto theirs = wire::decode_hello(answer);
  if (!theirs.ok()) return theirs.status();
  if (wire::role_of(*theirs) != wire::Role::kNetworkNode) {
    return Status::error(Code::kProtocol, "that address is for application nodes");
  }
  auto key = endpoint->attach(region);
  if (!key.ok()) return key.status();
  region_key = *key;
  channel = std::make_unique<channel::Channel>(std::move(endpoint), hello, *theirs, *this);
  closed = false;
  proxy.name = channel->peer_name();
  proxy.epoch = theirs->epoch;
  ++counters.connects;
  transfers_heard = 0;
  heard_ns = looked_ns = clock.now_ns();
  act_at_ns = heard_ns;  // say that we live, at once
  return {};             // kUp when the proxy has said who it is
}

void ChannelLink::Impl::fail(const Status& status) {
  ++counters.connect_failures;
  last_error = status;
  pause();
}

void ChannelLink::Impl::pause() {
  state = LinkState::kDown;
  act_at_ns = clock.now_ns() + ns(retry_ms);
  retry_ms = std::min(retry_ms * 2, options.retry_ms_max);
}

// --- receiving

void ChannelLink::Impl::on_packet(channel::Channel& from, const channel::PacketInfo& info,
                                  const channel::Payload& payload) {
  const Status direction = [&] {
    wire::Message message;
    message.type = wire::MessageType::kPacket;
    message.flags = info.flags;
    return wire::check_direction(message, wire::Receiver::kNetworkNode);
  }();
  if (!direction.ok()) return from.close(wire::CloseCode::kProtocolError, direction.text());
  // A channel that has ended gives back what it lent: those bytes may be another client's by now.
  if (payload.loan != fabric::kNoLoan && options.endpoint.receive_memory.pool == nullptr &&
      !peer_present()) {
    ++counters.rx_dropped_ended;
    return;
  }
  LinkReceived packet;
  const auto* first = reinterpret_cast<const std::uint8_t*>(payload.pieces[0].data);
  // Whether the headers are whole is for whoever reads them.
  if (payload.pieces[0].length < kLinkPacketBytesMin ||
      (first[0] >> 4 != 4 && first[0] >> 4 != 6) ||
      !offload_from_info(info, first[0], packet.offload)) {
    ++counters.rx_dropped_malformed;
    return;
  }
  for (const fabric::Segment& piece : payload.pieces) {
    packet.pieces[packet.piece_count++] = {const_cast<std::byte*>(piece.data), piece.length};
  }
  packet.length = payload.length;
  packet.unknown_flow = (info.flags & wire::kFlagUnknownFlow) != 0;
  if (packet.unknown_flow) ++counters.rx_unknown_flow;
  ++counters.rx_packets;
  counters.rx_bytes += packet.length;
  if (payload.loan != fabric::kNoLoan && (loans.empty() || loans.back() != payload.loan)) {
    from.retain(payload.loan);
    loans.push_back(payload.loan);
  } else if (payload.loan != fabric::kNoLoan) {
    from.retain(payload.loan);
  }
  incoming.push_back(packet);
}

void ChannelLink::Impl::on_message(channel::Channel& from, const wire::Message& message) {
  const Status direction = wire::check_direction(message, wire::Receiver::kNetworkNode);
  if (!direction.ok()) return from.close(wire::CloseCode::kProtocolError, direction.text());
  proxy.proxy_id = message.status.proxy_id;
  proxy.weight = message.status.weight;
  proxy.draining = (message.flags & wire::kFlagDraining) != 0;
  if (state == LinkState::kConnecting) {
    state = LinkState::kUp;
    retry_ms = options.retry_ms_min;
  }
}

// Asked once for what one pump() takes.
bool ChannelLink::Impl::peer_present() {
  if (!present) present = channel->endpoint().peer_present();
  return *present;
}

// Takes from the channel what it has, once everything of the last time is done with.
void ChannelLink::Impl::pump() {
  if (channel == nullptr || closed || !received_all()) return;
  release_all();
  present.reset();
  channel->poll(kTransfersMax);
}

// Whether nothing of the last time is in use, or waits to be handed out. Who leaves takes no more.
bool ChannelLink::Impl::received_all() {
  if (stopped) handed_out = incoming.size();
  return !unreleased && handed_out == incoming.size();
}

void ChannelLink::Impl::release_all() {
  for (const fabric::Loan loan : loans) channel->release(loan);
  loans.clear();
  incoming.clear();
  handed_out = 0;
}

// --- sending

bool ChannelLink::Impl::send_one(const LinkSend& packet) {
  auto info = info_from_offload(packet.offload, packet.length);
  if (!info || packet.length < kLinkPacketBytesMin || packet.length > kLinkPacketBytesMax ||
      std::size_t{packet.offset} + packet.length > pool.capacity(packet.slot)) {
    ++counters.tx_invalid;
    pool.release(packet.slot);
    return true;
  }
  if (packet.final) info->flags |= wire::kFlagFinal;
  const std::byte* const data = pool.data(packet.slot) + packet.offset;
  Status status;
  if (packet.length <= wire::kInlinePayloadBytesMax) {
    info->can_wait = is_mere_ack({data, packet.length});
    status = channel->send_packet_inline(*info, {data, packet.length});
    if (status.ok()) {
      counters.tx_bytes_copied += packet.length;
      pool.release(packet.slot);
    }
  } else {
    const fabric::GatherRef ref{region_key, packet.length,
                                static_cast<std::uint64_t>(data - region.data())};
    status = channel->send_packet_reference(*info, {&ref, 1}, packet.slot);
    if (status.ok()) ++slots_out;
  }
  if (!status.ok()) return false;
  ++counters.tx_packets;
  counters.tx_bytes += packet.length;
  return true;
}

// --- the clock

void ChannelLink::Impl::look_after_channel() {
  if (closed) {
    if (!received_all()) return;
    release_all();
    channel.reset();
    SANPROXY_CHECK(slots_out == 0);
    return pause();
  }
  const std::uint64_t now = clock.now_ns();
  // Who was away himself (stopped, or a virtual machine that was paused) cannot tell who is silent.
  if (now - looked_ns >= ns(options.silent_after_ms)) heard_ns = now;
  looked_ns = now;
  if (channel->counters().transfers_in != transfers_heard) {
    transfers_heard = channel->counters().transfers_in;
    heard_ns = now;
    if (state == LinkState::kSilent) state = LinkState::kUp;
  } else if (state == LinkState::kUp && now - heard_ns >= ns(options.silent_after_ms)) {
    state = LinkState::kSilent;
    ++counters.silences;
  }
  if (now - heard_ns >= ns(options.dead_after_ms)) {
    return channel->close(wire::CloseCode::kTimedOut, "nothing was heard of the proxy");
  }
  if (now < act_at_ns) return;
  const wire::NodeStatusBody alive{};
  if (channel->send_control(wire::MessageType::kNodeStatus, 0, wire::CloseCode::kNone, alive)
          .ok()) {
    channel->flush();
  }
  act_at_ns = now + ns(options.heartbeat_ms);
}

// --- the interface

ChannelLink::ChannelLink(fabric::Fabric& fabric, ChannelLinkOptions options, PacketPool& pool,
                         const buffer::MemoryRegion& region, const Clock& clock)
    : impl_(std::make_unique<Impl>(fabric, std::move(options), pool, region, clock)) {}

ChannelLink::~ChannelLink() {
  if (impl_->channel != nullptr) impl_->release_all();
}

std::size_t ChannelLink::send(std::span<const LinkSend> packets) {
  if (!takes_packets()) {
    impl_->counters.tx_refused_down += packets.size();
    return 0;
  }
  for (std::size_t i = 0; i < packets.size(); ++i) {
    if (impl_->send_one(packets[i])) continue;
    impl_->counters.tx_refused_full += packets.size() - i;
    return i;
  }
  return packets.size();
}

void ChannelLink::flush() {
  if (impl_->channel != nullptr && !impl_->closed) impl_->channel->publish();
}

std::size_t ChannelLink::receive(std::span<LinkReceived> out) {
  if (impl_->unreleased) return 0;
  if (impl_->handed_out == impl_->incoming.size()) impl_->pump();
  const std::size_t count = std::min(out.size(), impl_->incoming.size() - impl_->handed_out);
  for (std::size_t i = 0; i < count; ++i) out[i] = impl_->incoming[impl_->handed_out++];
  impl_->unreleased = count != 0;
  return count;
}

void ChannelLink::release_received() {
  impl_->unreleased = false;
  if (impl_->handed_out == impl_->incoming.size() && impl_->channel != nullptr) {
    impl_->release_all();
  }
}

void ChannelLink::poll() {
  Impl& link = *impl_;
  if (link.channel != nullptr) {
    link.pump();
    link.look_after_channel();
  } else if (link.connecting != nullptr) {
    link.poll_connecting();
  } else if (!link.stopped && link.clock.now_ns() >= link.act_at_ns) {
    link.begin_connecting();
  }
}

std::uint64_t ChannelLink::next_timer_ns() const {
  return impl_->stopped && impl_->channel == nullptr ? UINT64_MAX : impl_->act_at_ns;
}

LinkState ChannelLink::state() const {
  return impl_->closed && impl_->channel != nullptr ? LinkState::kDown : impl_->state;
}
bool ChannelLink::takes_packets() const {
  const LinkState now = state();
  return now == LinkState::kUp || now == LinkState::kSilent;
}
const ProxyStatus& ChannelLink::proxy() const { return impl_->proxy; }
const ChannelLinkOptions& ChannelLink::options() const { return impl_->options; }
std::uint32_t ChannelLink::slots_out() const { return impl_->slots_out; }
const ChannelLinkCounters& ChannelLink::counters() const { return impl_->counters; }
const Status& ChannelLink::last_error() const { return impl_->last_error; }

void ChannelLink::disconnect() {
  impl_->stopped = true;
  impl_->connecting.reset();
  impl_->act_at_ns = UINT64_MAX;
  if (impl_->channel == nullptr) {
    impl_->state = LinkState::kDown;
  } else if (!impl_->closed) {
    impl_->channel->close(wire::CloseCode::kReset, "the network node leaves");
  }
}

}  // namespace sanproxy::packet_io
