// lwIP's packets: given an IP header and queued; flush() lets them leave.
#include <cstring>

#include "netnode/net/checksum.h"
#include "proxynode/stack/stack_impl.h"

namespace sanproxy::stack {
namespace {

constexpr std::uint8_t kHopLimit = 64;
constexpr std::uint32_t kIpv4Bytes = net::kIpv4HeaderBytesMin;
constexpr std::uint32_t kIpv6Bytes = net::kIpv6HeaderBytes;

void write_ipv4(std::uint8_t* at, const std::uint8_t* src, const std::uint8_t* dst,
                std::uint32_t l4_bytes, std::uint16_t id, std::uint8_t ttl) {
  at[0] = 0x45;
  at[1] = 0;
  net::store_be16(at + 2, static_cast<std::uint16_t>(kIpv4Bytes + l4_bytes));
  net::store_be16(at + 4, id);
  net::store_be16(at + 6, 0x4000);  // do not fragment
  at[8] = ttl;
  at[9] = net::kProtocolTcp;
  net::store_raw16(at + 10, 0);
  std::memcpy(at + 12, src, 4);
  std::memcpy(at + 16, dst, 4);
  net::store_raw16(at + 10, net::ipv4_header_checksum(at, kIpv4Bytes));
}

void write_ipv6(std::uint8_t* at, const std::uint8_t* src, const std::uint8_t* dst,
                std::uint32_t l4_bytes, std::uint8_t hop_limit) {
  net::store_be32(at, 0x60000000u);
  net::store_be16(at + 4, static_cast<std::uint16_t>(l4_bytes));
  at[6] = net::kProtocolTcp;
  at[7] = hop_limit;
  std::memcpy(at + 8, src, 16);
  std::memcpy(at + 24, dst, 16);
}

// The connection whose control block lwIP announced to the interface, if any.
Connection* sender(const netif& interface) {
  if (interface.hints == nullptr) return nullptr;
  auto* const bytes = reinterpret_cast<std::byte*>(interface.hints);
  auto* const pcb = reinterpret_cast<tcp_pcb*>(bytes - offsetof(tcp_pcb, netif_hints));
  return pcb->state == LISTEN ? nullptr : static_cast<Connection*>(pcb->ext_args[0].data);
}

// An acknowledgement bears the number of the next byte. Where that is beyond the peer's window,
// behind a probe of a closed one or because the window has shrunk, the peer would drop it, and
// its own data would stand still as long as it takes none of ours.
void keep_acceptable(const tcp_pcb& pcb, std::uint8_t* tcp) {
  const bool bare = (tcp[13] & (net::kTcpSyn | net::kTcpFin | net::kTcpRst)) == 0;
  const std::uint32_t edge = pcb.lastack + pcb.snd_wnd;
  if (bare && pcb.state >= ESTABLISHED && seq_after(net::load_be32(tcp + 4), edge)) {
    net::store_be32(tcp + 4, edge);
  }
}

}  // namespace

bool Stack::Impl::make_room(Interface& interface) {
  if (!interface.queue.full()) return true;
  interface.queue.flush(interface.io, counters);
  return !interface.queue.full();
}

err_t Stack::Impl::output(pbuf* chain, const std::uint8_t* src, const std::uint8_t* dst,
                          Family family, std::uint8_t ttl, netif* netif) {
  Interface& interface = *interfaces[netif->num];
  if (!make_room(interface)) {
    ++counters.dropped_send_queue;
    return ERR_MEM;  // lwIP keeps the segment and tries again
  }
  auto* const tcp = static_cast<std::uint8_t*>(chain->payload);
  const std::uint32_t l4_bytes = chain->tot_len;
  const std::uint32_t ip_bytes = family == Family::kIpv4 ? kIpv4Bytes : kIpv6Bytes;
  // lwIP leaves room for an IPv6 header in front of each of its TCP headers.
  std::uint8_t* const ip = tcp - ip_bytes;
  if (family == Family::kIpv4) {
    write_ipv4(ip, src, dst, l4_bytes, ip_id++, ttl);
  } else {
    write_ipv6(ip, src, dst, l4_bytes, ttl);
  }
  net::store_raw16(
      tcp + net::kTcpChecksumOffset,
      net::fold(net::pseudo_header_sum(family, src, dst, net::kProtocolTcp, l4_bytes)));

  const std::uint32_t tcp_bytes = (tcp[12] >> 4) * 4u;
  const std::uint32_t payload = l4_bytes - tcp_bytes;
  QueuedPacket packet{.chain = chain,
                      .start = reinterpret_cast<std::byte*>(ip),
                      .ip_header_bytes = static_cast<std::uint16_t>(ip_bytes),
                      .tcp_header_bytes = static_cast<std::uint16_t>(tcp_bytes),
                      .family = family,
                      .has_payload = payload > 0,
                      .to = reply_to};
  if ((tcp[13] & net::kTcpRst) != 0) ++counters.resets_out;
  if (Connection* const conn = sender(*netif); conn != nullptr) {
    packet.conn = index_of(*conn);
    packet.to = conn->via;
    if (payload == 0) keep_acceptable(*conn->pcb, tcp);
    packet.seq_end = net::load_be32(tcp + 4) + payload;
    const std::uint32_t wire = conn->mss_bytes - (tcp_bytes - 20);
    if (payload > wire) packet.segment_bytes = static_cast<std::uint16_t>(wire);
    const bool occupies = payload > 0 || (tcp[13] & (net::kTcpSyn | net::kTcpFin)) != 0;
    if (occupies && seq_before(net::load_be32(tcp + 4), conn->pcb->snd_nxt)) {
      ++counters.retransmits;
    }
    conn->rx_segments = 0;
  }
  interface.queue.push(packet);
  return ERR_OK;
}

// A segment without a control block: resets and what TIME-WAIT answers.
void Stack::Impl::send_bare(InterfaceIndex index, const net::FlowKey& key, std::uint32_t seq,
                            std::uint32_t ack, std::uint8_t flags, std::uint16_t window,
                            bool timestamps, std::uint32_t ts_echo) {
  const std::uint32_t bytes = timestamps ? 32 : 20;
  pbuf* const chain = pbuf_alloc(PBUF_IP, static_cast<u16_t>(bytes), PBUF_RAM);
  if (chain == nullptr) return;
  auto* const tcp = static_cast<std::uint8_t*>(chain->payload);
  net::store_be16(tcp, key.dst_port);
  net::store_be16(tcp + 2, key.src_port);
  net::store_be32(tcp + 4, seq);
  net::store_be32(tcp + 8, ack);
  tcp[12] = static_cast<std::uint8_t>((bytes / 4) << 4);
  tcp[13] = flags;
  net::store_be16(tcp + 14, window);
  net::store_be32(tcp + 16, 0);
  if (timestamps) {
    net::store_be32(tcp + 20, 0x0101080aU);
    net::store_be32(tcp + 24, timestamp_value());
    net::store_be32(tcp + 28, ts_echo);
  }
  netif& interface = interfaces[index]->lwip;
  interface.hints = nullptr;
  output(chain, key.dst.data(), key.src.data(), key.family, kHopLimit, &interface);
  pbuf_free(chain);
}

void Stack::Impl::mark_dirty(Connection& conn) {
  if (conn.dirty) return;
  conn.dirty = true;
  dirty.push_back(index_of(conn));
}

// Every acknowledgement costs a packet, and the client's kernel its look at what is acknowledged:
// work of ours where the packet is delivered within our write (TUN).
void Stack::Impl::flush(bool more) {
  const bool keep = more && ack_rounds < kAckRoundsMax;
  ack_rounds = keep ? ack_rounds + 1 : 0;
  dirty_working.swap(dirty);
  for (const ConnIndex index : dirty_working) {
    Connection& conn = connections[index];
    if (keep && conn.pcb != nullptr && conn.pcb->state == ESTABLISHED &&
        conn.pcb->unsent == nullptr) {
      dirty.push_back(index);
      continue;
    }
    conn.dirty = false;
    if (conn.pcb != nullptr) output_connection(conn);
  }
  dirty_working.clear();
  for (auto& interface : interfaces) {
    if (!interface->queue.empty()) interface->queue.flush(interface->io, counters);
  }
  clock_fresh = false;
}

void Stack::Impl::output_connection(Connection& conn) {
  tcp_pcb* const pcb = conn.pcb;
  if (conn.recover_due) recover(conn, {}, 0);
  fit_unsent(conn, false);
  tcp_output(pcb);
  if (conn.rx_segments > 1) {
    // RFC 9293 3.8.6.3: at least every second full segment is acknowledged at once.
    tcp_ack_now(pcb);
    tcp_output(pcb);
  } else if (conn.rx_segments == 1) {
    tcp_set_flags(pcb, TF_ACK_DELAY);
  }
  update_timers(conn);
}

}  // namespace sanproxy::stack
