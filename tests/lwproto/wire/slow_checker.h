// A second, independent statement of docs/wire_format.md for the fuzz test: byte by byte, with
// nothing shared with the codec but the numbers of format.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace sanproxy::wire::slow {

// One message as the page reads it.
struct Reading {
  std::uint8_t type = 0;
  std::uint8_t flags = 0;
  std::uint16_t code = 0;
  std::vector<std::uint8_t> body;
  std::size_t payload_at = 0;  // in the transfer
  std::size_t payload_bytes = 0;
  bool in_rest = false;
};

struct Verdict {
  std::string broken;             // empty: a legal transfer
  std::vector<Reading> messages;  // those in front of the first broken rule
};

// `rest_bytes`: behind the first segment `head`.
Verdict check(std::span<const std::uint8_t> head, std::size_t rest_bytes);

}  // namespace sanproxy::wire::slow
