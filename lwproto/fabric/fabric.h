// The fabric interface: verbs semantics, small enough for RDMA, shared memory and TCP alike.
//
// Document: docs/architecture.md "Fabrics"; docs/buffer_ownership.md for who owns what when.
// Role: moves *transfers* (opaque byte sequences) in order between two endpoints, and moves
//   payload by reference wherever the fabric can. It knows nothing of messages or streams.
// Thread: a Fabric and everything made by it belong to one thread. Nothing here is locked.
//
// Rules that hold on every fabric, and that the conformance suite (tests/lwproto/fabric) checks:
//   1. In order: transfers arrive in the order of commit_send() on that endpoint.
//   2. A transfer is a gather list: inline bytes, then references into attached regions. The
//      receiver sees the same byte sequence, in one segment, or with the inline bytes alone in
//      segment 0 and the others in any number of segments behind it. No segment behind segment 0
//      is empty.
//   3. Referenced memory belongs to the fabric from commit_send() until the kSend completion that
//      carries the transfer's cookie. Transfers without references complete silently. kSend
//      completions come in any order, also against kReceive: the answer to a transfer may be
//      there before its completion. An ok one says that the memory is free, not that the peer has
//      got the bytes: only its owner's message can.
//   4. Received memory: a *transient* segment is valid until the next poll() on that endpoint; any
//      other is on loan until release(loan). A loan may be released at any time and in any order.
//   5. Receive buffers: the fabric posts `receive_depth` at the start, or there is no endpoint
//      (kExhausted). Consumed ones are posted again by replenish(). A transfer that meets no
//      posted receive disconnects the endpoint with Code::kProtocol on both sides: credits
//      (flow/credit_ledger.h) make that a bug.
//   6. Disconnection, for whatever reason, completes everything: each outstanding cookie comes
//      back once as kSend (non-ok unless the transfer was already complete), then one
//      kDisconnected is delivered, then nothing. That may take some polls, but no help from the
//      peer. Loans stay readable until released, even after that, as long as the Endpoint lives.
//      The side that calls disconnect() may lose what it has not polled. The other side still
//      gets everything that was committed before the call, then its kDisconnected, if the caller
//      keeps its endpoint until that has reported kDisconnected and the peer takes what comes.
//      Both may be cut short (bounded by the fabric) for a peer that does not.
//   7. commit_send() may be lazy: flush() makes everything committed visible to the peer.
//   8. Bytes from the peer never trip an assertion: a broken rule is a kDisconnected with
//      Code::kProtocol and a literal text.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "lwproto/base/status.h"
#include "lwproto/buffer/memory_region.h"
#include "lwproto/buffer/slot_pool.h"

namespace sanproxy::fabric {

using RegionKey = std::uint32_t;  // an attached region, as named by one endpoint
using Loan = std::uint64_t;
// Private data of a connection set-up, either way, on every fabric.
inline constexpr std::size_t kPrivateDataBytesMax = 1024;
inline constexpr Loan kNoLoan = 0;
inline constexpr std::size_t kSegmentsMax = 8;  // of a received transfer
inline constexpr std::size_t kGatherRefsMax = kSegmentsMax - 1;

struct GatherRef {
  RegionKey region = 0;
  std::uint32_t length = 0;
  std::uint64_t offset = 0;  // inside the region
};

struct Segment {
  const std::byte* data = nullptr;
  std::uint32_t length = 0;
  bool transient = false;  // see rule 4
};

struct Completion {
  enum class Kind : std::uint8_t { kSend, kReceive, kDisconnected };
  Kind kind = Kind::kSend;
  std::uint8_t segment_count = 0;              // kReceive
  Status status;                               // kSend: ok or why not; kDisconnected: why
  std::uint64_t cookie = 0;                    // kSend
  Loan loan = kNoLoan;                         // kReceive: kNoLoan if nothing stays borrowed
  std::array<Segment, kSegmentsMax> segments;  // kReceive
};

// Memory that a peer has attached, as it is mapped here: something that can be passed on to another
// peer, so that its bytes need not be copied on the way.
struct PassedRegion {
  const std::byte* data = nullptr;
  std::uint64_t bytes = 0;
  int fd = -1;                  // of the memory; stays the fabric's
  const void* owner = nullptr;  // one for all regions of one peer
};

// Is told of the memory of all peers of a fabric, as it comes and goes: of what nobody can write
// but the peer itself.
class RegionWatcher {
 public:
  // False: it is of no use, so that its descriptor need not be kept, and its end not be told.
  [[nodiscard]] virtual bool on_region(const PassedRegion& region) = 0;
  // `data` of a region that is about to be unmapped here. Who it was passed on to keeps his own
  // mapping of it until it is detached there.
  virtual void on_region_gone(const std::byte* data) = 0;

