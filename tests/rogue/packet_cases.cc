// Rogue network nodes: PACKET and NODE_STATUS that break the rules end their channel; packets that
// are malformed in themselves are dropped, and the channel goes on.
#include "tests/rogue/cases.h"

namespace sanproxy::rogue {
namespace {

using wire::CloseCode;
using wire::MessageType;
using wire::PacketBody;

wire::HelloBody node_hello() {
  wire::HelloBody hello = RogueChannel::correct_hello();
  hello.role = static_cast<std::uint16_t>(wire::Role::kNetworkNode);
  return hello;
}

class Node {
 public:
  explicit Node(const Context& context)
      : hello_(node_hello()), channel(context.packets, std::as_bytes(std::span(&hello_, 1))) {}

 private:
  wire::HelloBody hello_;

 public:
  RogueChannel channel;
};

// The channel is still there: the proxy's next heartbeat comes through.
Verdict lives(RogueChannel& channel) {
  while (channel.take([](const wire::Message& m) { return m.type == MessageType::kNodeStatus; },
                      std::chrono::milliseconds(0))) {
  }
  const auto beat =
      channel.take([](const wire::Message& m) { return m.type == MessageType::kNodeStatus; });
  return beat && channel.connected() ? "" : "the channel has ended: " + channel.error_text();
}

template <typename Body>
Case broken(const char* name, const char* rule, MessageType type, Body body, std::uint8_t flags = 0,
            CloseCode code = CloseCode::kNone, std::size_t tail_bytes = 60) {
  return {name, rule, [=](const Context& context) -> Verdict {
            Node node(context);
            if (!node.channel.connected()) return node.channel.refusal().to_string();
            node.channel.send_one(type, body, flags, code, tail_bytes);
            return channel_closed(node.channel, CloseCode::kProtocolError);
          }};
}

PacketBody with(const std::function<void(PacketBody&)>& change) {
  PacketBody body{};
  change(body);
  return body;
}

std::vector<Case> form_cases() {
  const auto type = MessageType::kPacket;
  const auto plain = with([](PacketBody&) {});
  return {
      broken("packet_flag", "M2: unknown flags are 0", type, plain, 0x10),
      broken("packet_code", "M3: it has no code", type, plain, 0, CloseCode::kReset),
      broken("packet_reserved", "M7: reserved is 0", type,
             with([](PacketBody& b) { b.reserved[6] = 1; })),
      broken("packet_too_short", "M28: a packet has a header", type, plain, 0, CloseCode::kNone,
             19),
      broken("packet_empty", "M28: a packet has a header", type, plain, 0, CloseCode::kNone, 0),
      broken("packet_checksum_outside", "M29: the checksum lies inside", type,
             with([](PacketBody& b) {
               b.checksum_start = 20;
               b.checksum_offset = 39;
             }),
             wire::kFlagChecksumPartial),
      broken("packet_checksum_unasked", "M29: without the flag there is none", type,
             with([](PacketBody& b) { b.checksum_start = 20; })),
      broken("packet_segmentation_unknown", "M30: the segmentation is known", type,
             with([](PacketBody& b) {
               b.segmentation = 3;
               b.segment_bytes = 1448;
             })),
      broken("packet_segments_of_nothing", "M30: segments have a size", type,
             with([](PacketBody& b) { b.segmentation = 1; })),
      broken("packet_headers_outside", "M30: headers lie inside", type,
             with([](PacketBody& b) { b.header_bytes = 61; })),
      broken("packet_status_weight", "M31: the weight is bounded", MessageType::kNodeStatus,
             wire::NodeStatusBody{65536, 0, 0}, 0, CloseCode::kNone, 0),
      broken("packet_status_id", "M31: the id is bounded", MessageType::kNodeStatus,
             wire::NodeStatusBody{0, 1024, 0}, 0, CloseCode::kNone, 0),
      broken("packet_status_of_a_proxy", "D10: a network node has no weight",
             MessageType::kNodeStatus, wire::NodeStatusBody{100, 3, 0}, 0, CloseCode::kNone, 0),
      broken("packet_sent_back", "D10: proxies send packets back", type, plain,
             wire::kFlagUnknownFlow),
      broken("packet_channel_data", "D9: DATA is for application nodes", MessageType::kData,
             wire::DataBody{1, 0}, 0, CloseCode::kNone, 10),
      broken(
          "packet_channel_join", "D9: JOIN is for application nodes", MessageType::kJoinService,
          wire::JoinServiceBody{wire::to_wire(*SocketAddress::parse("10.77.0.99:99")), 1, 0, 1, 0},
          0, CloseCode::kNone, 0),
  };
}

Case on_application_channel(const char* name, const char* rule, MessageType type,
                            std::size_t tail_bytes) {
  return {name, rule, [=](const Context& context) -> Verdict {
            RogueChannel channel(context.proxy);
            if (!channel.connected()) return channel.refusal().to_string();
            if (type == MessageType::kPacket) {
              channel.send_one(type, PacketBody{}, 0, CloseCode::kNone, tail_bytes);
            } else {
              channel.send_one(type, wire::NodeStatusBody{});
            }
            return channel_closed(channel, CloseCode::kProtocolError);
          }};
}

Case wrong_role(const char* name, bool to_packets) {
  return {name, "H10: each role has its address", [=](const Context& context) -> Verdict {
            wire::HelloBody hello = RogueChannel::correct_hello();
            if (!to_packets) hello = node_hello();
            RogueChannel channel(to_packets ? context.packets : context.proxy,
                                 std::as_bytes(std::span(&hello, 1)));
            return channel.connected() ? "it was accepted" : "";
          }};
}

// Well-framed PACKETs with nonsense inside, of any size: dropped, and the channel goes on.
Verdict nonsense(const Context& context) {
  Node node(context);
  if (!node.channel.connected()) return node.channel.refusal().to_string();
  std::uint32_t seed = 1;
  for (int i = 0; i < 500; ++i) {
    seed = seed * 1664525 + 1013904223;
    RawTransfer transfer;
    const std::size_t bytes = 20 + seed % 900;
    transfer.add(MessageType::kPacket, PacketBody{}, static_cast<std::uint8_t>((seed >> 8) & 0xa),
                 CloseCode::kNone, bytes);
    const std::size_t at = sizeof(wire::TransferHeader) + wire::kPacketHeaderBytes;
    for (std::size_t j = 0; j < bytes; ++j) {
      seed = seed * 1664525 + 1013904223;
      transfer.at(at + j) = static_cast<std::byte>(seed >> 24);
    }
    // Now and then something that looks like a packet at first.
    if (i % 3 != 0) {
      transfer.at(at) = std::byte{i % 3 == 1 ? std::uint8_t{0x45} : std::uint8_t{0x60}};
      transfer.at(at + 9) = std::byte{6};
    }
    if (!node.channel.send(transfer)) return "the channel ended at packet " + std::to_string(i);
  }
  return lives(node.channel);
}

// A large packet that changes while it is looked at, and whose node goes away at once.
Verdict vanishing_memory(const Context& context) {
  Node node(context);
  if (!node.channel.connected()) return node.channel.refusal().to_string();
  for (int i = 0; i < 50; ++i) {
    RawTransfer transfer;
    transfer.add(MessageType::kPacket, PacketBody{}, wire::kFlagChecksumVerified, CloseCode::kNone,
                 0, static_cast<std::uint32_t>(wire::kPacketHeaderBytes) + 30'000);
    const fabric::GatherRef memory = node.channel.own_memory(0, 30'000);
    if (!node.channel.send(transfer, {&memory, 1})) return "the channel ended";
    node.channel.scribble();
  }
  return "";
}

}  // namespace

std::vector<Case> packet_cases() {
  std::vector<Case> out = form_cases();
  out.push_back(on_application_channel("packet_from_an_application_node",
                                       "D9: PACKET is for network nodes", MessageType::kPacket,
                                       60));
  out.push_back(on_application_channel("packet_status_from_an_application_node",
                                       "D9: NODE_STATUS is for network nodes",
                                       MessageType::kNodeStatus, 0));
  out.push_back(wrong_role("packet_application_node_as_network_node", true));
  out.push_back(wrong_role("packet_network_node_as_application_node", false));
  out.push_back({"packet_nonsense", "packets that are none", nonsense});
  out.push_back({"packet_vanishing_memory", "packets in memory that changes", vanishing_memory});
  return out;
}

}  // namespace sanproxy::rogue
