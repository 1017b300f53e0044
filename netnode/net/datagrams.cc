#include "netnode/net/datagrams.h"

#include <algorithm>
#include <cstring>

#include "netnode/net/checksum.h"
#include "netnode/net/segments.h"

namespace sanproxy::net {

UdpDatagrams::UdpDatagrams(std::span<const std::byte> packet, const ParsedPacket& parsed,
                           std::uint32_t payload_max)
    : headers_(packet.first(parsed.l3_header_bytes + kUdpHeaderBytes)),
      payload_(packet.first(parsed.total_bytes).subspan(headers_.size())),
      parsed_(parsed),
      payload_max_(payload_max) {}

std::size_t UdpDatagrams::next(std::byte* out) {
  const std::size_t bytes = std::min(payload_max_, payload_.size() - at_);
  std::memcpy(out, headers_.data(), headers_.size());
  std::memcpy(out + headers_.size(), payload_.data() + at_, bytes);
  const std::size_t total = headers_.size() + bytes;
  auto* ip = reinterpret_cast<std::uint8_t*>(out);
  const bool v4 = parsed_.family == Family::kIpv4;
  fit_ip_header(ip, parsed_, total, index_);
  std::uint8_t* udp = ip + parsed_.l3_header_bytes;
  const auto l4_bytes = static_cast<std::uint16_t>(kUdpHeaderBytes + bytes);
  store_be16(udp + 4, l4_bytes);
  store_raw16(udp + kUdpChecksumOffset,
              fold(pseudo_header_sum(parsed_.family, ip + (v4 ? 12 : 8), ip + (v4 ? 16 : 24),
                                     kProtocolUdp, l4_bytes)));
  at_ += bytes;
  ++index_;
  return total;
}

}  // namespace sanproxy::net
