#include "lwproto/fabric/link_parameters.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <limits>

namespace sanproxy::fabric {
namespace {

constexpr std::uint64_t kWindowBytesMax = std::uint64_t{1} << 30;
// Of rates and bursts: what the arithmetic of every fabric, and the kernel's pacing, can tell from
// "without a limit".
constexpr std::uint64_t kAmountMax = std::uint64_t{1} << 40;
constexpr std::uint32_t kStreamsMax = 64;
constexpr int kDscpMax = 63;
constexpr int kPriorityMax = 6;  // above it the kernel asks for CAP_NET_ADMIN
constexpr int kServiceLevelMax = 15;
constexpr int kTrafficClassMax = 255;

struct Suffix {
  const char* text;
  std::uint64_t factor;
  std::uint64_t divisor;
};
constexpr Suffix kSuffixes[] = {
    {"", 1, 1},        {"KiB", 1u << 10, 1},   {"MiB", 1u << 20, 1},       {"GiB", 1u << 30, 1},
    {"Kbit", 1000, 8}, {"Mbit", 1'000'000, 8}, {"Gbit", 1'000'000'000, 8},
};
constexpr std::size_t kSizeSuffixes = 4;  // the first so many; rates take them all

// False if `text` is not a number with one of the first `suffixes` suffixes.
bool read_amount(std::string_view text, std::size_t suffixes, std::uint64_t& out) {
  std::uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc{}) return false;
  const std::string_view unit(end, static_cast<std::size_t>(text.data() + text.size() - end));
  for (std::size_t i = 0; i < suffixes; ++i) {
    const Suffix& suffix = kSuffixes[i];
    if (unit != suffix.text) continue;
    if (number > std::numeric_limits<std::uint64_t>::max() / suffix.factor) return false;
    out = number * suffix.factor / suffix.divisor;
    return out != 0;  // 0 is "not asked for", which is said by leaving it out
  }
  return false;
}

template <typename T>
bool read_small(std::string_view text, std::uint64_t max, T& out) {
  std::uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc{} || end != text.data() + text.size() || number > max) return false;
  out = static_cast<T>(number);
  return true;
}

constexpr std::pair<const char*, QualityClass> kQualities[] = {{"cbr", QualityClass::kConstant},
                                                               {"vbr", QualityClass::kVariable},
                                                               {"abr", QualityClass::kAvailable},
                                                               {"ubr", QualityClass::kUnspecified}};

bool read_quality(std::string_view text, QualityClass& out) {
  const auto found = std::find_if(std::begin(kQualities), std::end(kQualities),
                                  [&](const auto& one) { return text == one.first; });
  if (found == std::end(kQualities)) return false;
  out = found->second;
  return true;
}

bool read_congestion(std::string_view text, std::array<char, 16>& out) {
  if (text.empty() || text.size() >= out.size()) return false;
  const auto is_name = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
  };
  if (!std::all_of(text.begin(), text.end(), is_name)) return false;
  out.fill('\0');
  std::memcpy(out.data(), text.data(), text.size());
  return true;
}

bool read_flag(std::string_view text, bool& out) {
  out = text == "true" || text == "on";
  return out || text == "false" || text == "off";
}

// One parameter: its name, how its value is read and written, and what to say when it is wrong.
struct Field {
  LinkField bit;
  const char* name;
  bool (*read)(std::string_view, LinkParameters&);
  bool (*is_set)(const LinkParameters&);
  std::string (*write)(const LinkParameters&);
  const char* wrong;
  const char* unsupported;
  const char* twice;
};

#define LINK_FIELD(bit, name, member, read_call, set_when, written, expected)               \
  {                                                                                         \
    bit, name, [](std::string_view text, LinkParameters& link) { return read_call; },       \
        [](const LinkParameters& link) -> bool { return set_when; },                        \
        []([[maybe_unused]] const LinkParameters& link) -> std::string { return written; }, \
        "link parameter " name ": expected " expected,                                      \
        "link parameter " name " cannot be honoured here",                                  \
        "link parameter " name " is there twice"                                            \
  }
