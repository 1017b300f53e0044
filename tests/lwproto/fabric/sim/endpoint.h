// SimEndpoint: one side of a simulated channel.
//
// Role: keeps every rule of lwproto/fabric/fabric.h to the letter, and fails the test when its
//   user breaks one. What the contract promises least is all that is given: nothing needs arrive
//   before flush(), transient bytes are overwritten at the next poll(), referenced memory must
//   not change while it is the fabric's, loans outside at the destruction are an error.
// Owner: the test or the code under test. Thread: one.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "lwproto/fabric/fabric.h"
#include "tests/lwproto/fabric/sim/link.h"

namespace sanproxy::fabric::sim {

class SimEndpoint final : public Endpoint {
 public:
  SimEndpoint(std::shared_ptr<Link> link, int side);
  ~SimEndpoint() override;
  SimEndpoint(const SimEndpoint&) = delete;
  SimEndpoint& operator=(const SimEndpoint&) = delete;

  const PeerIdentity& peer() const override { return identity; }
  LinkParameters link() const override { return link_->options().parameters; }
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
  bool connected() const override { return !mine().ended; }
  bool peer_sleeps() const override { return sleeper; }

  // For Fabric::arm(): there is something to poll, or room of which the owner may not know.
  bool take_work();
  void set_wake(std::function<void()> wake);

  // --- for tests
  std::uint32_t posted() const { return mine().posted; }  // receives that wait for a transfer
  std::size_t loans_out() const { return mine().loans.size(); }
  std::size_t cookies_outstanding() const { return mine().outstanding.size(); }
  std::size_t to_poll() const { return mine().arrived.size(); }  // transfers that have arrived
  bool idle() const { return mine().arrived.empty() && mine().sends.empty(); }
  PeerIdentity identity;
  int refuse_sends = 0;           // so many begin_send() answer kAgain
  bool keep_buffers = false;      // replenish() posts nothing
  bool misuse_is_failure = true;  // of the test, not only of the call
  std::uint64_t flushes = 0, publishes = 0;
  bool sleeper = false;  // what peer_sleeps() answers

 private:
  LinkSide& mine() { return link_->side[side_]; }
  const LinkSide& mine() const { return link_->side[side_]; }
  LinkSide& theirs() { return link_->side[1 - side_]; }
  Status misuse(const char* text) const;
  bool refused();
  Status take_refs(std::span<const GatherRef> refs, Transfer& transfer) const;
  void push();
  void end_transients();
  void take_arrived(Completion& out);
  void take_into_buffer(Arrived arrived, Completion& out);

  std::shared_ptr<Link> link_;
  int side_;
  std::optional<Bytes> space_;
  std::vector<Bytes> transient_;
  std::vector<buffer::SlotIndex> transient_slots_;
  std::uint32_t transient_own_ = 0;
};

struct EndpointPair {
  std::unique_ptr<SimEndpoint> a, b;
};
// Two connected endpoints without a fabric.
EndpointPair make_pair(const LinkOptions& link, const std::array<EndpointOptions, 2>& endpoints,
                       std::shared_ptr<World> world = std::make_shared<World>(0));

}  // namespace sanproxy::fabric::sim
