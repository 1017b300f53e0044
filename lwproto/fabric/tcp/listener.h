// TcpListener: takes handshakes over TCP and holds them until their owner answers.
//
// Document: docs/tcp_fabric.md "Handshake".
// Owner: the caller of Fabric::listen(). Thread: the fabric's.
// Invariants:
//   1. At most half_open_max connections have not said what they want; the oldest of the peer that
//      has most of them gives way. At most as many channels are joining or wait for their owner's
//      answer; those that are joining give way likewise, and if none is the newcomer is told that
//      there is no room.
//   2. A handshake that is not complete after handshake_timeout_ms is dropped. One that is over is
//      removed by the pump() that saw its end: a flood of them is not searched by each newcomer.
//   3. A request is shown to the owner only after all connections of the channel have joined, with
//      TLS verified where it is on, its sizes found good and its link parameters applied.
//   4. A poll() does one step of one TLS handshake, in the order in which they wait for it; a peer
//      begins no more of them than tls_handshakes_per_s.
#pragma once

#include <array>
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
#include "lwproto/fabric/tcp/peer_networks.h"

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
  std::size_t handshakes() const { return half_open_.size(); }  // with what sweep() will remove

 private:
  using Stage = HandshakeStage;

  struct HalfOpen final : PollTarget {
    void on_events(std::uint32_t events) override;
    TcpListener* listener = nullptr;
    Stage stage = Stage::kSilent;
    std::uint64_t number = 0;
    std::uint64_t deadline_ns = 0;
    HandshakeSocket socket;
    PeerNetwork* network = nullptr;  // until it is dead
    bool tls_begun = false;
    bool awaits_turn = false;  // is in turns_
    PeerIdentity identity;
    Family family = Family::kIpv4;
    Token token = {};
    Sizes sizes;
    LinkParameters link;
    WindowShare window_share;
    std::vector<std::byte> private_data;
    std::vector<std::unique_ptr<Transport>> joined;  // streams 1, 2, ...
    std::size_t missing = 0;                         // of them
  };
  using HalfOpens = std::list<HalfOpen>;  // in order of arrival; addresses are stable

  TcpListener(std::shared_ptr<Core> core, const EndpointOptions& options);

  void on_events(std::uint32_t events) override;  // newcomers
  bool take_work() override { return !ready_.empty() || turn_is_due(); }
  bool waiting() const override { return !half_open_.empty() || paused_; }
  void on_tick() override;
  void sweep() override;

  void admit(UniqueFd fd);
  std::size_t& count(Stage stage) { return counts_[static_cast<std::size_t>(stage)]; }
  void move_to(HalfOpen& half, Stage stage);
  bool make_room(Stage giving_way, Stage beside);
  void advance(HalfOpen& half);
  void await_turn(HalfOpen& half);
  void take_turn();
  bool turn_is_due();
  void receive(HalfOpen& half);
  void take_message(HalfOpen& half, const HandshakeMessage& message);
  void take_hello(HalfOpen& half, std::span<const std::byte> body);
  void take_join(HalfOpen& half, std::span<const std::byte> body);
  LinkVerdict grant_link(HalfOpen& half, std::uint32_t streams);
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
  std::array<std::size_t, kHandshakeStages> counts_ = {};  // of half_open_, by stage
  PeerNetworks networks_;
  std::deque<HalfOpen*> turns_;  // alive, with something to do for TLS
  std::deque<std::uint64_t> ready_;
  bool handed_out_ = false;  // a request, by the last poll()
};

}  // namespace sanproxy::fabric::tcp
