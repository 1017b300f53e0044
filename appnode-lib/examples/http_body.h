// BodyReader: takes a request's body out of the stream, by Content-Length or chunked
// (RFC 9112, 7.1), counts it and, if wanted, hashes it (FNV-1a, 64 bits).
//
// Thread: a value of one session. It holds no bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace examples {

class BodyReader {
 public:
  enum class Result : std::uint8_t { kMore, kDone, kBroken };

  void start_length(std::uint64_t length, bool hash);
  void start_chunked(bool hash);
  // Takes what belongs to the body from the front of `in`.
  Result consume(std::string_view& in);
  std::uint64_t received() const { return received_; }
  std::uint64_t fnv1a64() const { return hash_; }

 private:
  enum class State : std::uint8_t {
    kData,
    kSize,
    kExtension,
    kSizeLf,
    kDataCr,
    kDataLf,
    kTrailer,
    kTrailerLf,
  };
  void take(std::string_view& in);
  Result on_line_byte(char c);
  Result on_size_line_end();

  State state_ = State::kData;
  bool chunked_ = false;
  bool hashing_ = false;
  std::uint64_t left_ = 0;  // of the body, or of the chunk
  std::uint64_t received_ = 0;
  std::uint64_t hash_ = 0;
  unsigned digits_ = 0;         // of the chunk size
  std::size_t line_bytes_ = 0;  // of the extension or the trailer so far, bounded
  bool line_empty_ = true;      // of the trailer's line
};

}  // namespace examples
