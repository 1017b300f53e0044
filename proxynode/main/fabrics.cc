#include "proxynode/main/fabrics.h"

#include <stdexcept>

#include "lwproto/fabric/shm/shm_fabric.h"

namespace sanproxy::proxy {
namespace {

Result<std::unique_ptr<fabric::Fabric>> make(const FabricConfig& config) {
  if (config.scheme == "shm") return fabric::make_shm_fabric();
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
