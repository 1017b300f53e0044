#include "tests/lwproto/fabric/sim/sim_fabric.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <deque>
#include <map>

#include "lwproto/fabric/link_parameters.h"
#include "tests/lwproto/fabric/sim/endpoint.h"

namespace sanproxy::fabric::sim {

class SimListener;

class Network {
 public:
  explicit Network(std::shared_ptr<World> of) : world(std::move(of)) {}
  // What is under way keeps links alive, and they the world.
  ~Network() { world->clear(); }
  Network(const Network&) = delete;
  Network& operator=(const Network&) = delete;
  std::shared_ptr<World> world;
  std::map<std::string, SimListener*> listeners;
};

std::shared_ptr<Network> make_network(std::shared_ptr<World> world) {
  return std::make_shared<Network>(std::move(world));
}

namespace {

// Whoever has something for arm() to look at.
class Watched {
 public:
  virtual ~Watched() = default;
  virtual bool has_work() = 0;
  virtual void before_sleep() {}
};

// What a fabric shares with what it has made, which may outlive it.
class Core {
 public:
  Core(std::shared_ptr<Network> of, const SimOptions& with, int fd)
      : network(std::move(of)), options(with), event_fd(fd) {}
  ~Core() { ::close(event_fd); }
  Core(const Core&) = delete;
  Core& operator=(const Core&) = delete;

  World& world() { return *network->world; }
  void ring() {
    const std::uint64_t one = 1;
    if (armed) [[maybe_unused]]
      const ssize_t n = ::write(event_fd, &one, sizeof(one));
  }
  bool has_work() {
    bool work = false;
    for (Watched* each : watched) work |= each->has_work();
    return work;
  }

  std::shared_ptr<Network> network;
  SimOptions options;
  std::vector<Watched*> watched;
  bool armed = false;
  int event_fd;
};
using CorePtr = std::shared_ptr<Core>;

class WatchedBase : public Watched {
 public:
  explicit WatchedBase(CorePtr core) : core_(std::move(core)) { core_->watched.push_back(this); }
  ~WatchedBase() override { std::erase(core_->watched, this); }
  WatchedBase(const WatchedBase&) = delete;
  WatchedBase& operator=(const WatchedBase&) = delete;

 protected:
  CorePtr core_;
};

// The endpoint as its fabric hands it out: a SimEndpoint that a fabric watches.
class FabricEndpoint final : public Endpoint, private WatchedBase {
 public:
  FabricEndpoint(CorePtr core, const std::shared_ptr<Link>& link, int side, PeerIdentity peer)
      : WatchedBase(std::move(core)), inner_(link, side) {
    inner_.identity = std::move(peer);
    inner_.misuse_is_failure = core_->options.misuse_is_failure;
    inner_.set_wake([weak = std::weak_ptr(core_)] {
      if (const CorePtr alive = weak.lock()) alive->ring();
    });
  }
  const PeerIdentity& peer() const override { return inner_.peer(); }
  LinkParameters link() const override { return inner_.link(); }
  Result<RegionKey> attach(const buffer::MemoryRegion& region) override {
    return inner_.attach(region);
  }
  Result<std::span<std::byte>> begin_send(std::size_t inline_bytes) override {
    return inner_.begin_send(inline_bytes);
  }
  Status commit_send(std::size_t inline_bytes, std::span<const GatherRef> refs,
                     std::uint64_t cookie) override {
    return inner_.commit_send(inline_bytes, refs, cookie);
  }
  void flush() override { inner_.flush(); }
  void publish() override { inner_.publish(); }
  std::size_t poll(std::span<Completion> out) override { return inner_.poll(out); }
  void release(Loan loan) override { inner_.release(loan); }
  std::uint32_t replenish() override { return inner_.replenish(); }
  void disconnect(Status reason) override { inner_.disconnect(reason); }
  bool connected() const override { return inner_.connected(); }

  bool has_work() override { return inner_.take_work(); }
  void before_sleep() override { inner_.flush(); }

 private:
  SimEndpoint inner_;
};

// What becomes of an attempt; shared by the two ends of it.
struct Attempt {
  bool given_up = false;
  bool answered = false;
  Status failure;
  std::shared_ptr<Link> link;  // accepted
  Bytes private_data;          // of the answer
  std::function<void()> wake;

