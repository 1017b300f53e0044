// Forwarder: from a packet to a verdict: which proxy, or why not.
//
// Document: docs/netnode.md "Life of a packet", "Where an established session goes".
// Role: parse, find the service, find the flow; in bursts, with prefetch. Changes no packet and
// does
//   no I/O.
// Owner: a network node's data path. Thread: its; apply() and set_state() between bursts.
// Invariants:
//   1. No allocation but in the constructor, apply() and set_state().
//   2. Every packet gets exactly one verdict; a drop has a reason, and is counted by it.
//   3. A proxy keeps its place (index) while a set names it; a place is given away only after
//      nothing refers to it any more.
//   4. retry() moves on at each call: a packet that all candidates have refused ends as `final`.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "netnode/net/icmp_error.h"
#include "netnode/steer/flow_table.h"
#include "netnode/steer/fragments.h"
#include "netnode/steer/nat.h"
#include "netnode/steer/pool.h"
#include "netnode/steer/proxy_set.h"

namespace sanproxy::steer {

inline constexpr std::size_t kBurstMax = 64;

enum class Drop : std::uint8_t {
  kNone = 0,
  kMalformed,     // parse_packet() says why
  kNotForUs,      // neither a service's address nor one of ours
  kNoService,     // a service's address, but no such port or protocol
  kNoProxy,       // no proxy takes new sessions
  kFragmentTiny,  // a first fragment without the whole transport header, or one that overlaps it
  kFragmentProtocol,  // of neither TCP nor UDP, such as a large echo request: nobody's flow
  kFragmentMalformed,
  kFragmentHeld,     // no room to hold a fragment that came before its first
  kFragmentTimeout,  // counted by the owner of the token
  kIcmpUnknown,      // no error about a TCP or UDP flow, no echo request
  kIcmpUnclaimed,    // an error about a flow that no proxy knows
  kCount,
};
const char* drop_name(Drop drop);

enum class Action : std::uint8_t {
  kDrop,
  kToProxy,
  kToClient,      // arrived at an address of the NAT
  kErrorToProxy,  // ICMP errors: about what a proxy sent; about what we sent
  kErrorToClient,
  kEcho,   // an echo request to a service's address: answer it
  kHeld,   // a later fragment: its token was kept
  kNoted,  // told us something: of the path of a tunnel
};

struct Verdict {
  Action action = Action::kDrop;
  Drop drop = Drop::kNone;
  std::uint16_t proxy = FlowTable::kNone;  // kToProxy, kErrorToProxy
  bool has_ports = true;                   // false: a later fragment
  bool first_fragment = false;             // others may have been waiting: release_held()
  bool final = false;
  net::ParsedPacket parsed;
  net::FlowKey flow;  // of the datagram; of an error: of the quoted packet
  std::uint64_t hash = 0;
  net::IcmpError error;
  Fragments::Datagram datagram;  // of a fragment
};

enum class ProxyState : std::uint8_t {
  kDown,      // gets nothing: established flows go elsewhere and end there
  kDraining,  // keeps its sessions
  kUp,
};
const char* proxy_state_name(ProxyState state);

struct ForwarderOptions {
  std::uint32_t maglev_entries = kMaglevEntriesDefault;
  std::uint32_t generations = 4;  // former tables that a second chance is sought in
  // The same on all nodes of one cluster, or they choose differently. Whoever knows it can aim
  // flows at one proxy.
  std::uint64_t hash_seed = 0x73616e70726f7879U;
  std::vector<IpAddress> tunnel_addresses;  // ours, where tunnels begin
  FlowTableOptions flows;
  FragmentOptions fragments;
  NatOptions nat;
};

struct ForwarderCounters {
  std::array<std::uint64_t, static_cast<std::size_t>(Drop::kCount)> drops{};
  std::array<std::uint64_t, 8> malformed{};  // by net::DropReason
  std::uint64_t packets = 0;
  std::uint64_t by_flow = 0, by_tag = 0, by_maglev = 0, by_nat = 0, new_sessions = 0;
  std::uint64_t retries = 0, retries_final = 0;
  std::uint64_t fragments_held = 0, icmp_errors = 0;
};

class Forwarder {
 public:
  struct Proxy {
    ProxyConfig config;
    std::uint64_t hash = 0;
    std::uint16_t tag = 0;          // in its segments; config.id, or what it has told
    std::uint32_t told_weight = 0;  // by itself; 0: nothing
    std::uint32_t weight() const {
      return config.weight_said || told_weight == 0 ? config.weight : told_weight;
    }
    ProxyState state = ProxyState::kDown;
    bool in_use = false;
    std::uint64_t packets = 0;  // sent to it
    struct PathMtu {
      std::uint32_t mtu_bytes = 0;
      std::uint64_t until_ms = 0;
    };
    std::array<PathMtu, 2> path_mtus;  // of its tunnel: over IPv4, over IPv6
  };
  struct Service {
    ServiceConfig config;
    std::uint16_t pool = 0;
  };

