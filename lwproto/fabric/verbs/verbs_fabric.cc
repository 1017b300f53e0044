#include "lwproto/fabric/verbs/verbs_fabric.h"

#include "lwproto/fabric/address.h"
#include "lwproto/fabric/link_parameters.h"
#include "lwproto/fabric/verbs/connecting.h"
#include "lwproto/fabric/verbs/core.h"
#include "lwproto/fabric/verbs/listener.h"

namespace sanproxy::fabric {
namespace {

Result<SocketAddress> socket_of(const std::string& address) {
  auto parsed = FabricAddress::parse(address);
  if (!parsed.ok()) return parsed.status();
  if (parsed->scheme != "verbs") {
    return Status::error(Code::kInvalidArgument, "expected an address like verbs://10.9.0.1:7471");
  }
  return parsed->socket;
}

class VerbsFabric final : public Fabric {
 public:
  explicit VerbsFabric(std::shared_ptr<verbs::Core> core) : core_(std::move(core)) {}

  const char* name() const override { return "verbs"; }

  Result<std::unique_ptr<Listener>> listen(const std::string& address,
                                           const EndpointOptions& options) override {
    auto socket = socket_of(address);
    if (!socket.ok()) return socket.status();
    return verbs::VerbsListener::create(core_, address, *socket, options);
  }

  Result<std::unique_ptr<Connecting>> connect(const std::string& address,
                                              std::span<const std::byte> private_data,
                                              const EndpointOptions& options) override {
    auto socket = socket_of(address);
    if (!socket.ok()) return socket.status();
    return verbs::VerbsConnecting::create(core_, *socket, private_data, options);
  }

  std::vector<NamedCount> counts() const override {
    const VerbsCounters& c = core_->counters();
    return {{"refused_headers", c.refused_headers},
            {"refused_queue_pairs", c.refused_queue_pairs},
            {"refused_hellos", c.refused_hellos},
            {"refused_busy", c.refused_busy},
            {"refused_too_fast", c.refused_too_fast},
            {"evicted_half_open", c.evicted_half_open},
            {"timed_out_half_open", c.timed_out_half_open},
            {"failed_set_ups", c.failed_set_ups},
            {"port_errors", c.port_errors},
            {"device_errors", c.device_errors},
            {"lost_listeners", c.lost_listeners},
            {"unflushed_queues", c.unflushed_queues}};
  }

  int event_fd() const override { return core_->event_fd(); }
  void wake_in(int epoll_fd) override { core_->wake_in(epoll_fd); }
  bool arm() override { return core_->arm(); }
  void disarm() override { core_->disarm(); }

 private:
  std::shared_ptr<verbs::Core> core_;
};

}  // namespace

Result<std::unique_ptr<Fabric>> make_verbs_fabric(const VerbsOptions& options) {
  if (options.queue_pairs == 0 || options.queue_pairs > kQueuePairsMax) {
    return Status::error(Code::kInvalidArgument, "queue_pairs out of range");
  }
  auto core = verbs::Core::create(options);
  if (!core.ok()) return core.status();
  return std::unique_ptr<Fabric>(std::make_unique<VerbsFabric>(std::move(*core)));
}

}  // namespace sanproxy::fabric
