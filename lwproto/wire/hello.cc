#include <algorithm>

#include "lwproto/wire/codec.h"

namespace sanproxy::wire {
namespace {

constexpr Status broken(const char* text) { return Status::error(Code::kProtocol, text); }

// The length of the UTF-8 sequence (RFC 3629) at `p`, or 0 if there is none. Over-long forms,
// surrogates and control characters (C0, DEL, C1) are refused: names end up in logs and terminals.
std::size_t printable_sequence(const std::uint8_t* p, std::size_t room) {
  if (p[0] < 0x80) return p[0] >= 0x20 && p[0] != 0x7f ? 1 : 0;
  const std::size_t length = p[0] >= 0xf0 ? 4 : p[0] >= 0xe0 ? 3 : 2;
  if (p[0] < 0xc2 || p[0] > 0xf4 || length > room) return 0;
  std::uint32_t value = p[0] & (0xffu >> (length + 1));
  for (std::size_t i = 1; i < length; ++i) {
    if ((p[i] & 0xc0) != 0x80) return 0;
    value = value << 6 | (p[i] & 0x3fu);
  }
  constexpr std::uint32_t kFirst[] = {0, 0, 0xa0, 0x800, 0x10000};
  const bool surrogate = value >= 0xd800 && value <= 0xdfff;
  return value >= kFirst[length] && value <= 0x10ffff && !surrogate ? length : 0;
}

std::size_t printable_bytes(std::span<const std::uint8_t> name) {
  std::size_t i = 0;
  while (i < name.size()) {
    const std::size_t length = printable_sequence(name.data() + i, name.size() - i);
    if (length == 0) break;
    i += length;
  }
  return i;
}

bool name_legal(std::span<const std::uint8_t, kNodeNameBytesMax> name) {
  const auto rest = name.subspan(printable_bytes(name));
  return std::all_of(rest.begin(), rest.end(), [](std::uint8_t byte) { return byte == 0; });
}

}  // namespace

std::string_view node_name_prefix(std::string_view name) {
  name = name.substr(0, kNodeNameBytesMax);
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(name.data());
  return name.substr(0, printable_bytes({bytes, name.size()}));
}

void encode_hello(const HelloBody& hello, std::span<std::byte, sizeof(HelloBody)> out) {
  std::memcpy(out.data(), &hello, sizeof(hello));
}

Result<HelloBody> decode_hello(std::span<const std::byte> in) {
  HelloBody hello;
  if (in.size() != sizeof(hello)) return broken("HELLO has not its length");
  std::memcpy(&hello, in.data(), sizeof(hello));
  if (hello.magic != kMagic) return broken("HELLO has not our magic");
  // Before all other rules: another version may have others.
  if (hello.version != kVersion) {
    return Status::error(Code::kUnsupported, "the peer speaks another version");
  }
  if (hello.role > static_cast<std::uint8_t>(Role::kNetworkNode)) {
    return broken("HELLO names an unknown role");
  }
  if (hello.workers > kWorkersMax) return broken("HELLO names too many workers");
  if (hello.credits_initial < kCreditsMin || hello.credits_initial > kCreditsMax) {
    return broken("HELLO posts too few or too many credits");
  }
  // Above half, a channel at rest might never again have a credit for data
  // (docs/flow_control.md, "The reserve").
  if (hello.credits_reserved > hello.credits_initial / 2) {
    return broken("HELLO reserves more than half of its credits");
  }
  if (hello.stream_window_bytes > kStreamWindowBytesMax) {
    return broken("HELLO's stream window is out of range");
  }
  if (hello.streams_max > kStreamsMax) return broken("HELLO's number of streams is out of range");
  if (!name_legal(hello.node_name)) return broken("HELLO's node name is not printable UTF-8");
  return hello;
}

}  // namespace sanproxy::wire
