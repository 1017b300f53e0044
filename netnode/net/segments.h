// TcpSegments: cuts a TCP super-packet into segments; clamp_mss: keeps segments small from the
// start.
//
// Documents: RFC 9293 3.8.1; Linux Documentation/networking/segmentation-offloads.rst (what each
//   segment's header looks like); RFC 6691.
// Role: for ways out that cannot segment (a tunnel) or must not exceed a size. Also completes a
//   checksum that was left to the device: one segment, then.
// Thread: a value, and pure functions.
// Invariants:
//   1. The payload is referenced, not copied; every segment's checksums are complete.
//   2. Sequence numbers are consecutive; FIN and PSH are on the last segment, CWR on the first.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "netnode/net/packet.h"

namespace sanproxy::net {

inline constexpr std::size_t kSegmentHeaderBytesMax = 192;

// Lengths, IPv4 id and checksum of the IP header of piece number `index` of the packet that
// `parsed` describes; `ip` is a copy of its header.
void fit_ip_header(std::uint8_t* ip, const ParsedPacket& parsed, std::size_t total_bytes,
                   std::uint16_t index);

class TcpSegments {
 public:
  // `parsed` is what parse_packet() said of `packet`: TCP, not a fragment. `payload_max` > 0.
  TcpSegments(std::span<const std::byte> packet, const ParsedPacket& parsed,
              std::uint32_t payload_max);

  // False: headers longer than kSegmentHeaderBytesMax.
  bool possible() const { return header_bytes_ <= kSegmentHeaderBytesMax; }
  std::size_t header_bytes() const { return header_bytes_; }
  // Writes the next segment's IP and TCP header into `header` (header_bytes() long); false: that
  // was the last.
  bool next(std::span<std::byte> header, std::span<const std::byte>& payload);

 private:
  std::span<const std::byte> packet_;
  ParsedPacket parsed_;
  std::size_t header_bytes_;
  std::size_t payload_max_;
  std::size_t at_ = 0;  // in the payload
  std::uint16_t index_ = 0;
  bool done_ = false;
};

// Computes the checksum from `start` to the packet's end into the field at start + offset, which
// holds the pseudo-header's sum. False: they lie outside the packet.
bool complete_checksum(std::span<std::byte> packet, std::size_t start, std::size_t offset);

// Lowers the MSS option of a SYN to `mss_max`. With `checksum_partial` the checksum is computed
// later by somebody else. True: changed.
bool clamp_mss(std::span<std::byte> packet, const ParsedPacket& parsed, std::uint16_t mss_max,
               bool checksum_partial);

}  // namespace sanproxy::net
