#include "netnode/main/data_path.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "netnode/net/checksum.h"
#include "netnode/net/icmp.h"
#include "netnode/net/segments.h"
#include "netnode/net/tcp_header.h"

namespace sanproxy::netnode {
namespace {

// Bytes received in one burst, as far as the one before tells: few enough that what the kernel has
// just written is still in a core's own cache when it is sent on.
constexpr std::size_t kBurstBytes = 192 * 1024;
constexpr std::size_t kBurstMin = 2;

using steer::Action;
using steer::kBurstMax;
using steer::NatResult;

constexpr std::size_t kPrefixBitsPerByte = 8;
// IPv4 and TCP with all their options. A device's own word for the headers may cover more.
constexpr std::uint32_t kHeaderBytesMax = 120;

bool in_prefix(const IpPrefix& prefix, const std::uint8_t* address, Family family) {
  if (prefix.ip.family != family) return false;
  const std::size_t whole = prefix.length_bits / kPrefixBitsPerByte;
  if (std::memcmp(prefix.ip.bytes.data(), address, whole) != 0) return false;
  const unsigned rest = prefix.length_bits % kPrefixBitsPerByte;
  if (rest == 0) return true;
  const auto mask = static_cast<std::uint8_t>(0xff00U >> rest);
  return ((prefix.ip.bytes[whole] ^ address[whole]) & mask) == 0;
}

std::uint32_t header_bytes_of(const net::ParsedPacket& parsed) {
  return std::uint32_t{parsed.l3_header_bytes} + parsed.l4_header_bytes;
}

// Whether metadata that a proxy sent along say something that the bytes bear out. A segment of less
// than kSegmentBytesMin is nobody's MSS, and would make thousands of one packet.
constexpr std::uint32_t kSegmentBytesMin = 32;
bool offload_makes_sense(const net::ParsedPacket& parsed, const packet_io::Offload& offload) {
  const std::uint32_t headers = header_bytes_of(parsed);
  const bool tcp = parsed.l4 == net::L4::kTcp;
  if (offload.checksum_partial) {
    const std::uint32_t field = tcp ? net::kTcpChecksumOffset : net::kUdpChecksumOffset;
    if ((!tcp && parsed.l4 != net::L4::kUdp) || offload.checksum_start != parsed.l3_header_bytes ||
        offload.checksum_offset != field) {
      return false;
    }
  }
  return offload.segmentation == packet_io::Segmentation::kNone ||
         (tcp && offload.segment_bytes >= kSegmentBytesMin && headers <= kHeaderBytesMax);
}

steer::ForwarderOptions forwarder_options(const NetnodeConfig& config) {
  steer::ForwarderOptions out = config.forwarder;
  out.tunnel_addresses = config.tunnel_addresses;
  return out;
}

}  // namespace

struct DataPath::Interface {
  Interface(std::unique_ptr<packet_io::PacketIo> device, packet_io::PacketPool& pool)
      : io(std::move(device)), out(*io, pool) {}

