#include "proxynode/translate/peer_key.h"

#include <algorithm>

namespace sanproxy::translate {

std::string peer_key(const fabric::PeerIdentity& peer) {
  if (peer.uid >= 0) return "uid:" + std::to_string(peer.uid);
  const std::string& text = peer.address;  // "tcp:10.9.0.2:4711", "tcp://[fd77::2]:4711", ...
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

}  // namespace sanproxy::translate
