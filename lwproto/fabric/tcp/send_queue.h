// SendQueue: what was committed for one TCP connection and is not yet with the kernel.
//
// Document: docs/tcp_fabric.md "Sending".
// Role: keeps frames (header and inline part in a ring of its own, the rest by reference) in
//   order, offers them as a gather list, and takes note of how much of it was written. Pure
//   bookkeeping: no system call.
// Owner: a TcpEndpoint, one a connection. Thread: the fabric's.
// Invariants:
//   1. Referenced memory is not looked at here; only its address goes into gather lists.
//   2. written_ <= head_ <= written_ + ring size; both count bytes of the ring, and go back to 0
//      when the queue is empty and no space is given out, so that a quiet channel stays in the
//      same cache lines.
//   3. Room for one kEnd frame is always left.
#pragma once

#include <sys/uio.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "lwproto/base/status.h"
#include "lwproto/fabric/fabric.h"
#include "lwproto/fabric/tcp/cookie_ring.h"
#include "lwproto/fabric/tcp/frame.h"
#include "lwproto/fabric/tcp/mirrored_ring.h"

namespace sanproxy::fabric::tcp {

class SendQueue {
 public:
  // Transfers with references that one queue holds; the next waits in the caller's hands.
  static constexpr std::uint32_t kReferencesMax = 128;

  static Result<SendQueue> create(std::size_t ring_bytes);

  bool has_room(std::size_t inline_bytes) const {
    return head_ - written_ + inline_bytes + 2 * sizeof(FrameHeader) <= ring_.size() &&
           pending_head_ - pending_tail_ < kReferencesMax;
  }
  // Where the inline part of the next frame goes; stays so until the commit(). Precondition:
  // has_room().
  std::byte* begin() {
    begun_ = true;
    return ring_.at(head_) + sizeof(FrameHeader);
  }
  // Appends the frame. `pieces` are its referenced bytes; then `cookie` comes back by advance().
  void commit(const FrameHeader& header, std::span<const iovec> pieces, std::uint64_t cookie);
  // Always possible once; nothing may follow.
  void commit_end(CloseMark mark);

  bool empty() const { return pending_bytes_ == 0; }
  std::uint64_t pending_bytes() const { return pending_bytes_; }  // not yet written, references too
  // Fills `out` with the next pieces to write, at most `bytes` in all; returns how many there are.
  std::size_t gather(std::span<iovec> out, std::size_t bytes) const;
  // `bytes` of the pieces were written. The cookies of frames that are now wholly written are
  // appended to `done`.
  void advance(std::size_t bytes, CookieRing& done);
  // Forgets everything; the cookies of unwritten frames are appended to `lost`.
  void abandon(CookieRing& lost);

 private:
  struct Pending {
    std::uint64_t at = 0;  // the position in the ring behind the inline part
    std::uint64_t cookie = 0;
    std::uint32_t count = 0;
    std::array<iovec, kGatherRefsMax> pieces;
  };

  Pending& pending(std::uint64_t index) { return pending_[index % kReferencesMax]; }
  const Pending& pending(std::uint64_t index) const { return pending_[index % kReferencesMax]; }

  MirroredRing ring_;
  std::uint64_t head_ = 0;
  std::uint64_t written_ = 0;
  std::uint64_t pending_bytes_ = 0;
  std::vector<Pending> pending_;
  std::uint64_t pending_head_ = 0;
  std::uint64_t pending_tail_ = 0;
  bool begun_ = false;
  std::uint32_t piece_ = 0;  // of the first pending, once its inline part is written
};

}  // namespace sanproxy::fabric::tcp
