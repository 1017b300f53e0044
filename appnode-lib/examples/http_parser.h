// Request heads, framed strictly by RFC 9112 (and RFC 9110 for the fields that it looks at).
//
// Role: finds the end of a head and parses it; anything that two parsers might read differently
//   is refused: bare CR or LF, obs-fold, space before a colon, Content-Length with
//   Transfer-Encoding, two lengths, control characters.
// Thread: pure functions and values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace examples {

inline constexpr std::size_t kHeadBytesMax = 8192;

enum class Method : std::uint8_t { kGet, kHead, kPost, kPut, kOther, kUnknown };

struct RequestHead {
  Method method = Method::kUnknown;
  std::string_view target;  // points into the head
  int minor_version = 1;    // of HTTP/1.x
  bool keep_alive = true;
  bool chunked = false;
  bool expect_continue = false;
  std::uint64_t content_length = 0;
  bool has_body() const { return chunked || content_length > 0; }
};

// Finds the end of a head in bytes that arrive in pieces; looks at each byte once.
class HeadScanner {
 public:
  enum class Result : std::uint8_t { kIncomplete, kComplete, kBroken, kTooLong };
  // `in` is everything since the start of the head; it only ever grows between calls.
  Result scan(std::string_view in);
  std::size_t head_bytes() const { return position_; }  // after kComplete
  void reset() { *this = {}; }

 private:
  std::size_t position_ = 0;
  std::size_t line_start_ = 0;
};

// Parses a complete head (it ends in CRLF CRLF). 0, or the status to answer before closing.
int parse_head(std::string_view head, RequestHead& out);

}  // namespace examples
