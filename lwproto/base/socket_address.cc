#include "lwproto/base/socket_address.h"

#include <arpa/inet.h>

#include <algorithm>
#include <charconv>
#include <cstring>

namespace sanproxy {
namespace {

template <typename T>
bool parse_number(std::string_view text, T& out) {
  const auto* end = text.data() + text.size();
  const auto [ptr, ec] = std::from_chars(text.data(), end, out);
  return ec == std::errc() && ptr == end && !text.empty();
}

}  // namespace

Result<IpAddress> IpAddress::parse(std::string_view text) {
  char buffer[INET6_ADDRSTRLEN + 1] = {};
  // inet_pton would stop at a NUL and not see what stands behind it.
  if (text.size() >= sizeof(buffer) || text.find('\0') != std::string_view::npos) {
    return Status::error(Code::kInvalidArgument, "not an IP address");
  }
  std::memcpy(buffer, text.data(), text.size());
  IpAddress out;
  if (inet_pton(AF_INET, buffer, out.bytes.data()) == 1) {
    out.family = Family::kIpv4;
    return out;
  }
  if (inet_pton(AF_INET6, buffer, out.bytes.data()) == 1) {
    out.family = Family::kIpv6;
    return out;
  }
  return Status::error(Code::kInvalidArgument, "not an IP address");
}

bool IpAddress::is_unicast() const {
  if (family == Family::kIpv4) return bytes[0] != 0 && bytes[0] < 224;
  return family == Family::kIpv6 && bytes[0] != 0xff && !is_any();
}

IpAddress network_of(const IpAddress& address) {
  IpAddress out = address;
  if (out.family == Family::kIpv6) std::fill(out.bytes.begin() + 8, out.bytes.end(), 0);
  return out;
}

std::string IpAddress::to_string() const {
  if (family == Family::kNone) return "none";
  char buffer[INET6_ADDRSTRLEN] = {};
  inet_ntop(family == Family::kIpv4 ? AF_INET : AF_INET6, bytes.data(), buffer, sizeof(buffer));
  return buffer;
}

Result<SocketAddress> SocketAddress::parse(std::string_view text) {
  const auto colon = text.rfind(':');
  if (colon == std::string_view::npos) {
    return Status::error(Code::kInvalidArgument, "expected ADDRESS:PORT");
  }
  std::string_view host = text.substr(0, colon);
  SocketAddress out;
  if (!parse_number(text.substr(colon + 1), out.port)) {
    return Status::error(Code::kInvalidArgument, "the port is not a number from 0 to 65535");
  }
  const bool bracketed = host.size() >= 2 && host.front() == '[' && host.back() == ']';
  if (bracketed) host = host.substr(1, host.size() - 2);
  auto ip = IpAddress::parse(host);
  if (!ip.ok()) return ip.status();
  if (bracketed != (ip->family == Family::kIpv6)) {
    return Status::error(Code::kInvalidArgument, "an IPv6 address and port is [ADDRESS]:PORT");
  }
  out.ip = *ip;
  return out;
}

std::string SocketAddress::to_string() const {
  if (ip.family == Family::kIpv6) return "[" + ip.to_string() + "]:" + std::to_string(port);
  return ip.to_string() + ":" + std::to_string(port);
}

Result<IpPrefix> IpPrefix::parse(std::string_view text) {
  const auto slash = text.find('/');
  if (slash == std::string_view::npos) {
    return Status::error(Code::kInvalidArgument, "expected ADDRESS/BITS");
  }
  auto ip = IpAddress::parse(text.substr(0, slash));
  if (!ip.ok()) return ip.status();
  IpPrefix out{*ip, 0};
  if (!parse_number(text.substr(slash + 1), out.length_bits) || out.length_bits > ip->size() * 8) {
    return Status::error(Code::kInvalidArgument, "the prefix length is out of range");
  }
  return out;
}

bool IpPrefix::contains(const IpAddress& address) const {
  if (address.family != ip.family) return false;
  const std::size_t whole = length_bits / 8;
  if (std::memcmp(address.bytes.data(), ip.bytes.data(), whole) != 0) return false;
  const unsigned rest = length_bits % 8u;
  if (rest == 0) return true;
  const auto mask = static_cast<std::uint8_t>(0xffu << (8 - rest));
  return ((address.bytes[whole] ^ ip.bytes[whole]) & mask) == 0;
}

}  // namespace sanproxy
