// Well-framed messages whose fields are wrong, or that travel in the wrong direction: each must
// end the channel with kProtocolError.
#include "tests/rogue/cases.h"

namespace sanproxy::rogue {
namespace {

using wire::CloseCode;
using wire::MessageType;
using wire::WireAddress;

WireAddress any_address() { return wire::to_wire(*SocketAddress::parse("10.77.0.99:99")); }

template <typename Body>
Case broken(const char* name, const char* rule, MessageType type, Body body, std::uint8_t flags = 0,
            CloseCode code = CloseCode::kNone, std::size_t tail_bytes = 0) {
  return {name, rule, [=](const Context& context) -> Verdict {
            RogueChannel channel(context.proxy);
            if (!channel.connected()) return "not connected: " + channel.refusal().to_string();
            channel.send_one(type, body, flags, code, tail_bytes);
            return channel_closed(channel, CloseCode::kProtocolError);
          }};
}

template <typename Change>
wire::JoinServiceBody join_with(Change change) {
  wire::JoinServiceBody body{any_address(), 1, 0, 1, 0};
  change(body);
  return body;
}

std::vector<Case> join_cases() {
  using wire::JoinServiceBody;
  const auto type = MessageType::kJoinService;
  return {
      broken("join_family_unknown", "M8: the family is 4 or 6", type,
             join_with([](JoinServiceBody& b) { b.address.family = 5; })),
      broken("join_family_zero", "M8: the family is 4 or 6", type,
             join_with([](JoinServiceBody& b) { b.address = {}; })),
      broken("join_address_tail", "M8: an IPv4 address has a zero tail", type,
             join_with([](JoinServiceBody& b) { b.address.ip[15] = 1; })),
      broken("join_address_reserved", "M7 M8: reserved is 0", type,
             join_with([](JoinServiceBody& b) { b.address.reserved[4] = 1; })),
      broken("join_port_zero", "M9: a service has a port", type,
             join_with([](JoinServiceBody& b) { b.address.port = 0; })),
      broken("join_weight_zero", "M10: the weight is 1..65535", type,
             join_with([](JoinServiceBody& b) { b.weight = 0; })),
      broken("join_weight_too_large", "M10: the weight is 1..65535", type,
             join_with([](JoinServiceBody& b) { b.weight = 65536; })),
      broken("join_names_service", "M11: only an answer names a service", type,
             join_with([](JoinServiceBody& b) { b.service = 1; })),
      broken("join_code", "M3: a request has no code", type, join_with([](JoinServiceBody&) {}), 0,
             CloseCode::kRefused),
      broken("join_answer", "D1: answers come from the proxy", type,
             join_with([](JoinServiceBody& b) { b.service = 1; }), wire::kFlagAnswer),
      broken("join_flag_active", "M2: unknown flags are 0", type,
             join_with([](JoinServiceBody&) {}), wire::kFlagActive),
  };
}

std::vector<Case> service_message_cases() {
  using wire::ServiceBody;
  return {
      broken("leave_service_zero", "M12: service 0 does not exist", MessageType::kLeaveService,
             ServiceBody{0, 1}),
      broken("leave_answer", "D1: answers come from the proxy", MessageType::kLeaveService,
             ServiceBody{1, 1}, wire::kFlagAnswer),
      broken("leave_code", "M3: a request has no code", MessageType::kLeaveService,
             ServiceBody{1, 1}, 0, CloseCode::kReset),
      broken("shutdown_service_zero", "M12: service 0 does not exist",
             MessageType::kShutdownService, ServiceBody{0, 1}),
      broken("shutdown_announced", "D2: announcements come from the proxy",
             MessageType::kShutdownService, ServiceBody{1, 0}, 0, CloseCode::kServiceShutdown),
      broken("shutdown_answer", "D1: answers come from the proxy", MessageType::kShutdownService,
             ServiceBody{1, 1}, wire::kFlagAnswer),
  };
}

template <typename Change>
wire::AuthenticateBody authenticate_with(Change change) {
  wire::AuthenticateBody body{};
  body.request = 1;
  std::memcpy(body.key_name, "web", 3);
  change(body);
  return body;
}

std::vector<Case> authenticate_cases() {
  using wire::AuthenticateBody;
  const auto type = MessageType::kAuthenticate;
  const auto plain = authenticate_with([](AuthenticateBody&) {});
  return {
      broken("authenticate_answer", "D1: answers come from the proxy", type, plain,
             wire::kFlagAnswer),
      broken("authenticate_flag", "M2: unknown flags are 0", type, plain, wire::kFlagImmediate),
      broken("authenticate_code", "M3: a request has no code", type, plain, 0,
             CloseCode::kNotPermitted),
      broken("authenticate_tail", "M4: one length", type, plain, 0, CloseCode::kNone, 8),
      broken("authenticate_reserved", "M7: reserved is 0", type,
             authenticate_with([](AuthenticateBody& b) { b.reserved = 1; })),
      broken("authenticate_no_name", "M26: a key has a name", type,
             authenticate_with([](AuthenticateBody& b) { b.key_name[0] = 0; })),
      broken("authenticate_name_of_escapes", "M26: a name is letters, digits, '.', '_', '-'", type,
             authenticate_with([](AuthenticateBody& b) { b.key_name[0] = 0x1b; })),
      broken("authenticate_bytes_after_name", "M26: a name is zero-padded", type,
             authenticate_with([](AuthenticateBody& b) { b.key_name[31] = 'x'; })),
      broken("authenticate_refusal_with_proof", "M27: a refusal has no proof", type,
             authenticate_with([](AuthenticateBody& b) { b.proof[0] = 1; }), wire::kFlagAnswer,
             CloseCode::kNotPermitted),
  };
}

template <typename Change>
wire::ConnectionRequestBody active_with(Change change) {
  wire::ConnectionRequestBody body{};
  body.request = 5;
  body.client = any_address();
  body.send_window_bytes = 65536;
  change(body);
  return body;
}

std::vector<Case> request_cases() {
  using wire::ConnectionRequestBody;
  const auto type = MessageType::kConnectionRequest;
  const std::uint8_t active = wire::kFlagActive;
  return {
      broken("request_passive", "D3: passive requests come from the proxy", type,
             active_with([](ConnectionRequestBody& b) {
               b.connection = 1;
               b.service = 1;
               b.request = 0;
               b.local = any_address();
             })),
      broken("request_names_connection", "M15: an active request names none", type,
             active_with([](ConnectionRequestBody& b) { b.connection = 1; }), active),
      broken("request_without_number", "M15: an active request has a number", type,
             active_with([](ConnectionRequestBody& b) { b.request = 0; }), active),
      broken("request_port_zero", "M15: the remote end has a port", type,
             active_with([](ConnectionRequestBody& b) { b.client.port = 0; }), active),
      broken("request_family_unknown", "M8: the family is 4 or 6", type,
             active_with([](ConnectionRequestBody& b) { b.client.family = 7; }), active),
      broken("request_two_families", "M16: both ends are of one family", type,
             active_with([](ConnectionRequestBody& b) {
               b.local = wire::to_wire(*SocketAddress::parse("[fd77::99]:9"));
             }),
             active),
      broken("request_dirty_optional_address", "M8: an absent address is all zero", type,
             active_with([](ConnectionRequestBody& b) { b.local.ip[3] = 1; }), active),
      broken("request_window_zero", "M17: a window is 1 byte to 1 GB", type,
             active_with([](ConnectionRequestBody& b) { b.send_window_bytes = 0; }), active),
      broken("request_window_too_large", "M17: a window is 1 byte to 1 GB", type,
             active_with([](ConnectionRequestBody& b) {
               b.send_window_bytes = wire::kStreamWindowBytesMax + 1;
             }),
             active),
      broken("request_scale", "M18: a window scale is at most 14", type,
             active_with([](ConnectionRequestBody& b) { b.window_scale_local = 15; }), active),
      broken("request_options", "M18: unknown TCP options are 0", type,
             active_with([](ConnectionRequestBody& b) { b.tcp_options = 0x100; }), active),
      broken("request_describes_endpoint", "M15: the proxy chooses the endpoint", type,
             active_with([](ConnectionRequestBody& b) { b.initial_seq_local = 9; }), active),
      broken("request_code", "M3: a request has no code", type,
             active_with([](ConnectionRequestBody&) {}), active, CloseCode::kReset),
  };
}

template <typename Change>
wire::AcceptConnectionBody accept_with(Change change) {
  wire::AcceptConnectionBody body{};
  body.connection = 1;
  body.send_window_bytes = 65536;
  change(body);
  return body;
}

std::vector<Case> connection_cases() {
  using wire::AcceptConnectionBody;
  const auto accept = MessageType::kAcceptConnection;
  const auto reject = MessageType::kRejectConnection;
  const auto close = MessageType::kCloseConnection;
  return {
      broken("accept_connection_zero", "M19: connection 0 does not exist", accept,
             accept_with([](AcceptConnectionBody& b) { b.connection = 0; })),
      broken("accept_window_zero", "M17: a window is 1 byte to 1 GB", accept,
             accept_with([](AcceptConnectionBody& b) { b.send_window_bytes = 0; })),
      broken("accept_window_too_large", "M17: a window is 1 byte to 1 GB", accept,
             accept_with([](AcceptConnectionBody& b) { b.send_window_bytes = 0xffff'ffff; })),
      broken("accept_describes_endpoint", "M20: a passive accept describes none", accept,
             accept_with([](AcceptConnectionBody& b) { b.mss_bytes = 1; })),
      broken("accept_answers_request", "D4: the proxy answers active requests", accept,
             accept_with([](AcceptConnectionBody& b) {
               b.request = 1;
               b.local = any_address();
             })),
      broken("accept_flags", "M2: an accept has no flags", accept,
             accept_with([](AcceptConnectionBody&) {}), 1),
      broken("reject_reserved", "M7: reserved is 0", reject, wire::RejectConnectionBody{1, 0, 1}, 0,
             CloseCode::kRefused),
      broken("reject_both", "M22: one of connection and request", reject,
             wire::RejectConnectionBody{1, 1, 0}, 0, CloseCode::kRefused),
      broken("reject_neither", "M22: one of connection and request", reject,
             wire::RejectConnectionBody{0, 0, 0}, 0, CloseCode::kRefused),
      broken("reject_without_code", "M3: a rejection has a code", reject,
             wire::RejectConnectionBody{1, 0, 0}),
      broken("reject_of_request", "D4: the proxy answers active requests", reject,
             wire::RejectConnectionBody{0, 5, 0}, 0, CloseCode::kRefused),
      broken("data_connection_zero", "M19: connection 0 does not exist", MessageType::kData,
             wire::DataBody{0, 0}, 0, CloseCode::kNone, 10),
      broken("data_empty", "M23: a payload is not empty", MessageType::kData, wire::DataBody{1, 0}),
      broken("data_flags", "M2: a DATA has no flags", MessageType::kData, wire::DataBody{1, 0}, 1,
             CloseCode::kNone, 10),
      broken("data_code", "M3: a DATA has no code", MessageType::kData, wire::DataBody{1, 0}, 0,
             CloseCode::kFin, 10),
      broken("close_connection_zero", "M19: connection 0 does not exist", close,
             wire::CloseConnectionBody{0, 0}, 0, CloseCode::kFin),
      broken("close_without_code", "M3: a close has a code", close,
             wire::CloseConnectionBody{1, 0}),
      broken("close_version_mismatch", "M3: the code is one of its type", close,
             wire::CloseConnectionBody{1, 0}, 0, CloseCode::kVersionMismatch),
      broken("credit_connection_zero", "M19: connection 0 does not exist", MessageType::kCredit,
             wire::CreditBody{0, 0, 0}),
      broken("credit_acknowledges_more_than_freed", "M24: acked is at most freed",
             MessageType::kCredit, wire::CreditBody{1, 5, 6}),
      broken("error_text_too_long", "M25: a text is at most 256 bytes", MessageType::kError,
             wire::ErrorBody{0, 300}, 0, CloseCode::kReset, 300),
      broken("error_text_length", "M4: the text is as long as said", MessageType::kError,
             wire::ErrorBody{0, 9}, 0, CloseCode::kReset, 3),
      broken("error_text_length_huge", "M25: the text is as long as said", MessageType::kError,
             wire::ErrorBody{0, 0xffff'ffff}, 0, CloseCode::kReset, 3),
  };
}

}  // namespace

std::vector<Case> message_cases() {
  std::vector<Case> out;
  for (auto make :
       {join_cases, service_message_cases, authenticate_cases, request_cases, connection_cases}) {
    for (Case& one : make()) out.push_back(std::move(one));
  }
  out.push_back(
      {"error_with_escape_bytes", "S19: a text is for people", [](const Context& context) {
         RogueChannel channel(context.proxy);
         RawTransfer transfer;
         transfer.add(MessageType::kError, wire::ErrorBody{0, 8}, 0, CloseCode::kReset, 8);
         for (std::size_t i = 0; i < 8; ++i) {
           transfer.at(transfer.size() - 8 + i) = std::byte{0x1b};
         }
         channel.send(transfer);
         return channel.wait([&] { return channel.ended(); })
                    ? Verdict()
                    : Verdict("an ERROR did not end the channel");
       }});
  return out;
}

}  // namespace sanproxy::rogue
