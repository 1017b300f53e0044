#include "lwproto/fabric/verbs/socket_address.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include <cstring>

namespace sanproxy::fabric::verbs {

sockaddr_storage system_address(const SocketAddress& address) {
  sockaddr_storage out{};
  if (address.ip.family == Family::kIpv6) {
    sockaddr_in6 in{};
    in.sin6_family = AF_INET6;
    in.sin6_port = htons(address.port);
    std::memcpy(&in.sin6_addr, address.ip.bytes.data(), sizeof(in.sin6_addr));
    std::memcpy(&out, &in, sizeof(in));
  } else {
    sockaddr_in in{};
    in.sin_family = AF_INET;
    in.sin_port = htons(address.port);
    std::memcpy(&in.sin_addr, address.ip.bytes.data(), sizeof(in.sin_addr));
    std::memcpy(&out, &in, sizeof(in));
  }
  return out;
}

IpAddress host_of(const sockaddr* address) {
  IpAddress out;
  if (address->sa_family == AF_INET) {
    out.family = Family::kIpv4;
    std::memcpy(out.bytes.data(), &reinterpret_cast<const sockaddr_in*>(address)->sin_addr, 4);
  } else if (address->sa_family == AF_INET6) {
    out.family = Family::kIpv6;
    std::memcpy(out.bytes.data(), &reinterpret_cast<const sockaddr_in6*>(address)->sin6_addr, 16);
  }
  return out;
}

}  // namespace sanproxy::fabric::verbs
