// Heartbeats answered wrongly or not at all, and probes of the proxy itself abused.
#include "tests/rogue/cases.h"

namespace sanproxy::rogue {
namespace {

using wire::CloseCode;
using wire::HeartbeatBody;
using wire::MessageType;

bool answer(RogueChannel& channel, std::uint32_t number) {
  return channel.send_one(MessageType::kHeartbeat, HeartbeatBody{number, 0}, wire::kFlagAnswer);
}

// A heartbeat of the proxy's, as soon as one comes.
std::optional<std::uint32_t> heartbeat(RogueChannel& channel) {
  const auto got =
      channel.take([](const wire::Message& m) { return m.type == MessageType::kHeartbeat; });
  if (!got) return std::nullopt;
  return got->message.heartbeat.number;
}

// `act` gets the channel and the number of a heartbeat that has just come; then the channel must
// end.
Case answered(const char* name, const char* rule,
              std::function<void(RogueChannel&, std::uint32_t)> act) {
  return {name, rule, [act = std::move(act)](const Context& context) -> Verdict {
            RogueChannel channel(context.proxy);
            if (!channel.connected()) return "not connected: " + channel.refusal().to_string();
            const auto number = heartbeat(channel);
            if (!number) return "no heartbeat came";
            act(channel, *number);
            return channel_closed(channel, CloseCode::kProtocolError);
          }};
}

Case malformed(const char* name, const char* rule, HeartbeatBody body, std::uint8_t flags,
               CloseCode code = CloseCode::kNone, std::size_t tail_bytes = 0) {
  return {name, rule, [=](const Context& context) -> Verdict {
            RogueChannel channel(context.proxy);
            if (!channel.connected()) return "not connected: " + channel.refusal().to_string();
            channel.send_one(MessageType::kHeartbeat, body, flags, code, tail_bytes);
            return channel_closed(channel, CloseCode::kProtocolError);
          }};
}

// It joins and is silent ever after: it stays connected, and gets nothing new.
Verdict never_answer(const Context& context) {
  RogueChannel channel(context.proxy);
  if (!channel.connected()) return "not connected: " + channel.refusal().to_string();
  if (join(channel, context.service) == 0) return "not joined";
  const auto refused = [&] {
    channel.keeps_messages = false;
    Client client(context.service);
    return client.connected() && client.send(1) && client.end(500) == "reset";
  };
  if (!channel.wait(refused)) return "it still gets connections";
  return channel.ended() ? "the channel ended" : "";
}

// A channel that has joined the service with a health check, and the first probe of it.
struct Probed {
  explicit Probed(const Context& context) : channel(context.proxy) {
    SocketAddress checked = context.service;
    checked.port = static_cast<std::uint16_t>(checked.port + 2);
    if (!channel.connected() || join(channel, checked) == 0) return;
    const auto request = channel.take(
        [](const wire::Message& m) { return m.type == MessageType::kConnectionRequest; });
    if (!request || request->message.request.client.port != 0) return;
    connection = request->message.request.connection;
    window_bytes = request->message.request.send_window_bytes;
  }
  bool accept() {
    wire::AcceptConnectionBody body{};
    body.connection = connection;
    body.send_window_bytes = RogueChannel::correct_hello().stream_window_bytes;
    return channel.send_one(MessageType::kAcceptConnection, body);
  }
  bool data(std::uint64_t offset, std::uint32_t bytes) {
    return channel.send_one(MessageType::kData, wire::DataBody{connection, offset}, 0,
                            CloseCode::kNone, bytes);
  }
  bool close(CloseCode code, std::uint64_t offset) {
    return channel.send_one(MessageType::kCloseConnection,
                            wire::CloseConnectionBody{connection, offset}, 0, code);
  }
  RogueChannel channel;
  std::uint64_t connection = 0;
  std::uint32_t window_bytes = 0;
};

Case probe(const char* name, const char* rule, std::function<void(Probed&)> act) {
  return {name, rule, [act = std::move(act)](const Context& context) -> Verdict {
            Probed probed(context);
            if (probed.connection == 0) return "no probe came";
            act(probed);
            Verdict verdict =
                stream_closed(probed.channel, probed.connection, CloseCode::kProtocolError);
            return verdict.empty() ? channel_lives(probed.channel, context) : verdict;
          }};
}

}  // namespace

std::vector<Case> health_cases() {
  return {
      malformed("heartbeat_question", "D12: the proxy asks", HeartbeatBody{1, 0}, 0),
      malformed("heartbeat_time_in_answer", "M32: an answer names no time", HeartbeatBody{1, 5},
                wire::kFlagAnswer),
      malformed("heartbeat_flag", "M2: unknown flags are 0", HeartbeatBody{1, 0},
                wire::kFlagAnswer | wire::kFlagActive),
      malformed("heartbeat_code", "M3: a heartbeat has no code", HeartbeatBody{1, 0},
                wire::kFlagAnswer, CloseCode::kTimedOut),
      malformed("heartbeat_tail", "M4: one length", HeartbeatBody{1, 0}, wire::kFlagAnswer,
                CloseCode::kNone, 8),
      malformed("heartbeat_unasked", "S22: nobody has asked", HeartbeatBody{0, 0},
                wire::kFlagAnswer),
      answered("heartbeat_twice", "S22: one answer a heartbeat",
               [](RogueChannel& channel, std::uint32_t number) {
                 answer(channel, number);
                 answer(channel, number);
               }),
      answered("heartbeat_other_number", "S22: the answer names the number",
               [](RogueChannel& channel, std::uint32_t number) { answer(channel, number + 1); }),
      answered("heartbeat_flood", "S22: one answer a heartbeat",
               [](RogueChannel& channel, std::uint32_t number) {
                 for (int i = 0; i < 1000 && !channel.ended(); ++i) {
                   if (!answer(channel, number)) return;
                 }
               }),
      {"heartbeat_never_answered", "greedy: gets connections without answering", never_answer},
      probe("probe_data_before_accept", "S3: no DATA before ACCEPT",
            [](Probed& p) { p.data(0, 100); }),
      probe("probe_accepted_twice", "S4: one ACCEPT",
            [](Probed& p) { (void)(p.accept() && p.accept()); }),
      probe("probe_gap", "S6: no gap", [](Probed& p) { (void)(p.accept() && p.data(1, 10)); }),
      probe("probe_overrun", "S7: the window of a probe is small",
            [](Probed& p) {
              if (!p.accept()) return;
              for (std::uint32_t at = 0; at <= p.window_bytes; at += 1000) p.data(at, 1000);
            }),
      probe("probe_end_elsewhere", "S9: the end is behind the last byte",
            [](Probed& p) { (void)(p.accept() && p.close(CloseCode::kFin, 7)); }),
      probe("probe_credit_for_nothing", "S12: nothing of it was sent",
            [](Probed& p) {
              p.channel.send_one(MessageType::kCredit, wire::CreditBody{p.connection, 1u << 20, 0});
            }),
  };
}

}  // namespace sanproxy::rogue
