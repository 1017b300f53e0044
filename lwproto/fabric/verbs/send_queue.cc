#include "lwproto/fabric/verbs/send_queue.h"

#include <arpa/inet.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "lwproto/base/check.h"

namespace sanproxy::fabric::verbs {
namespace {

// Transfers without references beside the send_depth that have them.
constexpr std::uint32_t kInlineTransfers = 64;

}  // namespace

std::uint32_t SendQueue::depth_for(std::uint32_t send_depth) {
  constexpr std::uint32_t kDepthMax = 1u << 20;
  return std::min(send_depth, kDepthMax) + kInlineTransfers;
}

Result<std::unique_ptr<SendQueue>> SendQueue::create(QueuePair& queue_pair, std::size_t ring_bytes,
                                                     const SendLimits& limits) {
  // A device without enough pieces makes us copy, so a whole transfer must find room; twice, since
  // one cannot go around the end of the ring.
  const std::size_t transfer = aligned(limits.transfer_bytes) + aligned(kHandshakeBytesMax);
  auto region =
      buffer::MemoryRegion::create("verbs-send", std::bit_ceil(std::max(ring_bytes, 4 * transfer)));
  if (!region.ok()) return region.status();
  auto key = queue_pair.device().register_region(*region);
  if (!key.ok()) return key.status();
  std::unique_ptr<SendQueue> out(new SendQueue());
  out->ring_ = std::move(*region);
  out->key_ = std::move(*key);
  out->ring_mask_ = out->ring_.size() - 1;
  SANPROXY_CHECK(std::has_single_bit(out->ring_.size()));
  out->limits_ = limits;
  out->depth_ = queue_pair.send_depth();
  out->gather_max_ = queue_pair.gather_max();
  out->room_min_ = out->gather_max_ < kPiecesMax ? limits.transfer_bytes : 0;
  out->device_inline_bytes_ = queue_pair.inline_bytes_max();
  out->records_.resize(std::bit_ceil(out->depth_));
  out->records_mask_ = out->records_.size() - 1;
  out->local_key_ = out->key_->local();
  out->signal_at_ = out->signal_after_ = out->depth_ / kSignalsPerQueue;
  out->signal_at_ring_ = out->signal_after_ring_bytes_ = out->ring_.size() / kSignalsPerQueue;
  for (std::size_t i = 0; i < kChainMax; ++i) out->requests_[i].sg_list = out->pieces_[i].data();
  out->lanes_.resize(queue_pair.lanes());
  for (std::size_t i = 0; i < out->lanes_.size(); ++i) out->lanes_[i] = {i, i};
  return out;
}

// Copies leading pieces behind the inline part until the rest fits the device's gather list.
std::size_t SendQueue::copy_what_does_not_fit(std::size_t inline_bytes,
                                              std::span<const ibv_sge>& pieces) {
  std::byte* to = ring_.data() + (ring_head_ & ring_mask_) + inline_bytes;
  std::size_t copied = 0;
  while (!pieces.empty() && pieces.size() + (inline_bytes + copied != 0) > gather_max_) {
    const ibv_sge& piece = pieces.front();
    // The address is one of ours: an attached region's.
    std::memcpy(to + copied, reinterpret_cast<const void*>(piece.addr), piece.length);
    copied += piece.length;
    pieces = pieces.subspan(1);
  }
  return copied;
}

bool SendQueue::commit_control(Kind kind, std::uint32_t number, std::span<const std::byte> bytes) {
  if (chain_full() || next_ - retired_ >= depth_) return false;
  const std::size_t position = ring_head_ & ring_mask_;
  const std::size_t room = aligned(bytes.size());
  const std::size_t skipped = position + room > ring_.size() ? ring_.size() - position : 0;
  if (ring_head_ + skipped + room - ring_tail_ > ring_.size()) return false;
  ring_head_ += skipped;
  begun_ = false;
  std::copy(bytes.begin(), bytes.end(), ring_.data() + (ring_head_ & ring_mask_));
  chain(kind, number, bytes.size(), {}, false, 0);
  requests_[chained_ - 1].send_flags |= IBV_SEND_SIGNALED;
  return true;
}

void SendQueue::post_last(QueuePair& queue_pair) {
  // What is chained is given back unsent. Where the device takes nothing, the deadline ends it.
  if (post(queue_pair) == 0 && commit_control(Kind::kBye, 0, {})) (void)post(queue_pair);
}

// The last transfer of each lane is signalled.
int SendQueue::post_lanes(QueuePair& queue_pair) {
  const auto lanes = static_cast<std::uint32_t>(lanes_.size());
  for (std::uint32_t i = 0; i < chained_; ++i) {
    const bool last = i + lanes >= chained_;
    requests_[i].next = last ? nullptr : &requests_[i + lanes];
    if (last) signal(requests_[i]);
  }
  const std::uint32_t used = std::min(lanes, chained_);
  auto lane = static_cast<std::uint32_t>(posted_ % lanes);
  chained_ = 0;
  posted_ = next_;
  reuse_ring();
  for (std::uint32_t i = 0; i < used; ++i) {
    if (const int error = queue_pair.post(&requests_[i], lane); error != 0) return error;
    if (++lane == lanes) lane = 0;
  }
  return 0;
}

void SendQueue::on_lane_done(std::uint64_t id) {
  Lane& lane = lanes_[id % lanes_.size()];
  lane.not_done = std::max(lane.not_done, id + lanes_.size());
  lane.not_over = std::max(lane.not_over, lane.not_done);
  const auto behind =
      std::min_element(lanes_.begin(), lanes_.end(),
                       [](const Lane& a, const Lane& b) { return a.not_done < b.not_done; });
  done_ = std::min(behind->not_done, posted_);
}

void SendQueue::on_failed(std::uint64_t id) {
  if (id >= posted_) return;
  Lane& lane = lanes_[id % lanes_.size()];
  lane.not_over = std::max(lane.not_over, id + lanes_.size());
}

bool SendQueue::drained() const {
  return done_ == posted_ || std::all_of(lanes_.begin(), lanes_.end(), [this](const Lane& lane) {
           return lane.not_over >= posted_;
         });
}

std::optional<std::uint64_t> SendQueue::next_cookie() {
  while (retired_ != done_) {
    const Record& record = records_[retired_ & records_mask_];
    ++retired_;
    ring_tail_ = record.ring_end;
    bytes_ -= record.bytes;
    if (record.has_refs) {
      --refs_;
      return record.cookie;
    }
  }
  return std::nullopt;
}

}  // namespace sanproxy::fabric::verbs
