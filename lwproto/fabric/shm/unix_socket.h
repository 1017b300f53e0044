// Messages with descriptors over a non-blocking SOCK_SEQPACKET socket.
//
// Role: the only place that knows recvmsg() and SCM_RIGHTS. Owner: handshakes and endpoints of the
//   shm fabric. Thread: the caller's.
// Invariants:
//   1. Nothing here blocks.
//   2. Every descriptor that arrives is owned by the ReceivedMessage or was discarded by the
//   kernel.
#pragma once

#include <array>
#include <cstddef>
#include <span>
#include <string>

#include "lwproto/base/status.h"
#include "lwproto/base/unique_fd.h"
#include "lwproto/fabric/fabric.h"

namespace sanproxy::fabric::shm {

inline constexpr std::size_t kMessageFdsMax = 4;
inline constexpr std::size_t kMessageBytesMax = 8192;
// What a socket's sender may have under way, as the kernel counts (it doubles what is asked for),
// whatever the system's default. A message costs it at least 576 bytes, so there are never more
// than so many that nobody has read yet.
inline constexpr int kSocketSendBytes = 106'496;
inline constexpr std::uint32_t kSocketMessagesMax = 512;

struct ReceivedMessage {
  enum class Kind {
    kMessage,
    kNothing,
    kEnd,
    kMalformed,      // truncated bytes, or too many descriptors
    kNoDescriptors,  // we have none free for those that it brought; they are lost
  };
  Kind kind = Kind::kNothing;
  std::size_t bytes = 0;
  std::size_t fd_count = 0;
  std::array<UniqueFd, kMessageFdsMax> fds;
};

// An empty message counts as the end: the fabric never sends one.
ReceivedMessage receive_message(int socket, std::span<std::byte> out);

// kAgain when the socket's queue is full, kDisconnected when the peer is gone.
Status send_message(int socket, std::span<const std::byte> first, std::span<const std::byte> second,
                    std::span<const int> fds);

Result<UniqueFd> make_socket();
// To kSocketSendBytes.
void bound_sending(int socket);
// Binds and listens at `path`: creates a missing parent folder, replaces the socket of a server
// that is gone, and never removes anything else.
Result<UniqueFd> listen_at(const std::string& path, unsigned mode);
// kAgain when the server's queue is full; kNotFound when nobody listens.
Status connect_to(int socket, const std::string& path);

PeerIdentity identify_peer(int socket);

}  // namespace sanproxy::fabric::shm
