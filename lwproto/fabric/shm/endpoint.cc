#include "lwproto/fabric/shm/endpoint.h"

#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <utility>

#include "lwproto/base/check.h"

namespace sanproxy::fabric::shm {
namespace {

// begin_send() does not know how many references will follow.
constexpr std::uint64_t kRefsRoom = kGatherRefsMax * sizeof(EntryRef);
// A peer may fill its doorbell as fast as we empty it.
constexpr int kReadsPerEmptying = 16;

}  // namespace

void ShmEndpoint::prepare(const OwnMemory& own, const EndpointOptions& options) {
  own.control().room.posted.store(options.receive_depth, std::memory_order_release);
}

Result<std::unique_ptr<Endpoint>> ShmEndpoint::create(EndpointParts parts) {
  std::unique_ptr<ShmEndpoint> endpoint(new ShmEndpoint(std::move(parts)));
  Core& core = *endpoint->core_;
  Status watched = core.watch_doorbell(endpoint->doorbell_.get());
  if (watched.ok()) {
    watched = core.watch(endpoint->socket_.get(), EPOLLIN | EPOLLRDHUP, endpoint.get());
  }
  if (!watched.ok()) return watched;
  return std::unique_ptr<Endpoint>(std::move(endpoint));
}

ShmEndpoint::ShmEndpoint(EndpointParts parts)
    : core_(std::move(parts.core)),
      socket_(std::move(parts.socket)),
      doorbell_(std::move(parts.doorbell)),
      own_(std::move(parts.own)),
      peer_(std::move(parts.peer)),
      identity_(std::move(parts.identity)) {
  const Sizes& ours = own_.sizes();
  const Sizes& theirs = peer_.sizes();
  bound_sending(socket_.get());
  own_.close_fd();
  inline_bytes_max_ = std::min(ours.inline_bytes_max, theirs.inline_bytes_max);
  transfer_bytes_max_ = std::min(ours.transfer_bytes_max, theirs.transfer_bytes_max);
  receive_depth_ = parts.options.receive_depth;
  posted_ = receive_depth_;
  ring_ = own_.ring();
  ring_bytes_ = ours.ring_bytes;
  peer_ring_ = peer_.ring();
  peer_ring_bytes_ = theirs.ring_bytes;
  regions_max_ = ours.regions_max;
  peer_region_bytes_max_ = ours.region_bytes_max;

  // The peer's return ring must hold a token for each outstanding transfer. The tables are reserved
  // and not filled: pages that are never needed are never taken.
  send_depth_ = std::min({parts.options.send_depth, theirs.return_entries, kSendDepthMax});
  sends_.reserve(send_depth_);
  free_sends_.reserve(send_depth_);
  loans_.reserve(ours.return_entries);
  free_loans_.reserve(ours.return_entries);
  core_->add(this);
}

ShmEndpoint::~ShmEndpoint() {
  disconnect(Status::error(Code::kDisconnected, "the endpoint was destroyed"));
  close_socket();
  core_->unwatch_doorbell(doorbell_.get());
  core_->remove(this);
  for (PeerRegion& region : peer_regions_) {
    if (region.key != 0) unmap(region);
  }
}

Status ShmEndpoint::closed_status() const {
  if (state_ != State::kOpen && !reason_.ok()) {
    return Status::error(Code::kDisconnected, reason_.text(), reason_.sys_errno());
  }
  return Status::error(Code::kDisconnected, "the channel has ended");
}

Result<RegionKey> ShmEndpoint::attach_memory(int fd, std::uint64_t bytes) {
  if (state_ != State::kOpen) return closed_status();
  if (fd < 0 || bytes == 0) return Status::error(Code::kInvalidArgument, "attach an empty region");
  const Sizes& theirs = peer_.sizes();
  const auto free_place = std::find_if(own_regions_.begin(), own_regions_.end(),
                                       [](const OwnRegion& region) { return region.key == 0; });
  const auto place = static_cast<std::uint32_t>(free_place - own_regions_.begin());
  if (place >= std::min(theirs.regions_max, kRegionPlacesMax) ||
      bytes > theirs.region_bytes_max - own_region_total_) {
    return Status::error(Code::kExhausted, "the peer takes no more regions");
  }
  RegionMessage message;
  message.key = free_place == own_regions_.end()
                    ? make_region_key(place, 0)
                    : make_region_key(place, region_generation(free_place->last_key) + 1);
  message.bytes = bytes;
  Status sent =
      send_message(socket_.get(), std::as_bytes(std::span(&message, 1)), {}, std::span(&fd, 1));
  if (!sent.ok()) return sent;
  if (free_place == own_regions_.end()) own_regions_.emplace_back();
  own_regions_[place] = {message.key, message.key, bytes};
  own_region_total_ += bytes;
  return message.key;
}

Status ShmEndpoint::detach(RegionKey key) {
  if (state_ != State::kOpen) return closed_status();
  const std::uint32_t place = region_place(key);
  if (place >= own_regions_.size() || own_regions_[place].key != key) {
    return Status::error(Code::kInvalidArgument, "detach a region not attached");
  }
  RegionMessage message;
  message.magic = kDetachMagic;
  message.key = key;
  Status sent = send_message(socket_.get(), std::as_bytes(std::span(&message, 1)), {}, {});
  if (!sent.ok()) return sent;
  own_region_total_ -= own_regions_[place].bytes;
  own_regions_[place].key = 0;
  return {};
}

// Reads how far the peer has got with our ring.
bool ShmEndpoint::refresh_room() {
  const std::uint64_t tail = peer_.control().room.ring_tail.load(std::memory_order_acquire);
  if (tail - peer_tail_ > head_published_ - peer_tail_) {
    breach("the peer freed ring space that it never got");
    return false;
  }
  peer_tail_ = tail;
  return true;
}

Result<std::span<std::byte>> ShmEndpoint::begin_send(std::size_t inline_bytes) {
  if (state_ != State::kOpen) [[unlikely]]
    return closed_status();
  if (inline_bytes > inline_bytes_max_) [[unlikely]] {
    return Status::error(Code::kInvalidArgument, "inline part too large");
  }
  const std::uint64_t need = entry_bytes(inline_bytes, 0) + kRefsRoom;
  if (head_ + need - peer_tail_ > ring_bytes_) [[unlikely]] {
    if (!refresh_room()) return closed_status();
    if (head_ + need - peer_tail_ > ring_bytes_) {
      if (!waiting_) own_.control().room.waiting.store(1, std::memory_order_relaxed);
      waiting_ = true;
      return Status::again();
    }
  }
  // Their returns wake us, so this kind of shortage needs no flag.
  if (outstanding_ == send_depth_) [[unlikely]]
    return Status::again();
  if (waiting_) [[unlikely]] {
    waiting_ = room_news_ = false;
    own_.control().room.waiting.store(0, std::memory_order_relaxed);
  }
  begun_ = true;
  space_bytes_ = inline_bytes;
  return std::span<std::byte>(ring_ + (head_ & (ring_bytes_ - 1)) + sizeof(EntryHeader),
                              inline_bytes);
}

Status ShmEndpoint::check_refs(std::size_t inline_bytes, std::span<const GatherRef> refs) const {
  if (refs.size() > kGatherRefsMax) {
    return Status::error(Code::kInvalidArgument, "too many references");
  }
  std::uint64_t total = inline_bytes;
  for (const GatherRef& ref : refs) {
    const std::uint32_t place = region_place(ref.region);
    if (ref.region == 0 || place >= own_regions_.size() || own_regions_[place].key != ref.region) {
      return Status::error(Code::kInvalidArgument, "a reference to a region not attached");
    }
    const std::uint64_t region_bytes = own_regions_[place].bytes;
    if (ref.length == 0 || ref.offset > region_bytes || ref.length > region_bytes - ref.offset) {
      return Status::error(Code::kInvalidArgument, "a reference outside its region");
    }
    total += ref.length;
  }
  if (total == 0 || total > transfer_bytes_max_) {
    return Status::error(Code::kInvalidArgument, "transfer empty or too large");
  }
  return {};
}

Status ShmEndpoint::commit_send(std::size_t inline_bytes, std::span<const GatherRef> refs,
                                std::uint64_t cookie) {
  if (state_ != State::kOpen) [[unlikely]]
    return closed_status();
  if (!begun_ || inline_bytes > space_bytes_) [[unlikely]] {
    return Status::error(Code::kInvalidArgument, "commit without space");
  }
  begun_ = false;
  if (Status checked = check_refs(inline_bytes, refs); !checked.ok()) [[unlikely]]
    return checked;
  if (sent_ == peer_posted_) [[unlikely]] {
    peer_posted_ = peer_.control().room.posted.load(std::memory_order_acquire);
    if (sent_ >= peer_posted_) {
      breach("a transfer met no posted receive");
      return reason_;
    }
  }
  EntryHeader header;
  header.entry_bytes = static_cast<std::uint32_t>(entry_bytes(inline_bytes, refs.size()));
  header.inline_bytes = static_cast<std::uint32_t>(inline_bytes);
  header.ref_count = static_cast<std::uint32_t>(refs.size());
  std::byte* at = ring_ + (head_ & (ring_bytes_ - 1));
  if (!refs.empty()) {
    const std::uint32_t index = take_place(free_sends_, sends_);
    SendSlot& slot = sends_[index];
    slot.cookie = cookie;
    slot.used = true;
    ++outstanding_;
    header.token = make_token(index, slot.generation & 0xffffu);
    std::byte* to = at + entry_bytes(inline_bytes, 0);
    for (const GatherRef& ref : refs) {
      const EntryRef entry{ref.region, ref.length, ref.offset};
      std::memcpy(to, &entry, sizeof(entry));
      to += sizeof(entry);
    }
  }
  std::memcpy(at, &header, sizeof(header));
  head_ += header.entry_bytes;
  ++sent_;
  return {};
}

void ShmEndpoint::publish() {
  if (state_ != State::kOpen) return;
  PublishedLine& published = own_.control().published;
  if (head_ != head_published_) {
    published.ring_head.store(head_, std::memory_order_release);
    head_published_ = head_;
    ring_due_ = true;
  }
  if (returns_ != returns_published_) {
    published.returns_head.store(returns_, std::memory_order_release);
    returns_published_ = returns_;
    ring_due_ = true;
  }
}

void ShmEndpoint::flush() {
  publish();
  if (state_ != State::kOpen || (!ring_due_ && !tail_dirty_)) return;
  // Pairs with the fence in Core::arm().
  std::atomic_thread_fence(std::memory_order_seq_cst);
  bool news = std::exchange(ring_due_, false);
  if (tail_dirty_) {
    tail_dirty_ = false;
    news = news || peer_.control().room.waiting.load(std::memory_order_relaxed) != 0;
  }
  const std::uint64_t epoch = peer_.sleep().epoch.load(std::memory_order_relaxed);
  if (news && (epoch & 1) != 0 && epoch != peer_kicked_) {
    peer_kicked_ = epoch;
    ring_peer();
  }
}

bool ShmEndpoint::peer_sleeps() const {
  if (state_ != State::kOpen) return false;
  const std::uint64_t epoch = peer_.sleep().epoch.load(std::memory_order_relaxed);
  return (epoch & 1) != 0 && epoch != peer_kicked_;
}

bool ShmEndpoint::peer_present() const {
  if (state_ != State::kOpen) return false;
  if (peer_.control().published.close_code.load(std::memory_order_acquire) != 0) return false;
  // Not by reading: the end shows behind what was said before it.
  pollfd end{socket_.get(), POLLRDHUP, 0};
  return ::poll(&end, 1, 0) <= 0;  // a signal says nothing of the peer
}

void ShmEndpoint::ring_peer() {
  const char ring = 1;
  // Cannot fail in a way that matters: the queue is full only if the peer never empties it, and a
  // dead peer shows elsewhere. The flags hold whatever the peer has done to its end.
  [[maybe_unused]] const ssize_t n =
      ::send(doorbell_.get(), &ring, sizeof(ring), MSG_DONTWAIT | MSG_NOSIGNAL);
}

void ShmEndpoint::empty_doorbell() {
  std::array<char, 4096> rings;
  for (int i = 0; i < kReadsPerEmptying; ++i) {
    const ssize_t n = ::recv(doorbell_.get(), rings.data(), rings.size(), MSG_DONTWAIT);
    if (n < static_cast<ssize_t>(rings.size())) return;
  }
}

void ShmEndpoint::release(Loan loan) {
  const std::uint64_t index = (loan & 0xffff'ffffu) - 1;
  SANPROXY_CHECK(loan != kNoLoan && index < loans_.size());
  LoanSlot& slot = loans_[index];
  SANPROXY_CHECK(slot.used && slot.generation == loan >> 32);
  slot.used = false;
  ++slot.generation;
  for (std::uint32_t i = 0; i < slot.ref_count; ++i) --peer_regions_[slot.places[i]].refs;
  slot.ref_count = 0;
  free_loans_.push_back(static_cast<std::uint32_t>(index));
  if (state_ != State::kOpen) return;
  own_.returns()[returns_ & (own_.sizes().return_entries - 1)] = slot.token;
  ++returns_;
}

std::uint32_t ShmEndpoint::replenish() {
  if (state_ != State::kOpen) return 0;
  const std::uint64_t wanted = received_ + receive_depth_;
  const auto added = static_cast<std::uint32_t>(wanted - posted_);
  if (added != 0) {
    posted_ = wanted;
    own_.control().room.posted.store(posted_, std::memory_order_release);
  }
  return added;
}

bool ShmEndpoint::take_work() {
  if (state_ != State::kOpen) return state_ != State::kDone;
  if (std::exchange(room_news_, false)) return true;
  const ControlPage& theirs = peer_.control();
  return theirs.published.ring_head.load(std::memory_order_relaxed) != cursor_ ||
         theirs.published.returns_head.load(std::memory_order_relaxed) != returns_taken_ ||
         cursor_ != tail_ ||
         (waiting_ && theirs.room.ring_tail.load(std::memory_order_relaxed) != peer_tail_);
}

void ShmEndpoint::disconnect(Status reason) {
  if (state_ == State::kFailing || state_ == State::kDone) return;
  if (state_ == State::kOpen) {
    // The peer still gets what was committed, then learns why, then sees the end of the socket.
    flush();
    const CloseMark mark =
        reason.code() == Code::kProtocol ? CloseMark::kProtocol : CloseMark::kClosed;
    own_.control().published.close_code.store(static_cast<std::uint32_t>(mark),
                                              std::memory_order_release);
  }
  state_ = State::kFailing;
  reason_ = reason;
  close_socket();
}

void ShmEndpoint::close_socket() {
  if (!socket_.valid()) return;
  core_->unwatch(socket_.get());
  // Not only close(): a forked child may hold the socket too.
  ::shutdown(socket_.get(), SHUT_RDWR);
  socket_.reset();
}

}  // namespace sanproxy::fabric::shm
