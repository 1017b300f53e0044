#include <cstring>

#include "appnode-lib/client/convert.h"
#include "lwproto/wire/codec.h"
#include "sanproxy/address.h"
#include "sanproxy/connection.h"
#include "sanproxy/status.h"

namespace sanproxy::app {

std::string Status::to_string() const {
  std::string out = code_name(static_cast<internal::BaseCode>(code_));
  if (*text_ != '\0') out.append(": ").append(text_);
  if (sys_errno_ != 0) out.append(" (").append(std::strerror(sys_errno_)).append(")");
  return out;
}

const char* to_string(CloseCode code) {
  switch (code) {
    case CloseCode::kProxyLost:
      return "proxy_lost";
    case CloseCode::kNodeClosed:
      return "node_closed";
    default:
      return wire::close_code_name(static_cast<wire::CloseCode>(code));
  }
}

Result<Address> Address::parse(std::string_view text) {
  auto parsed = SocketAddress::parse(text);
  if (!parsed.ok()) return internal::to_public(parsed.status());
  return internal::to_public(*parsed);
}

std::string Address::to_string() const {
  if (family == 0) return "-";
  return internal::to_base(*this).to_string();
}

}  // namespace sanproxy::app