#define LINK_NUMBER(bit, name, member, max, unset, expected)                                  \
  LINK_FIELD(bit, name, member, read_small(text, max, link.member) && link.member != (unset), \
             link.member != (unset), std::to_string(link.member), expected)
#define LINK_AMOUNT(bit, name, member, suffixes, expected)                                  \
  LINK_FIELD(bit, name, member, read_amount(text, suffixes, link.member), link.member != 0, \
             std::to_string(link.member), expected)

const Field kFields[] = {
    LINK_AMOUNT(kLinkWindow, "window", window_bytes, kSizeSuffixes, "bytes, such as 4MiB"),
    LINK_NUMBER(kLinkStreams, "streams", parallel_streams, kStreamsMax, 0u, "1 to 64"),
    LINK_NUMBER(kLinkQueuePairs, "queue_pairs", queue_pairs, kQueuePairsMax, 0u, "1 to 64"),
    LINK_FIELD(kLinkSkipSlowStart, "skip_slow_start", skip_slow_start,
               read_flag(text, link.skip_slow_start), link.skip_slow_start, "true", "on or off"),
    LINK_FIELD(kLinkCongestion, "congestion", congestion, read_congestion(text, link.congestion),
               link.congestion[0] != '\0',
               std::string(link.congestion.data(),
                           strnlen(link.congestion.data(), link.congestion.size())),
               "the kernel's name of an algorithm, such as cubic"),
    LINK_FIELD(kLinkQuality, "quality", quality, read_quality(text, link.quality),
               link.quality != QualityClass::kNone,
               kQualities[static_cast<std::size_t>(link.quality) - 1].first,
               "cbr, vbr, abr or ubr"),
    LINK_AMOUNT(kLinkRate, "rate", rate_bytes_per_s, std::size(kSuffixes),
                "bytes a second, or such as 100Mbit"),
    LINK_AMOUNT(kLinkPeak, "peak", peak_bytes_per_s, std::size(kSuffixes),
                "bytes a second, or such as 100Mbit"),
    LINK_AMOUNT(kLinkBurst, "burst", burst_bytes, kSizeSuffixes, "bytes, such as 64KiB"),
    LINK_NUMBER(kLinkDscp, "dscp", dscp, kDscpMax, -1, "0 to 63"),
    LINK_NUMBER(kLinkPriority, "priority", priority, kPriorityMax, -1, "0 to 6"),
    LINK_NUMBER(kLinkServiceLevel, "service_level", service_level, kServiceLevelMax, -1, "0 to 15"),
    LINK_NUMBER(kLinkTrafficClass, "traffic_class", traffic_class, kTrafficClassMax, -1,
                "0 to 255"),
};
#undef LINK_AMOUNT
#undef LINK_NUMBER
#undef LINK_FIELD

Status wrong(const char* text) { return Status::error(Code::kInvalidArgument, text); }

}  // namespace

Result<LinkParameters> parse_link(std::string_view text) {
  LinkParameters out;
  std::uint32_t given = 0;
  while (!text.empty()) {
    const std::string_view item = text.substr(0, text.find(','));
    text.remove_prefix(std::min(item.size() + 1, text.size()));
    if (item.empty()) continue;
    const std::size_t equals = item.find('=');
    const std::string_view name = item.substr(0, equals);
    const auto* field = std::find_if(std::begin(kFields), std::end(kFields),
                                     [&](const Field& one) { return name == one.name; });
    if (field == std::end(kFields)) {
      return wrong(
          "unknown link parameter; known: window, streams, queue_pairs, skip_slow_start, "
          "congestion, quality, rate, peak, burst, dscp, priority, service_level, traffic_class");
    }
    if ((given & field->bit) != 0) return wrong(field->twice);
    given |= field->bit;
    // A flag needs no value.
    const bool bare = equals == std::string_view::npos && field->bit == kLinkSkipSlowStart;
    if (equals == std::string_view::npos && !bare) return wrong(field->wrong);
    if (!field->read(bare ? "true" : item.substr(equals + 1), out)) return wrong(field->wrong);
  }
  if (const Status status = check_link(out); !status.ok()) return status;
  return out;
}

