#include "netnode/main/channels.h"

#include <sys/epoll.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <limits>

#include "lwproto/daemon/log.h"
#include "lwproto/fabric/address.h"
#include "lwproto/fabric/shm/shm_fabric.h"
#include "lwproto/fabric/tcp/tcp_fabric.h"
#include "lwproto/fabric/verbs/verbs_fabric.h"

namespace sanproxy::netnode {
namespace {

constexpr std::size_t kBurst = 64;
constexpr std::uint64_t kLookAgainNs = 1'000'000;  // whether a full channel has room
constexpr std::uint32_t kPacketOffset = 64;        // of a packet that we copy into a slot
// On average, of the memory that a proxy shows us: only addresses, of pages that others have.
constexpr std::uint64_t kRegionBytesMax = std::uint64_t{4} << 30;

std::uint64_t new_epoch() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::milliseconds>(now).count());
}

Result<std::unique_ptr<fabric::Fabric>> make_fabric(const std::string& scheme,
                                                    const ChannelConfig& config) {
  if (scheme == "shm") return fabric::make_shm_fabric();
  if (scheme == "tcp") {
    fabric::TcpOptions options;
    options.certificate_file = config.certificate;
    options.key_file = config.key;
    options.authority_file = config.ca;
    options.server_name = config.proxy_name;
    if (!config.ca.empty() && config.proxy_name.empty()) {
      spdlog::warn("without [channel] proxy_name every certificate of the CA passes for a proxy's");
    }
    return fabric::make_tcp_fabric(options);
  }
  if (scheme == "verbs") {
    auto made = fabric::make_verbs_fabric();
    if (!made.ok()) return made.status();
    return std::unique_ptr<fabric::Fabric>(std::move(made).value());
  }
  return Status::error(Code::kUnsupported, "this build has no such fabric");
}

}  // namespace

struct Channels::Link {
  Link(fabric::Fabric& fabric, const packet_io::ChannelLinkOptions& options,
       packet_io::PacketPool& pool, const buffer::MemoryRegion& region, const Clock& clock,
       std::size_t queued_max)
      : channel(fabric, options, pool, region, clock), queue(queued_max) {}

  packet_io::ChannelLink channel;
  std::uint16_t place = 0;
  std::size_t queued = 0;
  std::vector<packet_io::LinkSend> queue;  // the first `queued` are there
  std::array<packet_io::LinkReceived, kBurst> received{};
};

Channels::Channels(const NetnodeConfig& config, const Clock& clock, packet_io::PacketPool& pool,
                   const buffer::MemoryRegion& region, DataPath& path, int epoll_fd)
    : config_(config.channel),
      node_name_(config.name),
      epoch_(new_epoch()),
      clock_(clock),
      pool_(pool),
      region_(region),
      path_(path),
      epoll_fd_(epoll_fd) {}

Channels::~Channels() = default;

fabric::Fabric& Channels::fabric_for(const std::string& address) {
  const Result<fabric::FabricAddress> parsed = fabric::FabricAddress::parse(address);
  if (!parsed.ok()) throw std::runtime_error(address + ": " + parsed.status().to_string());
  if (const auto known = fabrics_.find(parsed->scheme); known != fabrics_.end()) {
    return *known->second;
  }
  auto made = make_fabric(parsed->scheme, config_);
  if (!made.ok()) throw std::runtime_error(address + ": " + made.status().to_string());
  std::unique_ptr<fabric::Fabric> fabric = std::move(made).value();
  fabric->wake_in(epoll_fd_);
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.fd = fabric->event_fd();
  if (epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, fabric->event_fd(), &event) != 0) {
    throw std::runtime_error("event loop: epoll_ctl");
  }
  return *fabrics_.emplace(parsed->scheme, std::move(fabric)).first->second;
}

std::string Channels::apply(std::span<const steer::Forwarder::Proxy> proxies) {
  links_.resize(std::max(links_.size(), proxies.size()));
  std::string wrong;
  for (std::size_t i = 0; i < links_.size(); ++i) {
    const bool wanted =
        i < proxies.size() && proxies[i].in_use && proxies[i].config.mode == steer::Mode::kChannel;
    auto& link = links_[i];
    if (link && (!wanted || link->channel.options().address != proxies[i].config.channel)) {
      flush(*link);
      lose_all(*link);
      link->channel.disconnect();
      leaving_.push_back(std::move(link));
    }
    if (!wanted || link) continue;
    packet_io::ChannelLinkOptions options;
    options.address = proxies[i].config.channel;
    options.node_name = node_name_;
    options.epoch = epoch_;
    options.endpoint.receive_depth = config_.credits;
    options.endpoint.send_depth = config_.send_depth;
    options.endpoint.regions_max = config_.regions_max;
    options.endpoint.peer_region_bytes_max = config_.regions_max * kRegionBytesMax;
    try {
      link = std::make_unique<Link>(fabric_for(options.address), options, pool_, region_, clock_,
                                    config_.queued_max);
      link->place = static_cast<std::uint16_t>(i);
    } catch (const std::exception& e) {
      wrong = "proxy \"" + proxies[i].config.name + "\": " + e.what();
    }
  }
  return wrong;
}

