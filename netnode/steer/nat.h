// Nat: full network address translation between clients and proxies that know nothing of us.
//
// Documents: RFC 5382 (TCP), RFC 4787 (UDP), RFC 5508 (ICMP), RFC 1624 (checksums);
//   docs/netnode.md "NAT".
// Role: client C:c -> service V:v becomes N:n -> P:p, and back; sessions, ports, timers.
// Owner: a network node. Thread: its.
// Invariants:
//   1. `sessions_max` sessions, allocated at construction. A new one beyond that takes the place of
//      the oldest of those that begin or end, or of UDP's: of whichever are more, so that a flood
//      of the ones takes nothing from the others. When there is none it is refused. Likewise its
//      port, when all that were tried are taken: first of one that ends.
//   2. N:n is chosen by the client's endpoint alone as long as it is free towards P:p (RFC 5382
//      REQ-1), so that a node without memory makes the same choice for a packet in mid-stream.
//   3. Nothing but a packet of the translated peer gets in (RFC 5382 REQ-3, address and port
//      dependent filtering); an ICMP error never ends a session (REQ-10).
//   4. A session counts as established only when the client has answered what the proxy has really
//      sent: sequence numbers agree. RST shortens a timer until traffic goes on (RFC 7857 2.2). A
//      SYN begins an established session anew only when the proxy answers it with SYN and ACK.
//   5. On any result but kOk the packet may be changed and is to be dropped.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "lwproto/base/socket_address.h"
#include "netnode/net/flow_key.h"
#include "netnode/net/icmp_error.h"
#include "netnode/net/packet.h"

namespace sanproxy::steer {

struct NatOptions {
  std::vector<IpAddress> addresses;  // ours, routed to us; some of each family that is used
  std::uint16_t port_min = 1024;
  std::uint16_t port_max = 65'535;
  std::uint32_t sessions_max = 262'144;
  std::uint32_t established_s = 7'440;  // REQ-5: not less than 2 hours 4 minutes
  std::uint32_t transitory_s = 240;     // REQ-5: opening and closing, not less than 4 minutes
  std::uint32_t udp_s = 300;            // RFC 4787 REQ-5
  // Of the tables, where whoever knows it can aim sessions at one place: each process has its own.
  std::uint64_t table_seed = 0x6e61742074616265U;
};

enum class NatResult : std::uint8_t {
  kOk = 0,
  kNoSession,  // from a proxy, or an ICMP error: nobody we know
  kNoAddress,  // no address of ours of this family
  kNoPort,     // all ports that were tried are taken towards this proxy
  kFull,       // sessions_max
  kHopLimit,   // used up
  kMalformed,  // an ICMP error with a wrong checksum
};
const char* nat_result_name(NatResult result);

struct NatCounters {
  std::uint64_t created = 0, expired = 0, displaced = 0, reused_closing = 0;
};

// Who can carry the packets of established TCP sessions without us.
class NatCarrier {
 public:
  virtual ~NatCarrier() = default;
  // What it was told before holds only while this number stays the same, and for kNatCarriedS.
  virtual std::uint32_t generation() const = 0;
  // `client` and `proxy`: the flow as the packets of each have it; what the translation of the
  // client's adds to a sum. False: it cannot.
  virtual bool carry(const net::FlowKey& client, const net::FlowKey& proxy,
                     std::uint16_t addresses_delta, std::uint16_t ports_delta) = 0;
  virtual void leave(const net::FlowKey& client, const net::FlowKey& proxy) = 0;
};
inline constexpr std::uint32_t kNatCarriedS = 10;
// With a shorter `established_s` a session could end while it is carried.
inline constexpr std::uint32_t kNatCarriedLifeMinS = 4 * kNatCarriedS;
// Of an established session that come by us before it is carried: short ones are not worth it.
inline constexpr std::uint8_t kNatCarryAfter = 8;

class Nat {
 public:
  static constexpr std::uint16_t kNoProxy = 0xffff;

