#include "lwproto/fabric/tcp/tcp_fabric.h"

#include <sys/stat.h>

#include <bit>
#include <cstring>
#include <iterator>
#include <string>
#include <utility>

#include "lwproto/fabric/address.h"
#include "lwproto/fabric/tcp/connecting.h"
#include "lwproto/fabric/tcp/core.h"
#include "lwproto/fabric/tcp/listener.h"

namespace sanproxy::fabric {
namespace {

Result<SocketAddress> socket_of(const std::string& address) {
  auto parsed = FabricAddress::parse(address);
  if (!parsed.ok()) return parsed.status();
  if (parsed->scheme != "tcp") {
    return Status::error(Code::kInvalidArgument, "expected an address like tcp://10.9.0.1:7471");
  }
  return parsed->socket;
}

class TcpFabric final : public Fabric {
 public:
  explicit TcpFabric(std::shared_ptr<tcp::Core> core) : core_(std::move(core)) {}

  const char* name() const override { return "tcp"; }

  Result<std::unique_ptr<Listener>> listen(const std::string& address,
                                           const EndpointOptions& options) override {
    auto socket = socket_of(address);
    if (!socket.ok()) return socket.status();
    return tcp::TcpListener::create(core_, *socket, options);
  }

  Result<std::unique_ptr<Connecting>> connect(const std::string& address,
                                              std::span<const std::byte> private_data,
                                              const EndpointOptions& options) override {
    auto socket = socket_of(address);
    if (!socket.ok()) return socket.status();
    return tcp::TcpConnecting::create(core_, *socket, private_data, options);
  }

  std::vector<NamedCount> counts() const override {
    const TcpCounters& c = core_->counters();
    return {{"connections", c.connections},
            {"channels", c.channels},
            {"overflows", c.overflows},
            {"timeouts", c.timeouts},
            {"malformed", c.malformed},
            {"wrong_tokens", c.wrong_tokens},
            {"tls_failures", c.tls_failures},
            {"refused_links", c.refused_links},
            {"lingering_dropped", c.lingering_dropped}};
  }

  int event_fd() const override { return core_->event_fd(); }
  bool arm() override { return core_->arm(); }
  void disarm() override { core_->disarm(); }

 private:
  std::shared_ptr<tcp::Core> core_;
};

Status check(const TcpOptions& options) {
  const int files = (options.certificate_file.empty() ? 0 : 1) +
                    (options.key_file.empty() ? 0 : 1) + (options.authority_file.empty() ? 0 : 1);
  if (files != 0 && files != 3) {
    return Status::error(Code::kInvalidArgument,
                         "TLS needs certificate_file, key_file and authority_file");
  }
  if (files == 0 && !options.server_name.empty()) {
    return Status::error(Code::kInvalidArgument, "server_name needs TLS");
  }
  if (options.streams_max == 0 || options.streams_max > kTcpStreamsMax ||
      options.parallel_streams == 0 || options.parallel_streams > options.streams_max) {
    return Status::error(Code::kInvalidArgument, "parallel_streams or streams_max out of range");
  }
  if (options.peer_timeout_ms < kTcpPeerTimeoutMsMin ||
      options.peer_timeout_ms > kTcpPeerTimeoutMsMax) {
    return Status::error(Code::kInvalidArgument, "peer_timeout_ms out of range");
  }
  if (options.half_open_max == 0 || options.tls_handshakes_per_s == 0 ||
      options.lingering_max == 0 || options.handshake_timeout_ms == 0 ||
      options.close_timeout_ms == 0 || !std::has_single_bit(options.send_queue_bytes)) {
    return Status::error(Code::kInvalidArgument, "an option of the tcp fabric is out of range");
  }
  return {};
}

}  // namespace

std::string tls_files_problem(const TcpOptions& options) {
  if (options.certificate_file.empty()) return {};
  struct stat info {};
  if (::stat(options.key_file.c_str(), &info) == 0 && (info.st_mode & (S_IROTH | S_IWOTH)) != 0) {
    return "key \"" + options.key_file + "\": open to everybody (chmod o-rw would mend that)";
  }
  const auto tls =
      tcp::TlsContext::create(options.certificate_file, options.key_file, options.authority_file);
  if (tls.ok()) {
    if (!(*tls)->expired()) return {};
    return "certificate \"" + options.certificate_file + "\": expired";
  }
  std::string text = tls.status().to_string();
  const std::pair<const char*, const std::string*> files[] = {
      {"certificate_file: ", &options.certificate_file},
      {"key_file: ", &options.key_file},
      {"authority_file: ", &options.authority_file}};
  const char* const keys[] = {"certificate", "key", "ca"};
  for (std::size_t i = 0; i < std::size(files); ++i) {
    const std::size_t at = text.find(files[i].first);
    if (at == std::string::npos) continue;
    return std::string(keys[i]) + " \"" + *files[i].second +
           "\": " + text.substr(at + std::strlen(files[i].first));
  }
  return text;
}

Result<std::unique_ptr<Fabric>> make_tcp_fabric(const TcpOptions& options) {
  if (Status checked = check(options); !checked.ok()) return checked;
  auto core = tcp::Core::create(options);
  if (!core.ok()) return core.status();
  return std::unique_ptr<Fabric>(std::make_unique<TcpFabric>(std::move(*core)));
}

}  // namespace sanproxy::fabric
