// A fabric in the memory of one test: keeps every rule of lwproto/fabric/fabric.h to the letter,
// and fails the test when its user breaks one.
//
// Role: what the fabric promises least is all that is given: nothing arrives before flush(),
//   transient bytes are overwritten at the next poll(), a transfer that meets no receive buffer
//   ends the channel, referenced memory must not change while it is the fabric's, and an endpoint
//   that is destroyed with loans outside is an error.
// Thread: one.
#pragma once

#include <gtest/gtest.h>

#include <array>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "lwproto/fabric/fabric.h"

namespace sanproxy::fabric::testing {

enum class Delivery {
  kLoans,  // as shared memory: references arrive as loans of the sender's memory
  // As verbs: everything is copied into one receive buffer, which is the loan; a slot of
  // EndpointOptions::receive_memory if there is one.
  kReceiveBuffers,
};

struct MemoryOptions {
  Delivery delivery = Delivery::kLoans;
  std::array<EndpointOptions, 2> endpoint{};
  std::size_t transfers_max = SIZE_MAX;  // on their way in one direction; beyond: kAgain
};

class MemoryLink;

class MemoryEndpoint final : public Endpoint {
 public:
  MemoryEndpoint(std::shared_ptr<MemoryLink> link, int side);
  ~MemoryEndpoint() override;
  const PeerIdentity& peer() const override { return identity; }
  Result<RegionKey> attach(const buffer::MemoryRegion& region) override;
  Result<std::span<std::byte>> begin_send(std::size_t inline_bytes) override;
  Status commit_send(std::size_t inline_bytes, std::span<const GatherRef> refs,
                     std::uint64_t cookie) override;
  void flush() override;
  void publish() override;
  std::size_t poll(std::span<Completion> out) override;
  void release(Loan loan) override;
  std::uint32_t replenish() override;
  void disconnect(Status reason) override;
  bool connected() const override;

  // --- for tests
  std::uint32_t posted() const;   // receive buffers that wait for a transfer
  std::size_t loans_out() const;  // not yet released
  std::size_t cookies_outstanding() const;
  std::size_t to_poll() const;  // transfers that have arrived
  PeerIdentity identity{.address = "memory", .uid = 1000, .certificate_name = {}};
  int refuse_sends = 0;       // so many begin_send() answer kAgain
  bool keep_buffers = false;  // replenish() posts nothing
  std::uint64_t flushes = 0, publishes = 0;

 private:
  void send_committed();
  const std::byte* receive_into_slot(std::span<const std::byte> bytes, buffer::SlotIndex& slot);

  std::shared_ptr<MemoryLink> link_;
  int side_;
  std::vector<std::span<const std::byte>> regions_;
  std::optional<std::vector<std::byte>> space_;
  std::vector<std::vector<std::byte>> transient_;
};

struct MemoryPair {
  std::unique_ptr<MemoryEndpoint> a, b;
};
MemoryPair make_memory_pair(const MemoryOptions& options);

// The listening side; the test dials.
class MemoryListener final : public Listener {
 public:
  struct Dialled {
    std::unique_ptr<MemoryEndpoint> endpoint;  // null: rejected
    std::vector<std::byte> private_data;       // the answer
  };

  explicit MemoryListener(Delivery delivery, EndpointOptions ours)
      : delivery_(delivery), ours_(ours) {}
  const std::string& address() const override { return address_; }
  Result<ConnectRequest> poll() override;
  Result<std::unique_ptr<Endpoint>> accept(const ConnectRequest& request,
                                           std::span<const std::byte> private_data) override;
  void reject(const ConnectRequest& request, std::span<const std::byte> private_data) override;

  std::uint64_t dial(std::span<const std::byte> private_data, const EndpointOptions& theirs,
                     std::int64_t uid = 1000, const std::string& certificate_name = "");
  std::optional<Dialled> answer(std::uint64_t token);

 private:
  struct Waiting {
    ConnectRequest request;
    EndpointOptions theirs;
  };
  std::string address_ = "memory:";
  Delivery delivery_;
  EndpointOptions ours_;
  std::uint64_t next_token_ = 1;
  std::deque<std::uint64_t> to_poll_;
  std::map<std::uint64_t, Waiting> waiting_;
  std::map<std::uint64_t, Dialled> answers_;
};

}  // namespace sanproxy::fabric::testing
