#include "netnode/packet_io/ethernet_port.h"

#include <sys/random.h>
#include <time.h>

#include <algorithm>

namespace sanproxy::packet_io {
namespace {

std::uint64_t random_seed() {
  std::uint64_t seed = 0;
  if (::getrandom(&seed, sizeof(seed), 0) != sizeof(seed)) {
    seed = static_cast<std::uint64_t>(::time(nullptr));
  }
  return seed;
}

// Peers that are neither on link nor behind a gateway exist only where a family has no gateway.
bool has_both_gateways(const NeighborConfig& config) {
  const auto has = [&](Family family) {
    return std::any_of(config.gateways.begin(), config.gateways.end(),
                       [&](const IpAddress& gateway) { return gateway.family == family; });
  };
  return has(Family::kIpv4) && has(Family::kIpv6);
}

}  // namespace

std::uint64_t EthernetPort::CoarseClock::now_ns() const {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000U +
         static_cast<std::uint64_t>(now.tv_nsec);
}

EthernetPort::EthernetPort(const NeighborConfig& config, bool own_addresses_only, Metadata metadata,
                           FrameSink& sink, Counters& counters)
    : counters_(counters),
      neighbor_(config, clock_, sink, counters, random_seed()),
      own_addresses_only_(own_addresses_only),
      metadata_(metadata),
      learns_(!has_both_gateways(config)) {}

bool EthernetPort::for_us(const std::uint8_t* packet, std::uint16_t ether_type) {
  IpAddress dst;
  if (ether_type == net::kEtherTypeIpv4) {
    dst.family = Family::kIpv4;
    std::memcpy(dst.bytes.data(), packet + 16, 4);
  } else {
    dst.family = Family::kIpv6;
    std::memcpy(dst.bytes.data(), packet + 24, 16);
  }
  if (dst == last_local_) {
    return true;
  }
  // The link-local address is for neighbour discovery alone: the kernel has it as well.
  if (dst == neighbor_.link_local() || !neighbor_.is_local(dst)) {
    return false;
  }
  last_local_ = dst;
  return true;
}

bool EthernetPort::inbound(const VnetHeader& vnet, std::span<const std::byte> frame,
                           ReceivedPacket& out) {
  net::EthernetView ethernet;
  if (!net::parse_ethernet(frame, ethernet)) {
    ++counters_.rx_dropped_short;
    return false;
  }
  const bool group = ethernet.dst.is_group();
  if (!group && ethernet.dst != neighbor_.mac()) {
    ++counters_.rx_dropped_not_for_us;
    return false;
  }
  if (ethernet.ether_type == net::kEtherTypeArp) {
    neighbor_.input_arp(frame);
    return false;
  }
  const bool v4 = ethernet.ether_type == net::kEtherTypeIpv4;
  if (!v4 && ethernet.ether_type != net::kEtherTypeIpv6) {
    ++counters_.rx_dropped_not_ip;  // VLAN-tagged frames among them
    return false;
  }
  const std::span<const std::byte> packet = frame.subspan(net::kEthernetHeaderBytes);
  const auto* at = reinterpret_cast<const std::uint8_t*>(packet.data());
  auto length = static_cast<std::uint32_t>(packet.size());
  const IpCheck check = check_ip(at, length);
  if (check != IpCheck::kOk) {
    ++(check == IpCheck::kShort ? counters_.rx_dropped_short : counters_.rx_dropped_not_ip);
    return false;
  }
  if ((at[0] >> 4) != (v4 ? 4 : 6)) {
    ++counters_.rx_dropped_not_ip;
    return false;
  }
  if (!v4 && at[6] == net::kProtocolIcmp6) {
    net::ParsedPacket parsed;
    if (net::parse_packet(packet, parsed) == net::DropReason::kNone && is_nd(packet, parsed)) {
      neighbor_.input_nd(packet, parsed);
      return false;
    }
  }
  if (group || (own_addresses_only_ && !for_us(at, ethernet.ether_type))) {
    ++counters_.rx_dropped_not_for_us;
    return false;
  }
  if (!offload_from_vnet(vnet, at, length, net::kEthernetHeaderBytes, metadata_, out.offload)) {
    ++counters_.rx_dropped_metadata;
    return false;
  }
  if (learns_) {
    IpAddress src{v4 ? Family::kIpv4 : Family::kIpv6, {}};
    std::memcpy(src.bytes.data(), v4 ? at + 12 : at + 8, src.size());
    neighbor_.learn(src, ethernet.src);
  }
  out.length = length;
  return true;
}

bool EthernetPort::outbound(const SendPacket& packet, LinkHeader& header) {
  net::MacAddress to;
  if (!neighbor_.resolve(packet, to)) {
    return false;
  }
  header.vnet = vnet_from_offload(packet.offload, net::kEthernetHeaderBytes);
  const bool v4 = (net::load_u8(packet.pieces[0].iov_base) >> 4) == 4;
  net::write_ethernet(header.ethernet.data(), to, neighbor_.mac(),
                      v4 ? net::kEtherTypeIpv4 : net::kEtherTypeIpv6);
  return true;
}

}  // namespace sanproxy::packet_io
