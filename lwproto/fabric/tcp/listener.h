// TcpListener: takes handshakes over TCP and holds them until their owner answers.
//
// Document: docs/tcp_fabric.md "Handshake".
// Owner: the caller of Fabric::listen(). Thread: the fabric's.
// Invariants:
//   1. At most half_open_max connections have not said what they want; the oldest gives way. At
//      most as many channels are joining or wait for their owner's answer; the oldest that is
//      joining gives way, and if none is the newcomer is told that there is no room.
//   2. A handshake that is not complete after handshake_timeout_ms is dropped.
//   3. A request is shown to the owner only after all connections of the channel have joined, with
//      TLS verified where it is on, its sizes found good and its link parameters applied.
#pragma once

#include <deque>
#include <list>
#include <memory>
#include <string>
#include <vector>

#include "lwproto/base/socket_address.h"
#include "lwproto/fabric/fabric.h"
#include "lwproto/fabric/tcp/core.h"
#include "lwproto/fabric/tcp/endpoint.h"
#include "lwproto/fabric/tcp/handshake_socket.h"

namespace sanproxy::fabric::tcp {

class TcpListener final : public Listener, private PollTarget, private Participant {
 public:
  static Result<std::unique_ptr<Listener>> create(std::shared_ptr<Core> core, SocketAddress address,
                                                  const EndpointOptions& options);
  ~TcpListener() override;
  TcpListener(const TcpListener&) = delete;
  TcpListener& operator=(const TcpListener&) = delete;

  const std::string& address() const override { return address_; }
  Result<ConnectRequest> poll() override;
  Result<std::unique_ptr<Endpoint>> accept(const ConnectRequest& request,
                                           std::span<const std::byte> private_data) override;
  void reject(const ConnectRequest& request, std::span<const std::byte> private_data) override;

 private:
  enum class Stage { kSilent, kJoining, kReady, kDead };

  struct HalfOpen final : PollTarget {
    void on_events(std::uint32_t events) override;
    TcpListener* listener = nullptr;
    Stage stage = Stage::kSilent;
    std::uint64_t number = 0;
    std::uint64_t deadline_ns = 0;
    HandshakeSocket socket;
    PeerIdentity identity;
    Family family = Family::kIpv4;
    Token token = {};
    Sizes sizes;
    LinkParameters link;
    std::vector<std::byte> private_data;
    std::vector<std::unique_ptr<Transport>> joined;  // streams 1, 2, ...
    std::size_t missing = 0;                         // of them
  };
  using HalfOpens = std::list<HalfOpen>;  // in order of arrival; addresses are stable

  TcpListener(std::shared_ptr<Core> core, const EndpointOptions& options);

  void on_events(std::uint32_t events) override;  // newcomers
  bool take_work() override { return !ready_.empty(); }
  bool waiting() const override { return !half_open_.empty() || paused_; }
  void on_tick() override;

  void admit(UniqueFd fd);
  bool make_room(Stage giving_way, Stage beside);
  void sweep();
  void advance(HalfOpen& half);
  void take_message(HalfOpen& half, const HandshakeMessage& message);
  void take_hello(HalfOpen& half, std::span<const std::byte> body);
  void take_join(HalfOpen& half, std::span<const std::byte> body);
  void welcome(HalfOpen& half);
  void complete(HalfOpen& half);
  void fail(HalfOpen& half, const Status& status);
  void refuse(HalfOpen& half, Verdict verdict, std::uint32_t field,
              std::span<const std::byte> private_data);
  void part(HalfOpen& half);
  void drop(HalfOpen& half);
  Result<std::unique_ptr<Endpoint>> answer_and_create(EndpointParts& parts, AnswerBody answer,
                                                      std::span<const std::byte> private_data);
  HalfOpens::iterator find(std::uint64_t number);

  std::shared_ptr<Core> core_;
  std::string address_;
  EndpointOptions options_;
  UniqueFd socket_;
  bool paused_ = false;  // out of descriptors: no accept() until the next tick
  std::uint64_t next_number_ = 1;
  HalfOpens half_open_;
  std::deque<std::uint64_t> ready_;
};

}  // namespace sanproxy::fabric::tcp
