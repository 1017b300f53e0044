#include "tests/rogue/cases.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>

namespace sanproxy::rogue {
namespace {

using wire::CloseCode;
using wire::MessageType;

socklen_t fill(const SocketAddress& from, sockaddr_storage& out) {
  out = {};
  if (from.ip.family == Family::kIpv4) {
    auto* v4 = reinterpret_cast<sockaddr_in*>(&out);
    v4->sin_family = AF_INET;
    v4->sin_port = htons(from.port);
    std::memcpy(&v4->sin_addr, from.ip.bytes.data(), 4);
    return sizeof(*v4);
  }
  auto* v6 = reinterpret_cast<sockaddr_in6*>(&out);
  v6->sin6_family = AF_INET6;
  v6->sin6_port = htons(from.port);
  std::memcpy(&v6->sin6_addr, from.ip.bytes.data(), 16);
  return sizeof(*v6);
}

std::string name_of(std::optional<CloseCode> code) {
  return code ? wire::close_code_name(*code) : "none";
}

}  // namespace

Client::Client(const SocketAddress& service) {
  sockaddr_storage address;
  const socklen_t length = fill(service, address);
  fd_ = socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  connected_ = ::connect(fd_, reinterpret_cast<sockaddr*>(&address), length) == 0;
}

std::uint16_t Client::port() const {
  sockaddr_storage address{};
  socklen_t length = sizeof(address);
  if (getsockname(fd_, reinterpret_cast<sockaddr*>(&address), &length) != 0) return 0;
  // The same place for both families.
  return ntohs(reinterpret_cast<const sockaddr_in*>(&address)->sin_port);
}

Client::~Client() {
  if (fd_ >= 0) close(fd_);
}

bool Client::send(std::size_t bytes) {
  const std::vector<char> data(bytes, 'c');
  std::size_t sent = 0;
  while (sent < bytes) {
    const ssize_t count =
        ::send(fd_, data.data() + sent, bytes - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (count > 0) {
      sent += static_cast<std::size_t>(count);
      continue;
    }
    pollfd waiting{fd_, POLLOUT, 0};
    if (errno != EAGAIN || ::poll(&waiting, 1, 1000) <= 0) return false;
  }
  return true;
}

void Client::reset() {
  const linger hard{1, 0};
  setsockopt(fd_, SOL_SOCKET, SO_LINGER, &hard, sizeof(hard));
  close(fd_);
  fd_ = -1;
}

std::string Client::end(int timeout_ms) {
  std::array<char, 65536> data;
  while (true) {
    pollfd waiting{fd_, POLLIN, 0};
    if (::poll(&waiting, 1, timeout_ms) <= 0) return "open";
    const ssize_t count = recv(fd_, data.data(), data.size(), 0);
    if (count == 0) return "fin";
    if (count < 0) return errno == ECONNRESET ? "reset" : "error";
  }
}

bool Client::is_reset(int timeout_ms) {
  pollfd waiting{fd_, 0, 0};  // errors and hang-ups are always reported
  return ::poll(&waiting, 1, timeout_ms) > 0 && (waiting.revents & (POLLERR | POLLHUP)) != 0;
}

std::uint32_t join(RogueChannel& channel, const SocketAddress& address, std::uint32_t request) {
  const wire::JoinServiceBody body{wire::to_wire(address), request, 0, 1, 0};
  if (!channel.send_one(MessageType::kJoinService, body)) return 0;
  const auto answer = channel.take([&](const wire::Message& m) {
    return m.type == MessageType::kJoinService && m.join.request == request;
  });
  return answer && answer->message.code == CloseCode::kNone ? answer->message.join.service : 0;
}

Asked::Asked(const Context& context) : channel(context.proxy) {
  if (!channel.connected()) return;
  service = join(channel, context.service);
  if (service == 0) return;
  // A node of an earlier case may still be a member of the service, and gets the client then, until
  // the proxy has noticed its end: so another client tries.
  constexpr int kClients = 5;
  for (int attempt = 0; attempt < kClients; ++attempt) {
    client = std::make_unique<Client>(context.service);
    if (!client->send(100)) continue;
    const auto request = channel.take(
        [&](const wire::Message& m) {
          return m.type == MessageType::kConnectionRequest &&
                 m.request.client.port == client->port();
        },
        kPatience / kClients);
    if (!request) continue;
    connection = request->message.request.connection;
    window_bytes = request->message.request.send_window_bytes;
    return;
  }
}

bool Asked::accept(std::uint32_t bytes) {
  wire::AcceptConnectionBody body{};
  body.connection = connection;
  body.send_window_bytes = bytes;
  return channel.send_one(MessageType::kAcceptConnection, body);
}

bool Asked::data(std::uint64_t offset, std::uint32_t bytes) {
  if (bytes <= wire::kInlinePayloadBytesMax) {
    return channel.send_one(MessageType::kData, wire::DataBody{connection, offset}, 0,
                            CloseCode::kNone, bytes);
  }
  RawTransfer transfer;
  transfer.add_data_header(connection, offset, bytes);
  const fabric::GatherRef ref = channel.own_memory(0, bytes);
  return channel.send(transfer, {&ref, 1});
}

Verdict channel_closed(RogueChannel& channel, CloseCode code) {
  if (!channel.wait([&] { return channel.ended(); })) return "the channel stayed open";
  if (channel.error_code() && *channel.error_code() != code) {
    return "the channel was closed with " + name_of(channel.error_code()) + " (" +
           channel.error_text() + ") instead of " + name_of(code);
  }
  return "";
}

Verdict stream_closed(RogueChannel& channel, std::uint64_t connection, CloseCode code) {
  const auto end = channel.take([&](const wire::Message& m) {
    return m.type == MessageType::kCloseConnection && m.close.connection == connection &&
           m.code != CloseCode::kFin;
  });
  if (end && end->message.code != code) {
    return "the stream was closed with " + name_of(end->message.code) + " instead of " +
           name_of(code);
  }
  if (end) return "";
  if (!channel.ended()) return "the stream stayed open";
  return channel_closed(channel, code);
}

Verdict channel_lives(RogueChannel& channel, const Context& context) {
  SocketAddress other = context.service;
  other.port = static_cast<std::uint16_t>(other.port + 1);
  return join(channel, other, 77) != 0
             ? ""
             : "the channel no longer answers: " + name_of(channel.error_code()) + " " +
                   channel.error_text();
}

}  // namespace sanproxy::rogue
