// Link: the Node's side of one proxy: its channel while there is one, and the way back to one.
//
// Documents: docs/application_library.md "When a proxy goes away", docs/wire_format.md.
// Role: connects (again and again, with a growing pause), says HELLO, proves its keys, joins, and
//   hands the channel's messages to connections and services.
// Owner: the Node. Thread: its.
// Invariants:
//   1. At most one of connecting_ and hold_ exists.
//   2. When the channel ends, each of its connections is ended with kProxyLost, once.
//   3. Loans that applications keep hold the ended channel's memory (ChannelHold), not the Link.
//   4. No service is joined before the proxy has answered for every key.
//   5. A proxy that has promised to be heard and is not is given up (silence_ns_).
//   6. Unsent rejections are bounded (kUnsentRejectsMax); beyond that the channel is closed.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "appnode-lib/client/connection_impl.h"
#include "appnode-lib/client/connection_table.h"
#include "appnode-lib/client/send_memory.h"
#include "lwproto/channel/channel.h"
#include "lwproto/fabric/fabric.h"

namespace sanproxy::app::internal {

class NodeImpl;

enum class LinkOrigin : std::uint8_t {
  kConfigured,  // by the application
  kCluster,     // found in one
  kWorker,      // a proxy's HELLO led to it
};

struct LinkPlace {
  std::string address;
  fabric::Fabric* fabric = nullptr;
  fabric::EndpointOptions endpoint;
  const buffer::SlotPool* pool = nullptr;  // where receives land, if in memory of ours
  bool receives_into_pool = false;         // the fabric's kind
  LinkOrigin origin = LinkOrigin::kConfigured;
};

// A channel, and how many kept loans need its memory.
struct ChannelHold {
  std::unique_ptr<channel::Channel> channel;
  std::size_t loans = 0;
  bool receives_into_pool = false;
};

class Link final : public channel::Delegate {
 public:
  static constexpr std::uint64_t kRetryFirstNs = 10'000'000;
  static constexpr std::uint64_t kRetryMaxNs = 200'000'000;
  static constexpr std::uint64_t kAskAgainFirstNs = 1'000'000'000;
  static constexpr std::uint64_t kAskAgainMaxNs = 30'000'000'000;
  static constexpr std::size_t kUnsentRejectsMax = 4096;
  static constexpr std::size_t kPollBudget = 256;

  Link(NodeImpl& node, LinkPlace place);
  ~Link() override;

  // --- life
  std::size_t poll(std::uint64_t now_ns);
  void publish();  // of a loop that arms before it sleeps
  void flush();
  void replenish();  // its channel, if that receives into memory of ours
  bool up() const { return hold_ != nullptr && !lost_; }
  bool connecting() const { return connecting_ != nullptr; }  // the fabric says how long
  // At the end of the node: tells the proxy and throws away what still comes; calls nobody. False
  // while the good-bye is on its way.
  bool say_goodbye();
  bool ready() const;  // up, and every key is answered for
  // When poll() must be called though nothing happened; 0 if never.
  std::uint64_t deadline_ns() const;
  const std::string& address() const { return place_.address; }
  NodeImpl& node() { return node_; }
  channel::Channel& channel() { return *hold_->channel; }
  ChannelHold* hold() { return hold_.get(); }
  // Whether a received loan is better copied than kept: it holds a whole receive buffer of ours,
  // and few are left to post.
  bool receive_memory_is_short() const;

  // The proxy, or such a worker of it, is gone: no new channel once this one has ended.
  void retire() { retired_ = true; }
  void revive() { retired_ = false; }
  // Retired, and nothing is under way: may serve another address once no connection needs it.
  bool finished() const { return retired_ && hold_ == nullptr && connecting_ == nullptr; }
  // Only when finished; keeps the memory that receives land in.
  void move_to(LinkPlace place);
  LinkOrigin origin() const { return place_.origin; }
  bool receives_into_pool() const { return place_.receives_into_pool; }
  std::uint32_t workers() const { return workers_; }  // of the proxy, as its last HELLO said
  bool wanted() const { return !retired_; }

  // --- services (by their index in the Node)
  void sync_services();  // sends the JOINs, LEAVEs and SHUTDOWNs that are due
  bool service_joined(std::size_t index) const;
  // Has joined one with an address of its own in that family: outgoing connections come from there.
  bool has_source(std::uint8_t family) const;
  bool service_settled(std::size_t index) const;  // neither joined nor under way
  void forget_service(std::size_t index);         // settled; its place is another's now

  // --- memory
  void attach(Region& region);
  bool region_attached(std::uint32_t index) const {
    return index < region_keys_.size() && region_keys_[index].attached;
  }
  fabric::RegionKey region_key(std::uint32_t index) const { return region_keys_[index].key; }
  fabric::RegionKey send_memory_key() const { return send_memory_key_; }

