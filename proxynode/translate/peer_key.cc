#include "proxynode/translate/peer_key.h"

#include <algorithm>

#include "lwproto/base/socket_address.h"

namespace sanproxy::translate {
namespace {

std::string without_port(const std::string& text) {
  const std::size_t colon = text.rfind(':');
  if (colon == std::string::npos) return text;
  const std::size_t bracket = text.rfind(']');
  // "tcp:fd77::2": with more colons than the scheme's and a port's it is an IPv6 address without
  // brackets, so there is no port.
  const bool bare_ipv6 =
      bracket == std::string::npos && std::count(text.begin(), text.end(), ':') > 2;
  const bool digits = colon + 1 < text.size() &&
                      std::all_of(text.begin() + static_cast<std::ptrdiff_t>(colon) + 1, text.end(),
                                  [](char c) { return c >= '0' && c <= '9'; });
  const bool behind_bracket = bracket == std::string::npos || colon > bracket;
  return digits && behind_bracket && !bare_ipv6 ? text.substr(0, colon) : text;
}

}  // namespace

std::string peer_key(const fabric::PeerIdentity& peer) {
  if (peer.uid >= 0) return "uid:" + std::to_string(peer.uid);
  if (!peer.certificate_name.empty()) return "cert:" + peer.certificate_name;
  // "tcp:10.9.0.2:4711", "tcp://[fd77::2]:4711", ...
  std::string text = without_port(peer.address);
  const std::size_t host = text.find_first_not_of("/[", text.find(':') + 1);
  if (host == std::string::npos) return text;
  const std::size_t end = text.ends_with(']') ? text.size() - 1 : text.size();
  const auto ip = IpAddress::parse(text.substr(host, end - host));
  if (!ip.ok() || ip->family != Family::kIpv6) return text;
  return text.substr(0, host) + network_of(*ip).to_string() + "/64";
}

}  // namespace sanproxy::translate
