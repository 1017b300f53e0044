#include "lwproto/wire/message_rules.h"

#include <algorithm>
#include <array>
#include <initializer_list>

namespace sanproxy::wire {
namespace {

// Indexed by type; 0 for HELLO, which never travels inside a transfer.
constexpr std::array<std::uint8_t, 16> kBodyBytes = {0,
                                                     0,
                                                     sizeof(JoinServiceBody),
                                                     sizeof(ServiceBody),
                                                     sizeof(ServiceBody),
                                                     sizeof(ConnectionRequestBody),
                                                     sizeof(AcceptConnectionBody),
                                                     sizeof(RejectConnectionBody),
                                                     sizeof(DataBody),
                                                     sizeof(CloseConnectionBody),
                                                     sizeof(CreditBody),
                                                     sizeof(ErrorBody),
                                                     sizeof(AuthenticateBody),
                                                     sizeof(PacketBody),
                                                     sizeof(NodeStatusBody),
                                                     sizeof(HeartbeatBody)};

constexpr std::uint32_t set_of(std::initializer_list<CloseCode> codes) {
  std::uint32_t out = 0;
  for (const CloseCode code : codes) out |= 1u << static_cast<unsigned>(code);
  return out;
}

using enum CloseCode;
constexpr std::uint32_t kServiceRefusals =
    set_of({kRefused, kProxyShutdown, kServiceShutdown, kLimitReached, kNotPermitted, kNotFound,
            kProtocolError, kAddressInUse});
constexpr std::uint32_t kAnnouncements = set_of({kServiceShutdown, kProxyShutdown, kNotPermitted});
constexpr std::uint32_t kConnectionRefusals =
    set_of({kReset, kRefused, kTimedOut, kProxyShutdown, kServiceShutdown, kLimitReached,
            kNotPermitted, kNotFound, kProtocolError, kUnreachable, kAddressInUse});
constexpr std::uint32_t kStreamEnds = set_of(
    {kFin, kFinBoth, kReset, kRefused, kTimedOut, kNodeDied, kProxyShutdown, kServiceShutdown,
     kLimitReached, kNotPermitted, kNotFound, kProtocolError, kUnreachable});
constexpr std::uint32_t kChannelEnds =
    set_of({kFinBoth, kReset, kRefused, kTimedOut, kNodeDied, kProxyShutdown, kServiceShutdown,
            kLimitReached, kNotPermitted, kNotFound, kProtocolError, kVersionMismatch});

bool in(CloseCode code, std::uint32_t set) {
  const auto value = static_cast<unsigned>(code);
  return value < 32 && (set >> value & 1u) != 0;
}

bool all_zero(const void* data, std::size_t bytes) {
  const auto* p = static_cast<const unsigned char*>(data);
  return std::all_of(p, p + bytes, [](unsigned char byte) { return byte == 0; });
}

bool window_legal(std::uint32_t bytes) { return bytes - 1 < kStreamWindowBytesMax; }

const char* join_rule(const Message& m) {
  const bool answer = (m.flags & kFlagAnswer) != 0;
  if ((m.flags & ~(kFlagAnswer | kFlagImmediate)) != 0 || (answer && m.flags != kFlagAnswer)) {
    return "a JOIN_SERVICE has unknown flags";
  }
  if (m.code != kNone && !(answer && in(m.code, kServiceRefusals))) {
    return "a JOIN_SERVICE has a code that it cannot have";
  }
  if (!well_formed(m.join.address, false) || m.join.address.port == 0) {
    return "the address of a JOIN_SERVICE is malformed";
  }
  if (m.join.weight > 65535 || (!answer && m.join.weight == 0)) {
    return "the weight of a JOIN_SERVICE is out of range";
  }
  const bool joined = answer && m.code == kNone;
  if ((m.join.service != 0) != joined) {
    return joined ? "a JOIN_SERVICE answer names no service"
                  : "a JOIN_SERVICE names a service before it is joined";
  }
  return nullptr;
}

const char* service_rule(const Message& m) {
  const bool answer = (m.flags & kFlagAnswer) != 0;
  if ((m.flags & ~kFlagAnswer) != 0) return "a LEAVE_ or SHUTDOWN_SERVICE has unknown flags";
  const std::uint32_t others =
      answer ? kServiceRefusals : (m.type == MessageType::kShutdownService ? kAnnouncements : 0);
  if (m.code != kNone && !in(m.code, others)) {
    return "a LEAVE_ or SHUTDOWN_SERVICE has a code that it cannot have";
  }
  if (!answer && m.code != kNone && m.service.request != 0) {
    return "an announced SHUTDOWN_SERVICE names a request";
  }
  if (m.service.service == 0) return "service 0 does not exist";
  return nullptr;
}

const char* authenticate_rule(const Message& m) {
  const AuthenticateBody& b = m.authenticate;
  const bool answer = (m.flags & kFlagAnswer) != 0;
  if ((m.flags & ~kFlagAnswer) != 0) return "an AUTHENTICATE has unknown flags";
  if (m.code != kNone && !(answer && in(m.code, kServiceRefusals))) {
    return "an AUTHENTICATE has a code that it cannot have";
  }
  if (b.reserved != 0) return "a reserved field of an AUTHENTICATE is not zero";
  const std::string_view name = key_name_of(b);
  if (!key_name_legal(name) ||
      !all_zero(b.key_name + name.size(), kKeyNameBytesMax - name.size())) {
    return "the key name of an AUTHENTICATE is malformed";
  }
  if (m.code != kNone && !all_zero(b.proof, sizeof(b.proof))) {
    return "a refused AUTHENTICATE has a proof";
  }
  return nullptr;
}

const char* request_rule(const Message& m) {
  const ConnectionRequestBody& b = m.request;
  const bool active = (m.flags & kFlagActive) != 0;
  if ((m.flags & ~kFlagActive) != 0) return "a CONNECTION_REQUEST has unknown flags";
  if (m.code != kNone) return "a CONNECTION_REQUEST has a code";
  if (!well_formed(b.client, false) || !well_formed(b.local, active)) {
    return "an address of a CONNECTION_REQUEST is malformed";
  }
  if (b.local.family != 0 && b.local.family != b.client.family) {
    return "the addresses of a CONNECTION_REQUEST are of two families";
  }
  if (!window_legal(b.send_window_bytes)) return "a send window is out of range";
  if (b.window_scale_local > kWindowScaleMax || b.window_scale_remote > kWindowScaleMax ||
      (b.tcp_options & ~kTcpOptionsKnown) != 0) {
    return "the TCP options of a CONNECTION_REQUEST are out of range";
  }
  if (!active) {
    if (b.connection == 0) return "connection 0 does not exist";
    if (b.service == 0) return "service 0 does not exist";
    if (b.request != 0) return "a passive CONNECTION_REQUEST names a request";
    return nullptr;
  }
  if (b.connection != 0) return "an active CONNECTION_REQUEST names a connection";
  if (b.request == 0) return "an active CONNECTION_REQUEST names no request";
  if (b.client.port == 0) return "an active CONNECTION_REQUEST names no port";
  // All of the endpoint but the window; the proxy is the one to choose it.
  if (b.initial_seq_local != 0 || b.initial_seq_remote != 0 || b.mss_bytes != 0 ||
      b.window_scale_local != 0 || b.window_scale_remote != 0 || b.tcp_options != 0 ||
      b.timestamp_offset != 0) {
    return "an active CONNECTION_REQUEST describes an endpoint";
  }
  return nullptr;
}

const char* accept_rule(const Message& m) {
  const AcceptConnectionBody& b = m.accept;
  if (m.flags != 0 || m.code != kNone) return "an ACCEPT_CONNECTION has flags or a code";
  if (b.connection == 0) return "connection 0 does not exist";
  if (!window_legal(b.send_window_bytes)) return "a send window is out of range";
  if (b.request == 0) {
    const auto* tail = reinterpret_cast<const std::byte*>(&b.local);
    static_assert(offsetof(AcceptConnectionBody, local) == 16);
    return all_zero(tail, sizeof(b) - 16) ? nullptr
                                          : "a passive ACCEPT_CONNECTION describes an endpoint";
  }
  if (!well_formed(b.local, false)) return "the address of an ACCEPT_CONNECTION is malformed";
  if (b.window_scale_local > kWindowScaleMax || b.window_scale_remote > kWindowScaleMax ||
      (b.tcp_options & ~kTcpOptionsKnown) != 0) {
    return "the TCP options of an ACCEPT_CONNECTION are out of range";
  }
  return nullptr;
}

const char* reject_rule(const Message& m) {
  if (m.flags != 0) return "a REJECT_CONNECTION has flags";
  if (!may_reject(m.code)) return "a REJECT_CONNECTION has a code it cannot have";
  if (m.reject.reserved != 0) return "a reserved field of a REJECT_CONNECTION is not zero";
  if ((m.reject.connection == 0) == (m.reject.request == 0)) {
    return "a REJECT_CONNECTION names not exactly one of connection and request";
  }
  return nullptr;
}

const char* packet_rule(const Message& m) {
  const PacketBody& b = m.packet;
  constexpr std::uint8_t kKnown =
      kFlagChecksumPartial | kFlagChecksumVerified | kFlagUnknownFlow | kFlagFinal;
  if ((m.flags & ~kKnown) != 0 || m.code != kNone) return "a PACKET has unknown flags or a code";
  if (!all_zero(b.reserved, sizeof(b.reserved))) return "a reserved field of a PACKET is not zero";
  const bool partial = (m.flags & kFlagChecksumPartial) != 0;
  if (partial ? b.checksum_start + b.checksum_offset + 2u > m.payload_bytes
              : b.checksum_start != 0 || b.checksum_offset != 0) {
    return "the checksum of a PACKET lies outside it";
  }
  if (b.header_bytes > m.payload_bytes) return "the headers of a PACKET are longer than it";
  if (b.segmentation != 0 && b.segmentation != 1 && b.segmentation != 4) {
    return "the segmentation of a PACKET is unknown";
  }
  if ((b.segmentation != 0) != (b.segment_bytes != 0)) {
    return "a PACKET has segmentation without segments, or the other way round";
  }
  return nullptr;
}

const char* status_rule(const Message& m) {
  if ((m.flags & ~kFlagDraining) != 0 || m.code != kNone) {
    return "a NODE_STATUS has unknown flags or a code";
  }
  if (m.status.reserved != 0) return "a reserved field of a NODE_STATUS is not zero";
  if (m.status.proxy_id > kProxyIdMax || m.status.weight > 65535) {
    return "a NODE_STATUS is out of range";
  }
  return nullptr;
}

const char* heartbeat_rule(const Message& m) {
  if ((m.flags & ~kFlagAnswer) != 0 || m.code != kNone) {
    return "a HEARTBEAT has unknown flags or a code";
  }
  if (m.flags != 0 && m.heartbeat.silence_ms != 0) return "the answer to a HEARTBEAT names a time";
  return nullptr;
}

Status wrong_way() {
  return Status::error(Code::kProtocol, "a message travels in the wrong direction");
}

// Between a network node and a proxy.
Status check_packet_channel(const Message& m, bool to_proxy) {
  switch (m.type) {
    case MessageType::kError:
      return {};
    case MessageType::kPacket:
      if ((m.flags & (to_proxy ? kFlagUnknownFlow : kFlagFinal)) != 0) return wrong_way();
      return {};
    case MessageType::kNodeStatus: {
      const bool from_proxy = m.status.weight != 0;
      if (from_proxy == to_proxy) return wrong_way();
      if (to_proxy && (m.flags != 0 || m.status.proxy_id != 0)) return wrong_way();
      return {};
    }
    default:
      return wrong_way();
  }
}

}  // namespace

bool may_reject(CloseCode code) { return in(code, kConnectionRefusals); }

bool key_name_legal(std::string_view name) {
  const auto legal = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
           c == '_' || c == '-';
  };
  return !name.empty() && name.size() <= kKeyNameBytesMax &&
         std::all_of(name.begin(), name.end(), legal);
}

