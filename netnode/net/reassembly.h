// Reassembly: puts the fragments of TCP datagrams together again.
//
// Documents: docs/tcp_stack.md "Fragments"; RFC 791 3.2 and RFC 8200 4.5 (reassembly), RFC 5722 (no
//   overlaps; here for IPv4 too), RFC 1858 and 3128 (tiny and overlapping first fragments), RFC
//   7112 (the whole header in the first one).
// Role: fragments in, whole packets out, as if they had never been cut: headers are mended, the
//   transport checksum is for the caller to verify. Keeps copies, so that whoever owns the
//   fragments' buffers has them back at once.
// Owner: a Stack. Thread: its. No allocation after construction, no clock of its own.
// Invariants:
//   1. At most `datagrams_max` datagrams of 64 KB, each for timeout_ms. Their memory is taken
//      from the system when it is first touched.
//   2. All datagrams of one source (of IPv6: of one /64) are in one set of kWays: whoever floods
//      from few sources displaces his own, and those of the few who share his sets. In a full set
//      the oldest makes room.
//   3. A byte that has been received is never replaced. A fragment that overlaps others makes
//      an end of its datagram, whatever else of it comes until its time is over; one that says
//      nothing new is dropped alone.
//   4. Each fragment counted in `received` is in exactly one of the other counters, or waits.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "lwproto/base/reserved_array.h"
#include "netnode/net/flow_key.h"
#include "netnode/net/fragment.h"
#include "netnode/net/packet.h"

namespace sanproxy::net {

struct ReassemblyOptions {
  std::uint32_t datagrams_max = 256;  // being put together at a time; 0: all fragments are dropped
  std::uint32_t timeout_ms = 15'000;  // from a datagram's first arrival
};

struct ReassemblyCounters {
  std::uint64_t received = 0;      // fragments
  std::uint64_t whole = 0;         // datagrams put together
  std::uint64_t put_together = 0;  // fragments that they consist of
  // Fragments dropped.
  std::uint64_t disabled = 0;  // datagrams_max is 0
  std::uint64_t not_tcp = 0;
  std::uint64_t malformed = 0;  // fits no datagram, or makes one of more than 65,535 bytes
  std::uint64_t tiny = 0;  // the first, without the whole TCP header; or one that lies inside it
  std::uint64_t overlap = 0;
  std::uint64_t duplicate = 0;
  std::uint64_t timed_out = 0;
  std::uint64_t displaced = 0;
};

class Reassembly {
 public:
  static constexpr std::uint32_t kWays = 16;
  // IP headers of a first fragment, without the fragment header: longer ones are refused, so that
  // with the longest TCP header they are no more than what the stack looks at of a packet.
  static constexpr std::size_t kHeaderBytesMax = 196;

  // `seed` is drawn at random: it decides who shares a set.
  Reassembly(const ReassemblyOptions& options, std::uint64_t seed);

  // A fragment, with what parse_packet() said of `header`: the packet's first bytes, at least
  // parsed.l3_header_bytes. `packet` has all of it, and may change while it is read. The whole
  // packet if this was the last one missing, to be used before the next call; else empty.
  [[nodiscard]] std::span<const std::byte> add(const ParsedPacket& parsed,
                                               std::span<const std::byte> header,
                                               std::span<const std::byte> packet,
                                               std::uint64_t now_ns);
  // Drops what has waited too long.
  void expire(std::uint64_t now_ns);
  // When to call expire(); UINT64_MAX when nothing waits.
  std::uint64_t next_timer_ns() const {
    return oldest_ == kNone ? UINT64_MAX : datagrams_[oldest_].until_ns;
  }

  const ReassemblyCounters& counters() const { return counters_; }
  std::uint32_t datagrams_waiting() const { return datagrams_waiting_; }
  std::uint64_t fragments_waiting() const { return fragments_waiting_; }

 private:
  static constexpr std::uint32_t kNone = 0xffff'ffffU;
  static constexpr std::size_t kPayloadBytesMax = 65'535;
  static constexpr std::uint32_t kBlockBytes = 8;
  static constexpr std::size_t kBlocks = (kPayloadBytesMax + kBlockBytes) / kBlockBytes;

  struct Datagram {
    FlowKey key;                   // the id in the place of the ports
    std::uint64_t until_ns;        // 0: free
    std::uint32_t newer, older;    // in the order in which they end
    std::uint32_t fragments;       // that it consists of so far
    std::uint32_t end_bytes;       // the furthest end of any fragment
    std::uint32_t total_bytes;     // of the payload; 0: the last fragment is not there
    std::uint32_t blocks_here;     // of those in `here`
    std::uint16_t header_bytes;    // 0: the first fragment is not there
    std::uint16_t next_header_at;  // IPv6: the byte that names the fragment header
    bool refused;
    std::array<std::uint64_t, kBlocks / 64> here;
  };
  struct Buffer {
    std::array<std::byte, kHeaderBytesMax + 4> header;  // at its end, right before the payload
    std::array<std::byte, kPayloadBytesMax + 1> payload;
  };

  static FlowKey key_of(const ParsedPacket& parsed, const FragmentView& view);
  std::uint32_t find_or_start(const FlowKey& key, std::uint64_t now_ns);
  bool acceptable(const ParsedPacket& parsed, std::span<const std::byte> header,
                  std::span<const std::byte> packet, FragmentView& view);
  // How many of the blocks that these bytes cover are there.
  static std::uint32_t blocks_here(const Datagram& datagram, std::uint32_t first,
                                   std::uint32_t end);
  bool place(std::uint32_t index, const FragmentView& view, std::span<const std::byte> payload);
  void keep_header(std::uint32_t index, const ParsedPacket& parsed,
                   std::span<const std::byte> header);
  std::span<const std::byte> finish(std::uint32_t index);
  void refuse(std::uint32_t index, std::uint64_t& reason);
  // Its fragments are counted as `reason`.
  void forget(std::uint32_t index, std::uint64_t& reason);

  ReassemblyOptions options_;
  std::uint64_t seed_;
  std::uint32_t ways_;
  std::uint32_t sets_;
  ReservedArray<Datagram> datagrams_;  // by set
  ReservedArray<Buffer> buffers_;      // likewise
  std::uint32_t oldest_ = kNone, newest_ = kNone;
  std::uint32_t datagrams_waiting_ = 0;
  std::uint64_t fragments_waiting_ = 0;
  ReassemblyCounters counters_;
};

}  // namespace sanproxy::net
