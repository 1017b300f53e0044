// The bytes on each of the TCP connections of a channel, once the handshake is over.
//
// Document: docs/tcp_fabric.md "Frames".
// Role: the one definition of the format. Everything is little-endian.
// Thread: values.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

namespace sanproxy::fabric::tcp {

static_assert(std::endian::native == std::endian::little, "frames are used as they are");

enum class FrameKind : std::uint8_t {
  kTransfer = 0,
  kEnd = 1,      // the last on its connection; inline_bytes holds a CloseMark
  kPadding = 2,  // while the link warms up: total_bytes of anything
  kWarm = 3,     // the last of them
};

// The upper 8 bits of `sequence` are the kind, the others the number of the transfer: 0, 1, ...
// over all connections of the channel.
struct FrameHeader {
  std::uint32_t total_bytes = 0;   // that follow: the inline part, then the referenced bytes
  std::uint32_t inline_bytes = 0;  // of them
  std::uint64_t kind_and_sequence = 0;

  FrameKind kind() const { return static_cast<FrameKind>(kind_and_sequence >> 56); }
  std::uint64_t sequence() const { return kind_and_sequence & kSequenceMask; }
  static constexpr std::uint64_t kSequenceMask = (std::uint64_t{1} << 56) - 1;
  static FrameHeader make(FrameKind kind, std::uint64_t sequence, std::uint32_t total_bytes,
                          std::uint32_t inline_bytes) {
    return {total_bytes, inline_bytes, (static_cast<std::uint64_t>(kind) << 56) | sequence};
  }
};
static_assert(sizeof(FrameHeader) == 16);

enum class CloseMark : std::uint32_t { kClosed = 1, kProtocol = 2, kCold = 3 };

}  // namespace sanproxy::fabric::tcp
