// DataPath: packets to proxies at the end of tunnels (docs/netnode.md "Tunnels").
#include <algorithm>

#include "netnode/main/data_path.h"
#include "netnode/net/checksum.h"
#include "netnode/net/icmp_error.h"
#include "netnode/net/segments.h"
#include "netnode/net/tcp_header.h"

namespace sanproxy::netnode {
namespace {

// The hop that a router spends. False: none is left.
bool spend_hop(std::uint8_t* ip) {
  std::uint8_t& hops = (ip[0] >> 4) == 4 ? ip[8] : ip[7];
  if (hops <= 1) return false;
  if ((ip[0] >> 4) == 4) {
    const std::uint16_t before = net::load_raw16(ip + 8);
    --hops;
    net::store_raw16(ip + 10,
                     net::update16(net::load_raw16(ip + 10), before, net::load_raw16(ip + 8)));
  } else {
    --hops;
  }
  return true;
}

// Whether a segment that does not fit is cut like a super-packet, since to answer it helps nobody.
// New checksums must not make a wrong one right.
bool goes_in_pieces(std::span<const std::byte> packet, const net::ParsedPacket& parsed,
                    const packet_io::Offload& offload, std::uint32_t room) {
  if (parsed.family != Family::kIpv6 || parsed.l4 != net::L4::kTcp || parsed.fragment ||
      parsed.total_bytes <= room || parsed.total_bytes > net::kIpv6MtuMin) {
    return false;
  }
  const auto* ip = reinterpret_cast<const std::uint8_t*>(packet.data());
  const std::uint8_t* tcp = ip + parsed.l3_header_bytes;
  if ((tcp[13] & (net::kTcpSyn | net::kTcpRst | net::kTcpUrg)) != 0) return false;
  if (offload.checksum_partial || offload.checksum_verified) return true;
  const std::uint32_t bytes = parsed.l4_bytes();
  return net::finish(net::sum_bytes(tcp, bytes,
                                    net::pseudo_header_sum(Family::kIpv6, ip + 8, ip + 24,
                                                           net::kProtocolTcp, bytes))) == 0;
}

}  // namespace

void DataPath::to_tunnel(const Here& packet, const steer::Verdict& verdict,
                         const steer::ProxyConfig& proxy) {
  net::TunnelSpec spec{proxy.tunnel, {}, {}, proxy.gue_port};
  for (const SocketAddress& target : proxy.targets) {
    // One target is enough: either family goes through it. With two, like goes in like.
    if (spec.remote.family != Family::kNone && target.ip.family != verdict.parsed.family) continue;
    spec.remote = target.ip;
  }
  for (const IpAddress& ours : tunnel_addresses_) {
    if (ours.family == spec.remote.family) spec.local = ours;
  }
  std::uint8_t* ip = reinterpret_cast<std::uint8_t*>(bytes_of(packet).data());
  if (spec.local.family == Family::kNone || !spend_hop(ip)) {
    ++(spec.local.family == Family::kNone ? counters_.dropped_no_route
                                          : counters_.dropped_hop_limit);
    release(packet);
    return;
  }
  WayOut& out = way_to(spec.remote.bytes.data(), spec.remote.family);
  const std::uint32_t mtu = std::min(
      out.io().mtu_bytes(), forwarder_.path_mtu(verdict.proxy, spec.remote.family, now_ms()));
  const auto room = static_cast<std::uint32_t>(mtu - spec.overhead_bytes());
  const net::ParsedPacket& parsed = verdict.parsed;
  const bool whole = packet.offload.segmentation == packet_io::Segmentation::kNone;
  const bool cut = !whole || goes_in_pieces(bytes_of(packet), parsed, packet.offload, room);
  const bool sum = packet.offload.checksum_partial;
  if (!cut && !fits(packet, parsed, room)) return;
  ++counters_.to_tunnel;
  const std::size_t headers = std::size_t{parsed.l3_header_bytes} + parsed.l4_header_bytes;
  if (parsed.l4 != net::L4::kTcp || parsed.fragment || (!cut && !sum)) {
    if (sum && !net::complete_checksum(bytes_of(packet), packet.offload.checksum_start,
                                       packet.offload.checksum_offset)) {
      ++counters_.dropped_tunnel_in;
      release(packet);
      return;
    }
    tunnel_one(out, spec, verdict, {}, bytes_of(packet).first(parsed.total_bytes), packet.slot);
    return;
  }
  const std::uint32_t fit = room - static_cast<std::uint32_t>(headers);
  net::TcpSegments segments(
      bytes_of(packet), parsed,
      whole ? fit : std::min<std::uint32_t>(packet.offload.segment_bytes, fit));
  if (!segments.possible()) {
    ++counters_.dropped_too_big;
    release(packet);
    return;
  }
  std::array<std::byte, net::kSegmentHeaderBytesMax> header;
  std::span<const std::byte> payload;
  while (segments.next(header, payload)) {
    tunnel_one(out, spec, verdict, std::span<const std::byte>(header).first(headers), payload,
               buffer::kNoSlot);
  }
  out.flush();  // the payload's slot is free then
  release(packet);
}

// Queues one inner packet, in one or two parts, behind its outer header.
void DataPath::tunnel_one(WayOut& out, const net::TunnelSpec& spec, const steer::Verdict& verdict,
                          std::span<const std::byte> header, std::span<const std::byte> payload,
                          buffer::SlotIndex slot) {
  packet_io::SendPacket& place = out.place();
  const std::span<std::byte> room = out.header_room();
  const std::size_t inner = header.size() + payload.size();
  const std::size_t outer =
      net::write_tunnel_header(room, spec, verdict.parsed, inner, verdict.hash);
  std::copy(header.begin(), header.end(), room.begin() + static_cast<std::ptrdiff_t>(outer));
  place.pieces[0] = {room.data(), outer + header.size()};
  place.pieces[1] = {const_cast<std::byte*>(payload.data()), payload.size()};
  place.piece_count = payload.empty() ? 1 : 2;
  place.length = static_cast<std::uint32_t>(outer + inner);
  place.offload = {};
  out.push(slot);
}

}  // namespace sanproxy::netnode
