// WarmUp: opens the congestion window of one connection before its channel is used.
//
// Document: docs/tcp_fabric.md "Link parameters".
// Role: writes padding frames until the kernel says that the window is as large as was asked for,
//   then a kWarm frame. Owner: a stream of a TcpEndpoint. Thread: the fabric's.
// Invariants:
//   1. Writes at most kPaddingFactor times the window, whatever the kernel says; then the link is
//      cold, and the channel ends: slow start is skipped, or refused by name.
//   2. Between two calls a frame may be half written; finish() completes it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "lwproto/fabric/tcp/frame.h"
#include "lwproto/fabric/tcp/transport.h"

namespace sanproxy::fabric::tcp {

inline constexpr std::uint64_t kPaddingFactor = 8;
inline constexpr std::size_t kPaddingBytes = 16 * 1024 - sizeof(FrameHeader);

class WarmUp {
 public:
  enum class State : std::uint8_t { kPadding, kLast, kWarm, kCold };

  explicit WarmUp(std::uint64_t window_bytes) : window_bytes_(window_bytes) {}

  State state() const { return state_; }
  bool under_way() const { return state_ == State::kPadding || state_ == State::kLast; }
  // Goes on as far as possible. kAgain: an event will come; kMore: call again after a while.
  IoState advance(Transport& transport);
  // Only what was begun; kMore when nothing is half written.
  IoState finish(Transport& transport);

 private:
  bool open(int fd) const;

  State state_ = State::kPadding;
  std::uint64_t window_bytes_;
  std::uint64_t padded_ = 0;
  FrameHeader header_;
  std::size_t frame_bytes_ = 0;  // of the frame under way
  std::size_t frame_done_ = 0;
};

}  // namespace sanproxy::fabric::tcp
