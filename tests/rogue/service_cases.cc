// Other nodes' connections and services, and requests that must be refused.
#include "tests/rogue/cases.h"

namespace sanproxy::rogue {
namespace {

using wire::CloseCode;
using wire::MessageType;

enum class Word { kAccept, kReject, kData, kCredit, kClose };

void say(RogueChannel& channel, Word word, std::uint64_t connection) {
  switch (word) {
    case Word::kAccept: {
      wire::AcceptConnectionBody accept{};
      accept.connection = connection;
      accept.send_window_bytes = 65536;
      channel.send_one(MessageType::kAcceptConnection, accept);
      break;
    }
    case Word::kReject:
      channel.send_one(MessageType::kRejectConnection, wire::RejectConnectionBody{connection, 0, 0},
                       0, CloseCode::kRefused);
      break;
    case Word::kData:
      channel.send_one(MessageType::kData, wire::DataBody{connection, 0}, 0, CloseCode::kNone, 100);
      break;
    case Word::kCredit:
      channel.send_one(MessageType::kCredit, wire::CreditBody{connection, 1, 0});
      break;
    case Word::kClose:
      channel.send_one(MessageType::kCloseConnection, wire::CloseConnectionBody{connection, 0}, 0,
                       CloseCode::kReset);
      break;
  }
}

constexpr Word kWords[] = {Word::kAccept, Word::kReject, Word::kData, Word::kCredit, Word::kClose};

// Each word about an id that was never issued ends the channel.
Case never_issued(const char* name, std::function<std::uint64_t(std::uint64_t)> other_id) {
  return {name, "S1: only connections that the proxy issued to this channel",
          [other_id = std::move(other_id)](const Context& context) -> Verdict {
            for (const Word word : kWords) {
              Asked asked(context);
              if (!asked.ok() || !asked.accept()) return "no CONNECTION_REQUEST came";
              say(asked.channel, word, other_id(asked.connection));
              Verdict verdict = channel_closed(asked.channel, CloseCode::kNotFound);
              if (!verdict.empty()) return verdict;
              if (const std::string end = asked.client->end(); end != "reset") {
                return "the client's connection is " + end;
              }
            }
            return "";
          }};
}

std::vector<Case> stranger_cases() {
  return {
      never_issued("stranger_generation_above",
                   [](std::uint64_t id) { return id + (std::uint64_t{1000} << 24); }),
      never_issued("stranger_epoch",
                   [](std::uint64_t id) { return id ^ (std::uint64_t{1} << 48); }),
      never_issued("stranger_index", [](std::uint64_t id) { return id | 0xff'ffff; }),
      {"stranger_connection_of_another_channel", "S1: only connections of this channel",
       // Neither a member of anything nor guessing: it knows the id of a connection that lives.
       [](const Context& context) -> Verdict {
         Asked asked(context);
         if (!asked.ok() || !asked.accept()) return "no CONNECTION_REQUEST came";
         for (const Word word : kWords) {
           RogueChannel stranger(context.proxy);
           if (!stranger.connected()) return "not connected: " + stranger.refusal().to_string();
           say(stranger, word, asked.connection);
           Verdict verdict = channel_closed(stranger, CloseCode::kNotFound);
           if (!verdict.empty()) return verdict;
         }
         asked.channel.send_one(MessageType::kCloseConnection,
                                wire::CloseConnectionBody{asked.connection, 0}, 0,
                                CloseCode::kFinBoth);
         const std::string end = asked.client->end();
         return end == "fin" ? "" : "the owner's connection is " + end;
       }},
      {"stranger_every_connection", "S1: only connections of this channel",
       // The well-behaved node's connections are among these: whatever becomes of the rogue's
       // channel, the load of the other must not notice.
       [](const Context& context) -> Verdict {
         for (std::uint64_t index = 0; index < 256; index += context.divide) {
           for (std::uint64_t generation = 1; generation < 3; ++generation) {
             RogueChannel channel(context.proxy);
             if (!channel.connected()) return "not connected: " + channel.refusal().to_string();
             const std::uint64_t epoch = channel.proxy_hello().epoch & 0xffff;
             for (const Word word : kWords)
               say(channel, word, epoch << 48 | generation << 24 | index);
           }
         }
         return "";
       }},
  };
}

// The code of the answer to LEAVE or SHUTDOWN, kNone if none came.
CloseCode answer_to(RogueChannel& channel, MessageType type, std::uint32_t service) {
  channel.send_one(type, wire::ServiceBody{service, 9});
  const auto answer = channel.take(
      [&](const wire::Message& m) { return m.type == type && m.service.service == service; });
  return answer ? answer->message.code : CloseCode::kNone;
}

Case not_a_member(const char* name, MessageType type) {
  return {name, "S16: only services that were joined", [type](const Context& context) -> Verdict {
            RogueChannel channel(context.proxy);
            for (std::uint32_t service = 1; service < 20; ++service) {
              const CloseCode code = answer_to(channel, type, service);
              if (code != CloseCode::kNotFound) {
                return std::string("answered with ") + wire::close_code_name(code);
              }
            }
            const Client client(context.foreign);
            return client.connected() ? "" : "a stranger's service is gone";
          }};
}

CloseCode join_code(RogueChannel& channel, const SocketAddress& address, std::uint32_t request) {
  const wire::JoinServiceBody body{wire::to_wire(address), request, 0, 1, 0};
  channel.send_one(MessageType::kJoinService, body);
  const auto answer = channel.take([&](const wire::Message& m) {
    return m.type == MessageType::kJoinService && m.join.request == request;
  });
  return answer ? answer->message.code : CloseCode::kProtocolError;
}

wire::ConnectionRequestBody active_request(std::uint32_t number) {
  wire::ConnectionRequestBody body{};
  body.request = number;
  body.client = wire::to_wire(*SocketAddress::parse("10.77.0.1:9"));
  body.send_window_bytes = RogueChannel::correct_hello().stream_window_bytes;
  return body;
}

Verdict rejected(RogueChannel& channel, const Context& context,
                 const wire::ConnectionRequestBody& body, CloseCode code) {
  channel.send_one(MessageType::kConnectionRequest, body, wire::kFlagActive);
  const auto answer =
      channel.take([](const wire::Message& m) { return m.type == MessageType::kRejectConnection; });
  if (!answer) return "no answer";
  return answer->message.code == code
             ? channel_lives(channel, context)
             : Verdict("answered with ") + wire::close_code_name(answer->message.code);
}

std::vector<Case> request_cases() {
  return {
      {"join_twice", "S14: one joins a service once",
       [](const Context& context) -> Verdict {
         RogueChannel channel(context.proxy);
         if (join_code(channel, context.service, 1) != CloseCode::kNone) return "not joined";
         const CloseCode second = join_code(channel, context.service, 2);
         return second == CloseCode::kAddressInUse
                    ? channel_lives(channel, context)
                    : Verdict("answered with ") + wire::close_code_name(second);
       }},
      {"request_window_above_hello", "S17: a window is HELLO's",
       [](const Context& context) -> Verdict {
         RogueChannel channel(context.proxy);
         wire::ConnectionRequestBody body = active_request(3);
         body.send_window_bytes = 256 * 1024 + 1;
         return rejected(channel, context, body, CloseCode::kProtocolError);
       }},
      {"request_for_foreign_service", "S18: only on behalf of one's own services",
       [](const Context& context) -> Verdict {
         RogueChannel channel(context.proxy);
         wire::ConnectionRequestBody body = active_request(3);
         body.service = 4711;
         return rejected(channel, context, body, CloseCode::kNotPermitted);
       }},
      {"request_from_foreign_address", "S18: only from addresses that one serves",
       [](const Context& context) -> Verdict {
         RogueChannel channel(context.proxy);
         wire::ConnectionRequestBody body = active_request(3);
         body.local = wire::to_wire(*SocketAddress::parse("10.77.0.123:0"));
         return rejected(channel, context, body, CloseCode::kNotPermitted);
       }},
      {"request_from_every_address", "S18: \"every address\" is none that one serves",
       [](const Context& context) -> Verdict {
         RogueChannel channel(context.proxy);
         const SocketAddress every{IpAddress::any(Family::kIpv4), context.service.port};
         if (join_code(channel, every, 1) != CloseCode::kNone) return "not joined";
         wire::ConnectionRequestBody body = active_request(3);
         body.local = wire::to_wire(SocketAddress{every.ip, 0});
         return rejected(channel, context, body, CloseCode::kNotPermitted);
       }},
      {"words_behind_error", "S19: nothing behind ERROR is read",
       [](const Context& context) -> Verdict {
         RogueChannel channel(context.proxy);
         RawTransfer transfer;
         const wire::JoinServiceBody body{wire::to_wire(context.service), 1, 0, 1, 0};
         transfer.add(MessageType::kError, wire::ErrorBody{0, 0}, 0, CloseCode::kReset);
         transfer.add(MessageType::kJoinService, body);
         channel.send(transfer);
         if (!channel.wait([&] { return channel.ended(); })) return "the channel stayed open";
         const Client client(context.service);
         return client.connected() ? "what stood behind an ERROR was done" : "";
       }},
  };
}

std::vector<Case> vanishing_cases() {
  return {
      {"hang_up_with_open_connection", "a node that vanishes ends its connections",
       [](const Context& context) -> Verdict {
         std::unique_ptr<Client> client;
         {
           Asked asked(context);
           if (!asked.ok() || !asked.accept()) return "no CONNECTION_REQUEST came";
           client = std::move(asked.client);
         }
         const std::string end = client->end();
         return end == "reset" ? "" : "the client's connection is " + end;
       }},
      {"hang_up_before_accept", "a node that vanishes ends its connections",
       [](const Context& context) -> Verdict {
         std::unique_ptr<Client> client;
         {
           Asked asked(context);
           if (!asked.ok()) return "no CONNECTION_REQUEST came";
           client = std::move(asked.client);
         }
         const std::string end = client->end();
         return end == "reset" ? "" : "the client's connection is " + end;
       }},
  };
}

}  // namespace

std::vector<Case> service_cases() {
  std::vector<Case> out = stranger_cases();
  out.push_back(not_a_member("leave_unknown_service", MessageType::kLeaveService));
  out.push_back(not_a_member("shutdown_unknown_service", MessageType::kShutdownService));
  for (auto make : {request_cases, vanishing_cases}) {
    for (Case& one : make()) out.push_back(std::move(one));
  }
  return out;
}

}  // namespace sanproxy::rogue