  explicit Forwarder(const ForwarderOptions& options);

  // The set is right (check()). Proxies that were there before keep place and state; new ones are
  // down. Places of those that have gone are in `gone`.
  void apply(const ProxySet& set, std::vector<std::uint16_t>& gone);
  // Rebuilds the tables when it changes who takes new sessions.
  void set_state(std::uint16_t proxy, ProxyState state);
  // The id that a proxy has told itself, for one without an id in its configuration.
  void set_tag(std::uint16_t proxy, std::uint16_t tag);
  // The weight that a proxy has told itself, likewise.
  void set_told_weight(std::uint16_t proxy, std::uint32_t weight);

  struct Arrival {
    std::span<const std::byte> bytes;
    Fragments::Token token = 0;  // of the packet, should it be held
  };
  // At most kBurstMax.
  void steer(std::span<const Arrival> packets, std::span<Verdict> out, std::uint64_t now_ms);
  // A channel's proxy did not know the flow of `packet` (or the one that it is an error about), or
  // had nobody to serve it: who is next.
  // What it says of flows that are another proxy's is not believed.
  void retry(std::span<const std::byte> packet, std::uint16_t from, Verdict& out,
             std::uint64_t now_ms);
  // A packet of proxy `from` to a client, on its way back through us: FIN and RST end flows of its
  // own. False: no service of ours speaks to a client from there.
  bool on_reply(const net::ParsedPacket& parsed, std::span<const std::byte> first,
                std::uint16_t from, std::uint64_t now_ms);
  // The same of a segment that the NAT brings back to the client whose flow is `client`.
  void on_translated(const net::FlowKey& client, std::uint8_t tcp_flags, std::uint64_t now_ms);
  // One that waits for the datagram of `first`, a first fragment that was steered. steer() at the
  // same `now_ms` does not hold it again, whatever the rest of the burst made us forget meanwhile.
  bool release_held(const Verdict& first, Fragments::Token& token, std::uint64_t now_ms) {
    if (!fragments_.release(first.datagram, token)) return false;
    fragments_.learn(first.datagram, first.flow, now_ms);
    return true;
  }
  bool expire_held(std::uint64_t now_ms, Fragments::Token& token) {
    if (!fragments_.expire(now_ms, token)) return false;
    count(Drop::kFragmentTimeout);
    return true;
  }
  // What fits on the path of the tunnel to a proxy, as far as routers have told (RFC 1191).
  std::uint32_t path_mtu(std::uint16_t proxy, Family family, std::uint64_t now_ms) const {
    const Proxy::PathMtu& path = proxies_[proxy].path_mtus[family == Family::kIpv6];
    return now_ms < path.until_ms ? path.mtu_bytes : UINT32_MAX;
  }
  // Housekeeping, a bounded amount a call.
  void age(std::uint64_t now_ms);

  std::span<const Proxy> proxies() const { return proxies_; }
  std::span<const Service> services() const { return services_; }
  std::uint16_t find(const std::string& name) const;
  // Sessions that this node knows of. A translated one is in the flow table as well, for a time of
  // its own.
  std::uint32_t sessions_of(std::uint16_t proxy) const {
    const bool nat = proxies_[proxy].config.mode == Mode::kNat;
    return (nat ? 0 : flows_.flows_of(proxy)) + nat_.sessions_of(proxy);
  }
  std::uint64_t sessions() const;
  std::uint64_t generation() const;
  // Another number after whatever may have made a packet another proxy's, or nobody's.
  std::uint64_t changes() const { return changes_; }
  std::uint64_t tables_built() const { return tables_built_; }
  Nat& nat() { return nat_; }
  const Nat& nat() const { return nat_; }
  const FlowTable& flows() const { return flows_; }
  const Fragments& fragments() const { return fragments_; }
  const ForwarderCounters& counters() const { return counters_; }

 private:
  static constexpr std::uint16_t kNoPlace = 0xffff;
  static constexpr std::size_t kCandidatesMax = 3 + 16;
  // Looks into the table for somebody who serves a SYN: so many that hardly anybody is missed.
  static constexpr std::size_t kSynLooks = 64;

