#include "proxynode/main/fabrics.h"

#include <stdexcept>

#include "lwproto/fabric/shm/shm_fabric.h"
#include "lwproto/fabric/tcp/tcp_fabric.h"
#include "lwproto/fabric/verbs/verbs_fabric.h"

namespace sanproxy::proxy {
namespace {

Result<std::unique_ptr<fabric::Fabric>> make_tcp(const FabricConfig& config) {
  fabric::TcpOptions options;
  options.certificate_file = config.certificate;
  options.key_file = config.key;
  options.authority_file = config.ca;
  options.streams_max = config.streams_max;
  options.window_bytes_max = config.window_bytes_max;
  return fabric::make_tcp_fabric(options);
}

Result<std::unique_ptr<fabric::Fabric>> make_verbs() {
  auto fabric = fabric::make_verbs_fabric();
  if (!fabric.ok()) return fabric.status();
  return std::unique_ptr<fabric::Fabric>(std::move(fabric).value());
}

Result<std::unique_ptr<fabric::Fabric>> make(const FabricConfig& config) {
  if (config.scheme == "shm") return fabric::make_shm_fabric();
  if (config.scheme == "tcp") return make_tcp(config);
  if (config.scheme == "verbs") return make_verbs();
  return Status::error(Code::kUnsupported, "this build has no such fabric");
}

}  // namespace

std::unique_ptr<fabric::Fabric> make_fabric(const FabricConfig& config) {
  auto fabric = make(config);
  if (!fabric.ok()) {
    throw std::runtime_error("fabric " + config.listen + ": " + fabric.status().to_string());
  }
  return std::move(fabric).value();
}

}  // namespace sanproxy::proxy
