// A packet arrives: checked, matched to its connection, handed to lwIP's TCP.
#include <cstring>

#include "lwip/ip.h"
#include "netnode/net/checksum.h"
#include "proxynode/stack/stack_impl.h"

namespace sanproxy::stack {
namespace {

// With fewer free slots than one in this many, queues of out-of-order data are dropped; with
// fewer than kReservedSlots, payload is not taken at all and only acknowledgements count.
constexpr std::size_t kReclaimBelow = 16;
constexpr std::size_t kReservedSlots = 2;
// A connection costs about this much of lwIP's heap until it is established.
constexpr std::size_t kConnectionBytes = 2048;
// RFC 5961 7: a connection is challenged no more often, as with Linux.
constexpr std::uint32_t kChallengeTicks = 500 / kSlowTickMs;

constexpr std::uint8_t kPbufRefType = static_cast<std::uint8_t>(PBUF_REF);

extern "C" void release_slot(pbuf* chain) {
  Stack::Impl& impl = *Stack::Impl::current;
  const auto* slot = reinterpret_cast<Stack::Impl::RxSlot*>(chain);
  impl.ingress.release(static_cast<buffer::SlotIndex>(slot - &impl.rx_slots[0]));
}

}  // namespace

// The slot is released when the last reference to the pbuf goes.
pbuf* Stack::Impl::wrap(buffer::SlotIndex slot, void* start, std::uint32_t bytes) {
  pbuf_custom& custom = rx_slots[slot].custom;
  custom.custom_free_function = release_slot;
  pbuf& chain = custom.pbuf;
  chain.next = nullptr;
  chain.payload = start;
  chain.tot_len = static_cast<u16_t>(bytes);
  chain.len = chain.tot_len;
  chain.type_internal = kPbufRefType;
  chain.flags = PBUF_FLAG_IS_CUSTOM;
  chain.ref = 1;
  chain.if_idx = NETIF_NO_INDEX;
  return &chain;
}

void Stack::Impl::input(InterfaceIndex interface, buffer::SlotIndex slot,
                        const packet_io::ReceivedPacket& packet) {
  if (!clock_fresh) refresh_clock();
  ingress.mark_received(slot);
  reply_to = packet.from;
  auto* const bytes = reinterpret_cast<std::uint8_t*>(ingress.data(slot)) + packet.offset;
  Arrived arrived;
  arrived.interface = interface;
  arrived.packet = &packet;
  if (!check(bytes, packet, arrived)) {
    ingress.release(slot);
    return;
  }
  if (arrived.parsed.l4 != net::L4::kTcp) {
    answer_other(wrap(slot, bytes, arrived.parsed.total_bytes), arrived);
    return;
  }
  arrived.l4 = bytes + arrived.parsed.l3_header_bytes;
  arrived.chain = wrap(slot, arrived.l4, arrived.parsed.l4_bytes());
  dispatch(arrived);
}

void Stack::Impl::dispatch(Arrived& arrived) {
  arrived.hash = flows.hash(arrived.key);
  const std::uint32_t entry = flows.find(arrived.key, arrived.hash);
  if (entry == kNone) {
    if (arrived.parsed.has_l3_options && hand_over_options(arrived)) {
      pbuf_free(arrived.chain);
      return;
    }
    to_listener(arrived);
  } else if ((entry & FlowTable::kTimeWaitFlag) == 0) {
    prefetch(connections[entry]);
    to_connection(entry, arrived);
  } else {
    const bool syn = (arrived.tcp.flags & net::kTcpSyn) != 0;
    const TcpOptions found = clean_options(arrived.l4, arrived.parsed.l4_header_bytes, syn);
    if (to_time_wait(entry & ~FlowTable::kTimeWaitFlag, arrived, found)) {
      pbuf_free(arrived.chain);
    } else {
      to_listener(arrived);
      used_before.reset();
    }
  }
}

// A packet whose extension headers hid its ports from who spreads packets over workers.
bool Stack::Impl::hand_over_options(const Arrived& arrived) {
  if (arrived.parsed.family != Family::kIpv6 || arrived.packet->lent != nullptr) return false;
  const auto* const start =
      reinterpret_cast<const std::byte*>(arrived.l4) - arrived.parsed.l3_header_bytes;
  return hand_over(arrived.interface, {start, arrived.parsed.total_bytes}, true);
}

bool Stack::Impl::check(std::uint8_t* bytes, const packet_io::ReceivedPacket& packet,
                        Arrived& arrived, std::span<const std::byte> rest) {
  net::ParsedPacket& parsed = arrived.parsed;
  const std::span<const std::byte> span(reinterpret_cast<std::byte*>(bytes), packet.length);
  const std::size_t here = packet.length - rest.size();
  if (net::parse_packet(span, parsed) != net::DropReason::kNone || parsed.total_bytes > 0xffff ||
      std::size_t{parsed.l3_header_bytes} + parsed.l4_header_bytes > here) {
    ++counters.dropped_malformed;
    return false;
  }
  if (parsed.fragment) {
    add_fragment(bytes, arrived);
    return false;
  }
  if (parsed.l4 != net::L4::kTcp) return true;
  arrived.tcp = net::load_tcp_header(bytes + parsed.l3_header_bytes);
  arrived.key = net::flow_key(parsed, bytes);
  if (!packet.offload.checksum_partial && !packet.offload.checksum_verified) {
    std::uint64_t sum = net::pseudo_header_sum(parsed.family, parsed.src, parsed.dst,
                                               net::kProtocolTcp, parsed.l4_bytes());
    const std::size_t first = std::min<std::size_t>(here, parsed.total_bytes);
    sum = net::sum_bytes(bytes + parsed.l3_header_bytes, first - parsed.l3_header_bytes, sum);
    // An even number of bytes so far: headers are multiples of four, and so is `here`.
    if (parsed.total_bytes > here)
      sum = net::sum_bytes(rest.data(), parsed.total_bytes - here, sum);
    if (net::finish(sum) != 0) {
      ++counters.dropped_checksum;
      return false;
    }
  }
  if (!plausible_segment(parsed, arrived.tcp)) {
    ++counters.dropped_malformed;
    return false;
  }
  return true;
}

// Where lwIP looks for the packet's addresses and interface.
void Stack::Impl::set_lwip_packet(const Arrived& arrived, netif& interface) {
  ip_data.current_netif = &interface;
  ip_data.current_input_netif = &interface;
  const std::uint8_t type =
      arrived.parsed.family == Family::kIpv4 ? IPADDR_TYPE_V4 : IPADDR_TYPE_V6;
  ip_data.current_iphdr_src.type = type;
  ip_data.current_iphdr_dest.type = type;
  std::memcpy(&ip_data.current_iphdr_src.u_addr, arrived.key.src.data(), 16);
  std::memcpy(&ip_data.current_iphdr_dest.u_addr, arrived.key.dst.data(), 16);
}

void Stack::Impl::make_bare(Arrived& arrived) {
  arrived.l4[12] = 5 << 4;
  pbuf_realloc(arrived.chain, 20);
  arrived.parsed.l4_header_bytes = 20;
}

void Stack::Impl::to_connection(ConnIndex index, Arrived& arrived) {
  Connection& conn = connections[index];
  tcp_pcb* const pcb = conn.pcb;
  conn.via = reply_to;
  const ReceiveState receive{conn.state,   pcb->rcv_nxt, pcb->rcv_wnd,
                             pcb->lastack, pcb->snd_nxt, pcb->snd_wnd_max};
  const Verdict verdict = judge_segment(receive, arrived.tcp);
  if (verdict >= Verdict::kChallenge) {
    ++counters.dropped_malformed;
    pbuf_free(arrived.chain);
    if (verdict == Verdict::kChallenge) challenge(conn);
    return;
  }
  if (verdict == Verdict::kPassBare) {
    make_bare(arrived);
  } else {
    const bool syn = (arrived.tcp.flags & net::kTcpSyn) != 0;
    arrived.options = clean_options(arrived.l4, arrived.parsed.l4_header_bytes, syn);
    const bool payload = arrived.chain->tot_len > arrived.parsed.l4_header_bytes;
    const bool fin = (arrived.tcp.flags & net::kTcpFin) != 0;
    if ((payload || fin) && !take_payload(conn, payload)) [[unlikely]]
      return input_stripped(conn, arrived);
    // What is on loan from a network node is of few, and not held for who waits.
    if (payload && conn.refused != nullptr && !give_loan_back(arrived)) {
      ++counters.dropped_refused;
      return input_stripped(conn, arrived);
    }
    if (payload) cut_to_window(receive, arrived);
    if (payload && seq_before(receive.rcv_nxt, arrived.tcp.seq) && !give_loan_back(arrived)) {
      ++counters.dropped_no_slot;
      return input_stripped(conn, arrived);
    }
  }
  run_input(conn, arrived);
  reap();
}

// The time of the last one is in a field of lwIP's that is free: keepalive is ours.
void Stack::Impl::challenge(Connection& conn) {
  tcp_pcb* const pcb = conn.pcb;
  if (pcb->keep_intvl != 0 && tcp_ticks - pcb->keep_intvl < kChallengeTicks) return;
  pcb->keep_intvl = tcp_ticks;
  tcp_send_empty_ack(pcb);
  update_timers(conn);  // without room for it the timer tries again
}

// Without its payload. What waits behind refused payload is answered with the closed window, lest
// the client take it for lost and be ever slower to try again.
void Stack::Impl::input_stripped(Connection& conn, Arrived& arrived) {
  tcp_pcb* const pcb = conn.pcb;
  pbuf_realloc(arrived.chain, arrived.parsed.l4_header_bytes);
  arrived.l4[13] &= static_cast<std::uint8_t>(~net::kTcpFin);
  if (conn.refused != nullptr) {
    conn.rx_segments = 255;
    mark_dirty(conn);
  }
  // A segment with payload is no repeated acknowledgement, and ends a row of them.
  pcb->dupacks = 0;
  run_input(conn, arrived);
  if (conn.pcb == pcb) {
    pcb->dupacks = 0;
    // What was not taken comes again, and until then the client's segments stand before this one.
    // Of an old segment lwIP would not take the window.
    if (seq_after(pcb->snd_wl1, pcb->rcv_nxt)) pcb->snd_wl1 = pcb->rcv_nxt;
  }
  reap();
}

// Of a segment out of order lwIP takes what is beyond the window as well, unless it goes behind all
// others that wait, and counts it off a window that has no room for it. A segment of which nothing
// is inside stays whole, to be answered.
void Stack::Impl::cut_to_window(const ReceiveState& receive, Arrived& arrived) {
  const std::uint32_t header = arrived.parsed.l4_header_bytes;
  const std::uint32_t payload = arrived.chain->tot_len - header;
  const std::uint32_t fin = (arrived.tcp.flags & net::kTcpFin) != 0 ? 1 : 0;
  const std::uint32_t room = receive.rcv_nxt + receive.rcv_wnd - arrived.tcp.seq;
  if (payload + fin <= room || room == 0 || receive.state == TcpState::kSynSent) [[likely]]
    return;
  pbuf_realloc(arrived.chain, static_cast<u16_t>(header + std::min(payload, room)));
  arrived.l4[13] &= static_cast<std::uint8_t>(~net::kTcpFin);
}

// False: only what the segment acknowledges counts; the client will send the rest again.
bool Stack::Impl::take_payload(const Connection& conn, bool pins_slot) {
  if (conn.refused != nullptr && !may_add_to_refused(conn)) {
    ++counters.dropped_refused;
    return false;
  }
  if (!pins_slot || ingress.free_count() >= ingress.slot_count() / kReclaimBelow) return true;
  reclaim_out_of_order();
  if (ingress.free_count() >= kReservedSlots) return true;
  ++counters.dropped_no_slot;
  return false;
}

void Stack::Impl::run_input(Connection& conn, Arrived& arrived) {
  tcp_pcb* const pcb = conn.pcb;
  const ConnIndex index = index_of(conn);
  const TcpState before = conn.state;
  if (before == TcpState::kSynSent) {
    conn.seq_remote = arrived.tcp.seq;
  } else if (before != TcpState::kSynReceived && (arrived.tcp.flags & net::kTcpAck) != 0 &&
             pcb->snd_wl1 == arrived.tcp.seq && pcb->snd_wl2 == arrived.tcp.ack) {
    // RFC 9293 3.10.7.4 lets a window shrink by a repeated acknowledgement; lwIP would not see it
    // and send until its timer gives up.
    pcb->snd_wnd = std::min(pcb->snd_wnd, tcpwnd_size_t{arrived.tcp.window} << pcb->snd_scale);
  }
  set_lwip_packet(arrived, interfaces[conn.interface]->lwip);
  // Behind a closed window lwIP answers each acknowledgement, and another such end that answer.
  const bool window_lent = pcb->rcv_wnd == 0 && arrived.tcp.seq == pcb->rcv_nxt &&
                           arrived.chain->tot_len == arrived.parsed.l4_header_bytes &&
                           (arrived.tcp.flags & (net::kTcpFin | net::kTcpSyn)) == 0;
  if (window_lent) pcb->rcv_wnd = 1;
  end_reason = EndReason::kFinished;
  const std::uint32_t generation = conn.generation;
  const std::uint32_t una = pcb->lastack;
  const std::uint32_t cwnd = pcb->cwnd;
  const std::uint32_t flight = pcb->snd_nxt - una;
  const bool may_grow = (pcb->flags & (TF_RTO | TF_INFR)) == 0 && !conn.recovering;
  const bool first_try = pcb->nrtx == 0;
  const bool shut_out = is_shut_out(*pcb);
  const bool selective = conn.recovering || (arrived.options.sack_blocks != 0 &&
                                             (pcb->flags & (TF_SACK | TF_INFR)) == TF_SACK);
  if (selective) pcb->dupacks = 0;  // lwIP's recovery is not wanted
  // Nor that it sends first: what is acknowledged now may have come long ago, and makes no room.
  const bool recovering = conn.recovering;
  if (recovering) pcb->cwnd = 0;
  {
    LwipLists lists(LwipLists::Active{pcb});
    tcp_input(arrived.chain, &interfaces[conn.interface]->lwip);
  }
  if (conn.generation != generation || conn.pcb == nullptr) return;
  if (window_lent) --pcb->rcv_wnd;
  // With a gap before what is kept the client stands before that, as it has heard of no window
  // (input_stripped()).
  if (conn.refused != nullptr && seq_after(pcb->snd_wl1, pcb->rcv_nxt)) {
    pcb->snd_wl1 = pcb->rcv_nxt;
  }
  if (recovering) pcb->cwnd = std::max(cwnd, pcb->lastack - una) - (pcb->lastack - una);
  if (conn.probed && !recovering && !seq_before(pcb->lastack, conn.recover_end)) {
    conn.probed = false;
  }
  if (may_grow && (pcb->flags & TF_INFR) != 0) {  // three repeated acknowledgements
    on_loss(conn, std::min(flight, cwnd));
    pcb->cwnd = pcb->ssthresh + 3u * conn.mss_bytes;
  }
  if (before <= TcpState::kSynReceived) {
    begin_estimates(conn, first_try);
  } else if (selective) {
    if (may_grow && pcb->lastack != una) grow_window(conn, cwnd, flight, pcb->lastack - una);
    recover(conn, arrived.options, pcb->lastack - una);
  } else if (may_grow && pcb->lastack != una) {
    conn.selected_bytes = 0;
    grow_window(conn, cwnd, flight, pcb->lastack - una);
    if (pcb->unsent != nullptr && pcb->cwnd > cwnd) mark_dirty(conn);
  }
  if (shut_out && !first_try) repeat_fin(conn);
  settle(index);
}

// Once the handshake is over: the initial window (RFC 6928) and the first round trip (RFC 6298
// 2.2), where lwIP would approach the measured value from far above.
void Stack::Impl::begin_estimates(Connection& conn, bool first_try) {
  tcp_pcb* const pcb = conn.pcb;
  if (pcb->state < ESTABLISHED) return;
  pcb->cwnd = kInitialWindowSegments * conn.mss_bytes;
  // A SYN that was lost, or answered late, says nothing of how much the path takes.
  pcb->ssthresh = TCP_SND_BUF;
  conn.loss_window_bytes = 0;
  std::uint32_t ticks = static_cast<std::uint32_t>(pcb->sa);
  if (conn.active) {
    // lwIP leaves this measurement running until the first data is acknowledged.
    ticks = tcp_ticks - pcb->rttest;
    pcb->rttest = 0;
    pcb->nrtx = 0;  // and keeps what the SYN took
    pcb->rto = pcb->sv;
  }
  if (!first_try) return;
  const auto round_trip = static_cast<s16_t>(std::min(ticks, 1000u));
  pcb->sa = static_cast<s16_t>(round_trip << 3);
  pcb->sv = static_cast<s16_t>(round_trip * 2);
  pcb->rto = static_cast<s16_t>(round_trip + pcb->sv);
}

void Stack::Impl::to_listener(Arrived& arrived) {
  const std::uint8_t flags = arrived.tcp.flags;
  const bool syn = (flags & (net::kTcpAck | net::kTcpSyn)) == net::kTcpSyn;
  if ((!syn && send_back(arrived)) || (flags & net::kTcpRst) != 0) {
    pbuf_free(arrived.chain);
    return;
  }
  Listener* const listener =
      syn ? find_listener({key_address(arrived.key, false), arrived.key.dst_port}) : nullptr;
  if (listener == nullptr && syn && send_back(arrived)) {
    pbuf_free(arrived.chain);
    return;
  }
  if (listener == nullptr && syn && now_ns < hold_until_ns) {
    ++counters.refused_starting;
    pbuf_free(arrived.chain);
    return;
  }
  if (listener == nullptr) {
    ++counters.refused_no_listener;
    refuse(arrived);
    return;
  }
  if (open >= options.connections_max && is_overdue(half_head)) {
    ++counters.refused_half_open_max;
    abort(half_head, EndReason::kTimedOut, false);
  }
  if (open >= options.connections_max) {
    ++counters.refused_connections_max;
    if (options.refuse_with_reset) {
      refuse(arrived);
    } else {
      pbuf_free(arrived.chain);
    }
    return;
  }
  if (half_open >= options.half_open_max) {
    // The oldest is the least likely to be somebody's: a flood of made-up SYNs shuts nobody out
    // whose answer comes before as many of them.
    ++counters.refused_half_open_max;
    abort(half_head, EndReason::kTimedOut, false);
  }
  if (heap.used_bytes() + kConnectionBytes > heap.bytes_max()) {
    ++counters.refused_no_memory;
    pbuf_free(arrived.chain);
    return;
  }
  clean_options(arrived.l4, arrived.parsed.l4_header_bytes, true);
  pbuf_realloc(arrived.chain, arrived.parsed.l4_header_bytes);
  netif& interface = interfaces[arrived.interface]->lwip;
  set_lwip_packet(arrived, interface);
  opening = listener;
  opening_packet = &arrived;
  opened = kNone;
  end_reason = EndReason::kNoMemory;
  {
    LwipLists lists(LwipLists::Listening{listener->pcb});
    listener->pcb->netif_idx = NETIF_NO_INDEX;
    tcp_input(arrived.chain, &interface);
  }
  opening = nullptr;
  if (opened == kNone || !is_open(opened)) {  // nor for the answer: lwIP has given it up
    ++counters.refused_no_memory;
  } else {
    settle(opened);
  }
  reap();
}

// Has not answered our SYN+ACK before that went again: made up more likely than who comes now.
bool Stack::Impl::is_overdue(ConnIndex half_open_one) const {
  return half_open_one != kNone && connections[half_open_one].pcb != nullptr &&
         connections[half_open_one].pcb->nrtx > 0;
}

// RFC 9293 3.10.7.1: a reset in answer to a segment that belongs to no connection.
void Stack::Impl::refuse(const Arrived& arrived) {
  const net::TcpHeader& tcp = arrived.tcp;
  const std::uint32_t length = arrived.parsed.l4_bytes() - arrived.parsed.l4_header_bytes +
                               ((tcp.flags & net::kTcpSyn) != 0 ? 1 : 0) +
                               ((tcp.flags & net::kTcpFin) != 0 ? 1 : 0);
  if ((tcp.flags & net::kTcpAck) != 0) {
    send_bare(arrived.interface, arrived.key, tcp.ack, 0, net::kTcpRst, 0, false, 0);
  } else {
    send_bare(arrived.interface, arrived.key, 0, tcp.seq + length, net::kTcpRst | net::kTcpAck, 0,
              false, 0);
  }
  pbuf_free(arrived.chain);
}

// Once a tick at most: the chain of connections with timers holds all that have such data.
void Stack::Impl::reclaim_out_of_order() {
  const std::uint64_t tick = now_ns / kFastTickNs + 1;
  if (reclaimed_tick == tick) return;
  reclaimed_tick = tick;
  for (ConnIndex index = timers_head; index != kNone; index = connections[index].timer_next) {
    tcp_free_ooseq(connections[index].pcb);
  }
}

}  // namespace sanproxy::stack
