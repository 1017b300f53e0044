#include "lwproto/fabric/tcp/transport.h"

#include <sys/socket.h>

#include <cerrno>

namespace sanproxy::fabric::tcp {
namespace {

class PlainTransport final : public Transport {
 public:
  using Transport::Transport;

  Status establish() override { return {}; }
  Io read(std::span<iovec> pieces) override;
  Io write(std::span<iovec> pieces) override;
};

std::size_t total_of(std::span<const iovec> pieces) {
  std::size_t total = 0;
  for (const iovec& piece : pieces) total += piece.iov_len;
  return total;
}

Io failed() {
  return {0, errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR ? IoState::kAgain
                                                                       : IoState::kFailed};
}

Io PlainTransport::read(std::span<iovec> pieces) {
  msghdr message{};
  message.msg_iov = pieces.data();
  message.msg_iovlen = pieces.size();
  const ssize_t n = ::recvmsg(fd(), &message, MSG_DONTWAIT);
  if (n < 0) return failed();
  if (n == 0) return {0, IoState::kEnd};
  const auto bytes = static_cast<std::size_t>(n);
  return {bytes, bytes < total_of(pieces) ? IoState::kAgain : IoState::kMore};
}

Io PlainTransport::write(std::span<iovec> pieces) {
  msghdr message{};
  message.msg_iov = pieces.data();
  message.msg_iovlen = pieces.size();
  const ssize_t n = ::sendmsg(fd(), &message, MSG_DONTWAIT | MSG_NOSIGNAL);
  if (n < 0) return failed();
  const auto bytes = static_cast<std::size_t>(n);
  return {bytes, bytes < total_of(pieces) ? IoState::kAgain : IoState::kMore};
}

}  // namespace

std::unique_ptr<Transport> make_plain_transport(UniqueFd fd) {
  return std::make_unique<PlainTransport>(std::move(fd));
}

}  // namespace sanproxy::fabric::tcp
