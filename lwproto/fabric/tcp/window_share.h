// WindowShare: what one channel has of the windows that a fabric gives its peers in all.
//
// Document: docs/tcp_fabric.md "Link parameters".
// Role: takes bytes out of a sum, and gives them back when it goes. Owner: a handshake, then its
//   endpoint. Thread: the fabric's.
// Invariants:
//   1. The sum outlives it.
#pragma once

#include <cstdint>
#include <utility>

namespace sanproxy::fabric::tcp {

class WindowShare {
 public:
  WindowShare() = default;
  WindowShare(std::uint64_t& sum, std::uint64_t bytes) : sum_(&sum), bytes_(bytes) { sum += bytes; }
  WindowShare(WindowShare&& other) noexcept
      : sum_(other.sum_), bytes_(std::exchange(other.bytes_, 0)) {}
  WindowShare& operator=(WindowShare&& other) noexcept {
    give_back();
    sum_ = other.sum_;
    bytes_ = std::exchange(other.bytes_, 0);
    return *this;
  }
  ~WindowShare() { give_back(); }

 private:
  void give_back() {
    if (bytes_ != 0) *sum_ -= std::exchange(bytes_, 0);
  }

  std::uint64_t* sum_ = nullptr;
  std::uint64_t bytes_ = 0;
};

}  // namespace sanproxy::fabric::tcp
