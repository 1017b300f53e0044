#include "proxynode/main/fabrics.h"

#include <algorithm>
#include <stdexcept>

#include "lwproto/fabric/shm/shm_fabric.h"
#include "lwproto/fabric/tcp/tcp_fabric.h"
#include "lwproto/fabric/verbs/verbs_fabric.h"

namespace sanproxy::proxy {
namespace {

fabric::TcpOptions tls_of(const FabricConfig& config) {
  fabric::TcpOptions options;
  options.certificate_file = config.certificate;
  options.key_file = config.key;
  options.authority_file = config.ca;
  return options;
}

Result<std::unique_ptr<fabric::Fabric>> make_tcp(const FabricConfig& config) {
  fabric::TcpOptions options = tls_of(config);
  options.streams_max = config.streams_max;
  options.window_bytes_max = config.window_bytes_max;
  options.window_total_max = config.window_total_max != 0
                                 ? config.window_total_max
                                 : std::max(options.window_total_max, options.window_bytes_max);
  options.half_open_max = config.handshakes_max;
  options.tls_handshakes_per_s = config.tls_handshakes_per_s;
  return fabric::make_tcp_fabric(options);
}

Result<std::unique_ptr<fabric::Fabric>> make_verbs(const FabricConfig& config) {
  fabric::VerbsOptions options;
  options.half_open_max = config.handshakes_max;
  options.queue_pairs_max = config.queue_pairs_max;
  options.further_queue_pairs_max = config.further_queue_pairs_max;
  options.queue_pairs_per_s = config.queue_pairs_per_s;
  return fabric::make_verbs_fabric(options);
}

Result<std::unique_ptr<fabric::Fabric>> make_shm(const FabricConfig& config) {
  fabric::ShmOptions options;
  options.half_open_max = config.handshakes_max;
  return fabric::make_shm_fabric(options);
}

Result<std::unique_ptr<fabric::Fabric>> make(const FabricConfig& config) {
  if (config.scheme == "shm") return make_shm(config);
  if (config.scheme == "tcp") return make_tcp(config);
  if (config.scheme == "verbs") return make_verbs(config);
  return Status::error(Code::kUnsupported, "this build has no such fabric");
}

}  // namespace

void check_files(const FabricConfig& config) {
  const std::string problem = fabric::tls_files_problem(tls_of(config));
  if (!problem.empty()) throw std::runtime_error("fabric " + config.listen + ": " + problem);
}

std::unique_ptr<fabric::Fabric> make_fabric(const FabricConfig& config) {
  check_files(config);
  auto fabric = make(config);
  if (!fabric.ok()) {
    throw std::runtime_error("fabric " + config.listen + ": " + fabric.status().to_string());
  }
  return std::move(fabric).value();
}

}  // namespace sanproxy::proxy
