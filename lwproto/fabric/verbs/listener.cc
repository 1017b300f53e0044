#include "lwproto/fabric/verbs/listener.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <map>
#include <utility>

#include "lwproto/fabric/verbs/half_open.h"
#include "lwproto/fabric/verbs/socket_address.h"

namespace sanproxy::fabric::verbs {
namespace {

constexpr std::uint64_t kRetryNs = 1'000'000'000;

}  // namespace

Result<std::unique_ptr<Listener>> VerbsListener::create(std::shared_ptr<Core> core,
                                                        std::string address,
                                                        const SocketAddress& socket,
                                                        const EndpointOptions& options) {
  if (Status status = check_options(options); !status.ok()) return status;
  std::unique_ptr<VerbsListener> out(
      new VerbsListener(std::move(core), std::move(address), socket, options));
  if (Status status = out->listen(); !status.ok()) return status;
  return std::unique_ptr<Listener>(std::move(out));
}

VerbsListener::VerbsListener(std::shared_ptr<Core> core, std::string address,
                             const SocketAddress& socket, const EndpointOptions& options)
    : core_(std::move(core)), address_(std::move(address)), socket_(socket), options_(options) {
  // The connecting side asks, we only honour.
  options_.link = {};
  core_->add(static_cast<Sleeper*>(this));
}

VerbsListener::~VerbsListener() {
  core_->remove(static_cast<Sleeper*>(this));
  half_open_.clear();
}

Status VerbsListener::bind_and_listen() {
  auto id = core_->create_id(this);
  if (!id.ok()) return id.status();
  id_ = std::move(*id);
  sockaddr_storage at = system_address(socket_);
  if (::rdma_bind_addr(id_.get(), reinterpret_cast<sockaddr*>(&at)) != 0) {
    switch (errno) {
      case ENODEV:
        return without_device("no RDMA device has this address", errno);
      case EADDRNOTAVAIL:
        return Status::error(Code::kUnsupported, "no RDMA device has this address", errno);
      case EADDRINUSE:
        return Status::error(Code::kExists, "the port is in use", errno);
      default:
        return Status::error(Code::kSystem, "bind to an RDMA address", errno);
    }
  }
  if (::rdma_listen(id_.get(), static_cast<int>(core_->options().half_open_max)) != 0) {
    if (errno == EADDRINUSE) return Status::error(Code::kExists, "the port is in use", errno);
    return Status::error(Code::kSystem, "listen at an RDMA address", errno);
  }
  return {};
}

Status VerbsListener::listen() {
  if (Status status = bind_and_listen(); !status.ok()) return status;
  // The kernel takes a loopback address without a device, and then nobody ever comes.
  if (id_->verbs == nullptr && !socket_.ip.is_any()) {
    return Status::error(Code::kUnsupported, "no RDMA device has this address");
  }
  // A wildcard address has no device of its own: a peer may come by any.
  if (id_->verbs == nullptr) return keep_keys_everywhere();
  auto device = core_->device_of(*id_);
  if (!device.ok()) return device.status();
  return keep_keys(**device);
}

Status VerbsListener::keep_keys(Device& device) {
  const auto is_it = [&](const DeviceKeys& one) { return one.device.get() == &device; };
  if (std::any_of(keys_.begin(), keys_.end(), is_it)) return {};
  std::vector<const buffer::MemoryRegion*> regions = options_.send_regions;
  if (options_.receive_memory.region != nullptr) {
    regions.push_back(options_.receive_memory.region);
  }
  if (regions.empty()) return {};
  DeviceKeys kept;
  kept.device = device.shared_from_this();
  for (const buffer::MemoryRegion* region : regions) {
    auto key = device.register_region(*region);
    if (!key.ok()) return key.status();
    kept.keys.push_back(std::move(*key));
  }
  // A device that has failed comes back as another one.
  std::erase_if(keys_, [&](const DeviceKeys& one) { return one.device->name() == device.name(); });
  keys_.push_back(std::move(kept));
  return {};
}

// So that a limit on pinned memory shows now, not with the first peer. What else a device lacks is
// for those who come by it to see.
Status VerbsListener::keep_keys_everywhere() {
  if (options_.send_regions.empty() && options_.receive_memory.region == nullptr) return {};
  int count = 0;
  ibv_context** const contexts = ::rdma_get_devices(&count);
  Status status;
  for (int i = 0; i < count && status.ok(); ++i) {
    auto device = core_->open_device(contexts[i]->device);
    if (!device.ok()) continue;
    const Status kept = keep_keys(**device);
    if (kept.code() == Code::kExhausted) status = kept;
  }
  if (contexts != nullptr) ::rdma_free_devices(contexts);
  return status;
}

void VerbsListener::stop_listening() {
  keys_.clear();
  id_.reset();
  retry_ns_ = core_->now_ns() + kRetryNs;
  core_->wake_at(retry_ns_);
}

Result<ConnectRequest> VerbsListener::poll() {
  // Not behind a request: they may come as fast as their owner answers them.
  if (ready_.empty() && !std::exchange(handed_out_, false)) core_->pump_if_due();
  sweep();
  while (!ready_.empty()) {
    const auto half = find(ready_.front());
    ready_.pop_front();
    if (half == half_open_.end() || (*half)->state() != HalfOpen::State::kReady) continue;
    ConnectRequest request;
    request.token = (*half)->token();
    request.peer = (*half)->identity();
    request.private_data = (*half)->hello().private_data;
    handed_out_ = true;
    return request;
  }
  return Status::again();
}

void VerbsListener::on_cm_event(const CmEvent& event) {
  if (event.type == RDMA_CM_EVENT_CONNECT_REQUEST) {
    admit(CmId(event.id), event.private_data());
  } else if (event.type == RDMA_CM_EVENT_DEVICE_REMOVAL && event.id == id_.get()) {
    // For the kernel it is no listener any more, also when the device comes back.
    ++core_->counters().lost_listeners;
    stop_listening();
  }
}

// The oldest of the host that has most, by `weight`; null when nobody's place may be taken.
VerbsListener::HalfOpen* VerbsListener::next_to_give_way(std::size_t (*weight)(const HalfOpen&)) {
  std::map<IpAddress, std::size_t> held;
  std::size_t most = 0;
  for (const auto& half : half_open_) {
    if (half->may_give_way()) most = std::max(most, held[half->network()] += weight(*half));
  }
  if (most == 0) return nullptr;
  const auto oldest = std::find_if(half_open_.begin(), half_open_.end(), [&](const auto& half) {
    return half->may_give_way() && weight(*half) != 0 && held[half->network()] == most;
  });
  return oldest->get();
}

// It goes with the next sweep.
void VerbsListener::evict(HalfOpen& half) {
  ++core_->counters().evicted_half_open;
  half.die();
}

bool VerbsListener::make_room() {
  std::size_t held = 0;
  for (const auto& half : half_open_) held += half->state() != HalfOpen::State::kDead;
  if (held < core_->options().half_open_max) return true;
  HalfOpen* const first = next_to_give_way([](const HalfOpen&) { return std::size_t{1}; });
  if (first != nullptr) evict(*first);
  return first != nullptr;
}

void VerbsListener::turn_away(CmId id, Verdict verdict) {
  CmHeader header = header_of(options_);
  header.verdict = verdict;
  const auto bytes = encode(header);
  // A peer that does not get it sees its own time-out.
  (void)::rdma_reject(id.get(), bytes.data(), static_cast<std::uint8_t>(bytes.size()));
}

void VerbsListener::admit(CmId id, std::span<const std::byte> private_data) {
  // Nobody's event until a HalfOpen takes it.
  id->context = static_cast<Target*>(this);
  sweep();
  auto header = decode_cm_header(private_data);
  if (!header.ok()) {
    ++core_->counters().refused_headers;
    return turn_away(std::move(id), header.status().code() == Code::kUnsupported
                                        ? Verdict::kBadVersion
                                        : Verdict::kBadHeader);
  }
  if (!check_peer_sizes(options_, *header).ok()) {
    ++core_->counters().refused_headers;
    return turn_away(std::move(id), Verdict::kBadSizes);
  }
  if (header->queue_pair == 0) return admit_first(std::move(id), *header);
  admit_further(std::move(id), *header);
}

void VerbsListener::admit_first(CmId id, const CmHeader& header) {
  if (header.queue_pairs > core_->options().queue_pairs_max ||
      header.queue_pairs - 1u > core_->options().further_queue_pairs_max) {
    ++core_->counters().refused_queue_pairs;
    return turn_away(std::move(id), Verdict::kQueuePairs);
  }
  const IpAddress host = network_of(host_of(::rdma_get_peer_addr(id.get())));
  if (!rates_.take(host, header.queue_pairs, core_->options().queue_pairs_per_s, core_->now_ns())) {
    ++core_->counters().refused_too_fast;
    return turn_away(std::move(id), Verdict::kBusy);
  }
  if (!make_room()) {
    ++core_->counters().refused_busy;
    return turn_away(std::move(id), Verdict::kBusy);
  }
  sweep();
  half_open_.push_back(std::make_unique<HalfOpen>(core_, ready_, next_token_++));
  HalfOpen& half = *half_open_.back();
  if (!half.start(std::move(id), header, options_).ok()) {
    // The peer sees a rejection: the id goes with the queue pair, unanswered.
    ++core_->counters().failed_set_ups;
    half.die();
  }
}

// Makes room for one more queue pair of `half`, if need be at the cost of another handshake that
// has any.
bool VerbsListener::make_room_beside(const HalfOpen& half) {
  std::size_t held = 0;
  for (const auto& one : half_open_) held += one->further_lanes();
  if (held < core_->options().further_queue_pairs_max) return true;
  HalfOpen* const first = next_to_give_way([](const HalfOpen& one) { return one.further_lanes(); });
  if (first == nullptr || first == &half) return false;
  evict(*first);
  return true;
}

// A stranger's that guesses is turned away; whose channel it wanted to be part of notices nothing.
void VerbsListener::admit_further(CmId id, const CmHeader& header) {
  const auto half = std::find_if(half_open_.begin(), half_open_.end(),
                                 [&](const auto& one) { return one->expects(*id, header); });
  if (half == half_open_.end()) {
    ++core_->counters().refused_queue_pairs;
    return turn_away(std::move(id), Verdict::kQueuePairs);
  }
  if (!make_room_beside(**half)) {
    ++core_->counters().refused_busy;
    return turn_away(std::move(id), Verdict::kBusy);
  }
  if (!(*half)->add_lane(std::move(id), options_).ok()) {
    ++core_->counters().failed_set_ups;
    (*half)->die();
  }
  sweep();
}

void VerbsListener::sweep() {
  const auto gone = std::erase_if(
      half_open_, [](const auto& half) { return half->state() == HalfOpen::State::kDead; });
  if (gone == 0) return;
  std::erase_if(ready_, [this](std::uint64_t token) { return find(token) == half_open_.end(); });
}

bool VerbsListener::prepare_sleep() {
  for (const auto& half : half_open_) half->look();
  sweep();
  return ready_.empty();
}

std::uint64_t VerbsListener::deadline_ns() const {
  std::uint64_t next_ns = retry_ns_;
  for (const auto& half : half_open_) {
    // A ready one waits for our owner, not the other way round.
    if (half->state() != HalfOpen::State::kReady) {
      next_ns = std::min(next_ns, half->deadline_ns());
    }
  }
  return next_ns;
}

void VerbsListener::on_time(std::uint64_t now_ns) {
  if (now_ns >= retry_ns_) {
    retry_ns_ = kNever;
    // Makes librdmacm look which devices there are: it keeps one open that has gone, and would take
    // that one's name for it.
    ::rdma_free_devices(::rdma_get_devices(nullptr));
    if (!listen().ok()) stop_listening();
  }
  for (const auto& half : half_open_) {
    if (!half->expired(now_ns) || !half->may_give_way()) continue;
    if (half->state() == HalfOpen::State::kSilent) ++core_->counters().timed_out_half_open;
    half->die();
  }
  sweep();
}

VerbsListener::HalfOpens::iterator VerbsListener::find(std::uint64_t token) {
  return std::find_if(half_open_.begin(), half_open_.end(),
                      [token](const auto& half) { return half->token() == token; });
}

void VerbsListener::reject(const ConnectRequest& request, std::span<const std::byte> private_data) {
  const auto half = find(request.token);
  if (half == half_open_.end() || (*half)->state() != HalfOpen::State::kReady) return;
  (*half)->refuse(0, private_data);
}

Result<EndpointParts> VerbsListener::make_parts(HalfOpen& half,
                                                std::span<const std::byte> private_data) {
  EndpointParts parts;
  parts.core = core_;
  parts.identity = half.identity();
  parts.options = options_;
  parts.link = half.hello().link;
  parts.queue_pair = half.take_queue_pair();
  // From a device that was not there at the start.
  if (Status status = keep_keys(parts.queue_pair->device()); !status.ok()) return status;
  auto send =
      SendQueue::create(*parts.queue_pair, core_->options().ring_bytes, send_limits_of(options_));
  if (!send.ok()) return send.status();
  parts.send = std::move(*send);
  auto receive = ReceiveQueue::create(*parts.queue_pair, options_, 1);
  if (!receive.ok()) return receive.status();
  parts.receive = std::move(*receive);
  // Before the answer: the peer's first transfers may follow it at once.
  if (Status status = parts.receive->post_all(*parts.queue_pair, 0); !status.ok()) return status;
  std::array<std::byte, kHandshakeBytesMax> answer;
  const std::size_t bytes = encode_answer(private_data, answer);
  if (!parts.send->commit_control(Kind::kAccept, 0, std::span(answer).first(bytes))) {
    return Status::error(Code::kSystem, "no room for the answer");
  }
  if (const int error = parts.send->post(*parts.queue_pair); error != 0) {
    return Status::error(Code::kSystem, "post the answer", error);
  }
  return parts;
}

Result<std::unique_ptr<Endpoint>> VerbsListener::accept(const ConnectRequest& request,
                                                        std::span<const std::byte> private_data) {
  if (private_data.size() > kPrivateDataBytesMax) {
    return Status::error(Code::kInvalidArgument, "too much private data");
  }
  const auto half = find(request.token);
  if (half == half_open_.end() || (*half)->state() != HalfOpen::State::kReady) {
    return Status::error(Code::kNotFound, "no such connect request");
  }
  auto parts = make_parts(**half, private_data);
  std::unique_ptr<Endpoint> endpoint;
  if (parts.ok()) endpoint = std::make_unique<VerbsEndpoint>(std::move(*parts));
  half_open_.erase(half);
  if (!parts.ok()) return parts.status();
  return endpoint;
}

}  // namespace sanproxy::fabric::verbs