  void answer(Status status) {
    if (answered) return;
    answered = true;
    failure = status;
    if (wake) wake();
  }
};
using AttemptPtr = std::shared_ptr<Attempt>;

struct HalfOpen {
  AttemptPtr attempt;
  EndpointOptions theirs;
  ConnectRequest request;
};

}  // namespace

class SimListener final : public Listener, private WatchedBase {
 public:
  SimListener(CorePtr core, std::string address, const EndpointOptions& options)
      : WatchedBase(std::move(core)), address_(std::move(address)), options_(options) {
    core_->network->listeners[address_] = this;
  }
  ~SimListener() override {
    core_->network->listeners.erase(address_);
    for (auto& [token, half] : half_open_) {
      tell(half.attempt, Status::error(Code::kDisconnected, "the listener has gone"));
    }
  }
  const std::string& address() const override { return address_; }

  void knock(HalfOpen half) {
    std::erase_if(half_open_, [](const auto& each) { return each.second.attempt->given_up; });
    if (half_open_.size() >= core_->options.half_open_max) {
      return tell(half.attempt, Status::error(Code::kDisconnected, "too many wait already"));
    }
    const std::uint64_t token = next_token_++;
    half.request.token = token;
    half.request.peer.address = "sim";
    half_open_.emplace(token, std::move(half));
    to_poll_.push_back(token);
    core_->ring();
  }
  Result<ConnectRequest> poll() override {
    if (to_poll_.empty() && !std::exchange(handed_out_, false)) core_->world().step();
    while (!to_poll_.empty()) {
      const auto half = half_open_.find(to_poll_.front());
      to_poll_.pop_front();
      handed_out_ = half != half_open_.end();
      if (handed_out_) return half->second.request;
    }
    return Status::again();
  }
  Result<std::unique_ptr<Endpoint>> accept(const ConnectRequest& request,
                                           std::span<const std::byte> private_data) override {
    if (private_data.size() > kPrivateDataBytesMax) {
      return Status::error(Code::kInvalidArgument, "too much private data");
    }
    auto half = half_open_.extract(request.token);
    if (half.empty()) return Status::error(Code::kNotFound, "no such connect request");
    const HalfOpen& from = half.mapped();
    LinkOptions link_options = core_->options.link;
    link_options.parameters = from.theirs.link;
    auto link = std::make_shared<Link>(core_->network->world, link_options,
                                       std::array<EndpointOptions, 2>{options_, from.theirs});
    if (const Status opened = link->open(0); !opened.ok()) {
      tell(from.attempt, Status::error(Code::kDisconnected, "the listener is short of memory"));
      return opened;
    }
    if (from.attempt->given_up) {
      link->disconnect(1, Status::error(Code::kDisconnected, "given up"));
    } else if (const Status opened = link->open(1); !opened.ok()) {
      link->close(0);
      tell(from.attempt, opened);
      return Status::error(Code::kDisconnected, "the peer is short of memory");
    }
    from.attempt->private_data.assign(private_data.begin(), private_data.end());
    from.attempt->link = link;
    auto endpoint = std::make_unique<FabricEndpoint>(core_, link, 0, from.request.peer);
    tell(from.attempt, {});
    return std::unique_ptr<Endpoint>(std::move(endpoint));
  }
  void reject(const ConnectRequest& request, std::span<const std::byte> private_data) override {
    auto half = half_open_.extract(request.token);
    if (half.empty()) return;
    private_data = private_data.first(std::min(private_data.size(), kPrivateDataBytesMax));
    half.mapped().attempt->private_data.assign(private_data.begin(), private_data.end());
    tell(half.mapped().attempt, Status::error(Code::kRefused, "rejected by the listener"));
  }
  bool has_work() override { return !to_poll_.empty(); }

 private:
  void tell(const AttemptPtr& attempt, Status status) {
    core_->world().after(core_->world().delay_ns(), [attempt, status] { attempt->answer(status); });
  }

