// Bad first words: HELLOs that must be refused before there is a channel.
#include <algorithm>

#include "tests/rogue/cases.h"

namespace sanproxy::rogue {
namespace {

Case refused(const char* name, const char* rule, std::function<void(wire::HelloBody&)> change) {
  return {name, rule, [change = std::move(change)](const Context& context) -> Verdict {
            wire::HelloBody hello = RogueChannel::correct_hello();
            change(hello);
            RogueChannel channel(context.proxy, std::as_bytes(std::span(&hello, 1)));
            if (!channel.connected()) return "";
            // A proxy may also accept first and close at once.
            return channel_closed(channel, wire::CloseCode::kProtocolError);
          }};
}

Case of_length(const char* name, std::size_t bytes) {
  return {name, "H1: HELLO has exactly its length", [bytes](const Context& context) -> Verdict {
            std::vector<std::byte> hello(bytes);
            const wire::HelloBody good = RogueChannel::correct_hello();
            const auto from = std::as_bytes(std::span(&good, 1));
            std::copy_n(from.begin(), std::min(bytes, sizeof(good)), hello.begin());
            RogueChannel channel(context.proxy, hello);
            if (!channel.connected()) return "";
            return channel_closed(channel, wire::CloseCode::kProtocolError);
          }};
}

}  // namespace

std::vector<Case> hello_cases() {
  using wire::HelloBody;
  return {
      refused("hello_magic", "H2: the magic is ours", [](HelloBody& h) { h.magic ^= 1; }),
      refused("hello_version", "H3: the version is known", [](HelloBody& h) { h.version = 99; }),
      refused("hello_version_zero", "H3: the version is known",
              [](HelloBody& h) { h.version = 0; }),
      refused("hello_role", "H4: the role is known", [](HelloBody& h) { h.role = 2; }),
      refused("hello_workers", "H4: a node has no workers", [](HelloBody& h) { h.workers = 1; }),
      refused("hello_no_credits", "H5: credits are at least the minimum",
              [](HelloBody& h) { h.credits_initial = h.credits_reserved = 0; }),
      refused("hello_too_many_credits", "H5: credits are bounded",
              [](HelloBody& h) { h.credits_initial = wire::kCreditsMax + 1; }),
      refused("hello_all_ones", "H5 H6 H7 H8: fields are in range",
              [](HelloBody& h) { std::memset(&h.credits_initial, 0xff, 16); }),
      refused("hello_all_reserved", "H6: at most half of the credits are reserved",
              [](HelloBody& h) { h.credits_reserved = h.credits_initial; }),
      refused("hello_window_too_large", "H7: the window is bounded",
              [](HelloBody& h) { h.stream_window_bytes = wire::kStreamWindowBytesMax + 1; }),
      refused("hello_too_many_streams", "H8: the number of streams is bounded",
              [](HelloBody& h) { h.streams_max = wire::kStreamsMax + 1; }),
      refused("hello_name_control_bytes", "H9: the name is printable",
              [](HelloBody& h) { std::memcpy(h.node_name, "a\x1b[2Jb", 6); }),
      refused("hello_name_bad_utf8", "H9: the name is UTF-8",
              [](HelloBody& h) { std::memcpy(h.node_name, "\xff\xfe", 2); }),
      refused("hello_name_bytes_after_end", "H9: the name is zero-padded",
              [](HelloBody& h) { h.node_name[63] = 'x'; }),
      of_length("hello_empty", 0),
      of_length("hello_one_byte", 1),
      of_length("hello_short", sizeof(HelloBody) - 1),
      of_length("hello_long", sizeof(HelloBody) + 1),
  };
}

}  // namespace sanproxy::rogue
