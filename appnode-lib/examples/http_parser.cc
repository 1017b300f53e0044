#include "appnode-lib/examples/http_parser.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace examples {
namespace {

constexpr int kBadRequest = 400;
constexpr int kExpectationFailed = 417;
constexpr int kNotImplemented = 501;
constexpr int kVersionNotSupported = 505;

constexpr std::array<bool, 256> make_token_table() {
  std::array<bool, 256> table{};
  for (unsigned c = '0'; c <= '9'; ++c) table[c] = true;
  for (unsigned c = 'a'; c <= 'z'; ++c) table[c] = true;
  for (unsigned c = 'A'; c <= 'Z'; ++c) table[c] = true;
  for (const char c : std::string_view("!#$%&'*+-.^_`|~"))
    table[static_cast<unsigned char>(c)] = true;
  return table;
}
constexpr auto kToken = make_token_table();

bool is_token(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(),
                                      [](char c) { return kToken[static_cast<unsigned char>(c)]; });
}

bool equals_ignoring_case(std::string_view a, std::string_view lower) {
  return a.size() == lower.size() &&
         std::equal(a.begin(), a.end(), lower.begin(), [](char x, char y) {
           return (x >= 'A' && x <= 'Z' ? x + ('a' - 'A') : x) == y;
         });
}

std::string_view trim(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

// field-vchar, obs-text, SP and HTAB; nothing else (RFC 9110, 5.5).
bool is_field_value(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) {
    const auto byte = static_cast<unsigned char>(c);
    return (byte >= 0x20 && byte != 0x7f) || byte == '\t';
  });
}

Method method_of(std::string_view name) {
  if (name == "GET") return Method::kGet;
  if (name == "HEAD") return Method::kHead;
  if (name == "POST") return Method::kPost;
  if (name == "PUT") return Method::kPut;
  for (const char* known : {"DELETE", "OPTIONS", "TRACE", "CONNECT", "PATCH"}) {
    if (name == known) return Method::kOther;
  }
  return Method::kUnknown;
}

bool parse_length(std::string_view text, std::uint64_t& out) {
  if (text.empty() || text.size() > 18) return false;
  out = 0;
  for (const char c : text) {
    if (c < '0' || c > '9') return false;
    out = out * 10 + static_cast<std::uint64_t>(c - '0');
  }
  return true;
}

// What the fields said, before they are weighed against each other.
struct Seen {
  bool host = false;
  bool length = false;
  bool transfer_encoding = false;
  bool close = false;
  bool keep_alive = false;
};

int parse_request_line(std::string_view line, RequestHead& out) {
  const std::size_t first = line.find(' ');
  const std::size_t last = line.rfind(' ');
  if (first == std::string_view::npos || last == first) return kBadRequest;
  const std::string_view method = line.substr(0, first);
  out.target = line.substr(first + 1, last - first - 1);
  const std::string_view version = line.substr(last + 1);
  out.method = method_of(method);
  if (out.method == Method::kUnknown && !is_token(method)) return kBadRequest;
  const bool plain = std::all_of(out.target.begin(), out.target.end(), [](char c) {
    return static_cast<unsigned char>(c) > 0x20 && static_cast<unsigned char>(c) < 0x7f;
  });
  if (out.target.empty() || !plain) return kBadRequest;
  if (version.size() != 8 || !version.starts_with("HTTP/") || version[6] != '.') {
    return kBadRequest;
  }
  if (version[5] < '0' || version[5] > '9' || version[7] < '0' || version[7] > '9') {
    return kBadRequest;
  }
  if (version[5] != '1') return kVersionNotSupported;
  out.minor_version = version[7] == '0' ? 0 : 1;
  return 0;
}

void parse_connection(std::string_view value, Seen& seen) {
  while (!value.empty()) {
    const std::size_t comma = std::min(value.find(','), value.size());
    const std::string_view option = trim(value.substr(0, comma));
    if (equals_ignoring_case(option, "close")) seen.close = true;
    if (equals_ignoring_case(option, "keep-alive")) seen.keep_alive = true;
    value.remove_prefix(std::min(comma + 1, value.size()));
  }
}

int parse_field(std::string_view line, RequestHead& out, Seen& seen) {
  const std::size_t colon = line.find(':');
  // A line that starts with a space is obs-fold; a space before the colon is not a token either.
  if (colon == std::string_view::npos || !is_token(line.substr(0, colon))) return kBadRequest;
  const std::string_view name = line.substr(0, colon);
  const std::string_view value = trim(line.substr(colon + 1));
  if (!is_field_value(value)) return kBadRequest;
  switch (name.size()) {
    case 4:
      if (equals_ignoring_case(name, "host")) {
        if (seen.host) return kBadRequest;
        seen.host = true;
      }
      break;
    case 6:
      if (equals_ignoring_case(name, "expect")) {
        if (!equals_ignoring_case(value, "100-continue")) return kExpectationFailed;
        out.expect_continue = true;
      }
      break;
    case 10:
      if (equals_ignoring_case(name, "connection")) parse_connection(value, seen);
      break;
    case 14:
      if (equals_ignoring_case(name, "content-length")) {
        if (seen.length || !parse_length(value, out.content_length)) return kBadRequest;
        seen.length = true;
      }
      break;
    case 17:
      if (equals_ignoring_case(name, "transfer-encoding")) {
        if (seen.transfer_encoding) return kBadRequest;
        if (!equals_ignoring_case(value, "chunked")) return kNotImplemented;
        seen.transfer_encoding = out.chunked = true;
      }
      break;
    default:
      break;
  }
  return 0;
}

}  // namespace

HeadScanner::Result HeadScanner::scan(std::string_view in) {
  for (;;) {
    const std::size_t limit = std::min(in.size(), kHeadBytesMax);
    const void* found =
        position_ < limit ? std::memchr(in.data() + position_, '\n', limit - position_) : nullptr;
    if (found == nullptr) {
      position_ = limit;
      return in.size() >= kHeadBytesMax ? Result::kTooLong : Result::kIncomplete;
    }
    const auto at = static_cast<std::size_t>(static_cast<const char*>(found) - in.data());
    if (at == 0 || in[at - 1] != '\r') return Result::kBroken;
    position_ = at + 1;
    if (at - 1 == line_start_) return Result::kComplete;
    line_start_ = position_;
  }
}

int parse_head(std::string_view head, RequestHead& out) {
  out = {};
  Seen seen;
  bool first = true;
  while (head.size() > 2) {
    const std::size_t end = head.find('\r');
    if (end >= head.size() - 1 || head[end + 1] != '\n') return kBadRequest;  // a bare CR
    const std::string_view line = head.substr(0, end);
    head.remove_prefix(end + 2);
    const int status = first ? parse_request_line(line, out) : parse_field(line, out, seen);
    if (status != 0) return status;
    first = false;
  }
  if (first) return kBadRequest;
  if (out.minor_version == 1 && !seen.host) return kBadRequest;
  if (seen.transfer_encoding && (seen.length || out.minor_version == 0)) return kBadRequest;
  out.keep_alive = out.minor_version == 1 ? !seen.close : seen.keep_alive && !seen.close;
  if (out.minor_version == 0) out.expect_continue = false;
  return 0;
}

}  // namespace examples
