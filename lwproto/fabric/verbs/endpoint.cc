#include "lwproto/fabric/verbs/endpoint.h"

#include <algorithm>

namespace sanproxy::fabric::verbs {
namespace {

constexpr std::uint64_t kNsPerMs = 1'000'000;
// A device gives back what a broken queue pair holds at once; this only ends a wait for one that
// does not.
constexpr std::uint64_t kFlushWaitNs = 500 * kNsPerMs;
constexpr std::uint32_t kDepthMax = 1u << 20;

}  // namespace

Status check_options(const EndpointOptions& options) {
  if (options.receive_depth == 0 || options.receive_depth > kDepthMax || options.send_depth == 0 ||
      options.send_depth > kDepthMax || options.inline_bytes_max == 0 ||
      options.inline_bytes_max > kInlineBytesLimit ||
      options.transfer_bytes_max < options.inline_bytes_max ||
      options.transfer_bytes_max > (1u << 30)) {
    return Status::error(Code::kInvalidArgument, "endpoint options out of range for verbs");
  }
  if (options.transfer_bytes_max < kHandshakeBytesMax) {
    return Status::error(Code::kInvalidArgument, "transfer_bytes_max does not hold a handshake");
  }
  const ReceiveMemory& memory = options.receive_memory;
  if ((memory.pool == nullptr) != (memory.region == nullptr)) {
    return Status::error(Code::kInvalidArgument, "receive_memory is half given");
  }
  if (memory.pool != nullptr && memory.pool->slot_bytes() < options.transfer_bytes_max) {
    return Status::error(Code::kInvalidArgument,
                         "the slots of receive_memory are smaller than transfer_bytes_max");
  }
  return {};
}

CmHeader header_of(const EndpointOptions& options) {
  CmHeader header;
  header.receive_depth = options.receive_depth;
  header.inline_bytes_max = options.inline_bytes_max;
  header.transfer_bytes_max = options.transfer_bytes_max;
  header.service_level = options.link.service_level;
  header.traffic_class = traffic_class_of(options.link);
  header.queue_pairs = static_cast<std::uint8_t>(std::max(options.link.queue_pairs, 1u));
  return header;
}

Status check_peer_sizes(const EndpointOptions& ours, const CmHeader& peers) {
  if (peers.inline_bytes_max < ours.inline_bytes_max ||
      peers.transfer_bytes_max < ours.transfer_bytes_max) {
    return Status::error(Code::kProtocol, "the peer takes smaller transfers than we send");
  }
  return {};
}

QueueSizes queue_sizes_of(const EndpointOptions& options, std::uint32_t queue_pairs) {
  // One more receive for the handshake.
  return {SendQueue::depth_for(options.send_depth),
          options.receive_depth + ReceiveQueue::kSpare + 1, queue_pairs};
}

SendLimits send_limits_of(const EndpointOptions& options) {
  return {options.send_depth, options.inline_bytes_max, options.transfer_bytes_max,
          options.link.window_bytes};
}

VerbsEndpoint::VerbsEndpoint(EndpointParts parts)
    : core_(std::move(parts.core)),
      identity_(std::move(parts.identity)),
      options_(parts.options),
      link_(parts.link),
      pacer_(parts.link, core_->now_ns()),
      receive_(std::move(parts.receive)),
      send_(std::move(parts.send)),
      queue_pair_(std::move(parts.queue_pair)) {
  send_->set_window(link_.window_bytes);
  link_.queue_pairs = queue_pair_->lanes();
  link_.service_level = static_cast<std::int8_t>(queue_pair_->service_level());
  link_.traffic_class = static_cast<std::int16_t>(queue_pair_->traffic_class());
  queue_pair_->set_target(this);
  core_->add(static_cast<Sleeper*>(this));
}

// An owner who wants the last transfers to arrive waits for kDisconnected first. Here the queue
// pair goes at once, and the end of its connection tells the peer.
VerbsEndpoint::~VerbsEndpoint() { core_->remove(static_cast<Sleeper*>(this)); }

Status VerbsEndpoint::closed_status() const {
  if (state_ != State::kOpen && !reason_.ok()) {
    return Status::error(Code::kDisconnected, reason_.text(), reason_.sys_errno());
  }
  return Status::error(Code::kDisconnected, "the channel has ended");
}

Result<RegionKey> VerbsEndpoint::attach(const buffer::MemoryRegion& region) {
  if (state_ != State::kOpen) return closed_status();
  if (!region.valid()) return Status::error(Code::kInvalidArgument, "attach an empty region");
  if (regions_.size() >= options_.regions_max ||
      region.size() > options_.peer_region_bytes_max - region_bytes_) {
    return Status::error(Code::kExhausted, "no more regions may be attached to this endpoint");
  }
  auto key = queue_pair_->device().register_region(region);
  if (!key.ok()) return key.status();
  regions_.push_back({std::move(*key), region.size()});
  region_bytes_ += region.size();
  return static_cast<RegionKey>(regions_.size());
}

[[gnu::hot]] Result<std::span<std::byte>> VerbsEndpoint::begin_send(std::size_t inline_bytes) {
  std::span<std::byte> space;
  if (state_ != State::kOpen || inline_bytes > options_.inline_bytes_max || pacer_.limited() ||
      send_->chain_full() || !send_->begin(inline_bytes, space)) [[unlikely]] {
    return begin_with_care(inline_bytes);
  }
  waiting_ = room_news_ = paced_ = false;
  return space;
}

[[gnu::noinline]] Result<std::span<std::byte>> VerbsEndpoint::begin_with_care(
    std::size_t inline_bytes) {
  if (send_->chain_full()) flush();
  if (state_ != State::kOpen) return closed_status();
  if (inline_bytes > options_.inline_bytes_max) {
    return Status::error(Code::kInvalidArgument, "inline part too large");
  }
  if (pacer_.limited() && !pacer_.may_send(core_->now_ns())) {
    paced_ = true;
    return Status::again();
  }
  std::span<std::byte> space;
  if (!send_->begin(inline_bytes, space)) {
    waiting_ = true;
    // What is chained may be what room must come from.
    flush();
    return Status::again();
  }
  waiting_ = room_news_ = paced_ = false;
  return space;
}

// Precondition: kOpen.
[[gnu::always_inline]] inline void VerbsEndpoint::post_chain() {
  if (const int error = send_->post(*queue_pair_); error != 0) {
    start_draining(Status::error(Code::kSystem, "post sends", error));
  }
}

[[gnu::always_inline]] inline Status VerbsEndpoint::commit(std::size_t inline_bytes,
                                                           std::span<const GatherRef> refs,
                                                           std::uint64_t cookie) {
  if (state_ != State::kOpen) [[unlikely]]
    return closed_status();
  if (!send_->begun() || inline_bytes > send_->space_bytes()) [[unlikely]] {
    return Status::error(Code::kInvalidArgument, "commit without space");
  }
  if (!refs.empty()) return commit_references(inline_bytes, refs, cookie);
  if (inline_bytes == 0) [[unlikely]] {
    send_->abandon();
    return Status::error(Code::kInvalidArgument, "transfer empty or too large");
  }
  pacer_.on_sent(inline_bytes);
  send_->commit(inline_bytes, {}, cookie);
  return {};
}

[[gnu::hot]] Status VerbsEndpoint::commit_send(std::size_t inline_bytes,
                                               std::span<const GatherRef> refs,
                                               std::uint64_t cookie) {
  return commit(inline_bytes, refs, cookie);
}

[[gnu::hot]] Status VerbsEndpoint::commit_last(std::size_t inline_bytes,
                                               std::span<const GatherRef> refs,
                                               std::uint64_t cookie) {
  const Status status = commit(inline_bytes, refs, cookie);
  if (status.ok()) [[likely]]
    post_chain();
  return status;
}

inline Status VerbsEndpoint::gather(std::size_t inline_bytes, std::span<const GatherRef> refs,
                                    std::array<ibv_sge, kGatherRefsMax>& pieces,
                                    std::uint64_t& total) const {
  if (refs.size() > kGatherRefsMax) {
    return Status::error(Code::kInvalidArgument, "too many references");
  }
  total = inline_bytes;
  for (std::size_t i = 0; i < refs.size(); ++i) {
    const GatherRef& ref = refs[i];
    if (ref.region == 0 || ref.region > regions_.size()) {
      return Status::error(Code::kInvalidArgument, "a reference to a region not attached");
    }
    const Region& region = regions_[ref.region - 1];
    if (ref.length == 0 || ref.offset > region.bytes || ref.length > region.bytes - ref.offset) {
      return Status::error(Code::kInvalidArgument, "a reference outside its region");
    }
    pieces[i].addr = reinterpret_cast<std::uintptr_t>(region.key->data()) + ref.offset;
    pieces[i].length = ref.length;
    pieces[i].lkey = region.key->local();
    total += ref.length;
  }
  if (total == 0 || total > options_.transfer_bytes_max) {
    return Status::error(Code::kInvalidArgument, "transfer empty or too large");
  }
  return {};
}

[[gnu::hot]] Status VerbsEndpoint::commit_references(std::size_t inline_bytes,
                                                     std::span<const GatherRef> refs,
                                                     std::uint64_t cookie) {
  std::array<ibv_sge, kGatherRefsMax> pieces;
  std::uint64_t total = 0;
  if (Status status = gather(inline_bytes, refs, pieces, total); !status.ok()) [[unlikely]] {
    send_->abandon();
    return status;
  }
  pacer_.on_sent(total);
  send_->commit(inline_bytes, std::span(pieces).first(refs.size()), cookie);
  return {};
}

[[gnu::hot]] void VerbsEndpoint::flush() {
  if (state_ == State::kOpen && send_->anything_chained()) post_chain();
}

[[gnu::hot]] std::uint32_t VerbsEndpoint::replenish() {
  if (state_ != State::kOpen || receive_->full()) return 0;
  int error = 0;
  const std::uint32_t more = receive_->replenish(*queue_pair_, error);
  if (error != 0) start_draining(Status::error(Code::kSystem, "post receives", error));
  return more;
}

void VerbsEndpoint::set_deadline(std::uint64_t wait_ns) {
  deadline_ns_ = core_->now_ns() + wait_ns;
  core_->wake_at(deadline_ns_);
}

void VerbsEndpoint::disconnect(Status reason) {
  switch (state_) {
    case State::kOpen:
      break;
    case State::kDraining:
      state_ = State::kFlushing;  // no more deliveries
      reason_ = reason;
      return;
    default:
      return;
  }
  // The peer still gets what was committed, then learns that and why this was all.
  flush();
  if (state_ != State::kOpen) return;
  reason_ = reason;
  const ByeCode code = reason.code() == Code::kProtocol ? ByeCode::kProtocol : ByeCode::kClosed;
  const bool said = send_->commit_control(Kind::kBye, static_cast<std::uint32_t>(code), {}) &&
                    send_->post(*queue_pair_) == 0;
  if (!said) return start_flushing();
  state_ = State::kClosing;
  set_deadline(core_->options().close_timeout_ms * kNsPerMs);
}

// The peer will get no more, and we take only what has arrived.
void VerbsEndpoint::start_draining(Status reason) {
  if (state_ != State::kOpen) return;
  state_ = State::kDraining;
  reason_ = reason;
  fail();
}

void VerbsEndpoint::start_flushing() {
  state_ = State::kFlushing;
  fail();
}

// The device gives everything back, for which kFlushWaitNs are more than enough.
void VerbsEndpoint::fail() {
  queue_pair_->fail();
  send_->post_last(*queue_pair_);
  set_deadline(kFlushWaitNs);
}

void VerbsEndpoint::start_reporting() {
  state_ = State::kReporting;
  deadline_ns_ = kNever;
  stash_next_ = stash_count_ = 0;
  queue_pair_.reset();
  receive_->give_all_back();
  send_->on_all_done();
}

// An event says that it is over, a completion why.
void VerbsEndpoint::explain(Status reason) {
  if (state_ == State::kDraining && std::exchange(reason_is_vague_, false)) reason_ = reason;
}

void VerbsEndpoint::on_failure(Status reason) {
  if (state_ == State::kOpen) {
    reason_is_vague_ = true;
    return start_draining(reason);
  }
  if (state_ == State::kClosing) start_flushing();
}

void VerbsEndpoint::peer_has_gone() {
  on_failure(Status::error(Code::kDisconnected, "the peer has gone"));
}

void VerbsEndpoint::on_cm_event(const CmEvent& event) {
  switch (event.type) {
    case RDMA_CM_EVENT_DISCONNECTED:
      return peer_has_gone();
    case RDMA_CM_EVENT_DEVICE_REMOVAL:
      return on_failure(Status::error(Code::kDisconnected, "the device was removed"));
    // The hardware address behind the peer's changed, and a queue pair keeps the one that it was
    // made with; or the last word of the set-up never came.
    case RDMA_CM_EVENT_UNREACHABLE:
      return on_failure(
          Status::error(Code::kDisconnected, "the peer cannot be reached where it was"));
    // After our answer: it does not want it, or the kernel could not make use of its own.
    case RDMA_CM_EVENT_REJECTED:
    case RDMA_CM_EVENT_CONNECT_ERROR:
      return on_failure(
          Status::error(Code::kDisconnected, "the peer's kernel gave the connection up"));
    default:  // news that end nothing
      return;
  }
}

std::uint64_t VerbsEndpoint::deadline_ns() const {
  if (state_ == State::kOpen && paced_) return pacer_.ready_at_ns();
  return deadline_ns_;
}

bool VerbsEndpoint::prepare_sleep() {
  if (state_ == State::kDone) return !receive_->any_transients();
  if (state_ == State::kReporting) return false;
  flush();
  if (std::exchange(room_news_, false) || receive_->any_transients()) return false;
  const bool delivering = state_ == State::kOpen || state_ == State::kDraining;
  if (stash_next_ != stash_count_ || receive_->next_is_here() ||
      (delivering && send_->has_done())) {
    return false;
  }
  if (const std::uint64_t deadline = deadline_ns(); deadline != kNever) {
    if (core_->now_ns() >= deadline) {
      paced_ = false;
      return false;
    }
    core_->wake_at(deadline);
  }
  queue_pair_->arm();
  return !anything_new();
}

}  // namespace sanproxy::fabric::verbs
