// SendWindow and ReceiveWindow: bytes of one direction of one connection (docs/flow_control.md).
//
// Role: pure arithmetic over 64-bit stream offsets that start at 0 and never wrap.
// Owner: one stream. Thread: that stream's.
// Invariants:
//   SendWindow:    acked <= freed <= sent <= freed + window; references <= those sent, 0 with
//                  nothing in flight.
//   ReceiveWindow: announced <= freed <= received <= announced + window.
#pragma once

#include <algorithm>
#include <cstdint>

#include "lwproto/base/check.h"
#include "lwproto/base/status.h"

namespace sanproxy::flow {

// Fewer freed bytes than these alone make no CREDIT due.
inline constexpr std::uint32_t kCreditDueBytesMin = 32 * 1024;

class SendWindow {
 public:
  static constexpr std::uint32_t kReferredBytesMin = 2 * kCreditDueBytesMin;

  SendWindow() = default;
  explicit SendWindow(std::uint32_t window_bytes) : window_bytes_(window_bytes) {}

  std::uint64_t sent() const { return sent_; }
  std::uint64_t freed() const { return freed_; }
  std::uint64_t acked() const { return acked_; }
  std::uint64_t in_flight() const { return sent_ - freed_; }
  std::uint32_t available() const {
    return static_cast<std::uint32_t>(freed_ + window_bytes_ - sent_);
  }
  std::uint32_t window_bytes() const { return window_bytes_; }
  void on_sent(std::uint32_t bytes) {  // precondition: bytes <= available()
    SANPROXY_CHECK(bytes <= available());
    sent_ += bytes;
  }
  // The bytes of the last on_sent() are a reference, which the peer may hold on to: a place in a
  // send queue, or a receive buffer, that others want as well.
  void on_reference() { ++references_; }
  // How many of them are in flight. Of those that a CREDIT frees a part in the proportion of their
  // bytes, rounded in favour of the others.
  std::uint32_t references() const { return references_; }
  // Whether one more is fair: a stream may have as many in flight as `share`, some part of what is
  // left for everybody (the dynamic thresholds of shared-memory switches, Choudhury and Hahne,
  // 1998), and always kReferredBytesMin bytes. If not, a CREDIT of this stream will change it: the
  // peer owes one when half of that is freed.
  bool may_refer(std::uint32_t share) const {
    return in_flight() < kReferredBytesMin || references_ < share;
  }
  // The peer's ledger return; kProtocol if an offset goes back or beyond what was sent, or if
  // acked > freed.
  Status on_credit(std::uint64_t freed_offset, std::uint64_t acked_offset) {
    if (freed_offset < freed_ || freed_offset > sent_ || acked_offset < acked_ ||
        acked_offset > freed_offset) [[unlikely]] {
      return credit_refused(freed_offset, acked_offset);
    }
    if (references_ != 0) free_references(sent_ - freed_offset);
    freed_ = freed_offset;
    acked_ = acked_offset;
    return {};
  }

 private:
  void free_references(std::uint64_t left_bytes) {
    const std::uint64_t before = in_flight();
    if (before == 0) return;
    references_ = static_cast<std::uint32_t>((references_ * left_bytes + before - 1) / before);
  }
  Status credit_refused(std::uint64_t freed_offset, std::uint64_t acked_offset) const;

  std::uint64_t sent_ = 0;
  std::uint64_t freed_ = 0;
  std::uint64_t acked_ = 0;
  std::uint32_t window_bytes_ = 0;
  std::uint32_t references_ = 0;
};

class ReceiveWindow {
 public:
  ReceiveWindow() = default;
  explicit ReceiveWindow(std::uint32_t window_bytes)
      : ReceiveWindow(window_bytes, window_bytes / 4) {}
  // `due_bytes`: freed bytes that make a CREDIT worth sending. Where another, smaller window stands
  // behind the peer (a client's TCP window behind the proxy) it must stay below that one: the peer
  // may never get as far as a quarter of ours.
  ReceiveWindow(std::uint32_t window_bytes, std::uint32_t due_bytes)
      : window_bytes_(window_bytes), due_bytes_(due_bytes) {}

  std::uint64_t received() const { return received_; }
  std::uint64_t freed() const { return freed_; }
  std::uint64_t held() const { return received_ - freed_; }
  std::uint32_t window_bytes() const { return window_bytes_; }
  // A DATA at `offset`; kProtocol for a gap, an overlap or an overrun of the window.
  Status on_data(std::uint64_t offset, std::uint32_t bytes) {
    if (offset != received_ || bytes > room()) [[unlikely]]
      return data_refused(offset);
    received_ += bytes;
    return {};
  }
  // Bytes that the peer may still send.
  std::uint32_t room() const {
    return static_cast<std::uint32_t>(announced_ + window_bytes_ - received_);
  }
  void on_freed(std::uint32_t bytes) {  // precondition: bytes <= held()
    SANPROXY_CHECK(bytes <= held());
    freed_ += bytes;
  }
  // True when a CREDIT is worth sending: due_bytes (a quarter of the window) are unannounced, or a
  // quarter of what the sender has in flight, but at least kCreditDueBytesMin: it may be held to
  // less than its window.
  bool credit_due() const {
    const std::uint64_t news = freed_ - announced_;
    const std::uint64_t quarter =
        std::max<std::uint64_t>((received_ - announced_) / 4, kCreditDueBytesMin);
    return news != 0 && news >= std::min<std::uint64_t>(due_bytes_, quarter);
  }
  bool credit_pending() const { return freed_ != announced_; }
  std::uint64_t announce() {  // the offset to put into CREDIT
    announced_ = freed_;
    return announced_;
  }

 private:
  Status data_refused(std::uint64_t offset) const;

  std::uint64_t received_ = 0;
  std::uint64_t freed_ = 0;
  std::uint64_t announced_ = 0;
  std::uint32_t window_bytes_ = 0;
  std::uint32_t due_bytes_ = 0;
};

}  // namespace sanproxy::flow