std::string_view key_name_of(const AuthenticateBody& body) {
  const auto* name = reinterpret_cast<const char*>(body.key_name);
  return {name, strnlen(name, sizeof(body.key_name))};
}

std::size_t body_bytes_of(std::uint8_t type) {
  return type < kBodyBytes.size() ? kBodyBytes[type] : 0;
}

bool well_formed(const WireAddress& address, bool optional) {
  if (!all_zero(address.reserved, sizeof(address.reserved))) return false;
  switch (address.family) {
    case 4:
      return all_zero(address.ip + 4, sizeof(address.ip) - 4);
    case 6:
      return true;
    case 0:
      return optional && address.port == 0 && all_zero(address.ip, sizeof(address.ip));
    default:
      return false;
  }
}

const char* broken_rule(const Message& m) {
  switch (m.type) {
    case MessageType::kCredit:
      if (m.flags != 0 || m.code != kNone) return "a CREDIT has flags or a code";
      if (m.credit.connection == 0) return "connection 0 does not exist";
      if (m.credit.acked_offset > m.credit.freed_offset) {
        return "a CREDIT acknowledges more than it frees";
      }
      return nullptr;
    case MessageType::kCloseConnection:
      if (m.flags != 0) return "a CLOSE_CONNECTION has flags";
      if (!in(m.code, kStreamEnds)) return "a CLOSE_CONNECTION has a code that it cannot have";
      return m.close.connection == 0 ? "connection 0 does not exist" : nullptr;
    case MessageType::kJoinService:
      return join_rule(m);
    case MessageType::kLeaveService:
    case MessageType::kShutdownService:
      return service_rule(m);
    case MessageType::kConnectionRequest:
      return request_rule(m);
    case MessageType::kAcceptConnection:
      return accept_rule(m);
    case MessageType::kRejectConnection:
      return reject_rule(m);
    case MessageType::kError:
      if (m.flags != 0) return "an ERROR has flags";
      return in(m.code, kChannelEnds) ? nullptr : "an ERROR has a code that it cannot have";
    case MessageType::kAuthenticate:
      return authenticate_rule(m);
    case MessageType::kPacket:
      return packet_rule(m);
    case MessageType::kNodeStatus:
      return status_rule(m);
    case MessageType::kHeartbeat:
      return heartbeat_rule(m);
    case MessageType::kData:   // checked by the reader itself
    case MessageType::kHello:  // never here
      break;
  }
  return "the message type is unknown";
}