const packet_io::ChannelLink* Channels::link(std::uint16_t proxy) const {
  return proxy < links_.size() && links_[proxy] ? &links_[proxy]->channel : nullptr;
}

bool Channels::send(std::uint16_t proxy, buffer::SlotIndex slot, std::uint32_t offset,
                    std::uint32_t length, const packet_io::Offload& offload, bool final) {
  if (proxy >= links_.size() || !links_[proxy]) {
    pool_.release(slot);
    return false;
  }
  Link& link = *links_[proxy];
  if (link.queued == link.queue.size()) flush(link);
  if (link.queued == link.queue.size() || queued_ >= pool_.slot_count() / 2) {
    pool_.release(slot);
    return false;  // lost, as on a full link: TCP slows down by itself
  }
  link.queue[link.queued++] = {slot, offset, length, offload, final};
  ++queued_;
  if (link.queued % kBurst == 0) flush(link);
  return true;
}

// What the channel does not take now waits for the next time.
void Channels::flush(Link& link) {
  if (link.queued == 0) return;
  if (!link.channel.takes_packets()) return lose_all(link);
  const std::size_t taken = link.channel.send({link.queue.data(), link.queued});
  const auto first = link.queue.begin();
  std::move(first + static_cast<std::ptrdiff_t>(taken),
            first + static_cast<std::ptrdiff_t>(link.queued), first);
  link.queued -= taken;
  queued_ -= taken;
  link.channel.flush();
}

void Channels::flush_all() {
  for (const auto& link : links_) {
    if (link) flush(*link);
  }
}

void Channels::lose_all(Link& link) {
  for (std::size_t i = 0; i < link.queued; ++i) pool_.release(link.queue[i].slot);
  path_.lost_in_channel(link.queued);
  queued_ -= link.queued;
  link.queued = 0;
}

void Channels::receive_one(Link& link, const packet_io::LinkReceived& packet) {
  if (!packet.unknown_flow) {
    path_.to_client(link.place, {packet.pieces.data(), packet.piece_count}, packet.length,
                    packet.offload);
    return;
  }
  const buffer::SlotIndex slot = pool_.acquire();
  if (slot == buffer::kNoSlot || packet.length + kPacketOffset > pool_.slot_bytes()) {
    path_.count_lost_retry();  // as on a full link
    if (slot != buffer::kNoSlot) pool_.release(slot);
    return;
  }
  pool_.mark_received(slot);
  std::byte* to = pool_.data(slot) + kPacketOffset;
  for (std::uint32_t i = 0; i < packet.piece_count; ++i) {
    std::memcpy(to, packet.pieces[i].iov_base, packet.pieces[i].iov_len);
    to += packet.pieces[i].iov_len;
  }
  path_.retry(link.place, slot, kPacketOffset, packet.length, packet.offload);
}

std::size_t Channels::round() {
  std::size_t work = 0;
  for (const auto& link : links_) {
    if (!link) continue;
    flush(*link);
    link->channel.poll();
    const std::size_t count = link->channel.receive(link->received);
    for (std::size_t i = 0; i < count; ++i) receive_one(*link, link->received[i]);
    if (count == 0) continue;
    path_.flush();
    link->channel.release_received();
    link->channel.flush();  // what was released
    work += count;
  }
  // What came back may be for a link that has had its turn; what waited may have room now.
  if (queued_ != 0) flush_all();
  for (const auto& link : leaving_) link->channel.poll();
  std::erase_if(leaving_, [](const auto& link) { return link->channel.slots_out() == 0; });
  return work;
}

bool Channels::arm() {
  bool may_sleep = true;
  for (const auto& [scheme, fabric] : fabrics_) may_sleep = fabric->arm() && may_sleep;
  return may_sleep;
}

void Channels::disarm() {
  for (const auto& [scheme, fabric] : fabrics_) fabric->disarm();
}

std::uint64_t Channels::next_timer_ns() const {
  std::uint64_t next = std::numeric_limits<std::uint64_t>::max();
  for (const auto& link : links_) {
    if (link) next = std::min(next, link->channel.next_timer_ns());
  }
  if (queued_ != 0) next = std::min(next, clock_.now_ns() + kLookAgainNs);
  return next;
}

}  // namespace sanproxy::netnode
