// Kept: received bytes that the application holds on to; KeptPool: all of a Node's.
//
// Document: docs/buffer_ownership.md.
// Role: what a Borrowed points to: a loan of the fabric's memory, or a copy of transient bytes.
// Owner: the Node. Thread: its. Objects and their 1 KB buffers are reused.
// Invariants:
//   1. The bytes of copies in use never exceed kept_bytes_max.
//   2. Releasing gives the loan back to its channel, even a dead one, and opens the window of its
//      connection if that is still the same one.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "lwproto/fabric/fabric.h"
#include "sanproxy/connection.h"

namespace sanproxy::app::internal {

class ConnectionImpl;
class KeptPool;
struct ChannelHold;

struct Kept {
  KeptPool* pool = nullptr;
  ChannelHold* hold = nullptr;  // of `loan`
  fabric::Loan loan = fabric::kNoLoan;
  ConnectionImpl* connection = nullptr;
  std::uint32_t serial = 0;  // of the connection
  std::size_t size = 0;
  std::size_t piece_count = 0;
  std::array<Bytes, 8> pieces;
  std::unique_ptr<std::byte[]> buffer;  // of a copy
  std::size_t buffer_bytes = 0;
};

class KeptPool {
 public:
  static constexpr std::size_t kBufferBytes = 1024;
  static constexpr std::size_t kReserveShare = 4;

  explicit KeptPool(std::size_t bytes_max) : bytes_max_(bytes_max) {}

  // nullptr when a copy of `bytes` would exceed the bound, or leave less than the reserve without
  // being one that `must` be made: because there is no loan to keep instead.
  Kept* acquire_copy(std::size_t bytes, bool must);
  Kept* acquire_loan();
  void release(Kept& kept);
  std::size_t in_use() const { return in_use_; }
  // Receive buffers have become free that channels may post.
  bool buffers_freed() const { return buffers_freed_; }
  bool take_buffers_freed() { return std::exchange(buffers_freed_, false); }
  void on_buffers_freed() { buffers_freed_ = true; }

 private:
  Kept* take(std::vector<Kept*>& free);

  std::size_t bytes_max_;
  std::size_t bytes_used_ = 0;
  std::size_t in_use_ = 0;
  bool buffers_freed_ = false;
  std::vector<std::unique_ptr<Kept>> all_;
  std::vector<Kept*> free_copies_;  // with a buffer of kBufferBytes
  std::vector<Kept*> free_loans_;   // without: for loans and larger copies
};

}  // namespace sanproxy::app::internal