  std::string address_;
  EndpointOptions options_;
  std::uint64_t next_token_ = 1;
  std::deque<std::uint64_t> to_poll_;
  bool handed_out_ = false;  // a request, by the last poll()
  std::map<std::uint64_t, HalfOpen> half_open_;
};

namespace {

class SimConnecting final : public Connecting, private WatchedBase {
 public:
  SimConnecting(CorePtr core, const std::string& address, std::span<const std::byte> private_data,
                const EndpointOptions& options)
      : WatchedBase(std::move(core)), attempt_(std::make_shared<Attempt>()) {
    attempt_->wake = [weak = std::weak_ptr(core_)] {
      if (const CorePtr alive = weak.lock()) alive->ring();
    };
    HalfOpen half{attempt_, options, {}};
    half.request.private_data.assign(private_data.begin(), private_data.end());
    core_->world().after(
        core_->world().delay_ns(), [to = std::weak_ptr(core_->network), address, half] {
          const auto network = to.lock();
          if (half.attempt->given_up || network == nullptr) return;
          const auto listener = network->listeners.find(address);
          if (listener != network->listeners.end()) return listener->second->knock(half);
          half.attempt->answer(Status::error(Code::kNotFound, "nobody listens there"));
        });
  }
  ~SimConnecting() override {
    attempt_->given_up = true;
    if (attempt_->link && !taken_) {
      attempt_->link->disconnect(1, Status::error(Code::kDisconnected, "given up"));
      attempt_->link->close(1);
    }
  }
  Result<std::unique_ptr<Endpoint>> poll() override {
    if (!attempt_->answered) core_->world().step();
    if (!attempt_->answered) return Status::again();
    if (!attempt_->failure.ok()) return attempt_->failure;
    if (std::exchange(taken_, true)) {
      return Status::error(Code::kInvalidArgument, "the endpoint was already handed out");
    }
    PeerIdentity peer;
    peer.address = "sim";
    return std::unique_ptr<Endpoint>(
        std::make_unique<FabricEndpoint>(core_, attempt_->link, 1, std::move(peer)));
  }
  std::span<const std::byte> private_data() const override { return attempt_->private_data; }
  bool has_work() override { return attempt_->answered && !std::exchange(told_, true); }

 private:
  AttemptPtr attempt_;
  bool taken_ = false;
  bool told_ = false;
};

Status check(const std::string& address, const EndpointOptions& options) {
  if (!address.starts_with("sim:"))
    return Status::error(Code::kInvalidArgument, "expected sim:NAME");
  const ReceiveMemory& memory = options.receive_memory;
  if (memory.pool != nullptr && memory.pool->slot_bytes() < options.transfer_bytes_max) {
    return Status::error(Code::kInvalidArgument, "slots smaller than a transfer");
  }
  return check_link(options.link);
}

class SimFabric final : public Fabric {
 public:
  explicit SimFabric(CorePtr core) : core_(std::move(core)) {}
  const char* name() const override { return "sim"; }

  Result<std::unique_ptr<Listener>> listen(const std::string& address,
                                           const EndpointOptions& options) override {
    if (const Status status = check(address, options); !status.ok()) return status;
    if (core_->network->listeners.contains(address)) {
      return Status::error(Code::kExists, "somebody listens there already");
    }
    return std::unique_ptr<Listener>(std::make_unique<SimListener>(core_, address, options));
  }
  Result<std::unique_ptr<Connecting>> connect(const std::string& address,
                                              std::span<const std::byte> private_data,
                                              const EndpointOptions& options) override {
    if (const Status status = check(address, options); !status.ok()) return status;
    if (private_data.size() > kPrivateDataBytesMax) {
      return Status::error(Code::kInvalidArgument, "too much private data");
    }
    return std::unique_ptr<Connecting>(
        std::make_unique<SimConnecting>(core_, address, private_data, options));
  }
  int event_fd() const override { return core_->event_fd; }
  bool arm() override {
    for (Watched* each : core_->watched) each->before_sleep();
    core_->armed = true;
    bool work = core_->has_work();
    if (!work && core_->world().step()) work = core_->has_work();
    if (work) {
      core_->armed = false;
      return false;
    }
    // More is to come: the sleep ends at once, and the next one lets it happen.
    if (!core_->world().idle()) core_->ring();
    return true;
  }
  void disarm() override {
    core_->armed = false;
    std::uint64_t rings = 0;
    [[maybe_unused]] const ssize_t n = ::read(core_->event_fd, &rings, sizeof(rings));
  }

 private:
  CorePtr core_;
};

}  // namespace

Result<std::unique_ptr<Fabric>> make_sim_fabric(std::shared_ptr<Network> network,
                                                const SimOptions& options) {
  const int fd = ::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (fd < 0) return Status::error(Code::kSystem, "create an eventfd", errno);
  return std::unique_ptr<Fabric>(
      std::make_unique<SimFabric>(std::make_shared<Core>(std::move(network), options, fd)));
}

}  // namespace sanproxy::fabric::sim
