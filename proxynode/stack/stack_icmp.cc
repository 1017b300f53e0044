// ICMP: echo requests are answered, "packet too big" makes segments smaller (RFC 1191, RFC 8201).
#include "netnode/net/checksum.h"
#include "netnode/net/icmp.h"
#include "netnode/net/icmp_error.h"
#include "proxynode/stack/stack_impl.h"

namespace sanproxy::stack {
namespace {

// No path is narrower (RFC 791, RFC 8200 5): whoever says so is not believed below that.
constexpr std::uint32_t kPathMtuMin4 = 576;
constexpr std::uint32_t kPathMtuMin6 = 1280;

const std::uint8_t* bytes_of(std::span<const std::byte> packet) {
  return reinterpret_cast<const std::uint8_t*>(packet.data());
}

bool checksum_right(std::span<const std::byte> packet, const net::ParsedPacket& parsed) {
  const std::uint64_t pseudo = parsed.family == Family::kIpv4
                                   ? 0
                                   : net::pseudo_header_sum(parsed.family, parsed.src, parsed.dst,
                                                            net::kProtocolIcmp6, parsed.l4_bytes());
  return net::finish(net::sum_bytes(packet.data() + parsed.l3_header_bytes, parsed.l4_bytes(),
                                    pseudo)) == 0;
}

// The MTU that an error announces; 0 when it is about something else.
std::uint32_t announced_mtu(std::span<const std::byte> packet, const net::ParsedPacket& parsed) {
  const std::uint8_t* const icmp = bytes_of(packet) + parsed.l3_header_bytes;
  if (parsed.family == Family::kIpv6) {
    return icmp[0] == net::kIcmp6PacketTooBig ? std::max(net::load_be32(icmp + 4), kPathMtuMin6)
                                              : 0;
  }
  if (icmp[0] != net::kIcmpUnreachable || icmp[1] != net::kIcmpCodeFragmentationNeeded) return 0;
  return std::max<std::uint32_t>(net::load_be16(icmp + 6), kPathMtuMin4);
}

bool says_unreachable(std::span<const std::byte> packet, const net::ParsedPacket& parsed) {
  const std::uint8_t* const icmp = bytes_of(packet) + parsed.l3_header_bytes;
  if (parsed.family == Family::kIpv6) return icmp[0] == net::kIcmp6Unreachable;
  return icmp[0] == net::kIcmpUnreachable && icmp[1] != net::kIcmpCodeFragmentationNeeded;
}

}  // namespace

void Stack::Impl::answer_other(pbuf* chain, const Arrived& arrived) {
  const packet_io::Offload& offload = arrived.packet->offload;
  const bool trusted = offload.checksum_partial || offload.checksum_verified;
  const std::span<std::byte> packet(static_cast<std::byte*>(chain->payload), chain->len);
  Interface& interface = *interfaces[arrived.interface];
  net::ParsedPacket parsed;
  if (net::parse_packet(packet, parsed) != net::DropReason::kNone) {
    ++counters.dropped_not_tcp;
  } else if (net::is_icmp_error(packet, parsed)) {
    if (trusted || checksum_right(packet, parsed)) {
      on_icmp_error(packet, parsed, arrived);
    } else {
      ++counters.dropped_checksum;
    }
  } else if (!net::make_echo_reply(packet, parsed, trusted)) {
    ++counters.dropped_not_tcp;
  } else if (make_room(interface)) {
    ++counters.icmp_echo;
    interface.queue.push({.chain = chain, .to = reply_to});
  } else {
    ++counters.dropped_send_queue;
  }
  pbuf_free(chain);
}

void Stack::Impl::on_icmp_error(std::span<const std::byte> packet, const net::ParsedPacket& parsed,
                                const Arrived& arrived) {
  net::IcmpError error;
  if (!net::parse_icmp_error(packet, parsed, error) || error.inner.protocol != net::kProtocolTcp ||
      error.inner_l4_offset + 8u > packet.size()) {
    ++counters.dropped_not_tcp;
    return;
  }
  const net::FlowKey key = error.inner.reversed();  // as what the client sends has it
  const std::uint32_t entry = flows.find(key, flows.hash(key));
  if (entry == kNone) {
    if (!hand_over(arrived.interface, packet, true) && !send_back(arrived)) {
      ++counters.icmp_errors_ignored;
    }
    return;
  }
  if ((entry & FlowTable::kTimeWaitFlag) != 0) {
    ++counters.icmp_errors_ignored;
    return;
  }
  Connection& conn = connections[entry];
  const std::uint32_t seq = net::load_be32(bytes_of(packet) + error.inner_l4_offset + 4);
  // RFC 5927 4.1: only an error about something that is under way can be true.
  if (seq_before(seq, conn.pcb->lastack) || !seq_before(seq, conn.pcb->snd_nxt)) {
    ++counters.icmp_errors_ignored;
    return;
  }
  // Who has no connection yet may as well try another address (RFC 5461 4.1).
  if (conn.state == TcpState::kSynSent && says_unreachable(packet, parsed)) {
    abort(entry, EndReason::kUnreachable, false);
    return;
  }
  // The others are advice that TCP finds out by itself.
  const std::uint32_t mtu = announced_mtu(packet, parsed);
  if (mtu == 0 || !lower_mss(conn, mtu)) ++counters.icmp_errors_ignored;
}

// False: its segments are no larger, or it has none yet.
bool Stack::Impl::lower_mss(Connection& conn, std::uint32_t mtu_bytes) {
  const std::uint32_t header_bytes =
      (conn.flow.key.family == Family::kIpv4 ? net::kIpv4HeaderBytesMin : net::kIpv6HeaderBytes) +
      net::kTcpHeaderBytesMin;
  const std::uint32_t mss = mtu_bytes - header_bytes;
  if (mss >= conn.mss_bytes || conn.pcb->state < ESTABLISHED) {
    return false;
  }
  ++counters.path_mtu_lowered;
  conn.mss_bytes = static_cast<std::uint16_t>(mss);
  conn.pcb->mss = conn.mss_bytes;
  // What was too long is lost: it goes again, cut to the new size by output(). That is no
  // congestion, so the window stays.
  if (tcp_rexmit_rto_prepare(conn.pcb) == ERR_OK) {
    sort_unsent(*conn.pcb);
    if (conn.recovering) conn.pcb->cwnd = conn.pcb->ssthresh;
    forget_selected(conn);
    tcp_clear_flags(conn.pcb, TF_RTO);
    mark_dirty(conn);
  }
  settle(index_of(conn));
  return true;
}

}  // namespace sanproxy::stack
