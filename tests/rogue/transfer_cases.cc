// Transfers whose framing is wrong: each must end the channel with kProtocolError.
#include "tests/rogue/cases.h"

namespace sanproxy::rogue {
namespace {

using wire::CloseCode;
using wire::MessageType;

wire::JoinServiceBody good_join(const Context& context) {
  return {wire::to_wire(context.service), 1, 0, 1, 0};
}

// `build` spoils a transfer that starts out with one good JOIN_SERVICE.
Case broken(const char* name, const char* rule,
            std::function<void(RawTransfer&, RogueChannel&)> build) {
  return {name, rule, [build = std::move(build)](const Context& context) -> Verdict {
            RogueChannel channel(context.proxy);
            if (!channel.connected()) return "not connected: " + channel.refusal().to_string();
            RawTransfer transfer;
            transfer.add(MessageType::kJoinService, good_join(context));
            build(transfer, channel);
            channel.send(transfer);
            return channel_closed(channel, CloseCode::kProtocolError);
          }};
}

Case broken_header(const char* name, const char* rule,
                   std::function<void(wire::TransferHeader&)> change) {
  return broken(name, rule, [change = std::move(change)](RawTransfer& t, RogueChannel&) {
    t.with_header(change);
  });
}

Case broken_byte(const char* name, const char* rule, std::size_t at, std::uint8_t value) {
  return broken(name, rule, [at, value](RawTransfer& t, RogueChannel&) {
    t.at(RawTransfer::kFirst + at) = std::byte{value};
  });
}

// A DATA by reference whose parts do not add up.
Case reference(const char* name, const char* rule, std::uint32_t said_bytes,
               std::uint32_t sent_bytes, bool message_behind) {
  return {name, rule, [=](const Context& context) -> Verdict {
            RogueChannel channel(context.proxy);
            if (!channel.connected()) return "not connected";
            RawTransfer transfer;
            transfer.add_data_header(1, 0, said_bytes);
            if (message_behind) transfer.add(MessageType::kJoinService, good_join(context));
            const fabric::GatherRef ref = channel.own_memory(0, sent_bytes);
            channel.send(transfer, {&ref, sent_bytes != 0 ? 1u : 0u});
            return channel_closed(channel, CloseCode::kProtocolError);
          }};
}

std::vector<Case> header_cases() {
  using wire::TransferHeader;
  return {
      broken_header("transfer_count_more", "T5: message_count is exact",
                    [](TransferHeader& h) { h.message_count = 2; }),
      broken_header("transfer_count_huge", "T5: message_count is exact",
                    [](TransferHeader& h) { h.message_count = 0xffff; }),
      broken_header("transfer_count_zero", "T5: message_count is exact",
                    [](TransferHeader& h) { h.message_count = 0; }),
      broken_header("transfer_reserved", "T3: reserved is 0",
                    [](TransferHeader& h) { h.reserved = 1; }),
      broken_header("transfer_grant_back", "T9: a grant never goes back",
                    [](TransferHeader& h) { h.credits_granted -= 1; }),
      broken_header("transfer_grant_zero", "T9: a grant never goes back",
                    [](TransferHeader& h) { h.credits_granted = 0; }),
      broken_header("transfer_grant_beyond", "T9: no more is granted than was posted",
                    [](TransferHeader& h) { h.credits_granted += 1'000'000; }),
      broken_header("transfer_grant_wraps", "T9: no more is granted than was posted",
                    [](TransferHeader& h) { h.credits_granted += 0x8000'0000u; }),
  };
}

std::vector<Case> framing_cases() {
  std::vector<Case> out = {
      broken("transfer_cut_in_header", "T1: a transfer has a whole header",
             [](RawTransfer& t, RogueChannel&) { t.cut(7); }),
      broken("transfer_one_byte", "T1: a transfer has a whole header",
             [](RawTransfer& t, RogueChannel&) { t.cut(1); }),
      broken("message_header_cut", "M5: a message header is inside the transfer",
             [](RawTransfer& t, RogueChannel&) { t.cut(RawTransfer::kFirst + 4); }),
      broken("message_body_cut", "M5: a message body is inside the transfer",
             [](RawTransfer& t, RogueChannel&) { t.cut(RawTransfer::kFirst + 24); }),
      broken("transfer_bytes_behind", "T5: nothing follows the last message",
             [](RawTransfer& t, RogueChannel&) { t.add_bytes(8, std::byte{0}); }),
      broken_byte("message_length_zero", "M4: length fits the type", 4, 0),
      broken_byte("message_length_short", "M4: length fits the type", 4, 47),
      broken_byte("message_length_long", "M4: length fits the type", 4, 56),
      broken_byte("message_length_huge", "M4: length is inside the transfer", 7, 0xff),
      broken_byte("message_type_zero", "M1: the type is known", 0, 0),
      broken_byte("message_type_hello", "M1: HELLO is never inside a transfer", 0, 1),
      broken_byte("message_type_unknown", "M1: the type is known", 0, 16),
      broken_byte("message_type_255", "M1: the type is known", 0, 255),
      broken_byte("message_flags_unknown", "M2: unknown flags are 0", 1, 0x80),
      broken_byte("message_code_unknown", "M3: the code is one of its type", 2, 0xff),
      broken_byte("message_code_high", "M3: the code is one of its type", 3, 0xff),
      broken("message_padding_dirty", "M6: padding is zero",
             [](RawTransfer& t, RogueChannel&) {
               t.add(MessageType::kData, wire::DataBody{1, 0}, 0, CloseCode::kNone, 3);
               t.at(t.size() - 1) = std::byte{1};
             }),
      reference("data_reference_too_small", "M5: 1 KB or less travels inline", 1024, 1024, false),
      reference("data_reference_shorter_than_said", "M5: the payload is the rest of the transfer",
                5000, 4000, false),
      reference("data_reference_longer_than_said", "M5 T5: the payload is the rest of the transfer",
                4000, 5000, false),
      reference("data_reference_missing", "M5: the payload is the rest of the transfer", 4000, 0,
                false),
      reference("data_reference_not_last", "T6: a DATA by reference is the last message", 4000,
                4000, true),
      reference("data_too_long", "M23 T1: a payload is at most 64 KB", 65537, 65537, false),
      {"transfer_random_bytes", "T3 T5 T9: none is kept",
       [](const Context& context) -> Verdict {
         std::uint32_t seed = 12345;
         for (std::uint32_t round = 0; round < 200; round += context.divide) {
           RogueChannel channel(context.proxy);
           if (!channel.connected()) return "not connected: " + channel.refusal().to_string();
           RawTransfer transfer;
           transfer.add_bytes(8 + static_cast<std::size_t>(round) * 16, std::byte{0});
           for (std::size_t i = 0; i < transfer.size(); ++i) {
             seed = seed * 1664525 + 1013904223;
             transfer.at(i) = static_cast<std::byte>(seed >> 24);
           }
           transfer.with_header([](wire::TransferHeader& h) { h.message_count = 1; });
           channel.send(transfer);
           if (Verdict v = channel_closed(channel, CloseCode::kProtocolError); !v.empty()) return v;
         }
         return "";
       }},
  };
  return out;
}

}  // namespace

std::vector<Case> transfer_cases() {
  std::vector<Case> out = header_cases();
  for (Case& one : framing_cases()) out.push_back(std::move(one));
  return out;
}

}  // namespace sanproxy::rogue
