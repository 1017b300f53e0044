// World: a Translator on a real Stack, with clients on one side and application nodes on the
// other, all in one thread, moved until nothing moves.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "lwproto/fabric/fabric.h"
#include "proxynode/translate/translator.h"
#include "tests/lwproto/fabric/sim/manual_listener.h"
#include "tests/proxynode/stack/stack_harness.h"
#include "tests/proxynode/translate/scripted_client.h"
#include "tests/proxynode/translate/scripted_node.h"

namespace sanproxy::translate::testing {

using fabric::sim::Delivery;
using stack::testing::pattern;
using wire::CloseCode;
using wire::MessageType;

inline const std::string kWeb = "10.77.0.10:80";

struct WorldOptions {
  TranslatorOptions translator{.name = "proxy",
                               .epoch = 0xbeef,
                               .connections_max = 64,
                               .nodes_max = 4,
                               .send_window_bytes = 256 * 1024,
                               .tx_records_max = 1024,
                               .channel_region_bytes = std::size_t{4} << 20};
  stack::StackOptions stack{.connections_max = 64,
                            .time_wait_max = 64,
                            .receive_window_bytes = 256 * 1024,
                            .send_buffer_bytes = 256 * 1024,
                            .heap_bytes_max = std::size_t{64} << 20};
  std::size_t ingress_slots = 64;
  std::size_t egress_slots = 16;
  std::uint32_t services_max = 8;
  std::vector<service::Policy> policies = {};
  Delivery delivery = Delivery::kLoans;
  bool shm = false;           // the real fabric instead of the one in memory
  bool lend_ingress = false;  // shared trust
  bool pool = false;          // as verbs and tcp: received into the EgressPool, sent from slots
  service::AllowList allow = service::anybody();
  std::uint32_t credits = 64;  // of the proxy
  std::uint32_t fabric_nodes_max = 64;
  std::uint32_t dead_after_ms = 0;
};

class World : public ::testing::Test, public Host {
 protected:
  World();
  ~World() override;
  void make(const WorldOptions& options = {});
  void TearDown() override;

  Node& add_node(const NodeOptions& options = {});
  // A node that has joined kWeb.
  Node& add_member(const NodeOptions& options = {}, std::uint8_t flags = 0);
  struct Refusal {
    CloseCode code = CloseCode::kNone;
    std::size_t bytes = 0;
  };
  Refusal dial_refused(std::span<const std::byte> private_data);
  Client& add_client(const std::string& to = kWeb);  // connected
  // A client whose first bytes have reached a node; its id there.
  std::uint64_t open(Client*& client, Node& node, const std::string& first = "hello");

  bool step();                    // one round of everybody; false when nothing moved
  void run();                     // until nothing moves
  void run_ms(std::uint64_t ms);  // the same, while time passes
  void proxy_round();
  void deliver(const Client& client, const Segment& segment);
  void deliver(const SocketAddress& src, const SocketAddress& dst, const Segment& segment);

  const AppNode* node_in_proxy(const std::string& name) const;
  const TranslatorCounters& counters() const { return translator_->counters(); }
  // Nothing is held by anybody, with all nodes still there.
  void expect_nothing_held();

  // --- Host
  void on_service_opened(const SocketAddress& address) override { opened_.push_back(address); }
  void on_service_closed(const SocketAddress& address) override { closed_.push_back(address); }

  WorldOptions options_;
  ManualClock clock_;
  stack::testing::MemoryIo io_;
  buffer::MemoryRegion ingress_region_, egress_region_;
  std::unique_ptr<buffer::SlotPool> ingress_, egress_;
  std::unique_ptr<fabric::Fabric> server_fabric_, client_fabric_;
  std::vector<std::unique_ptr<Node>> nodes_;
  std::unique_ptr<Translator> translator_;
  std::unique_ptr<stack::Stack> stack_;
  std::deque<Client> clients_;
  std::deque<Sent> strays_;  // what no client waits for
  std::vector<SocketAddress> opened_, closed_;
  fabric::sim::ManualListener* listener_ = nullptr;  // the translator's
  std::string shm_address_;
  std::uint16_t next_port_ = 40'000;

 private:
  bool sort_packets();
  bool deliver_clients();
  std::unique_ptr<fabric::Endpoint> connect_shm(const Node& node, wire::HelloBody& proxys);
};

// The bytes of a text.
inline Bytes bytes_of(std::string_view text) { return {text.begin(), text.end()}; }
inline std::string text_of(const Bytes& bytes) { return {bytes.begin(), bytes.end()}; }

}  // namespace sanproxy::translate::testing
