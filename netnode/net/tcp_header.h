// TcpHeader: the fixed fields of a TCP header as a value.
//
// Document: RFC 9293 3.1.
// Thread: pure functions.
// Invariants:
//   1. load_tcp_header() reads 20 bytes; parse_packet() has checked that they are there when it
//      reports L4::kTcp.
#pragma once

#include <cstdint>

#include "netnode/net/byte_order.h"

namespace sanproxy::net {

inline constexpr std::uint8_t kTcpFin = 0x01;
inline constexpr std::uint8_t kTcpSyn = 0x02;
inline constexpr std::uint8_t kTcpRst = 0x04;
inline constexpr std::uint8_t kTcpPsh = 0x08;
inline constexpr std::uint8_t kTcpAck = 0x10;
inline constexpr std::uint8_t kTcpUrg = 0x20;
inline constexpr std::uint8_t kTcpEce = 0x40;
inline constexpr std::uint8_t kTcpCwr = 0x80;

struct TcpHeader {
  std::uint32_t seq = 0;
  std::uint32_t ack = 0;
  std::uint16_t src_port = 0;
  std::uint16_t dst_port = 0;
  std::uint16_t window = 0;  // unscaled
  std::uint8_t header_bytes = 0;
  std::uint8_t flags = 0;
};

inline TcpHeader load_tcp_header(const void* header) {
  const auto* at = static_cast<const std::uint8_t*>(header);
  return TcpHeader{.seq = load_be32(at + 4),
                   .ack = load_be32(at + 8),
                   .src_port = load_be16(at),
                   .dst_port = load_be16(at + 2),
                   .window = load_be16(at + 14),
                   .header_bytes = static_cast<std::uint8_t>((at[12] >> 4) * 4),
                   .flags = at[13]};
}

}  // namespace sanproxy::net
