// QueuePair: an RC queue pair with its connection manager's id; the first one of a channel,
//   which has the completion queue of them all, owns the others.
//
// Document: docs/verbs_fabric.md "Queues", "Several queue pairs".
// Role: the only place that creates, connects, breaks and destroys them.
// Owner: a half-open handshake, a connecting attempt or an endpoint; it moves on between them with
//   set_target(). Thread: the fabric's.
// Invariants:
//   1. The completion queue has room for every work request of all queues, so it cannot overrun.
//   2. When the destructor returns, the device touches no buffer of ours any more.
//   3. The queue pairs of a channel (its lanes; the first is lane 0) have the same sizes and the
//      same target, and fail together.
#pragma once

#include <sys/socket.h>

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "lwproto/fabric/verbs/core.h"
#include "lwproto/fabric/verbs/handshake.h"

namespace sanproxy::fabric::verbs {

// Of a channel; its queue pairs share them evenly.
struct QueueSizes {
  std::uint32_t sends = 0;
  std::uint32_t receives = 0;
  std::uint32_t lanes = 1;
};

class QueuePair {
 public:
  // In state INIT: receives can be posted. kInvalidArgument when the device has no such queues.
  static Result<std::unique_ptr<QueuePair>> create(std::shared_ptr<Core> core, CmId id,
                                                   Target* target, const QueueSizes& wanted);
  // A further one for the channel of `first`, which outlives it; add_lane() makes it part of that.
  // kUnsupported, naming the link parameter queue_pairs, when the device has no more.
  static Result<std::unique_ptr<QueuePair>> create_further(std::shared_ptr<Core> core, CmId id,
                                                           Target* target, QueuePair& first);
  QueuePair(std::shared_ptr<Core> core, CmId id, std::shared_ptr<Device> device, Target* target);
  ~QueuePair();
  QueuePair(const QueuePair&) = delete;
  QueuePair& operator=(const QueuePair&) = delete;

  Device& device() const { return *device_; }
  int port() const { return id_->port_num; }
  Target& target() const { return *target_; }
  void set_target(Target* target);                                 // of all lanes
  std::uint32_t lanes() const { return lanes_; }                   // that were asked for
  std::size_t lanes_ready() const { return further_.size() + 1; }  // and that are there
  void add_lane(std::unique_ptr<QueuePair> further);
  // How many sends, on all lanes, which pieces of one and how many bytes in a work request it
  // really has.
  std::uint32_t send_depth() const { return lane_sends_ * lanes_; }
  std::uint32_t gather_max() const { return gather_max_; }
  std::uint32_t inline_bytes_max() const { return inline_bytes_max_; }

  Status connect(const CmHeader& header);  // connecting side, first step
  // Connecting side, when the response came; the listening side does the like in accept().
  Status establish(const LinkParameters& link);
  Status accept(const CmHeader& header, const LinkParameters& link);
  void fail();  // all lanes to the error state: the device gives all work requests back
  PeerIdentity peer() const;
  sockaddr_storage local_host() const;  // our address on this way to the peer, with any port
  // What is in force.
  int service_level() const { return service_level_; }
  int traffic_class() const { return traffic_class_; }

  // The errno of the failure, or 0. Then nothing from `first_refused` on was posted.
  int post(ibv_send_wr* first, std::uint32_t lane = 0) {
    ibv_send_wr* refused = nullptr;
    return ::ibv_post_send(queue_of(lane), first, &refused);
  }
  int post(ibv_recv_wr* first, std::uint32_t lane = 0) {
    ibv_recv_wr* refused = nullptr;
    return ::ibv_post_recv(queue_of(lane), first, &refused);
  }
  // How many came; negative if the queue is broken.
  int poll(std::span<ibv_wc> out) {
    const int count = ::ibv_poll_cq(cq_, static_cast<int>(out.size()), out.data());
    if (count > 0 && armed_ && !rung_) set_rung(true);
    return count;
  }
  void arm() {
    if (!armed_ && ::ibv_req_notify_cq(cq_, 0) == 0) set_armed(true);
  }
  void on_queue_event();  // by Core

 private:
  void set_armed(bool armed) {
    armed_ = armed;
    core_->add_armed(armed ? 1 : -1);
  }
  void set_rung(bool rung) {
    rung_ = rung;
    core_->add_rung(rung ? 1 : -1);
  }
  ibv_qp* queue_of(std::uint32_t lane) const { return lane == 0 ? qp_ : further_[lane - 1]->qp_; }
  Status check_limits(const QueueSizes& wanted);
  Status create_completion_queue();
  Status create_queues();
  Status make_queue_pair(ibv_qp_init_attr& attributes);
  Status modify(ibv_qp_state state, const LinkParameters& link);
  Status make_ready(const LinkParameters& link);

  std::shared_ptr<Core> core_;
  std::shared_ptr<Device> device_;
  CmId id_;
  Target* target_;
  QueuePair* first_ = nullptr;  // of its channel; null: it is the first
  ibv_cq* cq_ = nullptr;        // the first's
  ibv_qp* qp_ = nullptr;
  std::vector<std::unique_ptr<QueuePair>> further_;  // lanes 1 and up
  std::uint32_t lanes_ = 1;
  bool armed_ = false;
  bool rung_ = false;  // armed, and there were completions: an event is there, or about to come
  unsigned events_to_acknowledge_ = 0;
  std::uint32_t lane_sends_ = 0;
  std::uint32_t lane_receives_ = 0;
  std::uint32_t gather_max_ = 0;
  std::uint32_t inline_bytes_max_ = 0;
  int service_level_ = -1;
  int traffic_class_ = -1;
};

// As text for people: "verbs:10.9.0.2".
std::string peer_address(rdma_cm_id& id);

}  // namespace sanproxy::fabric::verbs
