#include "proxynode/stack/stack.h"

#include <sys/mman.h>

#include <ctime>

#include "proxynode/stack/stack_impl.h"

namespace sanproxy::stack {

Stack::Impl* Stack::Impl::current = nullptr;

const char* tcp_state_name(TcpState state) {
  switch (state) {
    case TcpState::kClosed:
      return "CLOSED";
    case TcpState::kListen:
      return "LISTEN";
    case TcpState::kSynSent:
      return "SYN-SENT";
    case TcpState::kSynReceived:
      return "SYN-RECEIVED";
    case TcpState::kEstablished:
      return "ESTABLISHED";
    case TcpState::kFinWait1:
      return "FIN-WAIT-1";
    case TcpState::kFinWait2:
      return "FIN-WAIT-2";
    case TcpState::kCloseWait:
      return "CLOSE-WAIT";
    case TcpState::kClosing:
      return "CLOSING";
    case TcpState::kLastAck:
      return "LAST-ACK";
    case TcpState::kTimeWait:
      return "TIME-WAIT";
  }
  return "unknown";
}

RxPayload& RxPayload::operator=(RxPayload&& other) noexcept {
  if (this != &other) {
    reset();
    chain_ = std::exchange(other.chain_, nullptr);
  }
  return *this;
}

std::uint32_t RxPayload::length() const {
  std::uint32_t total = 0;
  for (const pbuf* piece = chain_; piece != nullptr; piece = piece->next) total += piece->len;
  return total;
}

std::span<const std::byte> RxPayload::front() const {
  if (chain_ == nullptr) return {};
  return {static_cast<const std::byte*>(chain_->payload), chain_->len};
}

RxPayload::Piece RxPayload::pop_front() {
  const Piece piece{front(), chain_};
  pbuf* const rest = chain_->next;
  chain_->next = nullptr;
  chain_->tot_len = chain_->len;
  chain_ = rest;
  skip_empty();
  return piece;
}

void RxPayload::skip_empty() {
  while (chain_ != nullptr && chain_->len == 0) {
    pbuf* const rest = std::exchange(chain_->next, nullptr);
    chain_->tot_len = 0;
    pbuf_free(std::exchange(chain_, rest));
  }
}

void RxPayload::push_front(Piece piece) {
  piece.handle->next = chain_;
  piece.handle->tot_len =
      static_cast<u16_t>(piece.handle->len + (chain_ != nullptr ? chain_->tot_len : 0));
  chain_ = piece.handle;
}

std::size_t RxPayload::piece_count() const {
  std::size_t count = 0;
  for (const pbuf* piece = chain_; piece != nullptr; piece = piece->next) ++count;
  return count;
}

void RxPayload::release(pbuf* handle) {
  if (handle != nullptr) pbuf_free(handle);
}

void RxPayload::reset() {
  if (chain_ != nullptr) pbuf_free(std::exchange(chain_, nullptr));
}

Stack::Impl::Impl(const StackOptions& stack_options, const Clock& stack_clock,
                  buffer::SlotPool& ingress_pool, Delegate& stack_delegate)
    : options(stack_options),
      clock(stack_clock),
      ingress(ingress_pool),
      delegate(stack_delegate),
      heap(options.heap_bytes_max),
      connections(options.connections_max),
      time_waits(options.time_wait_max),
      free_ring(options.connections_max),
      flows(connections, time_waits, random64()),
      rx_slots(ingress.slot_count()),
      lent(options.lent_packets_max),
      lent_headers(packet_io::kReceiveBufferBytesMin),
      fragments(options.fragments, random64()),
      wheel(connections, clock.now_ns()),
      secret{random64(), random64()},
      timestamp_base(static_cast<std::uint32_t>(random64())),
      world_seconds(static_cast<std::uint64_t>(std::time(nullptr)) -
                    clock.now_ns() / 1'000'000'000) {
  dirty.reserve(options.connections_max);
  dirty_working.reserve(options.connections_max);
  refused.reserve(options.connections_max);
  // Tables that are hit at random want few page-table entries.
  madvise(&connections[0], connections.capacity() * sizeof(Connection), MADV_HUGEPAGE);
  current = this;
  refresh_clock();
  hold_until_ns = now_ns + std::uint64_t{options.start_hold_ms} * 1'000'000;
}

Stack::Impl::~Impl() {
  // Nothing is reported and nothing is sent any more; memory goes back.
  for (ConnIndex index = 0; index < fresh; ++index) {
    connections[index].reported = false;
    abort(index, EndReason::kAborted, false);
  }
  for (auto& [address, listener] : listeners) {
    LwipLists lists(LwipLists::Listening{listener.pcb});
    tcp_close(reinterpret_cast<tcp_pcb*>(listener.pcb));
  }
  for (auto& interface : interfaces) interface->queue.clear();
  current = nullptr;
}

Result<std::unique_ptr<Stack>> Stack::create(const StackOptions& options, const Clock& clock,
                                             buffer::SlotPool& ingress, Delegate& delegate) {
  constexpr std::uint32_t kWindowMin = 64 * 1024, kWindowMax = 4 * 1024 * 1024;
  if (Impl::current != nullptr) {
    return Status::error(Code::kExists, "this process has a stack already");
  }
  if (options.connections_max == 0 || options.connections_max >= FlowTable::kTimeWaitFlag ||
      options.time_wait_max >= FlowTable::kTimeWaitFlag) {
    return Status::error(Code::kInvalidArgument, "connections_max or time_wait_max is impossible");
  }
  if (options.receive_window_bytes < kWindowMin || options.receive_window_bytes > kWindowMax ||
      options.send_buffer_bytes < kWindowMin || options.send_buffer_bytes > kWindowMax) {
    return Status::error(Code::kInvalidArgument,
                         "receive window and send buffer are from 64 KB to 4 MB");
  }
  if (options.ephemeral_port_first == 0 ||
      options.ephemeral_port_first > options.ephemeral_port_last) {
    return Status::error(Code::kInvalidArgument, "the range of ephemeral ports is empty");
  }
  return std::unique_ptr<Stack>(
      new Stack(std::make_unique<Impl>(options, clock, ingress, delegate)));
}

Stack::Stack(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Stack::~Stack() = default;

Result<InterfaceIndex> Stack::add_interface(packet_io::PacketIo& io) {
  return impl_->add_interface(io);
}
void Stack::take_smaller_mtus() { impl_->take_smaller_mtus(); }
Result<ListenerId> Stack::listen(const SocketAddress& address, std::uint64_t cookie) {
  return impl_->listen(address, cookie);
}
void Stack::unlisten(ListenerId listener) { impl_->unlisten(listener); }
void Stack::expect(std::span<const std::span<const std::byte>> packets) { impl_->expect(packets); }
void Stack::input(InterfaceIndex interface, buffer::SlotIndex slot,
                  const packet_io::ReceivedPacket& packet) {
  impl_->input(interface, slot, packet);
}
void Stack::input(InterfaceIndex interface, const packet_io::ReceivedPacket& packet) {
  impl_->input(interface, packet);
}
void Stack::flush(bool more) { impl_->flush(more); }
void Stack::on_time() { impl_->on_time(); }
std::uint64_t Stack::next_timer_ns() const { return impl_->next_timer_ns(); }
Result<ConnIndex> Stack::connect(const SocketAddress& remote, const SocketAddress& local_or_any) {
  return impl_->connect(remote, local_or_any);
}
std::uint32_t Stack::send_room(ConnIndex conn) const { return impl_->send_room(conn); }
Status Stack::write(ConnIndex conn, std::span<const std::byte> bytes, WriteMode mode) {
  return impl_->write(conn, bytes, mode);
}
void Stack::offer_again(ConnIndex conn) {
  if (impl_->has_refused(conn)) impl_->offer(conn);
}
void Stack::consume(ConnIndex conn, std::uint32_t bytes) { impl_->consume(conn, bytes); }
Status Stack::shutdown_send(ConnIndex conn) { return impl_->shutdown_send(conn); }
void Stack::close(ConnIndex conn) { impl_->close(conn); }
void Stack::forget(ConnIndex conn) { impl_->forget(conn); }
void Stack::abort(ConnIndex conn) { impl_->abort(conn, EndReason::kAborted, true); }

ConnectionInfo Stack::info(ConnIndex conn) const {
  return impl_->is_open(conn) ? impl_->info(impl_->connections[conn]) : ConnectionInfo{};
}
TcpState Stack::state(ConnIndex conn) const {
  return impl_->is_open(conn) ? impl_->connections[conn].state : TcpState::kClosed;
}
bool Stack::is_open(ConnIndex conn) const {
  return impl_->is_open(conn) || impl_->is_lingering(conn);
}
const std::array<std::uint32_t, kTcpStates>& Stack::state_counts() const { return impl_->states; }
std::uint32_t Stack::open_connections() const { return impl_->open; }
std::size_t Stack::heap_bytes_used() const { return impl_->heap.used_bytes(); }
std::size_t Stack::heap_bytes_max() const { return impl_->heap.bytes_max(); }
const StackCounters& Stack::counters() const {
  impl_->counters.flow_lookups = impl_->flows.lookups();
  impl_->counters.flow_probes = impl_->flows.probes();
  return impl_->counters;
}

const net::Reassembly& Stack::fragments() const { return impl_->fragments; }

void Stack::for_each(
    const std::function<void(ConnIndex, TcpState, const ConnectionInfo&)>& fn) const {
  for (ConnIndex index = 0; index < impl_->fresh; ++index) {
    const Connection& conn = impl_->connections[index];
    if (conn.pcb != nullptr) fn(index, conn.state, impl_->info(conn));
  }
  for (std::uint32_t i = impl_->time_wait_head; i != kNone; i = impl_->time_waits[i].next) {
    const net::FlowKey& key = impl_->time_waits[i].flow.key;
    ConnectionInfo info;
    info.remote = {key_address(key, true), key.src_port};
    info.local = {key_address(key, false), key.dst_port};
    info.timestamps = impl_->time_waits[i].timestamps;
    fn(kNoConn, TcpState::kTimeWait, info);
  }
}

ConnectionInfo Stack::Impl::info(const Connection& conn) const {
  ConnectionInfo out;
  out.remote = {key_address(conn.flow.key, true), conn.flow.key.src_port};
  out.local = {key_address(conn.flow.key, false), conn.flow.key.dst_port};
  out.listener = conn.listener;
  out.listener_cookie = conn.listener_cookie;
  out.initial_seq_local = conn.seq_local;
  out.initial_seq_remote = conn.seq_remote;
  out.mss_bytes = conn.mss_bytes;
  out.active = conn.active;
  out.timestamps = (conn.pcb->flags & TF_TIMESTAMP) != 0;
  out.window_scaling = (conn.pcb->flags & TF_WND_SCALE) != 0;
  out.window_scale_local = conn.pcb->rcv_scale;
  out.window_scale_remote = conn.pcb->snd_scale;
  return out;
}

}  // namespace sanproxy::stack
