#include "lwproto/fabric/shm/shm_fabric.h"

#include "lwproto/fabric/address.h"
#include "lwproto/fabric/link_parameters.h"
#include "lwproto/fabric/shm/connecting.h"
#include "lwproto/fabric/shm/core.h"
#include "lwproto/fabric/shm/listener.h"

namespace sanproxy::fabric {
namespace {

Result<std::string> path_of(const std::string& address) {
  auto parsed = FabricAddress::parse(address);
  if (!parsed.ok()) return parsed.status();
  if (parsed->scheme != "shm") {
    return Status::error(Code::kInvalidArgument, "expected an address like shm:/PATH");
  }
  return parsed->path;
}

class ShmFabric final : public Fabric {
 public:
  explicit ShmFabric(std::shared_ptr<shm::Core> core) : core_(std::move(core)) {}

  const char* name() const override { return "shm"; }

  Result<std::unique_ptr<Listener>> listen(const std::string& address,
                                           const EndpointOptions& options) override {
    auto path = path_of(address);
    if (!path.ok()) return path.status();
    return shm::ShmListener::create(core_, address, *path, options);
  }

  Result<std::unique_ptr<Connecting>> connect(const std::string& address,
                                              std::span<const std::byte> private_data,
                                              const EndpointOptions& options) override {
    auto path = path_of(address);
    if (!path.ok()) return path.status();
    // There is no link here whose window, rate or class could be chosen.
    if (const Status status = require_link(options.link, 0); !status.ok()) return status;
    return shm::ShmConnecting::create(core_, *path, private_data, options);
  }

  int event_fd() const override { return core_->event_fd(); }
  void wake_in(int epoll_fd) override { core_->wake_in(epoll_fd); }
  void watch_regions(RegionWatcher* watcher) override { core_->watch_regions(watcher); }
  bool arm() override { return core_->arm(); }
  void disarm() override { core_->disarm(); }

 private:
  std::shared_ptr<shm::Core> core_;
};

}  // namespace

Result<std::unique_ptr<Fabric>> make_shm_fabric(const ShmOptions& options) {
  auto core = shm::Core::create(options);
  if (!core.ok()) return core.status();
  return std::unique_ptr<Fabric>(std::make_unique<ShmFabric>(std::move(*core)));
}

}  // namespace sanproxy::fabric
