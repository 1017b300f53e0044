#include "lwproto/fabric/verbs/queue_pair.h"

#include <netinet/in.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "lwproto/fabric/verbs/socket_address.h"

namespace sanproxy::fabric::verbs {
namespace {

// As many completion events before their acknowledgement, which takes a lock.
constexpr unsigned kEventsPerAcknowledgement = 64;
// Attributes of RoCE that the connection manager's kernel interface hands out by mistake.
constexpr int kStrayAttributes = 0xe0'0000;
// Of a queue pair; with fewer, each send would be signalled.
constexpr std::uint32_t kLaneSendsMin = 16;

Status failed_to(const char* what, int error) {
  if (no_memory(error)) {
    return Status::error(Code::kExhausted,
                         "no more memory for RDMA queues: the memlock limit, or the device's own",
                         error);
  }
  return Status::error(Code::kSystem, what, error);
}

}  // namespace

std::string peer_address(rdma_cm_id& id) {
  return "verbs:" + host_of(::rdma_get_peer_addr(&id)).to_string();
}

Result<std::unique_ptr<QueuePair>> QueuePair::create(std::shared_ptr<Core> core, CmId id,
                                                     Target* target, const QueueSizes& wanted) {
  auto device = core->device_of(*id);
  if (!device.ok()) return device.status();
  auto out = std::make_unique<QueuePair>(std::move(core), std::move(id), *device, target);
  if (Status status = out->check_limits(wanted); !status.ok()) return status;
  if (Status status = out->create_completion_queue(); !status.ok()) return status;
  if (Status status = out->create_queues(); !status.ok()) return status;
  if (Status status = out->modify(IBV_QPS_INIT, {}); !status.ok()) return status;
  return out;
}

Result<std::unique_ptr<QueuePair>> QueuePair::create_further(std::shared_ptr<Core> core, CmId id,
                                                             Target* target, QueuePair& first) {
  auto device = core->device_of(*id);
  if (!device.ok()) return device.status();
  if (device->get() != first.device_.get()) {
    return Status::error(Code::kUnsupported,
                         "link parameter queue_pairs: the address has moved to another device");
  }
  auto out = std::make_unique<QueuePair>(std::move(core), std::move(id), *device, target);
  out->first_ = &first;
  out->cq_ = first.cq_;
  out->lane_sends_ = first.lane_sends_;
  out->lane_receives_ = first.lane_receives_;
  Status status = out->create_queues();
  if (status.ok()) status = out->modify(IBV_QPS_INIT, {});
  // What goes on one lane goes on any.
  if (!status.ok() || out->inline_bytes_max_ < first.inline_bytes_max_ ||
      out->lane_sends_ < first.lane_sends_) {
    return Status::error(Code::kUnsupported,
                         "link parameter queue_pairs: the RDMA device has no room for so many",
                         status.sys_errno());
  }
  return out;
}

QueuePair::QueuePair(std::shared_ptr<Core> core, CmId id, std::shared_ptr<Device> device,
                     Target* target)
    : core_(std::move(core)), device_(std::move(device)), id_(std::move(id)), target_(target) {
  id_->context = target_;
  core_->add(this);
}

QueuePair::~QueuePair() {
  further_.clear();
  if (rung_) set_rung(false);
  if (armed_) set_armed(false);
  core_->remove(this);
  if (qp_ != nullptr) ::ibv_destroy_qp(qp_);
  if (cq_ != nullptr && first_ == nullptr) {
    if (events_to_acknowledge_ != 0) ::ibv_ack_cq_events(cq_, events_to_acknowledge_);
    ::ibv_destroy_cq(cq_);
  }
}

void QueuePair::set_target(Target* target) {
  target_ = target;
  id_->context = target;
  for (const auto& lane : further_) lane->set_target(target);
}

void QueuePair::add_lane(std::unique_ptr<QueuePair> further) {
  further->set_target(target_);
  further_.push_back(std::move(further));
}

Status QueuePair::check_limits(const QueueSizes& wanted) {
  const ibv_device_attr& limits = device_->limits();
  lanes_ = wanted.lanes;
  if (lanes_ > static_cast<std::uint32_t>(std::max(limits.max_qp, 0))) {
    return Status::error(Code::kUnsupported,
                         "link parameter queue_pairs: the RDMA device does not have so many");
  }
  // Work requests go round the lanes, so none has more than one above its share.
  const auto share = [this](std::uint32_t all) { return (all - 1) / lanes_ + 1; };
  const auto most = static_cast<std::uint32_t>(std::max(limits.max_qp_wr, 0));
  lane_receives_ = share(wanted.receives);
  if (lane_receives_ > most) {
    return Status::error(Code::kInvalidArgument, "receive_depth is above the RDMA device's limit");
  }
  lane_sends_ = std::min(share(wanted.sends), most);
  return {};
}

Status QueuePair::create_completion_queue() {
  const std::uint64_t completions =
      std::uint64_t{lanes_} * (std::uint64_t{lane_sends_} + lane_receives_);
  if (completions > static_cast<std::uint64_t>(std::max(device_->limits().max_cqe, 0))) {
    return Status::error(Code::kInvalidArgument,
                         "receive_depth and send_depth are above the RDMA device's limit");
  }
  cq_ = ::ibv_create_cq(device_->context(), static_cast<int>(completions), this, device_->channel(),
                        0);
  if (cq_ == nullptr) return failed_to("create a completion queue", errno);
  return {};
}

Status QueuePair::create_queues() {
  const ibv_device_attr& limits = device_->limits();
  ibv_qp_init_attr attributes{};
  attributes.qp_context = this;
  attributes.send_cq = cq_;
  attributes.recv_cq = cq_;
  attributes.qp_type = IBV_QPT_RC;
  attributes.cap.max_send_wr = lane_sends_;
  attributes.cap.max_recv_wr = lane_receives_;
  const auto device_gather = static_cast<std::uint32_t>(std::max(limits.max_sge, 1));
  std::uint32_t gather = std::min<std::uint32_t>(device_gather, kGatherRefsMax + 1);
  if (core_->options().gather_max != 0) gather = std::min(gather, core_->options().gather_max);
  attributes.cap.max_send_sge = gather;
  attributes.cap.max_recv_sge = 1;
  if (Status status = make_queue_pair(attributes); !status.ok()) return status;
  gather_max_ = gather;
  return {};
}

// The limit for bytes in a work request is not among a device's attributes: it is found by asking
// for less and less. Nor is max_qp_wr always one for work requests as large as ours (mlx5 counts
// blocks of 64 bytes): if none of them is small enough, there are fewer.
Status QueuePair::make_queue_pair(ibv_qp_init_attr& attributes) {
  const std::uint32_t inline_wanted =
      first_ != nullptr ? first_->inline_bytes_max_ : core_->options().inline_bytes_max;
  std::uint32_t inline_bytes = inline_wanted;
  const ibv_qp_cap wanted = attributes.cap;
  for (;;) {
    attributes.cap = wanted;
    attributes.cap.max_send_wr = lane_sends_;
    attributes.cap.max_inline_data = inline_bytes;
    qp_ = ::ibv_create_qp(device_->domain(), &attributes);
    if (qp_ != nullptr) break;
    if (errno != EINVAL || (inline_bytes == 0 && lane_sends_ <= kLaneSendsMin)) {
      return failed_to("create a queue pair", errno);
    }
    if (inline_bytes != 0) {
      inline_bytes /= 2;
      continue;
    }
    lane_sends_ = std::max(lane_sends_ / 2, kLaneSendsMin);
    inline_bytes = inline_wanted;
  }
  inline_bytes_max_ = std::min(inline_bytes, attributes.cap.max_inline_data);
  return {};
}

Status QueuePair::modify(ibv_qp_state state, const LinkParameters& link) {
  ibv_qp_attr attributes{};
  int mask = 0;
  attributes.qp_state = state;
  if (::rdma_init_qp_attr(id_.get(), &attributes, &mask) != 0) {
    return Status::error(Code::kSystem, "ask for the attributes of a queue pair", errno);
  }
  mask &= ~kStrayAttributes;
  if (state == IBV_QPS_RTR) {
    if (link.service_level >= 0) {
      attributes.ah_attr.sl = static_cast<std::uint8_t>(link.service_level);
    }
    if (const std::int16_t traffic_class = traffic_class_of(link); traffic_class >= 0) {
      attributes.ah_attr.grh.traffic_class = static_cast<std::uint8_t>(traffic_class);
    }
    service_level_ = attributes.ah_attr.sl;
    traffic_class_ = attributes.ah_attr.is_global ? attributes.ah_attr.grh.traffic_class : -1;
  } else if (state == IBV_QPS_RTS) {
    // Credits see to it that a send always meets a receive: one that does not is a bug.
    attributes.rnr_retry = 0;
    attributes.retry_cnt = core_->options().retry_count;
    attributes.timeout = core_->options().ack_timeout_exponent;
  }
  if (const int error = ::ibv_modify_qp(qp_, &attributes, mask); error != 0) {
    return Status::error(Code::kSystem, "bring a queue pair into its next state", error);
  }
  return {};
}

Status QueuePair::make_ready(const LinkParameters& link) {
  if (Status status = modify(IBV_QPS_RTR, link); !status.ok()) return status;
  return modify(IBV_QPS_RTS, link);
}

Status QueuePair::connect(const CmHeader& header) {
  const auto bytes = encode(header);
  rdma_conn_param param{};
  param.private_data = bytes.data();
  param.private_data_len = static_cast<std::uint8_t>(bytes.size());
  param.retry_count = core_->options().retry_count;
  param.rnr_retry_count = 0;
  param.qp_num = qp_->qp_num;
  if (::rdma_connect(id_.get(), &param) != 0) {
    return Status::error(Code::kSystem, "ask a peer to connect", errno);
  }
  return {};
}

Status QueuePair::establish(const LinkParameters& link) {
  if (Status status = make_ready(link); !status.ok()) return status;
  if (::rdma_establish(id_.get()) != 0) {
    return Status::error(Code::kSystem, "complete a connection", errno);
  }
  return {};
}

Status QueuePair::accept(const CmHeader& header, const LinkParameters& link) {
  if (Status status = make_ready(link); !status.ok()) return status;
  const auto bytes = encode(header);
  rdma_conn_param param{};
  param.private_data = bytes.data();
  param.private_data_len = static_cast<std::uint8_t>(bytes.size());
  param.rnr_retry_count = 0;
  param.qp_num = qp_->qp_num;
  if (::rdma_accept(id_.get(), &param) != 0) {
    return Status::error(Code::kSystem, "accept a connection", errno);
  }
  return {};
}

void QueuePair::fail() {
  ibv_qp_attr attributes{};
  attributes.qp_state = IBV_QPS_ERR;
  // It can only fail if the queue pair is in that state, or its device gone.
  (void)::ibv_modify_qp(qp_, &attributes, IBV_QP_STATE);
  for (const auto& lane : further_) lane->fail();
}

PeerIdentity QueuePair::peer() const {
  PeerIdentity identity;
  identity.address = peer_address(*id_);
  return identity;
}

sockaddr_storage QueuePair::local_host() const {
  sockaddr_storage out{};
  const sockaddr* address = ::rdma_get_local_addr(id_.get());
  if (address->sa_family == AF_INET6) {
    sockaddr_in6 in{};
    std::memcpy(&in, address, sizeof(in));
    in.sin6_port = 0;
    std::memcpy(&out, &in, sizeof(in));
  } else {
    sockaddr_in in{};
    std::memcpy(&in, address, sizeof(in));
    in.sin_port = 0;
    std::memcpy(&out, &in, sizeof(in));
  }
  return out;
}

void QueuePair::on_queue_event() {
  if (++events_to_acknowledge_ == kEventsPerAcknowledgement) {
    ::ibv_ack_cq_events(cq_, events_to_acknowledge_);
    events_to_acknowledge_ = 0;
  }
  if (armed_) set_armed(false);
  if (rung_) set_rung(false);
  target_->on_completions();
}

}  // namespace sanproxy::fabric::verbs