  std::unique_ptr<packet_io::PacketIo> io;
  std::vector<IpPrefix> routes;
  WayOut out;
  buffer::SlotIndex first_frame = buffer::kNoSlot;  // of a driver that lends
  // Slots lent to the driver: the first `posted` entries of both arrays.
  std::size_t posted = 0;
  std::size_t burst = kBurstMax;  // how many of them the next round offers
  std::array<buffer::SlotIndex, kBurstMax> slots{};
  std::array<packet_io::ReceiveBuffer, kBurstMax> buffers{};
  std::array<packet_io::ReceivedPacket, kBurstMax> packets{};
  std::array<Here, kBurstMax> here{};
};

DataPath::DataPath(const NetnodeConfig& config, const Clock& clock, packet_io::PacketPool& pool)
    : clock_(clock),
      pool_(pool),
      forwarder_(forwarder_options(config)),
      tunnel_addresses_(config.tunnel_addresses),
      icmp_errors_(config.icmp_errors),
      held_(pool.places()) {}

DataPath::~DataPath() = default;

void DataPath::add_interface(std::unique_ptr<packet_io::PacketIo> io,
                             std::vector<IpPrefix> routes) {
  auto interface = std::make_unique<Interface>(std::move(io), pool_);
  const auto& own = interface->io->options().addresses;
  interface->routes = std::move(routes);
  interface->routes.insert(interface->routes.end(), own.begin(), own.end());
  if (interface->io->lends()) {
    interface->first_frame = pool_.add_frames(*interface->io);
    held_.resize(pool_.places());
  }
  interfaces_.push_back(std::move(interface));
}

std::vector<const packet_io::PacketIo*> DataPath::interfaces() const {
  std::vector<const packet_io::PacketIo*> out;
  for (const auto& interface : interfaces_) out.push_back(interface->io.get());
  return out;
}

const WayOutCounters& DataPath::way_out(std::size_t interface) const {
  return interfaces_[interface]->out.counters();
}

// The node's, also while no service is there: clients, routers and servers send to them.
bool DataPath::is_own(const Interface& interface, const IpAddress& ip) const {
  const auto& own = interface.io->options().addresses;
  return forwarder_.nat().is_ours(ip.bytes.data(), ip.family) ||
         std::find(tunnel_addresses_.begin(), tunnel_addresses_.end(), ip) !=
             tunnel_addresses_.end() ||
         std::any_of(own.begin(), own.end(), [&](const IpPrefix& one) { return one.ip == ip; });
}

void DataPath::answer_for(const steer::ProxySet& set) {
  std::vector<IpAddress> wanted;
  for (const steer::ServiceConfig& service : set.services) wanted.push_back(service.address.ip);
  std::sort(wanted.begin(), wanted.end());
  wanted.erase(std::unique(wanted.begin(), wanted.end()), wanted.end());
  for (const auto& interface : interfaces_) {
    for (const IpAddress& ip : wanted) {
      if (!std::binary_search(answered_for_.begin(), answered_for_.end(), ip)) {
        interface->io->add_local_address(ip);
      }
    }
    for (const IpAddress& ip : answered_for_) {
      if (!std::binary_search(wanted.begin(), wanted.end(), ip) && !is_own(*interface, ip)) {
        interface->io->remove_local_address(ip);
      }
    }
  }
  answered_for_ = std::move(wanted);
}

// The interface of the longest prefix that holds the address; without one, the first.
WayOut& DataPath::way_to(const std::uint8_t* dst, Family family) {
  Interface* best = interfaces_.front().get();
  int bits = -1;
  for (const auto& interface : interfaces_) {
    for (const IpPrefix& route : interface->routes) {
      if (route.length_bits > bits && in_prefix(route, dst, family)) {
        best = interface.get();
        bits = route.length_bits;
      }
    }
  }
  return best->out;
}

bool DataPath::post(Interface& in, std::size_t i) {
  const buffer::SlotIndex slot = pool_.acquire();
  if (slot == buffer::kNoSlot) return false;
  in.slots[i] = slot;
  in.buffers[i] = {pool_.data(slot), static_cast<std::uint32_t>(pool_.slot_bytes())};
  return true;
}

std::size_t DataPath::receive() {
  std::size_t count = 0;
  received_bytes_ = 0;
  for (const auto& interface : interfaces_) count += receive(*interface);
  return count;
}

// Packets in memory of the driver's (AF_XDP): they stay where they are.
std::size_t DataPath::receive_lent(Interface& in) {
  const std::size_t count = in.io->receive({}, in.packets);
  for (std::size_t i = 0; i < count; ++i) {
    const packet_io::ReceivedPacket& packet = in.packets[i];
    const buffer::SlotIndex slot = pool_.take(in.first_frame, packet.loan);
    received_bytes_ += packet.length;
    in.here[i] = {slot, static_cast<std::uint32_t>(packet.lent - pool_.data(slot)), packet.length,
                  packet.offload};
  }
  judge({in.here.data(), count});
  return count;
}

std::size_t DataPath::receive(Interface& in) {
  if (in.io->lends()) return receive_lent(in);
  while (in.posted < kBurstMax && post(in, in.posted)) ++in.posted;
  const std::size_t offered = std::min(in.posted, in.burst);
  const std::size_t count =
      in.io->receive({in.buffers.data(), offered}, {in.packets.data(), offered});
  std::size_t bytes = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const packet_io::ReceivedPacket& packet = in.packets[i];
    bytes += packet.length;
    const buffer::SlotIndex slot = std::exchange(in.slots[packet.buffer], buffer::kNoSlot);
    pool_.mark_received(slot);
    in.here[i] = {slot, packet.offset, packet.length, packet.offload};
  }
  received_bytes_ += bytes;
  if (bytes != 0) in.burst = std::clamp(kBurstBytes * count / bytes, kBurstMin, kBurstMax);
  judge({in.here.data(), count});
  const std::size_t used = count == 0 ? 0 : in.packets[count - 1].buffer + std::size_t{1};
  for (std::size_t i = used; i-- > 0;) {
    if (in.slots[i] != buffer::kNoSlot || post(in, i)) continue;
    --in.posted;  // the pool is dry: packets wait in the device's queue
    in.slots[i] = in.slots[in.posted];
    in.buffers[i] = in.buffers[in.posted];
  }
  return count;
}

