// ServiceTable: which services exist, which application nodes serve them, and who gets the next
// connection.
//
// Document: docs/architecture.md "Services".
// Role: pure bookkeeping: no I/O, no TCP, no channels. The translator acts on its answers.
// Owner: the translator; thread: the worker's.
// Invariants:
//   1. A service exists exactly while it has a member. Its id is not reused while the process
//      lives.
//   2. A member's `connections` is the number of connections bound to it and not yet unbound. Those
//      of a node that has left go on uncounted, also when it joins again.
//   3. Whoever is allowed less than everything cannot get a service's connections by joining an
//      address that covers it, or that it covers: the lists of both hold.
//   4. pick() never yields a member at its connections_max, one that is not well, or one that is
//      not eligible.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "lwproto/auth/admission.h"
#include "lwproto/base/socket_address.h"
#include "lwproto/base/status.h"
#include "lwproto/flow/health.h"

namespace sanproxy::service {

using auth::AllowEntry;
using auth::AllowList;
using auth::allows;
using auth::anybody;
using auth::Credentials;

using ServiceId = std::uint32_t;  // 0 is none
using NodeId = std::uint32_t;

enum class Balance : std::uint8_t { kRoundRobin, kWeighted, kLeastConnections };
enum class Binding : std::uint8_t { kAsJoined, kImmediate, kDelayed };
const char* balance_name(Balance balance);

// How the proxy asks each member of a service whether it is well: a connection of its own, a
// request on it, and what the first line of the answer must contain.
struct HealthCheck {
  std::string request = {};  // 1..kRequestBytesMax bytes
  std::string expect = {};   // empty: any answer will do
  std::uint32_t interval_ms = 2000;
  std::uint32_t timeout_ms = 1000;
  flow::HealthOptions thresholds = {.rise = 2, .fall = 3};
  bool operator==(const HealthCheck&) const = default;
  static constexpr std::size_t kRequestBytesMax = 1024;
  static constexpr std::size_t kExpectBytesMax = 256;
};

// What the operator configured for an address; a service without a policy gets the default.
struct Policy {
  SocketAddress address;
  Balance balance = Balance::kRoundRobin;
  Binding binding = Binding::kAsJoined;
  std::optional<AllowList> allow =
      std::nullopt;  // who may join; without: what the joining side's fabric says
  std::map<std::string, std::uint32_t> weights = {};  // by name of a node, instead of JOIN's
  std::optional<HealthCheck> health = std::nullopt;
};

struct Member {
  NodeId node = 0;
  std::string name;
  std::uint32_t weight = 1;           // in force
  std::uint32_t joined_weight = 1;    // as its JOIN said
  std::uint32_t connections_max = 0;  // 0 is no limit
  bool immediate = false;             // as its JOIN said
  std::uint32_t connections = 0;
  std::uint32_t membership = 0;     // from 1; who leaves and joins again gets another
  std::int64_t current_weight = 0;  // smooth weighted round-robin (as in nginx)
  std::uint64_t picked = 0;         // in all
  // Of the service's HealthCheck; kept by whoever asks.
  flow::Health health = {};
  bool being_probed = false;
  std::uint64_t probe_at_ns = 0;
  const char* probe_trouble = "";  // why the last probe was bad
};

struct JoinRequest {
  SocketAddress address;
  NodeId node = 0;
  std::string name = {};  // of the node
  Credentials who;
  AllowList otherwise = anybody();  // who may join a service without a list of its own
  std::uint32_t weight = 1;
  std::uint32_t connections_max = 0;
  bool immediate = false;
};

class Service {
 public:
  Service(ServiceId id, const Policy& policy);

  ServiceId id() const { return id_; }
  const SocketAddress& address() const { return policy_.address; }
  const Policy& policy() const { return policy_; }
  bool immediate() const;  // as the policy says, or else if any member asked for it
  const std::vector<Member>& members() const { return members_; }
  Member* find(NodeId node);
  void for_each_member(const std::function<void(Member&)>& fn);

  // The member for the next connection by the balancing rule, among those that `eligible`
  // accepts; nullptr if none can take one. Counts the connection to it.
  Member* pick(const std::function<bool(NodeId)>& eligible);
  // A connection that was bound in that membership has ended.
  void unbind(NodeId node, std::uint32_t membership);

  std::uint32_t listener = 0;  // the translator's: the stack's listener,
  bool listening = false;      // while there is one
  std::uint64_t accepted = 0, unserved = 0;

 private:
  friend class ServiceTable;
  Member* pick_round_robin(const std::function<bool(NodeId)>& usable);
  Member* pick_weighted(const std::function<bool(NodeId)>& usable);
  Member* pick_least_connections(const std::function<bool(NodeId)>& usable);
  void weigh(Member& member) const;
  void examine(Member& member) const;

  ServiceId id_;
  Policy policy_;
  std::size_t immediate_members_ = 0;
  std::size_t next_ = 0;
  std::uint32_t memberships_ = 0;
  std::vector<Member> members_;
  std::vector<Member*> candidates_;  // of pick_weighted()
};

class ServiceTable {
 public:
  ServiceTable(std::vector<Policy> policies, std::uint32_t services_max);

  struct Joined {
    Service* service;
    bool created;  // the caller must create the LISTEN endpoint (and undo with leave())
  };
  // kPermission: the policy does not allow this peer. kExists: it is a member already.
  // kExhausted: services_max.
  Result<Joined> join(const JoinRequest& request);
  // Whether the lists of this moment let that member stay.
  bool permits(const JoinRequest& request) const;
  // The policy of an address while running: instead of the configured one, or (nothing) that again.
  // Holds for the service that is there at once; who may stay is for the caller to see to.
  void override_policy(const SocketAddress& address, std::optional<Policy> policy);
  // True when that was the last member: the caller must have closed the LISTEN endpoint, then
  // calls erase().
  Result<bool> leave(ServiceId service, NodeId node);
  void erase(ServiceId service);

  Service* find(ServiceId service);
  Service* find(const SocketAddress& address);
  // The services that `node` is a member of.
  std::vector<ServiceId> services_of(NodeId node) const;
  std::size_t size() const { return services_.size(); }
  void for_each(const std::function<void(Service&)>& fn);

 private:
  const Policy* policy_for(const SocketAddress& address) const;

  const std::vector<Policy> configured_;
  std::vector<Policy> policies_;  // in force: those, and what overrides them
  std::uint32_t services_max_;
  ServiceId next_id_ = 1;
  std::unordered_map<ServiceId, std::unique_ptr<Service>> services_;
  std::map<SocketAddress, ServiceId> by_address_;
};

}  // namespace sanproxy::service
