// A node that treats a connection which it asked for as one that it was asked about, and addresses
// that no host has.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "tests/rogue/cases.h"

namespace sanproxy::rogue {
namespace {

using wire::CloseCode;
using wire::MessageType;

// Listens where the proxy's packets for us arrive, and takes one connection.
class Server {
 public:
  explicit Server(const SocketAddress& service) {
    const int way = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_port = htons(service.port);
    std::memcpy(&to.sin_addr, service.ip.bytes.data(), 4);
    socklen_t length = sizeof(own_);
    const bool found = ::connect(way, reinterpret_cast<sockaddr*>(&to), sizeof(to)) == 0 &&
                       getsockname(way, reinterpret_cast<sockaddr*>(&own_), &length) == 0;
    ::close(way);
    listener_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    own_.sin_port = 0;
    listens_ = found && bind(listener_, reinterpret_cast<sockaddr*>(&own_), length) == 0 &&
               listen(listener_, 1) == 0 &&
               getsockname(listener_, reinterpret_cast<sockaddr*>(&own_), &length) == 0;
  }
  ~Server() { ::close(listener_); }
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  bool listens() const { return listens_; }
  SocketAddress address() const {
    std::array<char, INET_ADDRSTRLEN> text{};
    inet_ntop(AF_INET, &own_.sin_addr, text.data(), text.size());
    return *SocketAddress::parse(std::string(text.data()) + ":" +
                                 std::to_string(ntohs(own_.sin_port)));
  }
  // The connection that came ends with a reset.
  bool is_reset() const {
    pollfd waiting{listener_, POLLIN, 0};
    if (::poll(&waiting, 1, 10'000) <= 0) return false;
    const int taken = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
    char byte = 0;
    pollfd open{taken, POLLIN, 0};
    const bool reset =
        ::poll(&open, 1, 10'000) > 0 && recv(taken, &byte, 1, 0) < 0 && errno == ECONNRESET;
    ::close(taken);
    return reset;
  }

 private:
  int listener_ = -1;
  sockaddr_in own_{};
  bool listens_ = false;
};

wire::ConnectionRequestBody request_to(const SocketAddress& remote) {
  wire::ConnectionRequestBody body{};
  body.request = 3;
  body.client = wire::to_wire(remote);
  body.send_window_bytes = RogueChannel::correct_hello().stream_window_bytes;
  return body;
}

// `act` breaks a rule of a connection that we asked for and that is established.
Case active(const char* name, const char* rule,
            std::function<void(RogueChannel&, std::uint64_t)> act) {
  return {name, rule, [act = std::move(act)](const Context& context) -> Verdict {
            const Server server(context.service);
            if (!server.listens()) return "no place to listen at";
            RogueChannel channel(context.proxy);
            if (join(channel, context.service) == 0) return "not joined";
            channel.send_one(MessageType::kConnectionRequest, request_to(server.address()),
                             wire::kFlagActive);
            const auto answer = channel.take(
                [](const wire::Message& m) { return m.type == MessageType::kAcceptConnection; });
            if (!answer) return "no ACCEPT came";
            const std::uint64_t connection = answer->message.accept.connection;
            act(channel, connection);
            const Verdict verdict = stream_closed(channel, connection, CloseCode::kProtocolError);
            if (!verdict.empty()) return verdict;
            return server.is_reset() ? channel_lives(channel, context)
                                     : "the other end is not reset";
          }};
}

Verdict join_where_no_host_is(const Context& context) {
  RogueChannel channel(context.proxy);
  std::uint32_t request = 0;
  for (const char* address :
       {"224.0.0.1:80", "255.255.255.255:80", "240.0.0.1:80", "[ff02::1]:80"}) {
    channel.send_one(
        MessageType::kJoinService,
        wire::JoinServiceBody{wire::to_wire(*SocketAddress::parse(address)), ++request, 0, 1, 0});
    const auto answer = channel.take([&](const wire::Message& m) {
      return m.type == MessageType::kJoinService && m.join.request == request;
    });
    if (!answer) return std::string("no answer to ") + address;
    if (answer->message.code != CloseCode::kRefused) {
      return std::string(address) + " is answered with " +
             wire::close_code_name(answer->message.code);
    }
  }
  return channel_lives(channel, context);
}

Verdict request_where_no_host_is(const Context& context) {
  RogueChannel channel(context.proxy);
  if (join(channel, context.service) == 0) return "not joined";
  for (const char* address : {"224.0.0.1:80", "255.255.255.255:80", "240.0.0.1:80", "0.0.0.0:80"}) {
    channel.send_one(MessageType::kConnectionRequest, request_to(*SocketAddress::parse(address)),
                     wire::kFlagActive);
    const auto answer = channel.take(
        [](const wire::Message& m) { return m.type == MessageType::kRejectConnection; });
    if (!answer) return std::string("no answer to ") + address;
    if (answer->message.code != CloseCode::kUnreachable) {
      return std::string(address) + " is answered with " +
             wire::close_code_name(answer->message.code);
    }
  }
  return channel_lives(channel, context);
}

}  // namespace

std::vector<Case> active_cases() {
  return {
      active("accept_of_own_request", "S4: what was asked for is the proxy's to accept",
             [](RogueChannel& channel, std::uint64_t connection) {
               wire::AcceptConnectionBody body{};
               body.connection = connection;
               body.send_window_bytes = RogueChannel::correct_hello().stream_window_bytes;
               channel.send_one(MessageType::kAcceptConnection, body);
             }),
      active("reject_of_own_request", "S4: what was asked for is the proxy's to reject",
             [](RogueChannel& channel, std::uint64_t connection) {
               channel.send_one(MessageType::kRejectConnection,
                                wire::RejectConnectionBody{connection, 0, 0}, 0,
                                CloseCode::kRefused);
             }),
      active("gap_on_own_request", "S6: offsets have no gap",
             [](RogueChannel& channel, std::uint64_t connection) {
               channel.send_one(MessageType::kData, wire::DataBody{connection, 1}, 0,
                                CloseCode::kNone, 100);
             }),
      active("credit_on_own_request", "S12: nothing of it was sent",
             [](RogueChannel& channel, std::uint64_t connection) {
               channel.send_one(MessageType::kCredit, wire::CreditBody{connection, 1, 0});
             }),
      {"join_where_no_host_is", "S15: an address that no host has is refused",
       join_where_no_host_is},
      {"request_where_no_host_is", "S18: an address that no host has is not connected to",
       request_where_no_host_is},
  };
}

}  // namespace sanproxy::rogue
