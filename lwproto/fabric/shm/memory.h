// OwnMemory, PeerMemory, Mapping: the sealed memory of the two sides of a shm endpoint.
//
// Document: docs/shm_fabric.md "Memory".
// Role: creates what we show to a peer, and checks and maps what a peer shows to us.
// Owner: an endpoint (OwnMemory, PeerMemory) or a fabric (the sleep page). Thread: that one's.
// Invariants:
//   1. OwnMemory cannot be written, shrunk or grown by whoever gets its descriptor.
//   2. A descriptor from a peer is asked for its seals before anything else is done with it: only
//      memory files answer that, so a file of a network or user-space file system, on which
//      fstat() or mmap() could hang, is turned away untouched.
//   3. A mapped peer memory cannot shrink under us (no SIGBUS).
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "lwproto/base/status.h"
#include "lwproto/fabric/shm/layout.h"
#include "lwproto/fabric/shm/unix_socket.h"

namespace sanproxy::fabric::shm {

class Mapping {
 public:
  Mapping() = default;
  Mapping(std::byte* data, std::size_t size) : data_(data), size_(size) {}
  ~Mapping();
  Mapping(Mapping&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Mapping& operator=(Mapping&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }

 private:
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

// Maps a peer's memfd of exactly `bytes` bytes for reading; kProtocol if it is not one or is not
// sealed against shrinking.
Result<Mapping> map_peer_region(int fd, std::uint64_t bytes);

// Whether nobody who gets the descriptor can write what is in it: only who has mapped it before
// can.
bool sealed_against_writing(int fd);

// A page-sized sealed memfd for the sleep epoch.
class OwnSleepPage {
 public:
  static Result<OwnSleepPage> create();
  SleepPage& page() const { return *reinterpret_cast<SleepPage*>(mapping_.data()); }
  int fd() const { return fd_.get(); }

 private:
  Mapping mapping_;
  UniqueFd fd_;
};

class OwnMemory {
 public:
  static Result<OwnMemory> create(const Sizes& sizes);
  const Sizes& sizes() const { return sizes_; }
  ControlPage& control() const { return *reinterpret_cast<ControlPage*>(mapping_.data()); }
  std::uint32_t* returns() const {
    return reinterpret_cast<std::uint32_t*>(mapping_.data() + returns_offset());
  }
  std::byte* ring() const { return mapping_.data() + ring_offset(sizes_); }  // mapped twice
  int fd() const { return fd_.get(); }
  void close_fd() { fd_.reset(); }  // once the peer has it

 private:
  Sizes sizes_;
  Mapping mapping_;
  UniqueFd fd_;
};

class PeerMemory {
 public:
  // Both descriptors come from the peer. Checks `sizes` as well.
  static Result<PeerMemory> map(const Sizes& sizes, int memory_fd, int sleep_fd);
  const Sizes& sizes() const { return sizes_; }
  const ControlPage& control() const {
    return *reinterpret_cast<const ControlPage*>(mapping_.data());
  }
  const std::uint32_t* returns() const {
    return reinterpret_cast<const std::uint32_t*>(mapping_.data() + returns_offset());
  }
  const std::byte* ring() const { return mapping_.data() + ring_offset(sizes_); }
  const SleepPage& sleep() const { return *reinterpret_cast<const SleepPage*>(sleep_.data()); }

 private:
  Sizes sizes_;
  Mapping mapping_;
  Mapping sleep_;
};

// The sizes that `options` ask for; `ring_bytes` is raised to hold several of the largest entries.
Sizes make_sizes(const EndpointOptions& options, std::uint32_t ring_bytes);
bool sizes_valid(const Sizes& sizes);

}  // namespace sanproxy::fabric::shm
