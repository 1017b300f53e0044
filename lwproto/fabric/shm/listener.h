// ShmListener: takes shm handshakes and holds them until their owner answers.
//
// Document: docs/shm_fabric.md "Handshake".
// Owner: the caller of Fabric::listen(). Thread: the fabric's.
// Invariants:
//   1. At most half_open_max handshakes are held. When full, the oldest silent one gives way; when
//      none is silent, the newcomer is turned away.
//   2. A silent peer is dropped after handshake_timeout_ms.
//   3. A request is shown to the owner only after its descriptors and sizes were found good and
//      its memory is mapped.
#pragma once

#include <deque>
#include <list>
#include <memory>
#include <string>
#include <vector>

#include "lwproto/fabric/fabric.h"
#include "lwproto/fabric/shm/core.h"

namespace sanproxy::fabric::shm {

class ShmListener final : public Listener, private PollTarget, private Handshaker {
 public:
  static Result<std::unique_ptr<Listener>> create(std::shared_ptr<Core> core, std::string address,
                                                  const std::string& path,
                                                  const EndpointOptions& options);
  ~ShmListener() override;
  ShmListener(const ShmListener&) = delete;
  ShmListener& operator=(const ShmListener&) = delete;

  const std::string& address() const override { return address_; }
  Result<ConnectRequest> poll() override;
  Result<std::unique_ptr<Endpoint>> accept(const ConnectRequest& request,
                                           std::span<const std::byte> private_data) override;
  void reject(const ConnectRequest& request, std::span<const std::byte> private_data) override;

 private:
  struct HalfOpen final : PollTarget {
    void on_events(std::uint32_t events) override;
    ShmListener* listener = nullptr;
    std::uint64_t token = 0;
    std::uint64_t deadline_ns = 0;
    UniqueFd socket;
    bool silent = true;  // no hello yet
    bool dead = false;   // to be removed by the next sweep()
    PeerIdentity identity;
    PeerMemory peer;
    std::vector<std::byte> private_data;
  };
  using HalfOpens = std::list<HalfOpen>;  // in order of arrival; addresses are stable

  ShmListener(std::shared_ptr<Core> core, std::string address, std::string path,
              const EndpointOptions& options);

  void on_events(std::uint32_t events) override;  // newcomers
  bool has_work() const override { return !ready_.empty(); }
  bool waiting() const override { return !half_open_.empty() || paused_; }
  void on_tick() override;

  void admit(UniqueFd socket);
  bool make_room();
  void sweep();
  void read_hello(HalfOpen& half);
  Status take_hello(HalfOpen& half, const ReceivedMessage& message,
                    std::span<const std::byte> bytes);
  void refuse(HalfOpen& half, Verdict verdict, std::span<const std::byte> private_data);
  HalfOpens::iterator find(std::uint64_t token);

  std::shared_ptr<Core> core_;
  std::string address_;
  std::string path_;
  EndpointOptions options_;
  Sizes sizes_;
  UniqueFd socket_;
  std::uint64_t inode_ = 0;  // of the socket file, so that only our own is removed
  bool paused_ = false;      // out of descriptors: no accept() until the next tick
  std::uint64_t next_token_ = 1;
  HalfOpens half_open_;
  std::deque<std::uint64_t> ready_;
  bool handed_out_ = false;  // a request, by the last poll()
};

}  // namespace sanproxy::fabric::shm