  // `seed` decides ports: the same on all nodes that share the addresses.
  Nat(const NatOptions& options, std::uint64_t seed);
  // Not owned. Segments that begin, end or reset a session come by us all the same, and one of each
  // session's client every kNatCarriedS, so that timers stay right. It is asked for a client's
  // packets alone, of which the caller knows whose they are just now.
  void set_carrier(NatCarrier* carrier) { carrier_ = carrier; }

  bool is_ours(const std::uint8_t* address, Family family) const;
  // The client's flow that a proxy's packet belongs to; null: none.
  const net::FlowKey* client_of(const net::FlowKey& proxy_flow) const {
    const Index at = find_proxy(proxy_flow);
    return at == kNil ? nullptr : &sessions_[at].client;
  }
  // Who has the session of a client's flow.
  std::uint16_t proxy_of(const net::FlowKey& client_flow) const;

  struct Packet {
    std::span<std::byte> bytes;
    const net::ParsedPacket& parsed;
    bool has_ports = true;          // false: a later fragment, of which only addresses change
    bool checksum_partial = false;  // the checksum field holds the pseudo-header's sum
  };
  // Makes a session if there is none. `flow` is that of the client's packet.
  NatResult to_proxy(const Packet& packet, const net::FlowKey& flow, std::uint16_t proxy,
                     const SocketAddress& target, std::uint32_t now_s);
  // `flow` is that of the proxy's packet.
  NatResult to_client(const Packet& packet, const net::FlowKey& flow, std::uint32_t now_s);
  // Errors about what the proxy sent to the client, and about what we sent to the proxy.
  NatResult error_to_proxy(const Packet& packet, const net::IcmpError& error);
  NatResult error_to_client(const Packet& packet, const net::IcmpError& error);

  void age(std::uint32_t now_s);  // kAgedMax sessions of each timer at most
  // With a carrier: before age(), some times a second. Who was away for longer has not seen what
  // was carried meanwhile: established sessions count as used until then.
  void watch_time(std::uint32_t now_s) {
    if (watched_s_ != 0 && now_s - watched_s_ > kNatCarriedS) back_s_ = now_s;
    watched_s_ = now_s;
  }
  void erase_proxy(std::uint16_t proxy);  // control plane: walks all sessions
  // A session from one life to the next: for a file, whose reader is not to be believed.
  struct Saved {
    net::FlowKey client, proxy;
    std::uint32_t used_s = 0;
    std::uint32_t proxy_seq = 0;
    std::uint16_t proxy_index = kNoProxy;
    std::uint8_t flags = 0;
    std::uint8_t timer = 0;
  };
  // All of them, of each timer the one that is unused for longest first: so are they to come back.
  template <typename Take>
  void each(Take take) const {
    for (const List& list : lists_) {
      for (Index i = list.oldest; i != kNil; i = sessions_[i].newer) {
        const Session& s = sessions_[i];
        take(Saved{s.client, s.proxy, s.used_s, s.proxy_seq, s.proxy_index, s.flags, s.timer});
      }
    }
  }
  // False: there is no room, or it cannot be one of ours (any more).
  bool restore(const Saved& saved, std::uint32_t now_s);
  std::uint32_t sessions() const { return used_; }
  std::uint32_t sessions_of(std::uint16_t proxy) const { return per_proxy_[proxy]; }
  const NatCounters& counters() const { return counters_; }

 private:
  using Index = std::uint32_t;
  static constexpr Index kNil = 0xffff'ffff;
  enum Timer : std::uint8_t { kTransitory, kUdp, kEstablished, kTimers };
  enum : std::uint8_t { kClientFin = 1, kProxyFin = 2, kReset = 4, kProxySeen = 8 };

