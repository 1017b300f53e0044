// SegmentGuard: what a TCP segment must satisfy before lwIP sees it.
//
// Documents: RFC 9293 3.10.7 (segment arrives), RFC 5961 (blind attacks), RFC 7323 (options only
//   on SYN); docs/tcp_stack.md, "In front of lwIP", names the weakness behind each rule.
// Role: lwIP 2.1.3 takes options of a SYN from any segment, believes a peer's MSS of 1, processes
//   the acknowledgement of a segment outside the window and takes a SYN+ACK for an ACK. Here
//   those are refused or made harmless.
// Thread: pure functions.
#pragma once

#include <array>
#include <cstdint>

#include "netnode/net/packet.h"
#include "netnode/net/tcp_header.h"
#include "proxynode/stack/stack.h"

namespace sanproxy::stack {

// A smaller maximum segment size than this is taken for this.
inline constexpr std::uint16_t kPeerMssMin = 88;

// Sequence space.
inline bool seq_before(std::uint32_t a, std::uint32_t b) {
  return static_cast<std::int32_t>(a - b) < 0;
}
inline bool seq_after(std::uint32_t a, std::uint32_t b) { return seq_before(b, a); }

// Could any TCP have sent this between these addresses?
bool plausible_segment(const net::ParsedPacket& packet, const net::TcpHeader& tcp);

// What the sender of an acknowledgement has beyond it (RFC 2018).
struct SackBlock {
  std::uint32_t left, right;
};
inline constexpr std::uint32_t kSackBlocksMax = 4;

struct TcpOptions {
  bool timestamps = false;
  std::uint32_t ts_value = 0;
  std::uint32_t sack_blocks = 0;
  std::array<SackBlock, kSackBlocksMax> sack;
};
// Blanks what lwIP must not read: options of a SYN on other segments, wrong lengths, an MSS below
// kPeerMssMin, everything behind a broken option. `header` is writable for `header_bytes`.
TcpOptions clean_options(std::uint8_t* header, std::uint32_t header_bytes, bool syn);

enum class Verdict : std::uint8_t {
  kPass,
  kPassBare,   // pass the header alone: no options, no payload
  kChallenge,  // answer with an acknowledgement, go no further
  kDrop,
};
struct ReceiveState {
  TcpState state;
  std::uint32_t rcv_nxt, rcv_wnd;
  std::uint32_t snd_una, snd_nxt, snd_wnd_max;
};
Verdict judge_segment(const ReceiveState& state, const net::TcpHeader& tcp);

}  // namespace sanproxy::stack
