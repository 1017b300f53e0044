// RawShmPeer: the connecting side of a shm channel with its fingers on every byte.
//
// Document: docs/shm_fabric.md; lwproto/fabric/shm/layout.h has the structures.
// Role: sends the handshake as a case wants it, and then writes rings, counters, tokens and region
//   descriptions without any check.
// Thread: one; the scribbler of a case may write the same memory from another.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "lwproto/base/unique_fd.h"
#include "lwproto/fabric/shm/layout.h"
#include "lwproto/fabric/shm/memory.h"
#include "lwproto/fabric/shm/unix_socket.h"

namespace sanproxy::rogue {

namespace shm = fabric::shm;

class RawShmPeer {
 public:
  // `address` is "shm:/path". Connects the socket; nothing is said yet.
  explicit RawShmPeer(const std::string& address);

  bool connected() const { return socket_.valid(); }
  shm::HelloMessage good_hello() const;
  shm::OwnMemory& own() { return own_; }
  int memory_fd() const { return own_.fd(); }
  int sleep_fd() const { return sleep_.fd(); }
  shm::OwnSleepPage& sleep() { return sleep_; }

  bool say(std::span<const std::byte> first, std::span<const std::byte> second,
           std::span<const int> fds);
  // Waits for the answer: its verdict, or nothing when the socket ended or time ran out.
  std::optional<shm::Verdict> answer();
  // A correct handshake; false if the proxy did not accept.
  bool handshake();

  // --- after the handshake
  void wake();
  // Writes a ring entry as it is and moves the head by its length.
  void publish(const shm::EntryHeader& header, std::span<const std::byte> inline_part,
               std::span<const shm::EntryRef> refs);
  // A correct inline-only transfer with these bytes.
  void publish_inline(std::span<const std::byte> bytes);
  void move_head(std::uint64_t by);
  void return_token(std::uint32_t token);
  bool send_region(int fd, std::uint64_t bytes, std::uint32_t key,
                   std::uint64_t magic = shm::kRegionMagic);
  const shm::ControlPage& theirs() const { return peer_->control(); }

  // The proxy has closed; how, is in mark().
  bool ended(std::chrono::milliseconds patience = std::chrono::seconds(10));
  shm::CloseMark mark() const;
  void hang_up() { socket_.reset(); }

 private:
  UniqueFd socket_;
  shm::OwnMemory own_;
  shm::OwnSleepPage sleep_;
  std::optional<shm::PeerMemory> peer_;
  UniqueFd bell_;
  UniqueFd wait_;
  std::uint64_t head_ = 0;
  std::uint64_t returns_ = 0;
};

// A memory file. `seals` as for F_ADD_SEALS.
UniqueFd make_memory_file(std::uint64_t bytes, unsigned seals);

}  // namespace sanproxy::rogue
