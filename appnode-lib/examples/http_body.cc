#include "appnode-lib/examples/http_body.h"

#include <algorithm>

namespace examples {
namespace {

constexpr std::uint64_t kFnvOffset = 0xcbf2'9ce4'8422'2325;
constexpr std::uint64_t kFnvPrime = 0x0000'0100'0000'01b3;
constexpr unsigned kSizeDigitsMax = 15;
constexpr std::size_t kLineBytesMax = 8192;  // of all extensions and trailers together

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

}  // namespace

void BodyReader::start_length(std::uint64_t length, bool hash) {
  *this = {};
  left_ = length;
  hashing_ = hash;
  hash_ = kFnvOffset;
}

void BodyReader::start_chunked(bool hash) {
  start_length(0, hash);
  chunked_ = true;
  state_ = State::kSize;
}

void BodyReader::take(std::string_view& in) {
  const auto n = static_cast<std::size_t>(std::min<std::uint64_t>(in.size(), left_));
  if (hashing_) {
    std::uint64_t hash = hash_;
    for (const char c : in.substr(0, n)) hash = (hash ^ static_cast<unsigned char>(c)) * kFnvPrime;
    hash_ = hash;
  }
  received_ += n;
  left_ -= n;
  in.remove_prefix(n);
}

BodyReader::Result BodyReader::consume(std::string_view& in) {
  if (!chunked_) {
    take(in);
    return left_ == 0 ? Result::kDone : Result::kMore;
  }
  while (!in.empty()) {
    if (state_ == State::kData) {
      take(in);
      if (left_ == 0) state_ = State::kDataCr;
      continue;
    }
    const char c = in.front();
    in.remove_prefix(1);
    if (const Result result = on_line_byte(c); result != Result::kMore) return result;
  }
  return Result::kMore;
}

BodyReader::Result BodyReader::on_size_line_end() {
  state_ = left_ == 0 ? State::kTrailer : State::kData;
  line_empty_ = true;
  digits_ = 0;
  return Result::kMore;
}

BodyReader::Result BodyReader::on_line_byte(char c) {
  switch (state_) {
    case State::kSize:
      if (const int digit = hex_digit(c); digit >= 0) {
        left_ = digits_ == 0 ? 0 : left_;
        if (++digits_ > kSizeDigitsMax) return Result::kBroken;
        left_ = left_ * 16 + static_cast<unsigned>(digit);
        return Result::kMore;
      }
      if (digits_ == 0) return Result::kBroken;
      if (c == '\r') {
        state_ = State::kSizeLf;
      } else if (c == ';') {
        state_ = State::kExtension;
      } else {
        return Result::kBroken;
      }
      return Result::kMore;
    case State::kExtension:
      if (c == '\n' || ++line_bytes_ > kLineBytesMax) return Result::kBroken;
      if (c == '\r') state_ = State::kSizeLf;
      return Result::kMore;
    case State::kSizeLf:
      return c == '\n' ? on_size_line_end() : Result::kBroken;
    case State::kDataCr:
      state_ = State::kDataLf;
      return c == '\r' ? Result::kMore : Result::kBroken;
    case State::kDataLf:
      state_ = State::kSize;
      return c == '\n' ? Result::kMore : Result::kBroken;
    case State::kTrailer:
      if (c == '\n' || ++line_bytes_ > kLineBytesMax) return Result::kBroken;
      if (c == '\r') {
        state_ = State::kTrailerLf;
      } else {
        line_empty_ = false;
      }
      return Result::kMore;
    case State::kTrailerLf:
      if (c != '\n') return Result::kBroken;
      if (line_empty_) return Result::kDone;
      state_ = State::kTrailer;
      line_empty_ = true;
      return Result::kMore;
    case State::kData:
      break;
  }
  return Result::kBroken;
}

}  // namespace examples
