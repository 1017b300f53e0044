// Nodes that speak correctly but take more than their share, or give nothing back.
#include <unistd.h>

#include "tests/rogue/cases.h"

namespace sanproxy::rogue {
namespace {

using wire::CloseCode;
using wire::MessageType;

Verdict connect_and_vanish(const Context& context) {
  for (std::uint32_t i = 0; i < 300 / context.divide; ++i) {
    RogueChannel channel(context.proxy);
    if (!channel.connected()) return "not connected: " + channel.refusal().to_string();
  }
  return "";
}

Verdict join_flood(const Context& context) {
  RogueChannel channel(context.proxy);
  channel.keeps_messages = false;
  for (std::uint32_t i = 0; i < 20'000 / context.divide && !channel.ended(); ++i) {
    SocketAddress address = context.service;
    address.port = static_cast<std::uint16_t>(1024 + i % 60'000);
    const wire::JoinServiceBody body{wire::to_wire(address), i, 0, 1, 0};
    if (!channel.send_one(MessageType::kJoinService, body)) break;
  }
  const Client client(context.foreign);
  return client.connected() ? "" : "the foreign service is gone";
}

Verdict active_request_flood(const Context& context) {
  RogueChannel channel(context.proxy);
  channel.keeps_messages = false;
  for (std::uint32_t i = 1; i < 5'000 / context.divide && !channel.ended(); ++i) {
    wire::ConnectionRequestBody body{};
    body.request = i;
    body.client = wire::to_wire(*SocketAddress::parse("10.77.0.77:9"));  // nobody
    body.send_window_bytes = RogueChannel::correct_hello().stream_window_bytes;
    if (!channel.send_one(MessageType::kConnectionRequest, body, wire::kFlagActive)) break;
  }
  return "";
}

// Several clients send as much as they can to a node with a bad habit.
Verdict with_clients(const Context& context, const std::function<void(RogueChannel&)>& habit) {
  RogueChannel channel(context.proxy);
  if (join(channel, context.service) == 0) return "not joined";
  habit(channel);
  std::vector<std::unique_ptr<Client>> clients;
  clients.reserve(8);
  for (int i = 0; i < 8; ++i) clients.push_back(std::make_unique<Client>(context.service));
  for (auto& client : clients) client->send(200);
  const auto accept = [&] {
    const auto request = channel.take(
        [](const wire::Message& m) { return m.type == MessageType::kConnectionRequest; },
        std::chrono::milliseconds(500));
    if (!request) return false;
    wire::AcceptConnectionBody body{};
    body.connection = request->message.request.connection;
    body.send_window_bytes = 256 * 1024;
    return channel.send_one(MessageType::kAcceptConnection, body);
  };
  while (accept()) {
  }
  for (auto& client : clients) client->send(100'000);
  channel.wait([&] { return channel.ended(); }, std::chrono::milliseconds(1000));
  return "";
}

Verdict never_accepts(const Context& context) {
  RogueChannel channel(context.proxy);
  if (join(channel, context.service) == 0) return "not joined";
  std::vector<std::unique_ptr<Client>> clients;
  for (std::uint32_t i = 0; i < 200 / context.divide; ++i) {
    clients.push_back(std::make_unique<Client>(context.service));
    clients.back()->send(1000);
  }
  channel.wait([&] { return channel.ended(); }, std::chrono::milliseconds(1000));
  return "";
}

// Memory handed over by reference is changed while the proxy and the kernel read it.
Verdict scribble_over_payload(const Context& context) {
  Asked asked(context);
  if (!asked.ok() || !asked.accept()) return "no CONNECTION_REQUEST came";
  std::uint64_t offset = 0;
  const auto window = asked.window_bytes;
  while (offset + 60'000 <= window) {
    if (!asked.data(offset, 60'000)) break;
    asked.channel.scribble();
    offset += 60'000;
  }
  asked.channel.send_one(MessageType::kCloseConnection,
                         wire::CloseConnectionBody{asked.connection, offset}, 0, CloseCode::kFin);
  asked.channel.scribble();
  const std::string end = asked.client->end();
  return end == "fin" ? channel_lives(asked.channel, context) : "the client's connection is " + end;
}

Verdict many_channels(const Context& context) {
  std::vector<std::unique_ptr<RogueChannel>> channels;
  for (int i = 0; i < 64; ++i) {
    channels.push_back(std::make_unique<RogueChannel>(context.proxy));
    if (!channels.back()->connected()) return "";  // refused: a limit
    SocketAddress address = context.service;
    address.port = static_cast<std::uint16_t>(address.port + i);
    join(*channels.back(), address);
  }
  return "";
}

}  // namespace

std::vector<Case> resource_cases() {
  return {
      {"connect_and_vanish", "300 nodes come and go", connect_and_vanish},
      {"many_channels", "64 channels at once", many_channels},
      {"join_flood", "S15: joins beyond the operator's limits are refused", join_flood},
      {"active_request_flood", "S18: outgoing connections beyond a limit are refused",
       active_request_flood},
      {"never_grants", "a node that never posts a receive buffer again",
       [](const Context& context) {
         return with_clients(context, [](RogueChannel& c) { c.grants = false; });
       }},
      {"never_returns_loans", "a node that keeps what it borrowed",
       [](const Context& context) {
         return with_clients(context, [](RogueChannel& c) { c.returns_loans = false; });
       }},
      {"never_accepts", "a node that answers no CONNECTION_REQUEST", never_accepts},
      {"scribble_over_payload", "payload changes while it is being sent", scribble_over_payload},
      {"die_without_goodbye", "a process that ends in the middle of a transfer",
       [](const Context& context) -> Verdict {
         Asked asked(context);
         if (!asked.ok() || !asked.accept()) return "no CONNECTION_REQUEST came";
         asked.data(0, 60'000);
         (void)asked.channel.endpoint().begin_send(4096);  // never committed
         std::fflush(nullptr);
         _exit(0);
       }},
  };
}

}  // namespace sanproxy::rogue
