// Connections begin: listeners, handshakes from either side, and the table of indices.
#include <cstring>

#include "lwproto/base/check.h"
#include "proxynode/stack/stack_impl.h"

namespace sanproxy::stack {
namespace {

// Released indices wait in line behind this many others before new ones stop being touched.
constexpr std::uint32_t kReuseAfter = 1024;

std::uint32_t mtu_bytes(const packet_io::PacketIo& io) {
  return std::clamp<std::uint32_t>(io.mtu_bytes(), 576, 65535);
}

}  // namespace

Result<InterfaceIndex> Stack::Impl::add_interface(packet_io::PacketIo& io) {
  if (interfaces.size() >= 254) {
    return Status::error(Code::kExhausted, "no more than 254 interfaces");
  }
  auto added = std::make_unique<Interface>(io, connections);
  added->lwip.num = static_cast<u8_t>(interfaces.size());
  added->lwip.mtu = static_cast<u16_t>(mtu_bytes(io));
  added->segmentation = io.options().segmentation_offload;
  interfaces.push_back(std::move(added));
  return static_cast<InterfaceIndex>(interfaces.size() - 1);
}

void Stack::Impl::take_smaller_mtus() {
  for (std::size_t i = 0; i < interfaces.size(); ++i) {
    const std::uint32_t mtu = mtu_bytes(interfaces[i]->io);
    if (mtu >= interfaces[i]->lwip.mtu) continue;
    interfaces[i]->lwip.mtu = static_cast<u16_t>(mtu);
    for (ConnIndex index = 0; index < fresh; ++index) {
      Connection& conn = connections[index];
      if (conn.pcb != nullptr && conn.interface == i) (void)lower_mss(conn, mtu);
    }
  }
}

Result<ListenerId> Stack::Impl::listen(const SocketAddress& address, std::uint64_t cookie) {
  if (address.port == 0 || address.ip.family == Family::kNone) {
    return Status::error(Code::kInvalidArgument, "a listener needs an address and a port");
  }
  if (listeners.contains(address)) {
    return Status::error(Code::kExists, "this address and port have a listener already");
  }
  LwipLists lists;
  const ip_addr_t ip = to_lwip(address.ip);
  tcp_pcb* const pcb = tcp_new_ip_type(IP_GET_TYPE(&ip));
  if (pcb == nullptr) return Status::error(Code::kExhausted, "no memory for a listener");
  if (tcp_bind(pcb, &ip, address.port) != ERR_OK) {
    tcp_close(pcb);
    return Status::error(Code::kInvalidArgument, "the listener's address cannot be bound");
  }
  tcp_pcb* const listening = tcp_listen(pcb);
  if (listening == nullptr) {
    tcp_close(pcb);
    return Status::error(Code::kExhausted, "no memory for a listener");
  }
  auto* const listen_pcb = reinterpret_cast<tcp_pcb_listen*>(listening);
  listen_pcb->ext_args[0].callbacks = &connection_callbacks();
  const ListenerId id = next_listener++;
  listeners.emplace(address, Listener{id, address, cookie, listen_pcb});
  ++states[static_cast<std::size_t>(TcpState::kListen)];
  return id;
}

void Stack::Impl::unlisten(ListenerId id) {
  const auto found = std::find_if(listeners.begin(), listeners.end(),
                                  [id](const auto& entry) { return entry.second.id == id; });
  if (found == listeners.end()) return;
  tcp_pcb_listen* const pcb = found->second.pcb;
  listeners.erase(found);
  --states[static_cast<std::size_t>(TcpState::kListen)];
  {
    LwipLists lists(LwipLists::Listening{pcb});
    tcp_close(reinterpret_cast<tcp_pcb*>(pcb));
  }
  // Half-open connections have their SYN+ACK unacknowledged, so all are in the timer chain.
  for (ConnIndex index = timers_head; index != kNone;) {
    const Connection& conn = connections[index];
    const ConnIndex next = conn.timer_next;
    if (conn.state == TcpState::kSynReceived && conn.listener == id) {
      abort(index, EndReason::kAborted, true);
    }
    index = next;
  }
}

Stack::Impl::Listener* Stack::Impl::find_listener(const SocketAddress& local) {
  auto found = listeners.find(local);
  if (found == listeners.end()) {
    found = listeners.find(SocketAddress{IpAddress::any(local.ip.family), local.port});
  }
  return found == listeners.end() ? nullptr : &found->second;
}

ConnIndex Stack::Impl::acquire() {
  ConnIndex index = kNone;
  if (fresh < connections.capacity() && free_ring.size() < kReuseAfter) {
    index = fresh++;
  } else if (free_ring.size() > 0) {
    index = free_ring.pop();
  } else {
    return kNone;
  }
  Connection& conn = connections[index];
  const std::uint32_t generation = conn.generation;
  const bool dirty_entry = conn.dirty;  // flush() will still come across it
  const bool refused_entry = conn.in_refused;
  conn = Connection{};
  conn.generation = generation + 1;
  conn.dirty = dirty_entry;
  conn.in_refused = refused_entry;
  ++open;
  return index;
}

void Stack::Impl::release(ConnIndex index) {
  ++connections[index].generation;
  free_ring.push(index);
  --open;
}

void Stack::Impl::attach(Connection& conn, tcp_pcb* pcb) {
  conn.pcb = pcb;
  conn.state = to_state(pcb->state);
  ++states[static_cast<std::size_t>(conn.state)];
  pcb->callback_arg = &conn;
  pcb->ext_args[0].callbacks = &connection_callbacks();
  pcb->ext_args[0].data = &conn;
  pcb->netif_idx = static_cast<u8_t>(conn.interface + 1);
  pcb->snd_buf = options.send_buffer_bytes;
  pcb->rto = static_cast<s16_t>(std::max<std::uint32_t>(1, options.initial_rto_ms / kSlowTickMs));
  pcb->sv = pcb->rto;
  pcb->keep_intvl = 0;     // challenge()
  tcp_nagle_disable(pcb);  // flush() is what gathers small writes
  flows.insert(index_of(conn));
}

// lwIP opens its compile-time window; this is the configured one.
void Stack::Impl::set_windows(Connection& conn) {
  tcp_pcb* const pcb = conn.pcb;
  const bool scaled = (pcb->flags & TF_WND_SCALE) != 0;
  conn.window_bytes =
      scaled ? options.receive_window_bytes : std::min(options.receive_window_bytes, 0xffffu);
  pcb->rcv_wnd = conn.window_bytes;
  pcb->rcv_ann_wnd = conn.window_bytes;
}

err_t Stack::Impl::passive_open(tcp_pcb* pcb) {
  const ConnIndex index = acquire();
  if (index == kNone) return ERR_MEM;
  Connection& conn = connections[index];
  conn.flow.key = opening_packet->key;
  conn.flow.hash = opening_packet->hash;
  conn.interface = opening_packet->interface;
  conn.via = reply_to;
  conn.listener = opening->id;
  conn.listener_cookie = opening->cookie;
  conn.seq_remote = opening_packet->tcp.seq;
  conn.seq_local = pcb->snd_nxt;
  conn.mss_bytes = pcb->mss;
  attach(conn, pcb);
  set_windows(conn);
  add_half_open(conn);
  opened = index;
  return ERR_OK;
}

void Stack::Impl::add_half_open(Connection& conn) {
  const ConnIndex index = index_of(conn);
  conn.half_prev = half_tail;
  conn.half_next = kNone;
  (half_tail == kNone ? half_head : connections[half_tail].half_next) = index;
  half_tail = index;
  ++half_open;
}

void Stack::Impl::remove_half_open(Connection& conn) {
  (conn.half_prev == kNone ? half_head : connections[conn.half_prev].half_next) = conn.half_next;
  (conn.half_next == kNone ? half_tail : connections[conn.half_next].half_prev) = conn.half_prev;
  --half_open;
}

Result<InterfaceIndex> Stack::Impl::route(const IpAddress& remote) const {
  for (std::size_t i = 0; i < interfaces.size(); ++i) {
    for (const IpPrefix& prefix : interfaces[i]->io.options().addresses) {
      if (prefix.contains(remote)) return static_cast<InterfaceIndex>(i);
    }
  }
  if (interfaces.empty()) return Status::error(Code::kNotFound, "there is no interface");
  return InterfaceIndex{0};
}

// On a segment the interface's own address. Behind a TUN device its addresses are the host's, so
// an address that we listen on is taken.
bool Stack::Impl::choose_local(InterfaceIndex interface, const IpAddress& remote,
                               IpAddress& local) const {
  const packet_io::InterfaceOptions& device = interfaces[interface]->io.options();
  if (device.driver == "packet" || device.driver == "xdp") {
    for (const IpPrefix& prefix : device.addresses) {
      if (prefix.ip.family != remote.family) continue;
      local = prefix.ip;
      if (prefix.contains(remote)) return true;
    }
    if (local.family == remote.family && !local.is_any()) return true;
  }
  for (const auto& [address, listener] : listeners) {
    if (address.ip.family != remote.family || address.ip.is_any()) continue;
    local = address.ip;
    return true;
  }
  return false;
}

// Where an interface has several queues, whether this one gets what the peer of `key` sends.
bool Stack::Impl::answers_come_here(InterfaceIndex interface, const net::FlowKey& key) const {
  const packet_io::InterfaceQueue& queue = interfaces[interface]->io.options().queue;
  if (queue.steering.queues <= 1) return true;
  const SocketAddress remote{IpAddress{key.family, key.src}, key.src_port};
  const SocketAddress local{IpAddress{key.family, key.dst}, key.dst_port};
  return queue.steering.queue_of(remote, local) == queue.index;
}

bool Stack::Impl::choose_port(InterfaceIndex interface, net::FlowKey& key) {
  const std::uint32_t first = options.ephemeral_port_first;
  const std::uint32_t count = options.ephemeral_port_last - first + 1u;
  const auto start = static_cast<std::uint32_t>(random64() % count);
  for (std::uint32_t i = 0; i < count; ++i) {
    key.dst_port = static_cast<std::uint16_t>(first + (start + i) % count);
    if (!answers_come_here(interface, key)) continue;
    if (flows.find(key, flows.hash(key)) == kNone) return true;
  }
  return false;
}

Result<ConnIndex> Stack::Impl::connect(const SocketAddress& remote,
                                       const SocketAddress& local_or_any) {
  if (remote.port == 0 || remote.ip.is_any() || remote.ip.family == Family::kNone) {
    return Status::error(Code::kInvalidArgument, "connect() needs a remote address and port");
  }
  refresh_clock();
  const auto interface = route(remote.ip);
  if (!interface.ok()) return interface.status();
  net::FlowKey key;
  IpAddress local = local_or_any.ip;
  if ((local.family == Family::kNone || local.is_any()) &&
      !choose_local(*interface, remote.ip, local)) {
    return Status::error(Code::kInvalidArgument, "no local address to connect from");
  }
  if (local.family != remote.ip.family) {
    return Status::error(Code::kInvalidArgument, "local and remote address differ in family");
  }
  key.src = remote.ip.bytes;
  key.dst = local.bytes;
  key.src_port = remote.port;
  key.dst_port = local_or_any.port;
  key.protocol = net::kProtocolTcp;
  key.family = local.family;
  if (key.dst_port != 0 && !answers_come_here(*interface, key)) {
    return Status::error(Code::kUnsupported, "another worker gets what is sent to this port");
  }
  if (key.dst_port == 0 ? !choose_port(*interface, key)
                        : flows.find(key, flows.hash(key)) != kNone) {
    return Status::error(Code::kExists, "no free port between these addresses");
  }
  if (open >= options.connections_max) {
    ++counters.refused_connections_max;
    return Status::error(Code::kExhausted, "connections_max is reached");
  }
  LwipLists lists;
  const ip_addr_t remote_ip = to_lwip(remote.ip);
  tcp_pcb* const pcb = tcp_new_ip_type(IP_GET_TYPE(&remote_ip));
  const ConnIndex index = pcb == nullptr ? kNone : acquire();
  if (index == kNone) {
    if (pcb != nullptr) tcp_close(pcb);
    ++counters.refused_no_memory;
    return Status::error(Code::kExhausted, "no memory for a connection");
  }
  Connection& conn = connections[index];
  conn.flow.key = key;
  conn.flow.hash = flows.hash(key);
  conn.interface = *interface;
  conn.active = true;
  conn.window_bytes = options.receive_window_bytes;
  pcb->local_ip = to_lwip(local);
  pcb->local_port = key.dst_port;
  attach(conn, pcb);
  if (tcp_connect(pcb, &remote_ip, remote.port, nullptr) != ERR_OK) {
    // Not on any list of lwIP's and with a port that was never bound.
    pcb->local_port = 0;
    tcp_close(pcb);
    reap();
    return Status::error(Code::kExhausted, "no memory to send a SYN");
  }
  conn.reported = true;
  conn.seq_local = pcb->lastack;
  settle(index);
  return index;
}

}  // namespace sanproxy::stack
