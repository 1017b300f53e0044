// StreamIn: what one TCP connection of a channel brings.
//
// Document: docs/tcp_fabric.md "Receiving".
// Role: reads frames; small ones many at a time into a staging buffer, those with references
//   straight into a receive slot. Hands up one frame at a time, the *head*: it is for the endpoint
//   to say when its turn has come. What follows the head waits in the staging buffer and in the
//   kernel, whose receive buffer is thus the bound of everything that is out of order.
// Owner: a TcpEndpoint, one a connection. Thread: the fabric's.
// Invariants:
//   1. Bytes handed out as transient are not touched until expire().
//   2. taken_ <= filled_ <= staging size. While a slot is being filled, the staging buffer holds
//      nothing that has not been handed out.
//   3. A header is checked before anything that it says is believed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "lwproto/fabric/fabric.h"
#include "lwproto/fabric/tcp/frame.h"
#include "lwproto/fabric/tcp/receive_slots.h"
#include "lwproto/fabric/tcp/transport.h"

namespace sanproxy::fabric::tcp {

// What the endpoint allows at this moment.
struct FrameLimits {
  std::uint32_t inline_bytes_max = 0;
  std::uint32_t transfer_bytes_max = 0;
  std::uint64_t next = 0;    // the first transfer not yet delivered
  std::uint64_t posted = 0;  // transfers below this have a receive
};

class StreamIn {
 public:
  // `padding_bytes_max`: what may come before the kWarm frame, headers included; 0 when the link is
  // not warmed up.
  StreamIn(std::uint32_t inline_bytes_max, std::uint64_t padding_bytes_max);

  void on_readable(bool hung_up) {
    readable_ = true;
    hung_up_ = hung_up_ || hung_up;
  }
  // The transient bytes handed out so far are no longer needed.
  void expire() { lent_ = false; }

  // Works towards a whole frame at the head; kProtocol when the peer breaks a rule.
  Status fill(Transport& transport, ReceiveSlots& slots, const FrameLimits& limits);

  bool whole() const { return known_ && have_ == body_bytes(); }  // the head can be taken
  const FrameHeader& head() const { return header_; }
  // The connection is at its end and has no whole frame left.
  bool ended() const { return ended_ && !whole() && !hungry(); }
  bool failed() const { return failed_; }
  bool warm() const { return warm_; }  // no more padding will come
  // fill() has something to do: bytes to read, or a frame that nobody has looked at.
  bool hungry() const {
    return !whole() &&
           ((readable_ && !ended_) || (!known_ && filled_ - taken_ >= sizeof(FrameHeader)));
  }

  // Hands the head up as a kReceive and goes on to what follows it.
  void take(Completion& out, ReceiveSlots& slots);
  void skip();                     // a head that is no transfer
  void drop(ReceiveSlots& slots);  // gives back what the head holds

 private:
  std::size_t body_bytes() const {
    return header_.kind() == FrameKind::kEnd ? 0 : header_.total_bytes;
  }
  bool in_slot() const { return slot_ != buffer::kNoSlot; }
  Status begin_head(ReceiveSlots& slots, const FrameLimits& limits);
  Status check_head(const FrameLimits& limits) const;
  bool make_room();
  void read(Transport& transport, ReceiveSlots& slots);
  void next_head();

  std::vector<std::byte> staging_;
  std::size_t taken_ = 0;   // in staging_: handed out or copied
  std::size_t filled_ = 0;  // in staging_: read
  bool lent_ = false;       // part of staging_ is with the owner until its next poll()
  bool readable_ = false;
  bool hung_up_ = false;
  bool ended_ = false;
  bool failed_ = false;

  bool known_ = false;  // header_ is that of the head
  FrameHeader header_;
  std::size_t have_ = 0;  // bytes of the head's body that are here
  buffer::SlotIndex slot_ = buffer::kNoSlot;
  std::uint64_t sequence_min_ = 0;  // of the next transfer on this connection
  std::uint64_t padding_left_;
  bool warm_;
  bool bulk_ = false;  // the last transfer was large
};

}  // namespace sanproxy::fabric::tcp
