// CookieRing: cookies on their way back to the owner, first in, first out.
//
// Owner: a TcpEndpoint. Thread: the fabric's. Invariant: never holds more than it was made for,
// because the endpoint has no more than send_depth outstanding; so it never allocates.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "lwproto/base/check.h"

namespace sanproxy::fabric::tcp {

class CookieRing {
 public:
  explicit CookieRing(std::size_t capacity) : cookies_(std::bit_ceil(capacity)) {}

  bool empty() const { return head_ == tail_; }
  void push(std::uint64_t cookie) {
    SANPROXY_CHECK(head_ - tail_ < cookies_.size());
    cookies_[head_++ & (cookies_.size() - 1)] = cookie;
  }
  std::uint64_t pop() { return cookies_[tail_++ & (cookies_.size() - 1)]; }

 private:
  std::vector<std::uint64_t> cookies_;
  std::size_t head_ = 0;
  std::size_t tail_ = 0;
};

}  // namespace sanproxy::fabric::tcp
