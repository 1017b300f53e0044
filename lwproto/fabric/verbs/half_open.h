// HalfOpen: one peer that wants to connect and has no answer yet.
//
// Document: docs/verbs_fabric.md "Handshake".
// Owner: a VerbsListener. Thread: the fabric's.
// Invariants:
//   1. kSilent -> kReady (its HELLO came) -> taken by accept(), or kRefusing (our no is under way)
//      -> kDead; each of them -> kDead when the peer goes or its time is over.
//   2. A further queue pair is taken while it is silent, from the same host, with the token
//      that was told to the first, in turn. Its HELLO is refused if any is missing.
#pragma once

#include <array>
#include <memory>
#include <vector>

#include "lwproto/fabric/verbs/core.h"
#include "lwproto/fabric/verbs/handshake.h"
#include "lwproto/fabric/verbs/listener.h"
#include "lwproto/fabric/verbs/queue_pair.h"

namespace sanproxy::fabric::verbs {

class VerbsListener::HalfOpen final : public Target {
 public:
  enum class State { kSilent, kReady, kRefusing, kDead };

  HalfOpen(std::shared_ptr<Core> core, std::deque<std::uint64_t>& ready, std::uint64_t token);

  // Accepts the connection as such, so that the peer can say its HELLO.
  Status start(CmId id, const CmHeader& peers, const EndpointOptions& options);
  // Whether this request is for the next of our queue pairs; and takes it.
  bool expects(rdma_cm_id& id, const CmHeader& peers) const;
  Status add_lane(CmId id, const EndpointOptions& options);
  // Takes what has come. May end up ready or dead.
  void look();
  // `field` is a LinkField that we do not honour, or 0.
  void refuse(std::uint32_t field, std::span<const std::byte> private_data);
  void die() { state_ = State::kDead; }
  // It waits for its peer, not for our owner: its place may be taken.
  bool may_give_way() const { return state_ == State::kSilent || state_ == State::kRefusing; }
  bool expired(std::uint64_t now_ns) const { return now_ns >= deadline_ns_; }

  State state() const { return state_; }
  std::uint64_t token() const { return token_; }
  std::uint64_t deadline_ns() const { return deadline_ns_; }
  std::size_t further_lanes() const { return queue_pair_ ? queue_pair_->lanes_ready() - 1 : 0; }
  const Hello& hello() const { return hello_; }
  const PeerIdentity& identity() const { return identity_; }
  const IpAddress& network() const { return network_; }  // of the peer: network_of()
  std::unique_ptr<QueuePair> take_queue_pair() { return std::move(queue_pair_); }

  void on_cm_event(const CmEvent& event) override;
  void on_completions() override { look(); }
  void on_failure(Status) override { die(); }

 private:
  Status post_receive();
  void take(const ibv_wc& completion);
  void take_hello(const ibv_wc& completion);

  std::shared_ptr<Core> core_;
  std::deque<std::uint64_t>& ready_;
  std::uint64_t token_;
  std::uint64_t deadline_ns_;
  State state_ = State::kSilent;
  // The queue pair goes first: then the device lets go of the memory.
  buffer::MemoryRegion memory_;  // the HELLO, then our answer
  std::shared_ptr<MemoryKey> key_;
  std::unique_ptr<QueuePair> queue_pair_;
  PeerIdentity identity_;
  IpAddress network_;
  ChannelToken token_of_channel_;  // zeros if there is one queue pair
  LinkParameters path_;            // what is asked of the way of each
  Hello hello_;
};

}  // namespace sanproxy::fabric::verbs
