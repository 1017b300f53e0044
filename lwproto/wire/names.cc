#include "lwproto/wire/codec.h"

namespace sanproxy::wire {

const char* message_type_name(MessageType type) {
  switch (type) {
    case MessageType::kHello:
      return "HELLO";
    case MessageType::kJoinService:
      return "JOIN_SERVICE";
    case MessageType::kLeaveService:
      return "LEAVE_SERVICE";
    case MessageType::kShutdownService:
      return "SHUTDOWN_SERVICE";
    case MessageType::kConnectionRequest:
      return "CONNECTION_REQUEST";
    case MessageType::kAcceptConnection:
      return "ACCEPT_CONNECTION";
    case MessageType::kRejectConnection:
      return "REJECT_CONNECTION";
    case MessageType::kData:
      return "DATA";
    case MessageType::kCloseConnection:
      return "CLOSE_CONNECTION";
    case MessageType::kCredit:
      return "CREDIT";
    case MessageType::kError:
      return "ERROR";
    case MessageType::kAuthenticate:
      return "AUTHENTICATE";
    case MessageType::kPacket:
      return "PACKET";
    case MessageType::kNodeStatus:
      return "NODE_STATUS";
    case MessageType::kHeartbeat:
      return "HEARTBEAT";
  }
  return "unknown";
}

const char* close_code_name(CloseCode code) {
  switch (code) {
    case CloseCode::kNone:
      return "none";
    case CloseCode::kFin:
      return "fin";
    case CloseCode::kFinBoth:
      return "fin_both";
    case CloseCode::kReset:
      return "reset";
    case CloseCode::kRefused:
      return "refused";
    case CloseCode::kTimedOut:
      return "timed_out";
    case CloseCode::kNodeDied:
      return "node_died";
    case CloseCode::kProxyShutdown:
      return "proxy_shutdown";
    case CloseCode::kServiceShutdown:
      return "service_shutdown";
    case CloseCode::kLimitReached:
      return "limit_reached";
    case CloseCode::kNotPermitted:
      return "not_permitted";
    case CloseCode::kNotFound:
      return "not_found";
    case CloseCode::kProtocolError:
      return "protocol_error";
    case CloseCode::kVersionMismatch:
      return "version_mismatch";
    case CloseCode::kUnreachable:
      return "unreachable";
    case CloseCode::kAddressInUse:
      return "address_in_use";
  }
  return "unknown";
}

}  // namespace sanproxy::wire
