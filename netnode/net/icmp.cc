#include "netnode/net/icmp.h"

#include <algorithm>

#include "netnode/net/checksum.h"

namespace sanproxy::net {
namespace {

bool is_unicast(Family family, const std::uint8_t* address) {
  if (family == Family::kIpv6) {
    const bool unspecified = std::all_of(address, address + 16, [](auto b) { return b == 0; });
    return address[0] != 0xff && !unspecified;
  }
  return address[0] < 224 && address[0] != 0;  // also keeps the limited broadcast out
}

}  // namespace

bool make_echo_reply(std::span<std::byte> packet, const ParsedPacket& parsed,
                     bool checksum_trusted) {
  const bool v4 = parsed.l4 == L4::kIcmp;
  if ((!v4 && parsed.l4 != L4::kIcmp6) || packet.size() < parsed.total_bytes ||
      parsed.has_l3_options) {
    return false;
  }
  auto* at = reinterpret_cast<std::uint8_t*>(packet.data());
  std::uint8_t* icmp = at + parsed.l3_header_bytes;
  if (icmp[0] != (v4 ? kIcmpEchoRequest : kIcmp6EchoRequest) || icmp[1] != 0 ||
      !is_unicast(parsed.family, parsed.src) || !is_unicast(parsed.family, parsed.dst)) {
    return false;
  }
  // Swapping the addresses leaves the pseudo-header's sum as it is.
  const std::uint32_t length = parsed.l4_bytes();
  const std::uint64_t pseudo =
      v4 ? 0 : pseudo_header_sum(parsed.family, parsed.src, parsed.dst, kProtocolIcmp6, length);
  if (!checksum_trusted && finish(sum_bytes(icmp, length, pseudo)) != 0) {
    return false;
  }
  const std::size_t address_bytes = v4 ? 4 : 16;
  std::uint8_t* src = at + (parsed.src - at);
  std::swap_ranges(src, src + address_bytes, src + address_bytes);
  icmp[0] = v4 ? kIcmpEchoReply : kIcmp6EchoReply;
  store_raw16(icmp + 2, 0);
  store_raw16(icmp + 2, finish(sum_bytes(icmp, length, pseudo)));
  if (v4) {
    at[8] = kReplyHopLimit;
    store_raw16(at + 10, 0);
    store_raw16(at + 10, ipv4_header_checksum(at, kIpv4HeaderBytesMin));
  } else {
    at[7] = kReplyHopLimit;
  }
  return true;
}

}  // namespace sanproxy::net
