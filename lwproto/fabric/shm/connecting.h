// ShmConnecting: the client's side of a shm handshake.
//
// Document: docs/shm_fabric.md "Handshake".
// Owner: the caller of Fabric::connect(). Thread: the fabric's.
// Invariants:
//   1. Ends within handshake_timeout_ms, one way or the other.
//   2. poll() keeps its answer: an endpoint is handed out once, an error again and again.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "lwproto/fabric/fabric.h"
#include "lwproto/fabric/shm/core.h"
#include "lwproto/fabric/shm/memory.h"

namespace sanproxy::fabric::shm {

class ShmConnecting final : public Connecting, private PollTarget, private Handshaker {
 public:
  static Result<std::unique_ptr<Connecting>> create(std::shared_ptr<Core> core, std::string path,
                                                    std::span<const std::byte> private_data,
                                                    const EndpointOptions& options);
  ~ShmConnecting() override;
  ShmConnecting(const ShmConnecting&) = delete;
  ShmConnecting& operator=(const ShmConnecting&) = delete;

  Result<std::unique_ptr<Endpoint>> poll() override;
  std::span<const std::byte> private_data() const override { return answer_data_; }

 private:
  enum class State { kDialling, kWaiting, kReady, kFailed, kTaken };

  ShmConnecting(std::shared_ptr<Core> core, std::string path,
                std::span<const std::byte> private_data, const EndpointOptions& options);

  void on_events(std::uint32_t events) override;
  bool has_work() const override { return state_ == State::kReady || state_ == State::kFailed; }
  bool waiting() const override { return state_ == State::kDialling || state_ == State::kWaiting; }
  void on_tick() override;

  void dial();
  Status say_hello();
  Status take_answer(ReceivedMessage& message, std::span<const std::byte> bytes);
  void fail(Status status);

  std::shared_ptr<Core> core_;
  std::string path_;
  std::vector<std::byte> hello_data_;
  EndpointOptions options_;
  State state_ = State::kDialling;
  Status failure_;
  bool watched_ = false;
  std::uint64_t deadline_ns_ = 0;
  UniqueFd socket_;
  UniqueFd doorbell_;
  OwnMemory own_;
  PeerMemory peer_;
  std::vector<std::byte> answer_data_;
};

}  // namespace sanproxy::fabric::shm
