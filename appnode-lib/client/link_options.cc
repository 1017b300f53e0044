#include "appnode-lib/client/link_options.h"

#include <cstdlib>
#include <cstring>

#include "appnode-lib/client/convert.h"
#include "lwproto/fabric/link_parameters.h"

namespace sanproxy::app {
namespace internal {
namespace {

static_assert(static_cast<int>(QualityClass::kUnspecified) ==
              static_cast<int>(fabric::QualityClass::kUnspecified));

LinkOptions to_options(const fabric::LinkParameters& link) {
  LinkOptions out;
  out.window_bytes = link.window_bytes;
  out.parallel_streams = link.parallel_streams;
  out.queue_pairs = link.queue_pairs;
  out.skip_slow_start = link.skip_slow_start;
  out.congestion.assign(link.congestion.data(),
                        strnlen(link.congestion.data(), link.congestion.size()));
  out.quality = static_cast<QualityClass>(link.quality);
  out.rate_bytes_per_s = link.rate_bytes_per_s;
  out.peak_bytes_per_s = link.peak_bytes_per_s;
  out.burst_bytes = link.burst_bytes;
  out.dscp = int{link.dscp};
  out.priority = int{link.priority};
  out.service_level = int{link.service_level};
  out.traffic_class = link.traffic_class;
  return out;
}

// Values that the narrow fields of LinkParameters cannot hold are out of every range too.
bool narrow(const LinkOptions& options, fabric::LinkParameters& out) {
  const auto fits = [](int value) { return value >= -1 && value <= 127; };
  if (!fits(options.dscp) || !fits(options.priority) || !fits(options.service_level)) return false;
  if (options.traffic_class < -1 || options.traffic_class > 0x7fff) return false;
  out.dscp = static_cast<std::int8_t>(options.dscp);
  out.priority = static_cast<std::int8_t>(options.priority);
  out.service_level = static_cast<std::int8_t>(options.service_level);
  out.traffic_class = static_cast<std::int16_t>(options.traffic_class);
  return true;
}

}  // namespace

Result<fabric::LinkParameters> link_parameters(const LinkOptions& options) {
  fabric::LinkParameters out;
  out.window_bytes = options.window_bytes;
  out.parallel_streams = options.parallel_streams;
  out.queue_pairs = options.queue_pairs;
  out.skip_slow_start = options.skip_slow_start;
  if (options.congestion.size() >= out.congestion.size()) {
    return Status(Code::kInvalidArgument, "link parameter congestion: at most 15 characters");
  }
  std::memcpy(out.congestion.data(), options.congestion.data(), options.congestion.size());
  out.quality = static_cast<fabric::QualityClass>(options.quality);
  out.rate_bytes_per_s = options.rate_bytes_per_s;
  out.peak_bytes_per_s = options.peak_bytes_per_s;
  out.burst_bytes = options.burst_bytes;
  if (!narrow(options, out)) {
    return Status(Code::kInvalidArgument,
                  "link parameter dscp, priority, service_level or traffic_class: out of range");
  }
  if (const BaseStatus status = fabric::check_link(out); !status.ok()) return to_public(status);
  return out;
}

Status take_link_environment(NodeOptions& options) {
  const auto take = [](const char* name, std::string& out) {
    const char* text = std::getenv(name);
    if (text != nullptr) out = text;
  };
  if (options.link == LinkOptions{}) {
    std::string text;
    take("SANPROXY_LINK", text);
    auto link = LinkOptions::parse(text);
    if (!link.ok()) return link.status();
    options.link = *link;
  }
  if (!options.tls.any()) {
    take("SANPROXY_TLS_CERTIFICATE", options.tls.certificate);
    take("SANPROXY_TLS_KEY", options.tls.key);
    take("SANPROXY_TLS_CA", options.tls.ca);
  }
  if (options.tls.proxy_name.empty()) take("SANPROXY_TLS_PROXY_NAME", options.tls.proxy_name);
  const TlsFiles& tls = options.tls;
  if (!tls.any() && !tls.proxy_name.empty()) {
    return {Code::kInvalidArgument, "a proxy's name is in its certificate, which takes TLS"};
  }
  if (tls.any() && (tls.certificate.empty() || tls.key.empty() || tls.ca.empty())) {
    return {Code::kInvalidArgument, "TLS needs a certificate, its key and a CA"};
  }
  return {};
}

}  // namespace internal

Result<LinkOptions> LinkOptions::parse(std::string_view text) {
  auto link = fabric::parse_link(text);
  if (!link.ok()) return internal::to_public(link.status());
  return internal::to_options(*link);
}

std::string LinkOptions::to_string() const {
  const auto link = internal::link_parameters(*this);
  return link.ok() ? fabric::link_text(*link) : std::string("impossible");
}

}  // namespace sanproxy::app