 protected:
  ~RegionWatcher() = default;
};

// Who is at the other end, as far as the fabric can prove it.
struct PeerIdentity {
  std::string address;    // for people: "shm:pid 812", "verbs:10.9.0.2", ...
  std::int64_t uid = -1;  // shm: SO_PEERCRED; -1 where unknown
  std::int64_t gid = -1;
  std::int64_t pid = -1;
  std::string certificate_name;  // TLS; empty elsewhere
};

// What the connecting side asks of a link. It travels in the fabric's own handshake, and both ends
// apply it. The zero of each field is "the system's own choice". A value that either end cannot
// honour is kUnsupported (kRefused at the connecting side if it is the other end's) with the name
// of the parameter as the users know it in the text: never a silent default. The names, ranges and
// refusals are in fabric/link_parameters.h.
enum class QualityClass : std::uint8_t {
  kNone = 0,         // nothing asked
  kConstant = 1,     // CBR: paced at rate_bytes_per_s, no burst beyond burst_bytes
  kVariable = 2,     // VBR: mean rate_bytes_per_s, bursts of burst_bytes at peak_bytes_per_s
  kAvailable = 3,    // ABR: at least nothing, at most rate_bytes_per_s; gives way by congestion
  kUnspecified = 4,  // UBR: no rate; what is left over (lowest priority)
};

struct LinkParameters {
  std::uint64_t window_bytes = 0;        // of one channel and direction, over all its streams
  std::uint32_t parallel_streams = 0;    // tcp: kernel connections that make up the channel
  std::uint32_t queue_pairs = 0;         // verbs: queue pairs that make up the channel
  bool skip_slow_start = false;          // tcp: start at the whole window; for a reserved link
  std::array<char, 16> congestion = {};  // tcp: the kernel's name of the algorithm, "" for its own
  QualityClass quality = QualityClass::kNone;
  std::uint64_t rate_bytes_per_s = 0;
  std::uint64_t peak_bytes_per_s = 0;
  std::uint64_t burst_bytes = 0;
  std::int8_t dscp = -1;            // 0..63; -1 is not set
  std::int8_t priority = -1;        // tcp: SO_PRIORITY 0..6; -1 is not set
  std::int8_t service_level = -1;   // verbs: 0..15; -1 is not set
  std::int16_t traffic_class = -1;  // verbs: 0..255; -1 is not set

  bool operator==(const LinkParameters&) const = default;
};

// Where a fabric that receives into our memory (verbs, tcp) takes its receive buffers from: slots
// of at least transfer_bytes_max bytes over `region` (else kInvalidArgument). Both outlive every
// endpoint that uses them. With its kDisconnected an endpoint has given back all slots but those on
// loan and those of transient segments, which the next poll() ends.
// Shared by many endpoints; a received loan is one slot until release(). An endpoint may hold a few
// slots more than receive_depth, for messages of its fabric's own. A pool that runs dry
// posts fewer receives (replenish() returns less), so the peer gets fewer credits: back-pressure,
// never the end. Who releases a loan may thereby make room for *another* endpoint of the pool,
// which is not told: its owner calls replenish() on each before it sleeps.
struct ReceiveMemory {
  buffer::SlotPool* pool = nullptr;
  const buffer::MemoryRegion* region = nullptr;
  std::size_t keep_free = 0;  // slots that are for the pool's owner: never posted by endpoints

