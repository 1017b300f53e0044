// RawTcpPeer: the other end of a TCP connection to a tcp fabric, that says what a test wants.
#pragma once

#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "lwproto/base/socket_address.h"
#include "lwproto/base/unique_fd.h"
#include "lwproto/fabric/tcp/frame.h"
#include "lwproto/fabric/tcp/handshake.h"
#include "tests/lwproto/fabric/channel_pair.h"

namespace sanproxy::fabric::test {

class RawTcpPeer {
 public:
  // "tcp://127.0.0.1:PORT"; `from` is the last byte of our own address in 127.0.0.0/8.
  bool dial(const std::string& address, std::uint8_t from = 1) {
    auto parsed = SocketAddress::parse(address.substr(6));
    if (!parsed.ok()) return false;
    fd_ = UniqueFd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in own{};
    own.sin_family = AF_INET;
    own.sin_addr.s_addr = htonl(INADDR_LOOPBACK - 1 + from);
    if (::bind(fd_.get(), reinterpret_cast<const sockaddr*>(&own), sizeof(own)) != 0) return false;
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_port = htons(parsed->port);
    std::memcpy(&to.sin_addr, parsed->ip.bytes.data(), 4);
    return ::connect(fd_.get(), reinterpret_cast<const sockaddr*>(&to), sizeof(to)) == 0;
  }
  void take(UniqueFd fd) { fd_ = std::move(fd); }
  void close() { fd_.reset(); }
  // The peer sees a reset rather than an end.
  void reset() {
    const linger none{1, 0};
    ::setsockopt(fd_.get(), SOL_SOCKET, SO_LINGER, &none, sizeof(none));
    fd_.reset();
  }
  int fd() const { return fd_.get(); }

  bool send(std::span<const std::byte> bytes) {
    for (std::size_t done = 0; done < bytes.size();) {
      const ssize_t n = ::send(fd_.get(), bytes.data() + done, bytes.size() - done, MSG_NOSIGNAL);
      if (n <= 0) return false;
      done += static_cast<std::size_t>(n);
    }
    return true;
  }
  template <typename T>
  static Bytes bytes_in(const T& value) {
    const auto bytes = std::as_bytes(std::span(&value, 1));
    return {bytes.begin(), bytes.end()};
  }
  bool say(tcp::MessageType type, const Bytes& body) {
    tcp::Preamble preamble;
    preamble.type = type;
    preamble.body_bytes = static_cast<std::uint32_t>(body.size());
    Bytes out = bytes_in(preamble);
    out.insert(out.end(), body.begin(), body.end());
    return send(out);
  }
  // What a client with these options says.
  static tcp::HelloBody hello(const EndpointOptions& options = {}, std::uint32_t streams = 1) {
    tcp::HelloBody body;
    body.sizes = tcp::make_sizes(options);
    body.link = tcp::to_wire(options.link, streams);
    return body;
  }
  bool say_hello(std::uint32_t streams = 1) {
    return say(tcp::MessageType::kHello, bytes_in(hello({}, streams)));
  }
  bool say_join(const tcp::Token& token, std::uint32_t stream) {
    tcp::JoinBody body;
    body.token = token;
    body.stream = stream;
    return say(tcp::MessageType::kJoin, bytes_in(body));
  }
  bool send_frame(const tcp::FrameHeader& header, std::size_t body_bytes) {
    Bytes out = bytes_in(header);
    out.resize(out.size() + body_bytes, std::byte{0x5a});
    return send(out);
  }
  bool send_transfer(std::uint64_t sequence, std::uint32_t bytes = 16) {
    return send_frame(tcp::FrameHeader::make(tcp::FrameKind::kTransfer, sequence, bytes, bytes),
                      bytes);
  }

  // Everything up to `bytes`, or less at the end of the connection.
  Bytes read(std::size_t bytes) {
    Bytes out(bytes);
    std::size_t have = 0;
    while (have < bytes && wait_readable()) {
      const ssize_t n = ::recv(fd_.get(), out.data() + have, bytes - have, 0);
      if (n <= 0) break;
      have += static_cast<std::size_t>(n);
    }
    out.resize(have);
    return out;
  }
  template <typename T>
  std::optional<T> read_as() {
    const Bytes bytes = read(sizeof(T));
    if (bytes.size() != sizeof(T)) return std::nullopt;
    T out;
    std::memcpy(&out, bytes.data(), sizeof(T));
    return out;
  }
  // A handshake message that starts with a T.
  template <typename T>
  std::optional<T> read_message(tcp::MessageType type) {
    const auto preamble = read_as<tcp::Preamble>();
    if (!preamble || preamble->type != type || preamble->body_bytes < sizeof(T)) {
      return std::nullopt;
    }
    auto body = read_as<T>();
    (void)read(preamble->body_bytes - sizeof(T));
    return body;
  }
  // The connection ends, whatever comes before that.
  bool ends() {
    std::array<std::byte, 4096> rest;
    while (wait_readable()) {
      if (::recv(fd_.get(), rest.data(), rest.size(), 0) <= 0) return true;
    }
    return false;
  }
  // The limit only ends a test that would hang.
  bool wait_readable() const {
    pollfd wait{fd_.get(), POLLIN, 0};
    return ::poll(&wait, 1, 20'000) == 1;
  }

 private:
  UniqueFd fd_;
};

}  // namespace sanproxy::fabric::test
