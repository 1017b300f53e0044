#include "lwproto/fabric/shm/unix_socket.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

namespace sanproxy::fabric::shm {
namespace {

constexpr int kBacklog = 128;

void take_descriptors(msghdr& header, ReceivedMessage& out) {
  for (cmsghdr* c = CMSG_FIRSTHDR(&header); c != nullptr; c = CMSG_NXTHDR(&header, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
    const std::size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
      UniqueFd owned(fd);
      if (out.fd_count == out.fds.size()) continue;
      out.fds[out.fd_count++] = std::move(owned);
    }
  }
}

sockaddr_un address_of(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.data(), std::min(path.size(), sizeof(address.sun_path) - 1));
  return address;
}

// Makes sure that bind() can take `path`, without disturbing a live server.
Status clear_stale_socket(const std::string& path) {
  struct stat info {};
  if (::lstat(path.c_str(), &info) != 0) return {};
  if (!S_ISSOCK(info.st_mode)) {
    return Status::error(Code::kExists, "the address names a file that is not a socket");
  }
  auto probe = make_socket();
  if (!probe.ok()) return probe.status();
  const Status answer = connect_to(probe->get(), path);
  if (answer.code() == Code::kNotFound) {
    ::unlink(path.c_str());
    return {};
  }
  return Status::error(Code::kExists, "another server listens at this address");
}

}  // namespace

ReceivedMessage receive_message(int socket, std::span<std::byte> out) {
  ReceivedMessage message;
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int) * kMessageFdsMax)> control{};
  iovec piece{out.data(), out.size()};
  msghdr header{};
  header.msg_iov = &piece;
  header.msg_iovlen = 1;
  ssize_t n = -1;
  // ECONNRESET comes once, ahead of messages that are still queued.
  for (int attempt = 0; attempt < 3; ++attempt) {
    header.msg_control = control.data();
    header.msg_controllen = control.size();
    n = ::recvmsg(socket, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (n >= 0 || (errno != ECONNRESET && errno != EINTR)) break;
  }
  if (n < 0) {
    const bool nothing = errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR;
    message.kind = nothing ? ReceivedMessage::Kind::kNothing : ReceivedMessage::Kind::kEnd;
    return message;
  }
  take_descriptors(header, message);
  message.bytes = static_cast<std::size_t>(n);
  if ((header.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0) {
    // There was room for more: it is this process that takes no more.
    const bool ours = (header.msg_flags & MSG_TRUNC) == 0 && message.fd_count < message.fds.size();
    message.kind = ours ? ReceivedMessage::Kind::kNoDescriptors : ReceivedMessage::Kind::kMalformed;
  } else {
    message.kind = n == 0 ? ReceivedMessage::Kind::kEnd : ReceivedMessage::Kind::kMessage;
  }
  return message;
}

Status send_message(int socket, std::span<const std::byte> first, std::span<const std::byte> second,
                    std::span<const int> fds) {
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int) * kMessageFdsMax)> control{};
  // sendmsg() does not write through these pointers.
  iovec pieces[2] = {{const_cast<std::byte*>(first.data()), first.size()},
                     {const_cast<std::byte*>(second.data()), second.size()}};
  msghdr header{};
  header.msg_iov = pieces;
  header.msg_iovlen = second.empty() ? 1 : 2;
  if (!fds.empty()) {
    header.msg_control = control.data();
    header.msg_controllen = CMSG_SPACE(fds.size_bytes());
    cmsghdr* c = CMSG_FIRSTHDR(&header);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(fds.size_bytes());
    std::memcpy(CMSG_DATA(c), fds.data(), fds.size_bytes());
  }
  if (::sendmsg(socket, &header, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0) return {};
  switch (errno) {
    case EAGAIN:
    case EINTR:
    case ENOBUFS:
      return Status::again();
    case ETOOMANYREFS:
      return Status::error(Code::kExhausted, "too many descriptors in flight", errno);
    case EPIPE:
    case ECONNRESET:
    case ENOTCONN:
      return Status::error(Code::kDisconnected, "the peer is gone", errno);
    default:
      return Status::error(Code::kSystem, "send to a shm peer", errno);
  }
}

Result<UniqueFd> make_socket() {
  UniqueFd fd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return Status::error(Code::kSystem, "create a Unix socket", errno);
  return fd;
}

void bound_sending(int socket) {
  (void)::setsockopt(socket, SOL_SOCKET, SO_SNDBUF, &kSocketSendBytes, sizeof(kSocketSendBytes));
}

Result<UniqueFd> listen_at(const std::string& path, unsigned mode) {
  std::error_code error;
  std::filesystem::create_directories(std::filesystem::path(path).parent_path(), error);
  if (error) {
    return Status::error(Code::kSystem, "create the folder of the socket", error.value());
  }
  if (Status cleared = clear_stale_socket(path); !cleared.ok()) return cleared;
  auto fd = make_socket();
  if (!fd.ok()) return fd.status();
  const sockaddr_un address = address_of(path);
  if (::bind(fd->get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    if (errno == EACCES) return Status::error(Code::kPermission, "bind the socket", errno);
    return Status::error(errno == EADDRINUSE ? Code::kExists : Code::kSystem, "bind the socket",
                         errno);
  }
  // The mode is set before anyone can connect.
  if (::chmod(path.c_str(), static_cast<mode_t>(mode)) != 0 || ::listen(fd->get(), kBacklog) != 0) {
    const int reason = errno;
    ::unlink(path.c_str());
    return Status::error(Code::kSystem, "listen at the socket", reason);
  }
  return fd;
}

Status connect_to(int socket, const std::string& path) {
  const sockaddr_un address = address_of(path);
  if (::connect(socket, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0) {
    return {};
  }
  switch (errno) {
    case EAGAIN:
    case EINTR:
      return Status::again();
    case ENOENT:
    case ENOTDIR:
    case ECONNREFUSED:
      return Status::error(Code::kNotFound, "nobody listens there", errno);
    case EACCES:
    case EPERM:
      return Status::error(Code::kPermission, "connect to the socket", errno);
    default:
      return Status::error(Code::kSystem, "connect to the socket", errno);
  }
}

PeerIdentity identify_peer(int socket) {
  PeerIdentity identity;
  ucred credentials{};
  socklen_t length = sizeof(credentials);
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &length) == 0) {
    identity.uid = credentials.uid;
    identity.gid = credentials.gid;
    identity.pid = credentials.pid;
  }
  identity.address = "shm:pid " + std::to_string(identity.pid);
  return identity;
}

}  // namespace sanproxy::fabric::shm