Status check_link(const LinkParameters& link) {
  if (link.window_bytes > kWindowBytesMax) return wrong("link parameter window: at most 1GiB");
  if (link.parallel_streams > kStreamsMax) return wrong("link parameter streams: expected 1 to 64");
  if (link.queue_pairs > kQueuePairsMax) {
    return wrong("link parameter queue_pairs: expected 1 to 64");
  }
  if (link.dscp < -1 || link.dscp > kDscpMax) return wrong("link parameter dscp: expected 0 to 63");
  if (link.priority < -1 || link.priority > kPriorityMax) {
    return wrong("link parameter priority: expected 0 to 6");
  }
  if (link.service_level < -1 || link.service_level > kServiceLevelMax) {
    return wrong("link parameter service_level: expected 0 to 15");
  }
  if (link.traffic_class < -1 || link.traffic_class > kTrafficClassMax) {
    return wrong("link parameter traffic_class: expected 0 to 255");
  }
  if (link.rate_bytes_per_s > kAmountMax) {
    return wrong("link parameter rate: at most 1024GiB a second");
  }
  if (link.peak_bytes_per_s > kAmountMax) {
    return wrong("link parameter peak: at most 1024GiB a second");
  }
  if (link.burst_bytes > kAmountMax) return wrong("link parameter burst: at most 1024GiB");
  const bool rated = link.quality == QualityClass::kConstant ||
                     link.quality == QualityClass::kVariable ||
                     link.quality == QualityClass::kAvailable;
  if (rated && link.rate_bytes_per_s == 0) {
    return wrong("link parameter rate: quality cbr, vbr and abr need it");
  }
  if (!rated && link.rate_bytes_per_s != 0) {
    return wrong("link parameter rate: it goes with quality cbr, vbr or abr");
  }
  const bool variable = link.quality == QualityClass::kVariable;
  if (!variable && link.peak_bytes_per_s != 0) {
    return wrong("link parameter peak: it goes with quality vbr");
  }
  if (variable && link.peak_bytes_per_s < link.rate_bytes_per_s) {
    return wrong("link parameter peak: quality vbr needs one, not below the rate");
  }
  const bool bursty = variable || link.quality == QualityClass::kConstant;
  if (link.burst_bytes != 0 && !bursty) {
    return wrong("link parameter burst: it goes with quality cbr or vbr");
  }
  if (variable && link.burst_bytes == 0) {
    return wrong("link parameter burst: quality vbr needs it");
  }
  return {};
}

Status require_link(const LinkParameters& link, std::uint32_t honoured) {
  for (const Field& field : kFields) {
    if ((honoured & field.bit) == 0 && field.is_set(link)) {
      return Status::error(Code::kUnsupported, field.unsupported);
    }
  }
  return {};
}

std::uint32_t link_fields(const LinkParameters& link) {
  std::uint32_t out = 0;
  for (const Field& field : kFields) {
    if (field.is_set(link)) out |= field.bit;
  }
  return out;
}

std::vector<std::pair<const char*, std::string>> link_values(const LinkParameters& link) {
  std::vector<std::pair<const char*, std::string>> out;
  for (const Field& field : kFields) {
    if (field.is_set(link)) out.emplace_back(field.name, field.write(link));
  }
  return out;
}

std::string link_text(const LinkParameters& link) {
  std::string out;
  for (const auto& [name, value] : link_values(link)) {
    out += (out.empty() ? "" : ",") + std::string(name) + "=" + value;
  }
  return out;
}

}  // namespace sanproxy::fabric