Status check_direction(const Message& m, Receiver receiver) {
  if (receiver == Receiver::kPacketProxy || receiver == Receiver::kNetworkNode) {
    return check_packet_channel(m, receiver == Receiver::kPacketProxy);
  }
  const bool to_proxy = receiver == Receiver::kProxy;
  const bool answer = (m.flags & kFlagAnswer) != 0;
  bool legal = true;
  switch (m.type) {
    case MessageType::kData:
    case MessageType::kCloseConnection:
    case MessageType::kCredit:
    case MessageType::kError:
      break;
    case MessageType::kJoinService:
    case MessageType::kLeaveService:
    case MessageType::kAuthenticate:
      legal = answer != to_proxy;
      break;
    case MessageType::kHeartbeat:
      legal = answer == to_proxy;
      break;
    case MessageType::kShutdownService:
      // Without the flag and with a code it is the proxy's announcement.
      legal = to_proxy ? !answer && m.code == kNone : answer || m.code != kNone;
      break;
    case MessageType::kConnectionRequest:
      legal = to_proxy == ((m.flags & kFlagActive) != 0);
      break;
    case MessageType::kAcceptConnection:
      legal = to_proxy == (m.accept.request == 0);
      break;
    case MessageType::kRejectConnection:
      legal = to_proxy == (m.reject.request == 0);
      break;
    case MessageType::kHello:
    case MessageType::kPacket:
    case MessageType::kNodeStatus:
      legal = false;
      break;
  }
  if (legal) [[likely]]
    return {};
  return wrong_way();
}

}  // namespace sanproxy::wire