  struct ServiceCell {
    std::array<std::uint8_t, 16> address{};
    std::uint16_t port = 0;
    std::uint8_t protocol = 0;  // 0: the cell stands for the address alone
    Family family = Family::kNone;
    std::uint16_t service = kNoPlace;
  };
  struct Candidates {
    std::array<std::uint16_t, kCandidatesMax> proxies{};
    std::size_t count = 0;
    void add(std::uint16_t proxy);
  };

  // Of a cell in the index of services; their keys are no secret.
  std::size_t home(const std::array<std::uint8_t, 16>& address, std::uint16_t port,
                   std::uint8_t protocol) const {
    return net::multiply_mix(net::load_raw64(address.data()) ^ std::uint64_t{port} << 48 ^
                                 std::uint64_t{protocol} << 40,
                             net::load_raw64(address.data() + 8) ^ 0x9e3779b97f4a7c15U) &
           cell_mask_;
  }
  void count(Drop drop) { ++counters_.drops[static_cast<std::size_t>(drop)]; }
  void drop(Verdict& out, Drop why);
  void deliver(Verdict& out, std::uint16_t proxy) {
    out.action = Action::kToProxy;
    out.proxy = proxy;
    ++proxies_[proxy].packets;
  }
  const ServiceCell* find_service(const net::FlowKey& flow, std::uint8_t protocol,
                                  std::uint16_t port) const;
  // Nothing but TCP and UDP is for a service: protocol 0 would find the cell of an address alone.
  const ServiceCell* service_of(const Verdict& packet) const {
    if (packet.parsed.l4 != net::L4::kTcp && packet.parsed.l4 != net::L4::kUdp) return nullptr;
    return find_service(packet.flow, packet.flow.protocol, packet.flow.dst_port);
  }
  bool is_service_address(const net::FlowKey& flow) const {
    return find_service(flow, 0, 0) != nullptr;
  }
  void end_flow(const net::FlowKey& flow, std::uint16_t from, std::uint64_t now_ms);
  void add_service_cell(const SocketAddress& address, std::uint8_t protocol, std::uint16_t service);
  void index_services();
  void index_tags();
  void apply_services(const std::vector<ServiceConfig>& services);
  void rebuild_pools();
  static bool is_in(const ServiceConfig& pool_key, const Proxy& proxy);
  void prepare(const Arrival& packet, Verdict& out);
  void decide(const Arrival& packet, Verdict& out, std::uint64_t now_ms);
  void decide_flow(const Arrival& packet, Verdict& out, std::uint16_t service,
                   std::uint64_t now_ms);
  void decide_fragment(const Arrival& packet, Verdict& out, std::uint64_t now_ms);
  void decide_icmp(const Arrival& packet, Verdict& out, std::uint64_t now_ms);
  bool note_path_mtu(const Arrival& packet, const Verdict& verdict, std::uint64_t now_ms);
  // The flow that an error is about, and the tag in what it quotes; null and dropped without one.
  const ServiceCell* read_error(const Arrival& packet, Verdict& out, std::uint16_t& tag);
  void retry_error(const Arrival& packet, std::uint16_t from, Verdict& out, std::uint64_t now_ms);
  // Where a packet of a flow that is under way belongs, without the flow table.
  std::uint16_t locate(const Verdict& packet, const std::uint8_t* l4, const Pool& pool);
  bool usable(std::uint16_t proxy) const {
    return proxy < proxies_.size() && proxies_[proxy].state != ProxyState::kDown;
  }
  // Nobody else's: the timestamps of servers that know nothing of tags look like any of them.
  std::uint16_t by_tag(std::uint16_t tag, const Pool& pool) const {
    const std::uint16_t proxy = pool.tagged(tag);
    return usable(proxy) ? proxy : FlowTable::kNone;
  }
  void candidates(const Verdict& packet, std::uint16_t tag, const Pool& pool,
                  Candidates& out) const;
  void candidates_of_syn(const Verdict& packet, const Pool& pool, Candidates& out) const;

  ForwarderOptions options_;
  FlowTable flows_;
  Fragments fragments_;
  Nat nat_;
  std::vector<Proxy> proxies_;
  std::vector<Service> services_;
  std::vector<Pool> pools_;
  std::vector<ServiceConfig>
      pool_keys_;  // what whoever is in a pool serves; without a port, sorted
  std::vector<ServiceCell> cells_;
  std::size_t cell_mask_ = 0;
  std::uint64_t tables_built_ = 0;
  std::uint64_t changes_ = 0;
  ForwarderCounters counters_;
};

}  // namespace sanproxy::steer