  // --- connections
  void adopt(ConnectionImpl& connection);  // its id is known now
  void forget(ConnectionImpl& connection) { table_.erase(connection); }
  void block(ConnectionImpl& connection) { blocked_.push_back(connection); }
  void unblock(ConnectionImpl& connection) {
    blocked_.remove(connection);
    placeless_.remove(connection);
  }
  // Others were refused a credit before: who comes now waits behind them.
  bool others_wait() const { return !serving_blocked_ && !blocked_.empty(); }
  // Whether a reference finds a place in the send queue, and nobody waits for one. Who waits for a
  // place keeps nobody from sending inline: it may be a client that comes back only tomorrow.
  bool has_place() const {
    return hold_->channel->places_left() != 0 && (serving_placeless_ || placeless_.empty());
  }
  bool wait_for_place(ConnectionImpl& connection) {  // false: there is one
    if (has_place()) return false;
    placeless_.push_back(connection);
    // on_writable() asks when it has tried everybody: asked before, it would stop here.
    if (!serving_blocked_ && !serving_placeless_) channel().ask_writable();
    return true;
  }

  void breach(const char* text);  // the proxy broke a rule: end the channel

  // --- channel::Delegate
  void on_data(channel::Channel& channel, std::uint64_t connection, std::uint64_t offset,
               const channel::Payload& payload) override;
  void on_message(channel::Channel& channel, const wire::Message& message) override;
  void on_sent(channel::Channel& channel, std::uint64_t cookie, bool ok) override;
  void on_writable(channel::Channel& channel) override;
  void on_closed(channel::Channel& channel, wire::CloseCode code,
                 const ::sanproxy::Status& status) override;

 private:
  enum class Phase : std::uint8_t { kNone, kJoining, kJoined, kLeaving, kGone, kRefused, kLimited };
  struct ServiceState {
    Phase phase = Phase::kNone;
    std::uint32_t id = 0;  // the proxy's name for it, from kJoined to kGone
  };
  struct Reject {
    wire::RejectConnectionBody body;
    wire::CloseCode code;
  };
  struct RegionKey {
    fabric::RegionKey key = 0;
    bool attached = false;
  };

  void start_connecting();
  std::size_t poll_connecting();
  ::sanproxy::Status come_up(std::unique_ptr<fabric::Endpoint> endpoint,
                             std::span<const std::byte> hello);
  std::string why_not(const ::sanproxy::Status& status) const;
  void retry_later(std::string_view reason);
  void take_down();

  // link_health.cc
  void on_heartbeat(const wire::HeartbeatBody& body);
  void answer_heartbeat();
  void look_for_silence(std::uint64_t now_ns);
  void forget_heartbeats();

  void on_request(const wire::ConnectionRequestBody& body);
  void on_accept(const wire::AcceptConnectionBody& body);
  void on_reject(const wire::RejectConnectionBody& body, wire::CloseCode code);
  ConnectionImpl* awaiting(std::uint32_t request);
  void reject(std::uint64_t connection, wire::CloseCode code);
  ::sanproxy::Status send_reject(const Reject& reject);
  bool flush_rejects();
  void send_blocked_credits();
  void serve_placeless();

  bool prove_keys();  // false: not done yet
  void on_key_answer(const wire::AuthenticateBody& body, wire::CloseCode code);

  void ask_again_later();
  void ask_again();
  void forget_limits();
  ::sanproxy::Status sync_service(std::size_t index);
  bool waits_for_another(std::size_t index) const;
  void on_join_answer(const wire::JoinServiceBody& body, wire::CloseCode code);
  void on_service_end(const wire::ServiceBody& body, bool answer, wire::CloseCode code);
  std::size_t service_index(std::uint32_t id) const;

  NodeImpl& node_;
  LinkPlace place_;
  bool retired_ = false;
  std::uint32_t workers_ = 1;
  wire::HelloBody hello_{};  // of this attempt and its channel
  std::unique_ptr<fabric::Connecting> connecting_;
  std::unique_ptr<ChannelHold> hold_;
  bool lost_ = false;  // the channel has ended; take_down() at the end of its poll
  bool services_blocked_ = false;
  std::size_t ends_crossed_ =
      0;  // LEAVEs and SHUTDOWNs of ours whose answer means nothing any more
  bool serving_blocked_ = false;
  bool serving_placeless_ = false;
  std::size_t keys_sent_ = 0, keys_answered_ = 0;
  bool keys_limited_ = false;  // a key met a limit: all are proven again at ask_again_at_ns_
  // When what met a limit is asked for again; 0 if nothing did.
  std::uint64_t ask_again_at_ns_ = 0;
  std::uint64_t ask_again_pause_ns_ = kAskAgainFirstNs;
  std::uint64_t retry_at_ns_ = 0;
  std::uint64_t retry_pause_ns_ = kRetryFirstNs;
  // What the proxy's HEARTBEATs say, and when it was heard; looked at every look_ns().
  std::uint64_t silence_ns_ = 0;
  std::uint64_t heard_transfers_ = 0;
  std::uint64_t heard_ns_ = 0;
  std::uint64_t look_at_ns_ = 0;  // 0: there is nothing to look for
  std::uint32_t heartbeat_ = 0;
  bool heartbeat_owed_ = false;       // its answer found no credit
  const char* our_reason_ = nullptr;  // why we ended the channel, if we did and people should know
  std::string last_reason_;           // so that a proxy that stays away is reported once

  ConnectionTable table_;
  IntrusiveList<ConnectionImpl, &ConnectionImpl::blocked_hook> blocked_;
  IntrusiveList<ConnectionImpl, &ConnectionImpl::place_hook> placeless_;
  std::vector<Reject> rejects_;
  std::vector<ServiceState> services_;
  std::vector<RegionKey> region_keys_;
  fabric::RegionKey send_memory_key_ = 0;
};

}  // namespace sanproxy::app::internal
