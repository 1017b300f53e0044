// TcpConnecting: the client's side of a handshake over TCP.
//
// Document: docs/tcp_fabric.md "Handshake".
// Owner: the caller of Fabric::connect(). Thread: the fabric's.
// Invariants:
//   1. Ends within handshake_timeout_ms and some round trips, one way or the other; a link that
//      skips slow start has as much again, and the time that its padding takes.
//   2. poll() keeps its answer: an endpoint is handed out once, an error again and again.
//   3. The other connections of the channel are made only when the first has shown that there is a
//      server (and, with TLS, which).
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "lwproto/base/socket_address.h"
#include "lwproto/fabric/fabric.h"
#include "lwproto/fabric/tcp/core.h"
#include "lwproto/fabric/tcp/endpoint.h"
#include "lwproto/fabric/tcp/handshake_socket.h"

namespace sanproxy::fabric::tcp {

class TcpConnecting final : public Connecting, private Participant {
 public:
  static Result<std::unique_ptr<Connecting>> create(std::shared_ptr<Core> core,
                                                    const SocketAddress& address,
                                                    std::span<const std::byte> private_data,
                                                    const EndpointOptions& options);
  ~TcpConnecting() override;
  TcpConnecting(const TcpConnecting&) = delete;
  TcpConnecting& operator=(const TcpConnecting&) = delete;

  Result<std::unique_ptr<Endpoint>> poll() override;
  std::span<const std::byte> private_data() const override { return answer_data_; }

 private:
  enum class State { kWaiting, kAnswered, kWarming, kFailed, kTaken };
  enum class Stage { kDialling, kSecuring, kSaid };

  struct Dial final : PollTarget {
    void on_events(std::uint32_t events) override;
    TcpConnecting* owner = nullptr;
    std::uint32_t stream = 0;
    Stage stage = Stage::kDialling;
    HandshakeSocket socket;
  };

  TcpConnecting(std::shared_ptr<Core> core, const SocketAddress& address,
                std::span<const std::byte> private_data, const EndpointOptions& options);

  // Participant
  bool take_work() override { return state_ == State::kAnswered || state_ == State::kFailed; }
  bool waiting() const override { return state_ == State::kWaiting || state_ == State::kWarming; }
  void on_tick() override;

  std::uint32_t streams() const;
  Status start_dial(std::uint32_t stream);
  void advance(Dial& dial, bool writable);
  Status step(Dial& dial, bool writable);
  Status say(Dial& dial);
  Status listen_to(Dial& dial);
  Status take_welcome(std::span<const std::byte> body);
  Status take_answer(std::span<const std::byte> body);
  Result<std::unique_ptr<TcpEndpoint>> make_endpoint();
  std::uint64_t warm_up_ns_max() const;
  void fail(const Status& status);
  void close_all();

  std::shared_ptr<Core> core_;
  SocketAddress address_;
  std::vector<std::byte> hello_data_;
  EndpointOptions options_;
  State state_ = State::kWaiting;
  Status failure_;
  std::uint64_t deadline_ns_ = 0;
  std::uint64_t round_trip_ns_ = 0;
  bool welcomed_ = false;
  Token token_ = {};
  Sizes peer_;
  std::vector<std::unique_ptr<Dial>> dials_;
  std::vector<std::byte> answer_data_;
  std::unique_ptr<TcpEndpoint> endpoint_;  // while its link warms up
};

}  // namespace sanproxy::fabric::tcp
