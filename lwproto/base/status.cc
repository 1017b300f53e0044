#include "lwproto/base/status.h"

#include <system_error>

namespace sanproxy {

const char* code_name(Code code) {
  switch (code) {
    case Code::kOk:
      return "ok";
    case Code::kAgain:
      return "again";
    case Code::kExhausted:
      return "exhausted";
    case Code::kInvalidArgument:
      return "invalid_argument";
    case Code::kProtocol:
      return "protocol";
    case Code::kNotFound:
      return "not_found";
    case Code::kExists:
      return "exists";
    case Code::kRefused:
      return "refused";
    case Code::kPermission:
      return "permission";
    case Code::kDisconnected:
      return "disconnected";
    case Code::kTimeout:
      return "timeout";
    case Code::kUnsupported:
      return "unsupported";
    case Code::kSystem:
      return "system";
  }
  return "unknown";
}

std::string errno_text(int error) { return std::generic_category().message(error); }

std::string Status::to_string() const {
  if (ok()) return "ok";
  std::string out = std::string(code_name(code_)) + ": " + text_;
  if (sys_errno_ != 0) out += " (" + errno_text(sys_errno_) + ")";
  return out;
}

}  // namespace sanproxy