  struct Session {
    net::FlowKey client;  // as the client's packets have it
    net::FlowKey proxy;   // as the proxy's packets have it
    std::uint32_t used_s = 0;
    Index newer = kNil, older = kNil;
    // What an address change adds to a sum, and a port change, on the way to the proxy; the way
    // back is the complement.
    std::uint16_t addresses_delta = 0, ports_delta = 0;
    std::uint16_t proxy_index = kNoProxy;
    std::uint8_t flags = 0;
    std::uint32_t proxy_seq = 0;  // of the proxy's last segment, while it is not established
    Timer timer = kTransitory;
    bool used = false;
    bool carried = false;
    std::uint8_t seen = 0;  // packets since it is established, up to kNatCarryAfter
    std::uint32_t carried_s = 0, carried_generation = 0;  // when it was given to the carrier
  };
  // Open addressing with backward shift: no tombstones, so that it never degrades.
  class Table {
   public:
    explicit Table(std::uint32_t sessions_max);
    template <typename Same>
    Index find(std::uint64_t hash, Same same) const {
      for (std::size_t at = hash & mask_;; at = (at + 1) & mask_) {
        if (cells_[at].session == kNil) return kNil;
        if (cells_[at].hash == static_cast<std::uint32_t>(hash) && same(cells_[at].session)) {
          return cells_[at].session;
        }
      }
    }
    void insert(std::uint64_t hash, Index session);
    void erase(std::uint64_t hash, Index session);

   private:
    struct Cell {
      std::uint32_t hash = 0;
      Index session = kNil;
    };
    std::vector<Cell> cells_;
    std::size_t mask_;
  };
  struct List {
    Index newest = kNil, oldest = kNil;
    std::uint32_t count = 0;
  };

  std::uint64_t table_hash(const net::FlowKey& flow) const {
    return flow.hash(options_.table_seed);
  }
  Index find_client(const net::FlowKey& flow) const;
  Index find_proxy(const net::FlowKey& flow) const;
  NatResult open(const net::FlowKey& flow, std::uint16_t proxy, const SocketAddress& target,
                 Index& out);
  // A place in free_ is taken; all but its timer is set.
  Index insert(const net::FlowKey& flow, const net::FlowKey& proxy_flow, std::uint16_t proxy);
  NatResult choose_port(const net::FlowKey& flow, const SocketAddress& target,
                        net::FlowKey& proxy_flow);
  bool make_room();
  void close(Index at);
  void link(Index at, Timer timer, std::uint32_t now_s);
  void unlink(Index at);
  // `tcp`: the segment's header, null without one.
  void touch(Session& session, Index at, const std::uint8_t* tcp, bool from_client,
             std::uint32_t now_s);
  void look_at_carrier(Session& session, bool from_client, std::uint32_t now_s);
  std::uint32_t idle_s(Timer timer) const;
  std::uint32_t last_used_s(const Session& s) const {
    return s.timer == kEstablished ? std::max(s.used_s, back_s_) : s.used_s;
  }
  static NatResult rewrite(const Packet& packet, const net::FlowKey& to, std::uint16_t addresses,
                           std::uint16_t ports);
  NatResult rewrite_error(const Packet& packet, const net::IcmpError& error,
                          const net::FlowKey& outer, const net::FlowKey& inner);

  NatOptions options_;
  std::uint64_t seed_;
  std::vector<IpAddress> v4_, v6_;
  std::vector<Session> sessions_;
  std::vector<Index> free_;
  Table by_client_;
  Table by_proxy_;
  std::array<List, kTimers> lists_;
  std::vector<std::uint32_t> per_proxy_;
  std::uint32_t used_ = 0;
  std::uint32_t searches_in_vain_ = 0;  // for a free port, one after the other
  NatCounters counters_;
  NatCarrier* carrier_ = nullptr;
  std::uint32_t watched_s_ = 0, back_s_ = 0;  // the last watch_time(); the last after a pause
};

}  // namespace sanproxy::steer
