#include "lwproto/fabric/verbs/connecting.h"

#include <array>
#include <cerrno>

#include "lwproto/fabric/verbs/socket_address.h"

namespace sanproxy::fabric::verbs {
namespace {

// RDMA_CM_EVENT_REJECTED carries the reason of the InfiniBand CM (IBTA vol. 1, 12.6.7.2).
constexpr int kRejectInvalidServiceId = 8;
// Of an address event: librdmacm's own word for a device that it cannot open.
constexpr int kNoDeviceHere = -1;

}  // namespace

Result<std::unique_ptr<Connecting>> VerbsConnecting::create(std::shared_ptr<Core> core,
                                                            const SocketAddress& address,
                                                            std::span<const std::byte> private_data,
                                                            const EndpointOptions& options) {
  if (private_data.size() > kPrivateDataBytesMax) {
    return Status::error(Code::kInvalidArgument, "too much private data");
  }
  if (Status status = check_options(options); !status.ok()) return status;
  if (Status status = check_asked_link(options.link); !status.ok()) return status;
  std::unique_ptr<VerbsConnecting> out(new VerbsConnecting(std::move(core), private_data, options));
  if (out->options_.link.queue_pairs == 0) {
    out->options_.link.queue_pairs = out->core_->options().queue_pairs;
  }
  out->address_ = address;
  if (Status status = out->dial(); !status.ok()) return status;
  return std::unique_ptr<Connecting>(std::move(out));
}

VerbsConnecting::VerbsConnecting(std::shared_ptr<Core> core,
                                 std::span<const std::byte> private_data,
                                 const EndpointOptions& options)
    : core_(std::move(core)),
      hello_data_(private_data.begin(), private_data.end()),
      options_(options),
      deadline_ns_(core_->now_ns() + core_->options().handshake_timeout_ms * 1'000'000ull) {
  core_->add(static_cast<Sleeper*>(this));
  core_->wake_at(deadline_ns_);
}

VerbsConnecting::~VerbsConnecting() {
  core_->remove(static_cast<Sleeper*>(this));
  further_.reset();
  queue_pair_.reset();
}

// What went wrong once the first queue pair was there went wrong for the sake of the others.
Status VerbsConnecting::in_words(Status status) const {
  const bool further =
      queue_pair_ &&
      (state_ < State::kConnecting ||
       (state_ == State::kConnecting && (further_ || queue_pair_->lanes_ready() > 1)));
  if (!further) return status;
  switch (status.code()) {
    case Code::kUnsupported:
      return status;  // names it
    case Code::kTimeout:
      return Status::error(Code::kTimeout,
                           "link parameter queue_pairs: they could not be set up in time");
    case Code::kRefused:
      return field_refused_by_peer(kLinkQueuePairs);
    default:
      return Status::error(status.code(),
                           "link parameter queue_pairs: one more could not be set up",
                           status.sys_errno());
  }
}

void VerbsConnecting::fail(Status status) {
  if (!waiting()) {
    // The endpoint was not handed out yet, and gets to hear it.
    if (state_ == State::kReady) peer_gone_ = true;
    return;
  }
  failure_ = in_words(status);
  state_ = State::kFailed;
  further_.reset();
  queue_pair_.reset();
  id_.reset();
}

Status VerbsConnecting::dial() {
  state_ = State::kResolvingAddress;
  auto id = core_->create_id(this);
  if (!id.ok()) return id.status();
  id_ = std::move(*id);
  if (const std::int16_t traffic_class = traffic_class_of(options_.link); traffic_class >= 0) {
    auto tos = static_cast<std::uint8_t>(traffic_class);
    if (::rdma_set_option(id_.get(), RDMA_OPTION_ID, RDMA_OPTION_ID_TOS, &tos, sizeof(tos)) != 0) {
      return Status::error(Code::kUnsupported, "traffic_class: the connection manager refuses it",
                           errno);
    }
  }
  sockaddr_storage to = system_address(address_);
  // The server takes further queue pairs from the host of the first alone: a host that has several
  // ways to it goes the same one each time.
  sockaddr_storage from{};
  if (queue_pair_) from = queue_pair_->local_host();
  if (::rdma_resolve_addr(id_.get(), queue_pair_ ? reinterpret_cast<sockaddr*>(&from) : nullptr,
                          reinterpret_cast<sockaddr*>(&to),
                          static_cast<int>(core_->options().handshake_timeout_ms)) != 0) {
    if (errno == ENODEV) {
      return without_device("no RDMA device leads to this address", errno);
    }
    return Status::error(Code::kSystem, "look for a way to an address", errno);
  }
  return {};
}

Status VerbsConnecting::resolve_route() {
  state_ = State::kResolvingRoute;
  if (::rdma_resolve_route(id_.get(), static_cast<int>(core_->options().handshake_timeout_ms)) !=
      0) {
    return Status::error(Code::kSystem, "look for a route", errno);
  }
  return {};
}

Status VerbsConnecting::request() {
  state_ = State::kConnecting;
  return queue_pair_ ? request_further() : request_first();
}

Status VerbsConnecting::request_first() {
  auto queue_pair = QueuePair::create(core_, std::move(id_), this,
                                      queue_sizes_of(options_, options_.link.queue_pairs));
  if (!queue_pair.ok()) return queue_pair.status();
  queue_pair_ = std::move(*queue_pair);
  auto send =
      SendQueue::create(*queue_pair_, core_->options().ring_bytes, send_limits_of(options_));
  if (!send.ok()) return send.status();
  send_ = std::move(*send);
  auto receive = ReceiveQueue::create(*queue_pair_, options_, 0);
  if (!receive.ok()) return receive.status();
  receive_ = std::move(*receive);
  return queue_pair_->connect(header_of(options_));
}

Status VerbsConnecting::request_further() {
  auto further = QueuePair::create_further(core_, std::move(id_), this, *queue_pair_);
  if (!further.ok()) return further.status();
  further_ = std::move(*further);
  CmHeader header = header_of(options_);
  header.queue_pair = static_cast<std::uint8_t>(queue_pair_->lanes_ready());
  header.token = token_;
  return further_->connect(header);
}

Status VerbsConnecting::on_response(const CmEvent& event) {
  auto header = decode_cm_header(event.private_data());
  if (!header.ok()) return header.status();
  if (further_) {
    if (Status status = further_->establish(options_.link); !status.ok()) return status;
    queue_pair_->add_lane(std::move(further_));
  } else {
    if (Status status = check_peer_sizes(options_, *header); !status.ok()) return status;
    if (Status status = queue_pair_->establish(options_.link); !status.ok()) return status;
    token_ = header->token;
    if (queue_pair_->lanes() > 1 && header->queue_pairs != queue_pair_->lanes()) {
      return field_refused_by_peer(kLinkQueuePairs);
    }
  }
  return queue_pair_->lanes_ready() < queue_pair_->lanes() ? dial() : say_hello();
}

// Everything is posted before: the peer's first transfers may follow its answer.
Status VerbsConnecting::say_hello() {
  state_ = State::kWaiting;
  if (Status status = receive_->post_all(*queue_pair_, 1); !status.ok()) return status;
  queue_pair_->arm();
  std::array<std::byte, kHandshakeBytesMax> hello;
  const std::size_t bytes = encode_hello(options_.link, hello_data_, hello);
  if (!send_->commit_control(Kind::kHello, 0, std::span(hello).first(bytes))) {
    return Status::error(Code::kSystem, "no room for the hello");
  }
  if (const int error = send_->post(*queue_pair_); error != 0) {
    return Status::error(Code::kSystem, "post the hello", error);
  }
  return {};
}

Status VerbsConnecting::refusal(const CmEvent& event) const {
  if (event.status == kRejectInvalidServiceId) {
    return Status::error(Code::kNotFound, "nobody listens at this address");
  }
  auto header = decode_cm_header(event.private_data());
  if (!header.ok()) {
    return Status::error(Code::kDisconnected, "the connection was rejected on the way");
  }
  switch (header->verdict) {
    case Verdict::kBadVersion:
      return Status::error(Code::kUnsupported, "the server speaks another version");
    case Verdict::kBusy:
      return Status::error(Code::kExhausted, "the server has no room for one more handshake");
    case Verdict::kQueuePairs:
      return field_refused_by_peer(kLinkQueuePairs);
    case Verdict::kBadSizes:
      return Status::error(Code::kProtocol, "the server sends larger transfers than we take");
    default:
      return Status::error(Code::kProtocol, "the server took offence at our header");
  }
}

void VerbsConnecting::on_cm_event(const CmEvent& event) {
  Status status;
  switch (event.type) {
    case RDMA_CM_EVENT_ADDR_RESOLVED:
      if (state_ == State::kResolvingAddress) status = resolve_route();
      break;
    case RDMA_CM_EVENT_ROUTE_RESOLVED:
      if (state_ == State::kResolvingRoute) status = request();
      break;
    case RDMA_CM_EVENT_CONNECT_RESPONSE:
      if (state_ == State::kConnecting) status = on_response(event);
      break;
    case RDMA_CM_EVENT_ADDR_ERROR:
    case RDMA_CM_EVENT_ROUTE_ERROR:
      status = event.status == -ENODEV || event.status == kNoDeviceHere
                   ? without_device("no RDMA device leads to this address", ENODEV)
                   : Status::error(Code::kNotFound, "no RDMA device leads to this address",
                                   -event.status);
      break;
    case RDMA_CM_EVENT_CONNECT_ERROR:
    case RDMA_CM_EVENT_UNREACHABLE:
      status = Status::error(Code::kTimeout, "the server cannot be reached");
      break;
    case RDMA_CM_EVENT_REJECTED:
      status = refusal(event);
      break;
    case RDMA_CM_EVENT_DISCONNECTED:
      // Its answer may be there all the same.
      if (queue_pair_) on_completions();
      status = Status::error(Code::kDisconnected, "the server closed without an answer");
      break;
    case RDMA_CM_EVENT_DEVICE_REMOVAL:
      status = Status::error(Code::kDisconnected, "the device was removed");
      break;
    default:
      break;
  }
  if (!status.ok()) fail(status);
}

void VerbsConnecting::on_completions() {
  if (state_ != State::kWaiting) return;
  queue_pair_->arm();
  // One by one: what comes behind the answer belongs to the endpoint.
  ibv_wc completion{};
  while (state_ == State::kWaiting && queue_pair_->poll({&completion, 1}) == 1) {
    if (take(completion)) return;
  }
}

bool VerbsConnecting::take(const ibv_wc& completion) {
  if ((completion.wr_id & kReceiveBit) == 0) {
    if (completion.status == IBV_WC_SUCCESS) {
      send_->on_done(completion.wr_id);
      return false;
    }
    fail(Status::error(Code::kDisconnected, "the server does not take our hello"));
    return true;
  }
  if (completion.status != IBV_WC_SUCCESS) {
    receive_->failed(completion);
    fail(Status::error(Code::kDisconnected, "the server closed without an answer"));
    return true;
  }
  Arrival arrival;
  // What came on another queue pair waits for the answer.
  if (!receive_->arrived(completion, arrival)) return false;
  const buffer::SlotIndex slot = receive_->take();
  const Status status = take_answer(arrival, slot);
  receive_->give_back(slot);
  if (!status.ok()) {
    fail(status);
  } else {
    state_ = State::kReady;
  }
  return true;
}

Status VerbsConnecting::take_answer(const Arrival& arrival, buffer::SlotIndex slot) {
  auto answer = decode_answer({receive_->data(slot), arrival.bytes});
  if (!answer.ok()) return answer.status();
  answer_data_ = std::move(*answer);
  const std::uint32_t immediate = arrival.immediate;
  if (kind_of(immediate) == Kind::kAccept) return {};
  if (kind_of(immediate) != Kind::kReject) {
    return Status::error(Code::kProtocol, "a malformed answer");
  }
  const std::uint32_t number = number_of(immediate);
  if (number == 0) return Status::error(Code::kRefused, "rejected by the server");
  return field_refused_by_peer(number);
}

bool VerbsConnecting::prepare_sleep() {
  if (state_ == State::kWaiting) on_completions();
  return waiting() || state_ == State::kTaken;
}

void VerbsConnecting::on_time(std::uint64_t now_ns) {
  if (waiting() && now_ns >= deadline_ns_) {
    fail(Status::error(Code::kTimeout, "the server did not answer in time"));
  }
}

Result<std::unique_ptr<Endpoint>> VerbsConnecting::poll() {
  if (waiting()) core_->pump();
  if (waiting()) on_completions();
  if (waiting()) on_time(core_->now_ns());
  if (state_ == State::kFailed) return failure_;
  if (state_ == State::kTaken) {
    return Status::error(Code::kInvalidArgument, "the endpoint was already handed out");
  }
  if (state_ != State::kReady) return Status::again();
  state_ = State::kTaken;
  EndpointParts parts;
  parts.core = core_;
  parts.identity = queue_pair_->peer();
  parts.receive = std::move(receive_);
  parts.send = std::move(send_);
  parts.queue_pair = std::move(queue_pair_);
  parts.options = options_;
  parts.link = options_.link;
  auto endpoint = std::make_unique<VerbsEndpoint>(std::move(parts));
  if (peer_gone_) endpoint->peer_has_gone();
  return std::unique_ptr<Endpoint>(std::move(endpoint));
}

}  // namespace sanproxy::fabric::verbs
