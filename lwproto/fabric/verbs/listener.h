// VerbsListener: the server's side of verbs handshakes.
//
// Document: docs/verbs_fabric.md "Handshake".
// Owner: the caller of Fabric::listen(). Thread: the fabric's.
// Invariants:
//   1. At most half_open_max handshakes are held. Of those that wait for their peer, the oldest of
//      the host that has most makes room for a newcomer: who opens many competes with itself.
//   2. A silent peer is dropped after handshake_timeout_ms; so is one that does not take our no.
//   3. A newcomer costs a queue pair with its completion queue (pinned too: with mlx5 about 1 MiB
//      at the default depths) and 8 KB of pinned memory until it is accepted; the further queue
//      pairs of handshakes are at most further_queue_pairs_max in all.
//   4. A listener whose device was removed has no id and no keys; it tries to listen again until it
//      can. (The kernel does so by itself where the address is a wildcard.)
//   5. HalfOpen objects die in sweep() only, never inside a call that an event makes.
#pragma once

#include <deque>
#include <list>
#include <memory>
#include <string>
#include <vector>

#include "lwproto/base/socket_address.h"
#include "lwproto/fabric/verbs/core.h"
#include "lwproto/fabric/verbs/endpoint.h"
#include "lwproto/fabric/verbs/handshake_rates.h"

namespace sanproxy::fabric::verbs {

class VerbsListener final : public Listener, private Target, private Sleeper {
 public:
  static Result<std::unique_ptr<Listener>> create(std::shared_ptr<Core> core, std::string address,
                                                  const SocketAddress& socket,
                                                  const EndpointOptions& options);
  ~VerbsListener() override;
  VerbsListener(const VerbsListener&) = delete;
  VerbsListener& operator=(const VerbsListener&) = delete;

  const std::string& address() const override { return address_; }
  Result<ConnectRequest> poll() override;
  Result<std::unique_ptr<Endpoint>> accept(const ConnectRequest& request,
                                           std::span<const std::byte> private_data) override;
  void reject(const ConnectRequest& request, std::span<const std::byte> private_data) override;

 private:
  class HalfOpen;
  using HalfOpens = std::list<std::unique_ptr<HalfOpen>>;  // in order of arrival

  VerbsListener(std::shared_ptr<Core> core, std::string address, const SocketAddress& socket,
                const EndpointOptions& options);

  void on_cm_event(const CmEvent& event) override;
  bool prepare_sleep() override;
  std::uint64_t deadline_ns() const override;
  void on_time(std::uint64_t now_ns) override;

  // The regions that every endpoint uses, registered with one device.
  struct DeviceKeys {
    std::shared_ptr<Device> device;
    std::vector<std::shared_ptr<MemoryKey>> keys;
  };

  Status listen();
  Status bind_and_listen();
  Status keep_keys(Device& device);
  Status keep_keys_everywhere();
  void stop_listening();
  void admit(CmId id, std::span<const std::byte> private_data);
  void admit_first(CmId id, const CmHeader& header);
  void admit_further(CmId id, const CmHeader& header);
  void turn_away(CmId id, Verdict verdict);
  HalfOpen* next_to_give_way(std::size_t (*weight)(const HalfOpen&));
  void evict(HalfOpen& half);
  bool make_room();
  bool make_room_beside(const HalfOpen& half);
  void sweep();
  HalfOpens::iterator find(std::uint64_t token);
  Result<EndpointParts> make_parts(HalfOpen& half, std::span<const std::byte> private_data);

  std::shared_ptr<Core> core_;
  std::string address_;
  SocketAddress socket_;
  EndpointOptions options_;
  CmId id_;
  std::uint64_t retry_ns_ = kNever;  // when to listen again
  // Keeps the shared receive memory registered while no endpoint does.
  std::vector<DeviceKeys> keys_;
  std::uint64_t next_token_ = 1;
  HalfOpens half_open_;
  HandshakeRates rates_;
  std::deque<std::uint64_t> ready_;
  bool handed_out_ = false;  // a request, by the last poll()
};

}  // namespace sanproxy::fabric::verbs
