// MemoryRegion: memory that can be registered with fabrics and network interfaces.
//
// Role: one contiguous mapping backed by a memfd, so that any fabric can name it: shm passes the
//   descriptor, verbs registers the range. The descriptor is sealed against shrinking and growing
//   and against new writable mappings (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE), so a
//   peer that receives it can only read, and cannot be surprised by SIGBUS.
// Owner: exactly one owner (move-only); outlives every pool and attachment made over it.
// Thread: the mapping may be read anywhere; creation and destruction are single-threaded.
#pragma once

#include <cstddef>
#include <span>

#include "lwproto/base/status.h"

namespace sanproxy::buffer {

class MemoryRegion {
 public:
  MemoryRegion() = default;
  ~MemoryRegion();
  MemoryRegion(MemoryRegion&& other) noexcept;
  MemoryRegion& operator=(MemoryRegion&& other) noexcept;

  // `bytes` is rounded up to whole pages. Pages are taken from the system when first touched.
  // `name` shows in /proc/PID/maps.
  static Result<MemoryRegion> create(const char* name, std::size_t bytes);

  std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }
  std::span<std::byte> bytes() const { return {data_, size_}; }
  int fd() const { return fd_; }
  bool valid() const { return data_ != nullptr; }
  bool contains(const std::byte* p) const { return p >= data_ && p < data_ + size_; }

 private:
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
  int fd_ = -1;
};

}  // namespace sanproxy::buffer
