// The names of LinkParameters: how users write, read and are told of what a link is asked for.
//
// Document: docs/choosing_a_fabric.md "Link parameters".
// Role: one table of names for the command line, the configuration, /status and error texts.
// Thread: pure functions.
// Invariants:
//   1. parse_link(link_text(p)) == p for every p that passes check_link().
//   2. Every refusal names the parameter.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lwproto/base/status.h"
#include "lwproto/fabric/fabric.h"

namespace sanproxy::fabric {

inline constexpr std::uint32_t kQueuePairsMax = 64;

// Sets of parameters, as bits.
enum LinkField : std::uint32_t {
  kLinkWindow = 1u << 0,
  kLinkStreams = 1u << 1,
  kLinkQueuePairs = 1u << 2,
  kLinkSkipSlowStart = 1u << 3,
  kLinkCongestion = 1u << 4,
  kLinkQuality = 1u << 5,
  kLinkRate = 1u << 6,
  kLinkPeak = 1u << 7,
  kLinkBurst = 1u << 8,
  kLinkDscp = 1u << 9,
  kLinkPriority = 1u << 10,
  kLinkServiceLevel = 1u << 11,
  kLinkTrafficClass = 1u << 12,
};

// "window=4MiB,streams=4,skip_slow_start,congestion=cubic,quality=cbr,rate=100Mbit,burst=64KiB".
// Sizes are bytes, or with KiB, MiB, GiB; rates are bytes a second, or with those, or with Kbit,
// Mbit, Gbit (a second). An empty text asks for nothing.
Result<LinkParameters> parse_link(std::string_view text);

// Whether the values are possible and go together, whatever the fabric: kInvalidArgument if not.
Status check_link(const LinkParameters& link);

// kUnsupported, naming the first parameter that is asked for and not in `honoured`.
Status require_link(const LinkParameters& link, std::uint32_t honoured);

std::uint32_t link_fields(const LinkParameters& link);  // those that are set

// Those that are set, by name, with their value as parse_link() takes it.
std::vector<std::pair<const char*, std::string>> link_values(const LinkParameters& link);
std::string link_text(const LinkParameters& link);

}  // namespace sanproxy::fabric
