#include "lwproto/fabric/address.h"

namespace sanproxy::fabric {
namespace {

// sun_path holds 108 bytes with its terminator.
constexpr std::size_t kShmPathBytesMax = 107;

}  // namespace

Result<FabricAddress> FabricAddress::parse(std::string_view text) {
  const auto colon = text.find(':');
  if (colon == std::string_view::npos) {
    return Status::error(Code::kInvalidArgument,
                         "expected shm:/PATH, verbs://ADDRESS:PORT or tcp://ADDRESS:PORT");
  }
  FabricAddress out;
  out.scheme = text.substr(0, colon);
  std::string_view rest = text.substr(colon + 1);
  if (out.scheme == "shm") {
    if (rest.size() < 2 || rest.front() != '/' || rest.back() == '/' ||
        rest.find('\0') != std::string_view::npos) {
      return Status::error(Code::kInvalidArgument, "expected shm:/ABSOLUTE/PATH of a socket");
    }
    if (rest.size() > kShmPathBytesMax) {
      return Status::error(Code::kInvalidArgument, "the socket path is longer than 107 bytes");
    }
    out.path = rest;
    return out;
  }
  if (out.scheme != "verbs" && out.scheme != "tcp") {
    return Status::error(Code::kInvalidArgument, "the fabric is one of shm, verbs, tcp");
  }
  if (!rest.starts_with("//")) {
    return Status::error(Code::kInvalidArgument, "expected //ADDRESS:PORT after the fabric");
  }
  auto socket = SocketAddress::parse(rest.substr(2));
  if (!socket.ok()) return socket.status();
  out.socket = *socket;
  return out;
}

Result<FabricAddress> FabricAddress::of_worker(std::uint32_t index) const {
  FabricAddress out = *this;
  if (index == 0) return out;
  if (scheme == "shm") {
    out.path += "." + std::to_string(index);
    if (out.path.size() > kShmPathBytesMax) {
      return Status::error(Code::kInvalidArgument,
                           "the socket path of a worker is longer than 107 bytes");
    }
    return out;
  }
  if (socket.port + index > 65'535) {
    return Status::error(Code::kInvalidArgument, "the port of a worker is above 65535");
  }
  out.socket.port = static_cast<std::uint16_t>(socket.port + index);
  return out;
}

std::string FabricAddress::to_string() const {
  if (scheme == "shm") return "shm:" + path;
  return scheme + "://" + socket.to_string();
}

}  // namespace sanproxy::fabric