  // A slot to post, or kNoSlot.
  buffer::SlotIndex acquire() const {
    return pool->free_count() > keep_free ? pool->acquire() : buffer::kNoSlot;
  }
};

struct EndpointOptions {
  std::uint32_t receive_depth = 512;      // receive buffers that we post
  std::uint32_t send_depth = 1024;        // cookies at most that poll() has not given back
  std::uint32_t inline_bytes_max = 8192;  // largest inline part of a transfer
  std::uint32_t transfer_bytes_max = 8192 + 65536;
  std::uint32_t regions_max = 64;                                // that a peer may attach
  std::uint64_t peer_region_bytes_max = std::uint64_t{4} << 30;  // all its regions together
  // Regions that will be attached to every endpoint: a fabric that registers memory with a device
  // does so when it starts to listen, and not under a newcomer while others wait.
  std::vector<const buffer::MemoryRegion*> send_regions{};
  // Not used by shm. Null: the endpoint makes its own, of twice receive_depth slots.
  ReceiveMemory receive_memory{};
  LinkParameters link{};  // connecting side only; a listener takes what it is asked for, or refuses
};

// One end of a connected channel.
class Endpoint {
 public:
  // Destroying an endpoint that is still connected disconnects it. All loans must be released
  // before, because the memory goes away.
  virtual ~Endpoint() = default;

  virtual const PeerIdentity& peer() const = 0;
  // What is in force on this link: what was asked for (window_bytes as the system reports it, which
  // may count some overhead), and for the rest what the system chose where that can be known.
  virtual LinkParameters link() const { return {}; }

  // Makes `region` usable in GatherRefs of this endpoint. The region must outlive the endpoint.
  // The same region may be attached to many endpoints.
  virtual Result<RegionKey> attach(const buffer::MemoryRegion& region) = 0;
  // Likewise with memory of a third party, which the peer then reads without our help: of payload
  // alone, since that third party may change it meanwhile. kUnsupported where the fabric cannot,
  // kExhausted at the peer's bound, kAgain for now.
  virtual Result<RegionKey> attach_passed(const PassedRegion& region) {
    (void)region;
    return Status::error(Code::kUnsupported, "this fabric passes no memory on");
  }
  // Takes an attached region back. Nothing that refers to it may be outstanding. kAgain: try again.
  virtual Status detach(RegionKey key) {
    (void)key;
    return Status::error(Code::kUnsupported, "this fabric takes no region back");
  }

  // Starts a transfer: returns space of at least `inline_bytes` for its inline part, or kAgain
  // (send queue full, or no room for a full gather list or one more outstanding send), or
  // kDisconnected. After kAgain any later poll() may have made room, also one that returned 0, and
  // a sleeper is woken for it. After ok, commit_send() never fails for lack of room. Calling it
  // again before commit_send() abandons the first. The space is valid until commit_send().
  virtual Result<std::span<std::byte>> begin_send(std::size_t inline_bytes) = 0;
  // Sends the first `inline_bytes` of that space followed by `refs`. With refs, `cookie` comes
  // back in a kSend completion. An error means misuse or disconnection.
  virtual Status commit_send(std::size_t inline_bytes, std::span<const GatherRef> refs,
                             std::uint64_t cookie) = 0;
  // commit_send(), and flush() where that went well: the last one before somebody waits.
  virtual Status commit_last(std::size_t inline_bytes, std::span<const GatherRef> refs,
                             std::uint64_t cookie) {
    const Status status = commit_send(inline_bytes, refs, cookie);
    if (status.ok()) flush();
    return status;
  }
  // How many more sends with references may be outstanding, where they come back only when the peer
  // lets go of what it was lent; where they come back by themselves, any number.
  virtual std::uint32_t references_left() const { return UINT32_MAX; }
  virtual std::uint32_t references_max() const {
    return UINT32_MAX;
  }  // when nothing is outstanding
  // Of these, what those may share who have some already. The other half is for those who have
  // none: who never lets go of his keeps them for good, however small the share of what is left.
  std::uint32_t references_spare() const {
    const std::uint32_t left = references_left();
    return left - std::min(left, references_max() / 2);
  }
  // Publishes committed sends, returned loans and posted receives; wakes a sleeping peer.
  virtual void flush() = 0;
  // Likewise, but a sleeping peer need not be woken before the next flush() or Fabric::arm(): for
  // senders that will have more in a moment.
  virtual void publish() { flush(); }
  // A hint, cheap: the peer sleeps and nobody has rung yet, so an early flush() would have it awake
  // by the time the rest is written. Always false where a flush costs a system call either way.
  virtual bool peer_sleeps() const { return false; }

  // Takes up to out.size() completions; 0 when there is none. Never blocks.
  virtual std::size_t poll(std::span<Completion> out) = 0;
  virtual void release(Loan loan) = 0;
  // Posts receive buffers again as far as the depth and the free buffers allow; returns how many
  // were posted. The caller grants that many credits.
  virtual std::uint32_t replenish() = 0;

