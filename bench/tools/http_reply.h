// Just enough of HTTP for a load generator that knows what it asked for.
#pragma once

#include <charconv>
#include <cstdint>
#include <string_view>

namespace sanproxy::bench {

// The length of the whole reply whose start is in `text` (its headers must be whole): headers and
// Content-Length. 0: not a 200 with a length.
inline std::uint32_t reply_length(std::string_view text) {
  constexpr std::string_view kLength = "\r\nContent-Length: ";
  const auto end = text.find("\r\n\r\n");
  const auto field = text.find(kLength);
  if (!text.starts_with("HTTP/1.1 200") || end == text.npos || field > end) return 0;
  std::uint32_t body_bytes = 0;
  const char* digits = text.data() + field + kLength.size();
  if (std::from_chars(digits, text.data() + end, body_bytes).ec != std::errc()) return 0;
  return static_cast<std::uint32_t>(end) + 4 + body_bytes;
}

}  // namespace sanproxy::bench
