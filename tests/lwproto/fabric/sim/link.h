// Link: the state of one simulated channel, both its sides, and what happens between them.
//
// Role: the rules of fabric.h in one place; SimEndpoint is a handle to one side of it.
// Owner: its two endpoints and its events under way. Thread: one.
// Invariants:
//   1. The transfers of one direction arrive in the order in which they were committed, and the
//      end of a side behind all of them.
//   2. posted + arrived but not polled <= receive_depth; a transfer that arrives without a posted
//      receive ends both sides with kProtocol.
//   3. Each transfer with references is outstanding until its completion is in `sends`, once. Its
//      memory has not changed until then.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "lwproto/fabric/fabric.h"
#include "tests/lwproto/fabric/sim/world.h"

namespace sanproxy::fabric::sim {

using Bytes = std::vector<std::byte>;

enum class Delivery {
  kLoans,           // as shared memory: references arrive as loans of the sender's memory
  kReceiveBuffers,  // as verbs: everything is copied into one receive buffer, which is the loan
};

// A second, read-only mapping of a region: loans stay readable when its owner has gone.
class Mapping {
 public:
  explicit Mapping(const buffer::MemoryRegion& region);
  ~Mapping();
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  std::span<const std::byte> bytes_;
};

struct Transfer {
  Bytes inline_part;
  std::vector<std::span<const std::byte>> pieces;
  Bytes snapshot;  // of the pieces, when they became the fabric's
  std::uint64_t cookie = 0;
  bool completed = false;  // the sender has its memory back, or will have without a doubt

  Bytes referenced() const;
};
using TransferPtr = std::shared_ptr<Transfer>;

struct Arrived {
  TransferPtr transfer;
  buffer::SlotIndex slot = buffer::kNoSlot;  // of the receive memory
};

struct LoanOut {
  TransferPtr transfer;
  Bytes own;  // a receive buffer without receive memory
  buffer::SlotIndex slot = buffer::kNoSlot;
};

struct LinkSide {
  EndpointOptions options;
  std::function<void()> wake;  // something to poll, or room
  std::vector<std::shared_ptr<const Mapping>> regions;

  std::deque<TransferPtr> committed;     // not flushed
  std::vector<TransferPtr> outstanding;  // with references, not completed
  std::size_t under_way = 0;             // flushed, not arrived
  std::uint64_t last_arrival_ns = 0;     // at the other side
  std::deque<Arrived> arrived;           // at this side
  std::deque<std::pair<std::uint64_t, Status>> sends;
  std::map<Loan, LoanOut> loans;
  std::vector<TransferPtr> returned;  // released, not flushed

  std::uint32_t posted = 0;
  std::uint32_t own_free = 0;           // receive buffers without receive memory
  std::deque<buffer::SlotIndex> slots;  // posted ones of the receive memory

  bool refusing = false;   // begin_send() says kAgain until an event ends it
  bool waiting = false;    // it has said kAgain for transfers_max
  bool room_news = false;  // there is room (or a receive to post) of which the owner may not know

  bool ended = false;  // this side has seen the end: it sends no more
  bool cut = false;    // what it has under way is lost
  bool reported = false;
  Status reason;
};

struct LinkOptions {
  Delivery delivery = Delivery::kLoans;
  std::size_t transfers_max = SIZE_MAX;  // on their way in one direction; beyond: kAgain
  std::uint32_t spare_buffers = 0;       // receive buffers beyond the depth
  LinkParameters parameters = {};
};

class Link : public std::enable_shared_from_this<Link> {
 public:
  Link(std::shared_ptr<World> world, const LinkOptions& options,
       const std::array<EndpointOptions, 2>& endpoints);
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;

  // Takes the first receive buffers; kExhausted, and nothing taken, if they are too few.
  Status open(int who);
  void close(int who);  // its endpoint goes

  void send_committed(int who, std::size_t at_most = SIZE_MAX);
  void give_back(int who, TransferPtr transfer);  // a loan of the other side's memory
  std::uint32_t post(int who, bool all = false);
  void disconnect(int who, Status reason);
  bool all_reported(int who) const;  // but the end itself
  void refuse_for_a_while(int who);
  void tell_room(int who);  // to one that waits

  World& world() { return *world_; }
  const LinkOptions& options() const { return options_; }
  LinkSide side[2];
  Loan next_loan = 1;

 private:
  void arrive(int from, TransferPtr transfer);
  void complete(int who, const TransferPtr& transfer, Status status);
  void end(int who, Status reason);
  void breach(int who, const char* text);
  void later(int who, std::uint64_t delay_ns, std::function<void()> what);
  static void wake(const LinkSide& side) {
    if (side.wake) side.wake();
  }

  std::shared_ptr<World> world_;
  LinkOptions options_;
};

}  // namespace sanproxy::fabric::sim