void DataPath::judge_plain(std::span<const Here> packets) {
  std::array<steer::Forwarder::Arrival, kBurstMax> arrivals;
  for (std::size_t i = 0; i < packets.size(); ++i) {
    arrivals[i] = {bytes_of(packets[i]), packets[i].slot};
  }
  forwarder_.steer({arrivals.data(), packets.size()}, verdicts_, now_ms());
  for (std::size_t i = 0; i < packets.size(); ++i) act(packets[i], verdicts_[i]);
}

void DataPath::act(const Here& packet, steer::Verdict& verdict) {
  switch (verdict.action) {
    case Action::kDrop:
    case Action::kNoted:
      release(packet);
      return;
    case Action::kHeld:
      held_[packet.slot] = packet;
      return;
    case Action::kEcho:
      echo(packet, verdict);
      return;
    case Action::kToProxy:
      to_proxy(packet, verdict);
      break;
    case Action::kToClient: {
      const net::FlowKey* client = forwarder_.nat().client_of(verdict.flow);
      if (client != nullptr && !fits(packet, verdict.parsed,
                                     way_to(client->src.data(), client->family).io().mtu_bytes())) {
        return;
      }
      if (client != nullptr && verdict.has_ports && verdict.parsed.l4 == net::L4::kTcp) {
        const std::byte flags = bytes_of(packet)[verdict.parsed.l3_header_bytes + 13U];
        forwarder_.on_translated(*client, static_cast<std::uint8_t>(flags), now_ms());
      }
      const steer::Nat::Packet what{bytes_of(packet), verdict.parsed, verdict.has_ports,
                                    packet.offload.checksum_partial};
      nat_result(packet, verdict.parsed,
                 forwarder_.nat().to_client(what, verdict.flow,
                                            static_cast<std::uint32_t>(now_ms() / 1'000)),
                 counters_.to_client);
      break;
    }
    case Action::kErrorToProxy:
      error_to_proxy(packet, verdict);
      return;
    case Action::kErrorToClient:
      error_to_client(packet, verdict);
      return;
  }
  if (verdict.first_fragment) release_held(verdict);
}

// Later fragments that were here before the first one.
void DataPath::release_held(const steer::Verdict& first) {
  const std::uint64_t now = now_ms();
  steer::Fragments::Token token = 0;
  while (forwarder_.release_held(first, token, now)) {
    const Here packet = held_[token];
    const steer::Forwarder::Arrival arrival{bytes_of(packet), packet.slot};
    steer::Verdict verdict;
    forwarder_.steer({&arrival, 1}, {&verdict, 1}, now);
    act(packet, verdict);
  }
}

void DataPath::to_proxy(const Here& packet, const steer::Verdict& verdict) {
  const steer::ProxyConfig& proxy = forwarder_.proxies()[verdict.proxy].config;
  if (proxy.clamp_mss != 0 && verdict.has_ports && verdict.parsed.l4 == net::L4::kTcp) {
    (void)net::clamp_mss(bytes_of(packet), verdict.parsed, proxy.clamp_mss,
                         packet.offload.checksum_partial);
  }
  switch (proxy.mode) {
    case steer::Mode::kNat:
      nat_to_proxy(packet, verdict, proxy);
      return;
    case steer::Mode::kTunnel:
      to_tunnel(packet, verdict, proxy);
      return;
    case steer::Mode::kChannel:
      if (channels_ != nullptr &&
          channels_->send(verdict.proxy, packet.slot, packet.offset, verdict.parsed.total_bytes,
                          packet.offload, verdict.final)) {
        ++counters_.to_channel;
      } else {
        ++counters_.dropped_channel;
      }
      return;
  }
}

void DataPath::nat_to_proxy(const Here& packet, const steer::Verdict& verdict,
                            const steer::ProxyConfig& proxy) {
  for (const SocketAddress& target : proxy.targets) {
    if (target.ip.family != verdict.parsed.family) continue;
    WayOut& out = way_to(target.ip.bytes.data(), target.ip.family);
    if (!fits(packet, verdict.parsed, out.io().mtu_bytes())) return;
    const steer::Nat::Packet what{bytes_of(packet), verdict.parsed, verdict.has_ports,
                                  packet.offload.checksum_partial};
    nat_result(packet, verdict.parsed,
               forwarder_.nat().to_proxy(what, verdict.flow, verdict.proxy, target,
                                         static_cast<std::uint32_t>(now_ms() / 1'000)),
               counters_.to_nat);
    return;
  }
  nat_result(packet, verdict.parsed, NatResult::kNoAddress, counters_.to_nat);
}

// Sends a packet that was rewritten in place, or counts why it was not.
void DataPath::nat_result(const Here& packet, const net::ParsedPacket& parsed, NatResult result,
                          std::uint64_t& sent) {
  if (result != NatResult::kOk) {
    ++counters_.nat_drops[static_cast<std::size_t>(result)];
    release(packet);
    return;
  }
  ++sent;
  send_here(packet, parsed.dst, parsed.family);  // points into the packet: where it goes now
}

void DataPath::error_to_proxy(const Here& packet, const steer::Verdict& verdict) {
  const steer::ProxyConfig& proxy = forwarder_.proxies()[verdict.proxy].config;
  if (proxy.mode != steer::Mode::kNat) {
    to_proxy(packet, verdict);
    return;
  }
  nat_result(
      packet, verdict.parsed,
      forwarder_.nat().error_to_proxy(
          {bytes_of(packet), verdict.parsed, true, packet.offload.checksum_partial}, verdict.error),
      counters_.to_nat);
}

void DataPath::error_to_client(const Here& packet, const steer::Verdict& verdict) {
  nat_result(
      packet, verdict.parsed,
      forwarder_.nat().error_to_client(
          {bytes_of(packet), verdict.parsed, true, packet.offload.checksum_partial}, verdict.error),
      counters_.to_client);
}

void DataPath::echo(const Here& packet, const steer::Verdict& verdict) {
  const bool trusted = packet.offload.checksum_partial || packet.offload.checksum_verified;
  if (!net::make_echo_reply(bytes_of(packet), verdict.parsed, trusted)) {
    release(packet);
    return;
  }
  ++counters_.echo_replies;
  Here reply = packet;
  reply.offload = {};
  reply.length = verdict.parsed.total_bytes;
  send_here(reply, verdict.parsed.dst, verdict.parsed.family);
}

// Sends what lies in a slot of ours out of the interface towards `dst`.
void DataPath::send_here(const Here& packet, const std::uint8_t* dst, Family family) {
  WayOut& out = way_to(dst, family);
  packet_io::SendPacket& place = out.place();
  place.pieces[0] = {pool_.data(packet.slot) + packet.offset, packet.length};
  place.piece_count = 1;
  place.length = packet.length;
  place.offload = packet.offload;
  const std::uint32_t segment_max =
      out.io().mtu_bytes() - std::min<std::uint32_t>(packet.offload.header_bytes, kHeaderBytesMax);
  if (place.offload.segmentation != packet_io::Segmentation::kNone &&
      place.offload.segment_bytes > segment_max) {
    place.offload.segment_bytes = static_cast<std::uint16_t>(segment_max);
  }
  out.push(packet.slot);
}

// Whether a packet may leave by an interface of `mtu_bytes`; else it has been answered and
// released. A super-packet always may: it is cut as small as need be.
bool DataPath::fits(const Here& packet, const net::ParsedPacket& parsed, std::uint32_t mtu_bytes) {
  if (packet.offload.segmentation != packet_io::Segmentation::kNone ||
      parsed.total_bytes <= mtu_bytes) {
    return true;
  }
  answer_too_big(packet, parsed, mtu_bytes);
  return false;
}

void DataPath::answer_too_big(const Here& packet, const net::ParsedPacket& parsed,
                              std::uint32_t mtu_bytes) {
  const auto bytes = bytes_of(packet);
  const bool may = net::may_answer_too_big(bytes, parsed);
  // First: what cannot be answered takes nothing from what can.
  if (may && !icmp_bucket_.take(icmp_errors_, clock_.now_ns())) {
    ++counters_.icmp_limited;
    release(packet);
    return;
  }
  WayOut& out = way_to(parsed.src, parsed.family);
  const buffer::SlotIndex slot = may ? pool_.acquire() : buffer::kNoSlot;
  std::size_t length = 0;
  if (slot != buffer::kNoSlot) {
    length =
        net::build_packet_too_big(bytes, parsed, mtu_bytes, {pool_.data(slot), pool_.slot_bytes()});
  }
  release(packet);
  if (length == 0) {
    ++counters_.dropped_too_big;
    if (slot != buffer::kNoSlot) pool_.release(slot);
    return;
  }
  ++counters_.packet_too_big;
  packet_io::SendPacket& place = out.place();
  place.pieces[0] = {pool_.data(slot), length};
  place.piece_count = 1;
  place.length = static_cast<std::uint32_t>(length);
  place.offload = {};
  out.push(slot);
}

// Nothing of what a proxy says is taken for granted: it goes to others' kernels and devices.
void DataPath::to_client(std::uint16_t from, std::span<const iovec> pieces, std::uint32_t length,
                         const packet_io::Offload& offload) {
  const std::span<const std::byte> first{static_cast<const std::byte*>(pieces[0].iov_base),
                                         pieces[0].iov_len};
  net::ParsedPacket parsed;
  if (net::parse_first_piece(first, length, parsed) != net::DropReason::kNone ||
      parsed.total_bytes != length || !offload_makes_sense(parsed, offload)) {
    ++counters_.dropped_reply_malformed;
    return;
  }
  if (!forwarder_.on_reply(parsed, first, from, now_ms())) {
    ++counters_.dropped_reply_foreign;
    return;
  }
  WayOut& out = way_to(parsed.dst, parsed.family);
  packet_io::SendPacket& place = out.place();
  std::copy(pieces.begin(), pieces.end(), place.pieces.begin());
  place.piece_count = static_cast<std::uint32_t>(pieces.size());
  place.length = length;
  place.offload = offload;
  if (offload.header_bytes != 0) {
    place.offload.header_bytes = static_cast<std::uint16_t>(header_bytes_of(parsed));
  }
  const std::uint32_t segment_max = out.io().mtu_bytes() - header_bytes_of(parsed);
  if (offload.segmentation != packet_io::Segmentation::kNone &&
      offload.segment_bytes > segment_max) {
    place.offload.segment_bytes = static_cast<std::uint16_t>(segment_max);
  }
  ++counters_.to_client;
  out.push(buffer::kNoSlot);
}

void DataPath::retry(std::uint16_t from, buffer::SlotIndex slot, std::uint32_t offset,
                     std::uint32_t length, const packet_io::Offload& offload) {
  const Here packet{slot, offset, length, offload};
  net::ParsedPacket parsed;
  if (net::parse_packet(bytes_of(packet), parsed) != net::DropReason::kNone ||
      parsed.total_bytes != length || !offload_makes_sense(parsed, offload)) {
    ++counters_.dropped_sent_back;
    release(packet);
    return;
  }
  steer::Verdict verdict;
  forwarder_.retry(bytes_of(packet), from, verdict, now_ms());
  act(packet, verdict);
}

void DataPath::flush() {
  for (const auto& interface : interfaces_) interface->out.flush();
}

bool DataPath::unsent() const {
  return std::any_of(interfaces_.begin(), interfaces_.end(),
                     [](const auto& interface) { return interface->io->unsent(); });
}

void DataPath::on_time() {
  if (redirect_ != nullptr) keep_redirect_right();
  forwarder_.age(now_ms());
  steer::Fragments::Token token = 0;
  while (forwarder_.expire_held(now_ms(), token)) pool_.release(token);
}

}  // namespace sanproxy::netnode
