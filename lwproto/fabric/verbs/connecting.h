// VerbsConnecting: the client's side of a verbs handshake.
//
// Document: docs/verbs_fabric.md "Handshake".
// Owner: the caller of Fabric::connect(). Thread: the fabric's.
// Invariants:
//   1. Ends within handshake_timeout_ms, one way or the other.
//   2. The queue pairs of the channel are set up one after the other, before the hello.
//   3. poll() keeps its answer: an endpoint is handed out once, an error again and again.
#pragma once

#include <memory>
#include <vector>

#include "lwproto/base/socket_address.h"
#include "lwproto/fabric/verbs/core.h"
#include "lwproto/fabric/verbs/endpoint.h"

namespace sanproxy::fabric::verbs {

class VerbsConnecting final : public Connecting, private Target, private Sleeper {
 public:
  static Result<std::unique_ptr<Connecting>> create(std::shared_ptr<Core> core,
                                                    const SocketAddress& address,
                                                    std::span<const std::byte> private_data,
                                                    const EndpointOptions& options);
  ~VerbsConnecting() override;
  VerbsConnecting(const VerbsConnecting&) = delete;
  VerbsConnecting& operator=(const VerbsConnecting&) = delete;

  Result<std::unique_ptr<Endpoint>> poll() override;
  std::span<const std::byte> private_data() const override { return answer_data_; }

 private:
  enum class State {
    kResolvingAddress,
    kResolvingRoute,
    kConnecting,
    kWaiting,
    kReady,
    kFailed,
    kTaken
  };

  VerbsConnecting(std::shared_ptr<Core> core, std::span<const std::byte> private_data,
                  const EndpointOptions& options);

  void on_cm_event(const CmEvent& event) override;
  void on_completions() override;
  void on_failure(Status reason) override { fail(reason); }
  bool prepare_sleep() override;
  std::uint64_t deadline_ns() const override { return waiting() ? deadline_ns_ : kNever; }
  void on_time(std::uint64_t now_ns) override;

  bool waiting() const { return state_ < State::kReady; }
  Status dial();
  Status resolve_route();
  Status request();
  Status request_first();
  Status request_further();
  Status on_response(const CmEvent& event);
  Status say_hello();
  Status refusal(const CmEvent& event) const;
  bool take(const ibv_wc& completion);  // true: it was the answer, or the end
  Status take_answer(const Arrival& arrival, buffer::SlotIndex slot);
  void fail(Status status);
  Status in_words(Status status) const;

  std::shared_ptr<Core> core_;
  std::vector<std::byte> hello_data_;
  EndpointOptions options_;
  SocketAddress address_;
  State state_ = State::kResolvingAddress;
  Status failure_;
  bool peer_gone_ = false;  // after it had accepted
  std::uint64_t deadline_ns_;
  CmId id_;  // until the queue pair has it
  std::unique_ptr<ReceiveQueue> receive_;
  std::unique_ptr<SendQueue> send_;
  std::unique_ptr<QueuePair> queue_pair_;
  std::unique_ptr<QueuePair> further_;  // under way; goes before the first
  ChannelToken token_;                  // as the server has told it
  std::vector<std::byte> answer_data_;
};

}  // namespace sanproxy::fabric::verbs
