// MirroredRing: a ring of bytes that is mapped twice in a row, so that every piece of it is
// contiguous.
//
// Role: the memory of a SendQueue. Owner: that. Thread: any one.
// Invariant: data()[i] and data()[i + size()] are the same byte for each i < size().
#pragma once

#include <cstddef>
#include <utility>

#include "lwproto/base/status.h"

namespace sanproxy::fabric::tcp {

class MirroredRing {
 public:
  // `bytes` is a power of two and a multiple of the page size.
  static Result<MirroredRing> create(std::size_t bytes);
  MirroredRing() = default;
  ~MirroredRing();
  MirroredRing(MirroredRing&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  MirroredRing& operator=(MirroredRing&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }

  std::byte* at(std::size_t total) const { return data_ + (total & (size_ - 1)); }
  std::size_t size() const { return size_; }

 private:
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace sanproxy::fabric::tcp