  // Ends the channel; `reason` is what our own kDisconnected will carry. Idempotent.
  virtual void disconnect(Status reason) = 0;
  virtual bool connected() const = 0;
  // Likewise, but asks the system: false as soon as the peer has died or closed, also while poll()
  // has yet to come to it. For who is about to use memory that is the peer's again then.
  virtual bool peer_present() const { return connected(); }
};

// A peer that asks to connect, not yet answered.
struct ConnectRequest {
  std::uint64_t token = 0;
  PeerIdentity peer;
  std::vector<std::byte> private_data;
};

class Listener {
 public:
  virtual ~Listener() = default;
  virtual const std::string& address() const = 0;
  // The next peer whose request is complete, or kAgain. Half-open handshakes are bounded in
  // number and time by the fabric. Never blocks. The call behind one that returned a request looks
  // for no newcomers, so a loop until kAgain ends, however fast they come. As long as a request
  // waits arm() refuses.
  virtual Result<ConnectRequest> poll() = 0;
  // Answers a request, once (then kNotFound). `private_data` reaches the peer either way; more
  // than kPrivateDataBytesMax is kInvalidArgument (as in connect()), to reject() it is cut.
  virtual Result<std::unique_ptr<Endpoint>> accept(const ConnectRequest& request,
                                                   std::span<const std::byte> private_data) = 0;
  virtual void reject(const ConnectRequest& request, std::span<const std::byte> private_data) = 0;
};

// A connection attempt under way.
class Connecting {
 public:
  virtual ~Connecting() = default;
  // The endpoint once the peer has accepted; kAgain meanwhile; kRefused when it rejected (its
  // private data then holds the reason); any other code when there is no peer. Never blocks.
  // An attempt that is destroyed is given up, and the peer learns of it.
  virtual Result<std::unique_ptr<Endpoint>> poll() = 0;
  // What the peer sent with its answer; valid after poll() returned something but kAgain.
  virtual std::span<const std::byte> private_data() const = 0;
};

// Something that a fabric counts, for people.
struct NamedCount {
  const char* name;  // a literal, as /metrics shows it
  std::uint64_t value;
};

class Fabric {
 public:
  virtual ~Fabric() = default;
  virtual const char* name() const = 0;  // "shm", "verbs", "tcp"
  // What became of those who tried to connect, and the like; totals. Control plane only.
  virtual std::vector<NamedCount> counts() const { return {}; }

  virtual Result<std::unique_ptr<Listener>> listen(const std::string& address,
                                                   const EndpointOptions& options) = 0;
  virtual Result<std::unique_ptr<Connecting>> connect(const std::string& address,
                                                      std::span<const std::byte> private_data,
                                                      const EndpointOptions& options) = 0;

  // Optional, before there are endpoints: tells `watcher` (which outlives them) of peers' memory.
  // Fabrics whose peers attach nothing that could be passed on tell nothing.
  virtual void watch_regions(RegionWatcher* watcher) { (void)watcher; }

  // --- sleeping. Protocol: if (arm()) { poll/epoll on event_fd(); } disarm();
  // Readable when an armed endpoint has something to poll, or a listener or connection attempt
  // makes progress.
  virtual int event_fd() const = 0;
  // False: something is ready (or changed) already, do not sleep. True: sleeping is safe, a
  // wake-up will come through event_fd().
  virtual bool arm() = 0;
  // Optional, before there are endpoints (later it does nothing): doorbells go straight into the
  // caller's epoll set (edge-triggered, data.fd = -1, to be ignored) instead of behind event_fd(),
  // which is to be watched too. Through a nested set a wake-up costs more and may lose the hint
  // that the waker is about to sleep, with which the scheduler keeps a round trip on one processor.
  // Only epoll_wait() on that set consumes a ring: whoever sleeps on the set itself, by poll() or
  // in one more set, must call it after each sleep. The set may be closed at any time; its wake-ups
  // end.
  virtual void wake_in(int epoll_fd) { (void)epoll_fd; }
  // Consumes wake-ups; also looks for dead peers. Call after every sleep, slept or not. A loop that
  // is never idle calls it each round all the same: without a sleep it is nearly free.
  virtual void disarm() = 0;
};

}  // namespace sanproxy::fabric
