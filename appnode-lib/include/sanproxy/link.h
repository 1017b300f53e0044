// LinkOptions: what a node asks of the links to its proxies. TlsFiles: who it is on them.
//
// Document: docs/application_library.md "Links", docs/choosing_a_fabric.md.
// Role: plain values of NodeOptions. Both ends of a link apply what is asked for; a link that
//   cannot honour a parameter does not come up, and NodeOptions::on_proxy_down names it.
// Thread: values.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "sanproxy/status.h"

namespace sanproxy::app {

enum class QualityClass : std::uint8_t {
  kNone = 0,         // nothing asked
  kConstant = 1,     // "cbr": paced at the rate, no burst beyond burst_bytes
  kVariable = 2,     // "vbr": the rate on average, bursts at the peak
  kAvailable = 3,    // "abr": at most the rate, less when there is congestion
  kUnspecified = 4,  // "ubr": what others leave over
};

// Zero, -1 and "" are the system's own choice. Names are those of parse().
struct LinkOptions {
  std::uint64_t window_bytes = 0;              // "window": of the link, in each direction
  std::uint32_t parallel_streams = 0;          // "streams": tcp, kernel connections of the link
  std::uint32_t queue_pairs = 0;               // "queue_pairs": verbs
  bool skip_slow_start = false;                // "skip_slow_start": tcp, for a reserved path
  std::string congestion{};                    // "congestion": tcp, the kernel's name for it
  QualityClass quality = QualityClass::kNone;  // "quality"
  std::uint64_t rate_bytes_per_s = 0;          // "rate"
  std::uint64_t peak_bytes_per_s = 0;          // "peak"
  std::uint64_t burst_bytes = 0;               // "burst"
  int dscp = -1;                               // "dscp": 0 to 63
  int priority = -1;                           // "priority": tcp, 0 to 6
  int service_level = -1;                      // "service_level": verbs, 0 to 15
  int traffic_class = -1;                      // "traffic_class": verbs, 0 to 255

  // "window=4MiB,streams=4,congestion=cubic,quality=cbr,rate=100Mbit".
  static Result<LinkOptions> parse(std::string_view text);
  std::string to_string() const;
  bool operator==(const LinkOptions&) const = default;
};

// PEM files for tcp links with TLS; all three or none.
struct TlsFiles {
  std::string certificate{};  // ours, with its chain
  std::string key{};          // its private key
  std::string ca{};           // who signs the proxies' certificates
  std::string proxy_name{};  // take no proxy but one whose certificate has this name; "": any, also
                             // one that is no proxy's
  bool any() const { return !certificate.empty() || !key.empty() || !ca.empty(); }
};

}  // namespace sanproxy::app
