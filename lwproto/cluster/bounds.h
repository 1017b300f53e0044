// What is taken from etcd, and no more; and how foreign bytes are shown to people.
//
// Document: docs/cluster.md "Bounds".
// Role: the bounds of the format (constants) and those with a key in [cluster] (Bounds).
// Thread: values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace sanproxy::cluster {

struct Bounds {
  std::size_t entries_max = 20'000;                      // max_entries
  std::size_t value_bytes_max = 64 * 1024;               // max_value_bytes
  std::size_t total_bytes_max = std::size_t{64} << 20;   // max_total_bytes: of all values
  std::size_t answer_bytes_max = std::size_t{16} << 20;  // max_answer_bytes
};

// Of the format itself.
inline constexpr std::size_t kKeyBytesMax = 1'024;
inline constexpr std::size_t kJsonDepthMax = 16;
inline constexpr std::size_t kNameBytesMax = 64;
inline constexpr std::size_t kTextBytesMax = 256;  // a string inside of a value
inline constexpr std::size_t kProbeRequestBytesMax = 1'024;
inline constexpr std::size_t kListMax = 1'024;    // a list inside of a value
inline constexpr std::size_t kAddressesMax = 64;  // "fabrics", "channels"
inline constexpr std::size_t kMembersMax = 16;    // of etcd, that we are told of
inline constexpr std::int64_t kRevisionMax = std::int64_t{1} << 62;
// Of what is refused.
inline constexpr std::size_t kRefusedMax = 1'000;  // keys that are remembered with a reason
inline constexpr std::size_t kReportsMax = 100;    // lines in the log ...
inline constexpr std::uint64_t kReportPeriodNs = 10'000'000'000;  // ... in so long
inline constexpr std::size_t kShownBytesMax = 300;                // of a foreign text

// For logs and terminals: bytes that are no printable ASCII are \xNN, what is too long is cut.
inline std::string printable(std::string_view text, std::size_t bytes_max = kShownBytesMax) {
  static constexpr char kHex[] = "0123456789abcdef";
  std::string out;
  for (const char c : text) {
    if (out.size() >= bytes_max) return out + "...";
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7f) {
      out += c;
    } else {
      out += {'\\', 'x', kHex[byte >> 4], kHex[byte & 15]};
    }
  }
  return out;
}

}  // namespace sanproxy::cluster
