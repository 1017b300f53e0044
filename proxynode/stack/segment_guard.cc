#include "proxynode/stack/segment_guard.h"

#include <cstring>

namespace sanproxy::stack {
namespace {

using namespace net;  // NOLINT: header constants

constexpr std::uint8_t kEnd = 0, kNop = 1, kMss = 2, kWindowScale = 3, kSackPermitted = 4,
                       kSack = 5, kTimestamps = 8;

// Nothing that a client has sent is overtaken by more than the largest window.
constexpr std::uint32_t kOvertakenBytesMax = 4 * 1024 * 1024;

bool unicast_source(const ParsedPacket& packet) {
  const std::uint8_t* src = packet.src;
  if (packet.family == Family::kIpv4) {
    return src[0] != 0 && src[0] < 224;  // "this network", multicast, class E and broadcast
  }
  static constexpr std::uint8_t kUnspecified[16] = {};
  return src[0] != 0xff && std::memcmp(src, kUnspecified, 16) != 0;
}

bool unicast_destination(const ParsedPacket& packet) {
  return packet.family == Family::kIpv4 ? packet.dst[0] != 0 && packet.dst[0] < 224
                                        : packet.dst[0] != 0xff;
}

// The option stays as it is.
bool allowed(std::uint8_t kind, std::uint8_t length, bool syn) {
  switch (kind) {
    case kMss:
      return syn && length == 4;
    case kWindowScale:
      return syn && length == 3;
    case kSackPermitted:
      return syn && length == 2;
    case kSack:
      return !syn && length > 2 && length % 8 == 2;
    case kTimestamps:
      return length == 10;
    default:
      return true;
  }
}

}  // namespace

bool plausible_segment(const ParsedPacket& packet, const TcpHeader& tcp) {
  const std::uint8_t kinds = tcp.flags & (kTcpSyn | kTcpFin | kTcpRst | kTcpAck);
  if (kinds == 0 || kinds == kTcpFin) return false;  // null and FIN scans
  if ((kinds & kTcpSyn) != 0 && (kinds & (kTcpFin | kTcpRst)) != 0) return false;
  if (tcp.src_port == 0 || tcp.dst_port == 0) return false;
  if (!unicast_source(packet) || !unicast_destination(packet)) return false;
  const std::size_t bytes = packet.family == Family::kIpv4 ? 4 : 16;
  return tcp.src_port != tcp.dst_port || std::memcmp(packet.src, packet.dst, bytes) != 0;  // land
}

TcpOptions clean_options(std::uint8_t* header, std::uint32_t header_bytes, bool syn) {
  TcpOptions found;
  // What nearly every segment of a connection carries: NOP NOP timestamps.
  if (!syn && header_bytes == 32 && load_be32(header + 20) == 0x0101080aU) {
    found.timestamps = true;
    found.ts_value = load_be32(header + 24);
    return found;
  }
  for (std::uint32_t at = 20; at < header_bytes;) {
    const std::uint8_t kind = header[at];
    if (kind == kNop) {
      ++at;
      continue;
    }
    const std::uint32_t left = header_bytes - at;
    const std::uint8_t length = left > 1 ? header[at + 1] : 0;
    if (kind == kEnd || length < 2 || length > left) {
      std::memset(header + at, kEnd, left);
      break;
    }
    if (!allowed(kind, length, syn)) {
      std::memset(header + at, kNop, length);
    } else if (kind == kMss) {
      if (load_be16(header + at + 2) < kPeerMssMin) store_be16(header + at + 2, kPeerMssMin);
    } else if (kind == kTimestamps) {
      found.timestamps = true;
      found.ts_value = load_be32(header + at + 2);
    } else if (kind == kSack) {
      found.sack_blocks = length / 8u;
      for (std::uint32_t i = 0; i < found.sack_blocks; ++i) {
        const std::uint8_t* const block = header + at + 2 + 8 * i;
        found.sack[i] = {load_be32(block), load_be32(block + 4)};
      }
    }
    at += length;
  }
  return found;
}

Verdict judge_segment(const ReceiveState& state, const TcpHeader& tcp) {
  const bool syn = (tcp.flags & kTcpSyn) != 0;
  const bool ack = (tcp.flags & kTcpAck) != 0;
  const bool rst = (tcp.flags & kTcpRst) != 0;
  if (state.state == TcpState::kSynSent) {
    // Without ACK it would be a simultaneous open, which lwIP does not know.
    return rst || ack ? Verdict::kPass : Verdict::kDrop;
  }
  if (syn) {
    if (state.state != TcpState::kSynReceived) return Verdict::kChallenge;
    return !ack && tcp.seq == state.rcv_nxt - 1 ? Verdict::kPassBare : Verdict::kDrop;
  }
  if (rst) {
    if (tcp.seq == state.rcv_nxt) return Verdict::kPassBare;
    const bool inside =
        !seq_before(tcp.seq, state.rcv_nxt) && !seq_after(tcp.seq, state.rcv_nxt + state.rcv_wnd);
    return inside ? Verdict::kChallenge : Verdict::kDrop;
  }
  if (!ack) return Verdict::kDrop;
  if (seq_after(tcp.seq, state.rcv_nxt + state.rcv_wnd)) return Verdict::kChallenge;
  if (seq_before(tcp.seq, state.rcv_nxt - kOvertakenBytesMax)) return Verdict::kChallenge;
  if (state.state == TcpState::kSynReceived) {
    return seq_before(tcp.seq, state.rcv_nxt) ? Verdict::kChallenge : Verdict::kPass;
  }
  if (seq_after(tcp.ack, state.snd_nxt)) return Verdict::kChallenge;
  if (seq_before(tcp.ack, state.snd_una - state.snd_wnd_max)) return Verdict::kChallenge;
  return Verdict::kPass;
}

}  // namespace sanproxy::stack
