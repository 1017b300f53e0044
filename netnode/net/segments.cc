#include "netnode/net/segments.h"

#include <algorithm>
#include <cstring>

#include "netnode/net/checksum.h"
#include "netnode/net/session_tag.h"
#include "netnode/net/tcp_header.h"

namespace sanproxy::net {

TcpSegments::TcpSegments(std::span<const std::byte> packet, const ParsedPacket& parsed,
                         std::uint32_t payload_max)
    : packet_(packet.first(parsed.total_bytes)),
      parsed_(parsed),
      header_bytes_(std::size_t{parsed.l3_header_bytes} + parsed.l4_header_bytes),
      payload_max_(payload_max) {}

void fit_ip_header(std::uint8_t* ip, const ParsedPacket& parsed, std::size_t total_bytes,
                   std::uint16_t index) {
  if (parsed.family == Family::kIpv4) {
    store_be16(ip + 2, static_cast<std::uint16_t>(total_bytes));
    store_be16(ip + 4, static_cast<std::uint16_t>(load_be16(ip + 4) + index));
    store_raw16(ip + 10, 0);
    store_raw16(ip + 10, ipv4_header_checksum(ip, parsed.l3_header_bytes));
  } else {
    store_be16(ip + 4, static_cast<std::uint16_t>(total_bytes - kIpv6HeaderBytes));
  }
}

bool TcpSegments::next(std::span<std::byte> header, std::span<const std::byte>& payload) {
  if (done_) return false;
  const std::size_t all = packet_.size() - header_bytes_;
  const std::size_t bytes = std::min(payload_max_, all - at_);
  payload = packet_.subspan(header_bytes_ + at_, bytes);
  done_ = at_ + bytes == all;
  auto* ip = reinterpret_cast<std::uint8_t*>(header.data());
  std::memcpy(ip, packet_.data(), header_bytes_);
  std::uint8_t* tcp = ip + parsed_.l3_header_bytes;
  const std::size_t total = header_bytes_ + bytes;
  const bool v4 = parsed_.family == Family::kIpv4;
  fit_ip_header(ip, parsed_, total, index_);
  store_be32(tcp + 4, load_be32(tcp + 4) + static_cast<std::uint32_t>(at_));
  if (!done_) tcp[13] &= static_cast<std::uint8_t>(~(kTcpFin | kTcpPsh));
  if (at_ != 0) tcp[13] &= static_cast<std::uint8_t>(~kTcpCwr);
  const auto l4_bytes = static_cast<std::uint32_t>(total - parsed_.l3_header_bytes);
  std::uint64_t sum = pseudo_header_sum(parsed_.family, ip + (v4 ? 12 : 8), ip + (v4 ? 16 : 24),
                                        kProtocolTcp, l4_bytes);
  store_raw16(tcp + kTcpChecksumOffset, 0);
  sum = sum_bytes(tcp, parsed_.l4_header_bytes, sum);
  store_raw16(tcp + kTcpChecksumOffset, finish(sum_bytes(payload.data(), payload.size(), sum)));
  at_ += bytes;
  ++index_;
  return true;
}

bool complete_checksum(std::span<std::byte> packet, std::size_t start, std::size_t offset) {
  if (start + offset + 2 > packet.size()) return false;
  std::byte* field = packet.data() + start + offset;
  // The field is part of what is summed and holds the pseudo-header's sum already.
  std::uint16_t sum = finish(sum_bytes(packet.data() + start, packet.size() - start));
  if (sum == 0) sum = 0xffff;  // for UDP; the same number for TCP
  store_raw16(field, sum);
  return true;
}

bool clamp_mss(std::span<std::byte> packet, const ParsedPacket& parsed, std::uint16_t mss_max,
               bool checksum_partial) {
  if (parsed.l4 != L4::kTcp) return false;
  auto* tcp = reinterpret_cast<std::uint8_t*>(packet.data()) + parsed.l3_header_bytes;
  if ((tcp[13] & kTcpSyn) == 0) return false;
  const std::size_t at = find_tcp_option(tcp, parsed.l4_header_bytes, kTcpOptionMss, 4);
  if (at == 0 || load_be16(tcp + at + 2) <= mss_max) return false;
  std::uint16_t before = load_raw16(tcp + at + 2);
  store_be16(tcp + at + 2, mss_max);
  std::uint16_t after = load_raw16(tcp + at + 2);
  if (checksum_partial) return true;
  if (at % 2 != 0) {  // the value straddles two words of the sum
    before = __builtin_bswap16(before);
    after = __builtin_bswap16(after);
  }
  store_raw16(tcp + kTcpChecksumOffset,
              update16(load_raw16(tcp + kTcpChecksumOffset), before, after));
  return true;
}

}  // namespace sanproxy::net
