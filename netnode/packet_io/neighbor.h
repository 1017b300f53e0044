// Neighbor: ARP and IPv6 neighbour discovery for drivers that see Ethernet.
//
// Documents: RFC 826, RFC 1122 2.3.2, RFC 5227; RFC 4861; docs/packet_io.md.
// Role: answers for our addresses, and says to which MAC address a packet goes. Frames in, frames
//   out through FrameSink, the clock injected: no I/O of its own.
// Owner: EthernetPort. Thread: the worker's.
// Invariants:
//   1. The next hop of a packet is its destination when on link, else the first gateway of its
//      family that answers, else (no gateway) the destination itself with the MAC that its packets
//      last came from or, when its entry had to go, the one that any peer's of its family last came
//      from.
//   2. An entry is made only by our own question or by a request addressed to us; any other
//      announcement can only change the MAC of an entry that exists and is not fresh, or have
//      everybody asked about one that is. The MAC is used, and its owner asked, at once.
//   3. Requests are bounded to kRequestsPerSecondMax, with a kRequestsReserve more for those who
//      are known and another for gateways; waiting packets by HeldPackets, entries by
//      NeighborTable.
//   4. Nothing here allocates but construction and add_local().
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "lwproto/base/clock.h"
#include "netnode/net/ethernet.h"
#include "netnode/net/packet.h"
#include "netnode/packet_io/held_packets.h"
#include "netnode/packet_io/neighbor_frames.h"
#include "netnode/packet_io/neighbor_table.h"
#include "netnode/packet_io/packet_io.h"

namespace sanproxy::packet_io {

inline constexpr std::uint64_t kNeighborSecondNs = 1'000'000'000;
inline constexpr std::uint64_t kNeighborReachableNs = 30 * kNeighborSecondNs;
inline constexpr std::uint64_t kNeighborProbeNs = kNeighborSecondNs;  // between two questions
inline constexpr std::uint64_t kNeighborFailedNs = 3 * kNeighborSecondNs;
inline constexpr std::uint64_t kNeighborLockNs = kNeighborSecondNs;  // against flapping MACs
inline constexpr std::uint8_t kNeighborProbesMax = 3;
inline constexpr std::uint32_t kRequestsPerSecondMax = 512;
inline constexpr std::uint32_t kRequestsReserve = 256;
inline constexpr std::size_t kLocalAddressesMax = 65'536;

class FrameSink {
 public:
  virtual ~FrameSink() = default;
  // A whole Ethernet frame; `offload` counts from the IP header behind it.
  virtual void send_frame(std::span<const std::byte> frame, const Offload& offload) = 0;
};

struct NeighborConfig {
  net::MacAddress mac;
  std::vector<IpPrefix> on_link;
  std::vector<IpAddress> gateways;
  // IPv6 questions come from the address that has something to send instead of the link-local one,
  // which the kernel has as well: for a driver that does not hear what is sent to that.
  bool ask_from_own_address = false;
};

class Neighbor {
 public:
  Neighbor(NeighborConfig config, const Clock& clock, FrameSink& sink, Counters& counters,
           std::uint64_t seed);

  const net::MacAddress& mac() const { return config_.mac; }
  const IpAddress& link_local() const { return link_local_; }
  // Answered from now on, and announced. False: the table of them is full, or it is a gateway's.
  bool add_local(const IpAddress& ip);
  void remove_local(const IpAddress& ip);
  bool is_local(const IpAddress& ip) const;

  void input_arp(std::span<const std::byte> frame);
  void input_nd(std::span<const std::byte> packet, const net::ParsedPacket& parsed);
  // An IP packet came from `src` by way of `mac`. Matters only to destinations that are neither
  // on link nor behind a gateway.
  void learn(const IpAddress& src, const net::MacAddress& mac);

  // True: `mac` is the next hop's. False: the packet is taken care of (held, or dropped and
  // counted). Its first piece must hold the whole IP header.
  [[nodiscard]] bool resolve(const SendPacket& packet, net::MacAddress& mac);
  // The MAC of the next hop to `dst`, when it has confirmed that: no question, nothing held.
  bool confirmed(const IpAddress& dst, net::MacAddress& mac);
  // How often a MAC that confirmed() may have told became another, or nobody's, or another next hop
  // may be the right one.
  std::uint64_t changes() const { return changes_; }
  // Asks again, gives up, drops what waited in vain. Cheap when nothing is due.
  void on_time();

 private:
  struct Hop {
    IpAddress ip;
    NeighborEntry* entry = nullptr;
    bool may_ask = false;
  };
  bool may_ask(const IpAddress& dst) const;
  Hop next_hop(const IpAddress& dst, const IpAddress& src);
  Hop gateway_for(Family family, const IpAddress& src);
  bool is_gateway(const IpAddress& ip) const;
  bool on_link(const IpAddress& ip) const;
  NeighborEntry& insert(const IpAddress& ip);
  net::MacAddress& router_of(const IpAddress& ip) { return routers_[ip.family == Family::kIpv6]; }
  void confirm(NeighborEntry& entry, const net::MacAddress& mac);
  void announce_change(const IpAddress& ip, const net::MacAddress& mac, bool answer);
  void verify(NeighborEntry& entry, NeighborState state);
  void met(const IpAddress& ip, const net::MacAddress& mac);
  void input_advertisement(const NdMessage& nd);
  void answer_solicitation(const NdMessage& nd);
  void ask_anew(NeighborEntry& entry, const IpAddress& src);
  void ask(NeighborEntry& entry, const IpAddress& src);
  void send_request(const NeighborEntry& entry, const IpAddress& src);
  void send_held(const NeighborEntry& entry);
  void drop_held(const IpAddress& next_hop);
  void hold(const IpAddress& next_hop, const SendPacket& packet);
  void give_up_or_ask(NeighborEntry& entry);
  IpAddress source_for(const IpAddress& target) const;

  NeighborConfig config_;
  const Clock& clock_;
  FrameSink& sink_;
  Counters& counters_;
  IpAddress link_local_;
  std::vector<IpAddress> locals_;           // sorted
  std::array<net::MacAddress, 2> routers_;  // of each family, learned last; zero: none yet
  NeighborTable table_;
  HeldPackets held_;
  std::uint64_t next_sweep_ns_ = 0;
  std::uint64_t request_second_ = 0;
  std::uint32_t requests_in_second_ = 0;
  std::uint64_t changes_ = 0;
  std::uint32_t pending_ = 0;  // entries that a sweep may find due; an upper bound
};

}  // namespace sanproxy::packet_io
