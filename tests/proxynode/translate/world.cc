#include "tests/proxynode/translate/world.h"

#include "lwproto/buffer/pool_sizes.h"
#include "lwproto/daemon/log.h"
#include "lwproto/fabric/shm/shm_fabric.h"
#include "tests/lwproto/fabric/temporary_path.h"

namespace sanproxy::translate::testing {

World::World() { spdlog::set_level(spdlog::level::off); }
World::~World() = default;

void World::make(const WorldOptions& options) {
  options_ = options;
  constexpr std::size_t kSlot = packet_io::kReceiveBufferBytesMin;
  const std::size_t egress_slot_bytes = options.pool ? buffer::kEgressSlotBytes : 65536;
  ingress_region_ =
      buffer::MemoryRegion::create("test-ingress", options.ingress_slots * kSlot).value();
  egress_region_ =
      buffer::MemoryRegion::create("test-egress", options.egress_slots * egress_slot_bytes).value();
  ingress_ = std::make_unique<buffer::SlotPool>(ingress_region_.bytes(), kSlot);
  egress_ = std::make_unique<buffer::SlotPool>(egress_region_.bytes(), egress_slot_bytes);
  options_.translator.clock = &clock_;
  translator_ =
      std::make_unique<Translator>(options_.translator, *ingress_, ingress_region_, *egress_,
                                   options.policies, options.services_max, *this);
  stack_ = stack::Stack::create(options.stack, clock_, *ingress_, *translator_).value();
  translator_->set_stack(*stack_);
  ASSERT_TRUE(stack_->add_interface(io_).ok());

  FabricListener entry;
  entry.options.receive_depth = options.credits;
  entry.lend_ingress = options.lend_ingress || options.pool;
  entry.nodes_max = options.fabric_nodes_max;
  if (options.pool) {
    entry.options.receive_memory = translator_->receive_memory(egress_region_);
    entry.shared_chunks = std::make_unique<ChunkRegion>(
        buffer::MemoryRegion::create("test-channels", options.translator.channel_region_bytes)
            .value());
  }
  entry.dead_after_ms = options.dead_after_ms;
  entry.allow = options.allow;
  if (options.shm) {
    server_fabric_ = fabric::make_shm_fabric().value();
    client_fabric_ = fabric::make_shm_fabric().value();
    shm_address_ = "shm:" + fabric::test::unused_path();
    entry.listener = server_fabric_->listen(shm_address_, entry.options).value();
  } else {
    auto listener = std::make_unique<fabric::sim::ManualListener>(
        options.pool ? Delivery::kReceiveBuffers : options.delivery, entry.options);
    listener_ = listener.get();
    entry.listener = std::move(listener);
  }
  translator_->add_listener(std::move(entry));
}

// --- who takes part

std::unique_ptr<fabric::Endpoint> World::connect_shm(const Node& node, wire::HelloBody& proxys) {
  std::array<std::byte, sizeof(wire::HelloBody)> bytes{};
  wire::encode_hello(node.hello(), bytes);
  auto connecting = client_fabric_->connect(shm_address_, bytes, node.endpoint_options());
  if (!connecting.ok()) return nullptr;
  for (int i = 0; i < 100'000; ++i) {
    server_fabric_->disarm();
    client_fabric_->disarm();
    translator_->poll_listeners();
    auto endpoint = (*connecting)->poll();
    if (endpoint.ok()) {
      proxys = *wire::decode_hello((*connecting)->private_data());
      return std::move(endpoint).value();
    }
    if (!endpoint.status().is_again()) return nullptr;
  }
  return nullptr;
}

Node& World::add_node(const NodeOptions& options) {
  nodes_.push_back(std::make_unique<Node>(options));
  Node& node = *nodes_.back();
  wire::HelloBody proxys{};
  if (options_.shm) {
    auto endpoint = connect_shm(node, proxys);
    EXPECT_NE(endpoint, nullptr);
    node.start(std::move(endpoint), proxys);
    return node;
  }
  std::array<std::byte, sizeof(wire::HelloBody)> bytes{};
  wire::encode_hello(node.hello(), bytes);
  const std::uint64_t token =
      listener_->dial(bytes, node.endpoint_options(), options.uid, options.certificate_name);
  translator_->poll_listeners();
  auto answer = listener_->answer(token);
  EXPECT_TRUE(answer && answer->endpoint != nullptr) << "the proxy refused a good node";
  const auto hello = wire::decode_hello(answer->private_data);
  EXPECT_TRUE(hello.ok());
  node.start(std::move(answer->endpoint), *hello);
  return node;
}

Node& World::add_member(const NodeOptions& options, std::uint8_t flags) {
  Node& node = add_node(options);
  node.join(kWeb, flags);
  run();
  EXPECT_EQ(node.answers.size(), 1u);
  EXPECT_EQ(node.answers.at(0).code, CloseCode::kNone);
  return node;
}

World::Refusal World::dial_refused(std::span<const std::byte> private_data) {
  const std::uint64_t token = listener_->dial(private_data, {});
  translator_->poll_listeners();
  auto answer = listener_->answer(token);
  EXPECT_TRUE(answer && answer->endpoint == nullptr) << "the proxy took a bad node";
  wire::MessageHeader header{};
  if (answer && answer->private_data.size() == sizeof(header)) {
    std::memcpy(&header, answer->private_data.data(), sizeof(header));
    EXPECT_EQ(header.type, static_cast<std::uint8_t>(MessageType::kError));
    EXPECT_EQ(header.length, sizeof(header));
  }
  return {static_cast<CloseCode>(header.code), answer ? answer->private_data.size() : 0};
}

Client& World::add_client(const std::string& to) {
  clients_.emplace_back();
  Client& client = clients_.back();
  client.other = *SocketAddress::parse(to);
  const bool v4 = client.other.ip.family == Family::kIpv4;
  client.self = {*IpAddress::parse(v4 ? "10.77.0.1" : "fd77::1"), next_port_++};
  client.connect();
  run();
  return client;
}

std::uint64_t World::open(Client*& client, Node& node, const std::string& first) {
  const std::size_t before = node.order.size();
  client = &add_client();
  client->send(bytes_of(first));
  run();
  EXPECT_EQ(node.order.size(), before + 1) << "the node has heard of the connection";
  return node.order.size() > before ? node.order.back() : 0;
}

// --- what moves

void World::deliver(const SocketAddress& src, const SocketAddress& dst, const Segment& segment) {
  const Bytes packet = stack::testing::make_packet(src, dst, segment);
  const buffer::SlotIndex slot = ingress_->acquire();
  if (slot == buffer::kNoSlot) return;  // as the kernel's queue would: lost, and sent again
  constexpr std::uint32_t kOffset = 10;
  std::memcpy(ingress_->data(slot) + kOffset, packet.data(), packet.size());
  stack_->input(
      0, slot,
      {.offset = kOffset, .length = static_cast<std::uint32_t>(packet.size()), .offload = {}});
}

void World::deliver(const Client& client, const Segment& segment) {
  deliver(client.self, client.other, segment);
}

bool World::sort_packets() {
  const bool any = !io_.sent.empty();
  for (Sent& packet : std::exchange(io_.sent, {})) {
    const auto it = std::find_if(clients_.begin(), clients_.end(), [&](const Client& client) {
      return client.self == packet.dst && client.other == packet.src;
    });
    if (it != clients_.end()) {
      it->take(packet);
    } else {
      strays_.push_back(std::move(packet));
    }
  }
  return any;
}

bool World::deliver_clients() {
  bool any = false;
  for (Client& client : clients_) {
    for (const Segment& segment : client.produce()) {
      deliver(client, segment);
      any = true;
    }
  }
  return any;
}

// As the worker does it (proxynode/main/worker.cc).
void World::proxy_round() {
  translator_->flush_channels();
  translator_->poll_channels();
  if (stack_->next_timer_ns() <= clock_.now_ns()) stack_->on_time();
  stack_->flush();
  translator_->flush_channels();
  translator_->poll_listeners();
}

bool World::step() {
  bool moved = deliver_clients();
  proxy_round();
  moved = sort_packets() || moved;
  for (auto* fabric : {server_fabric_.get(), client_fabric_.get()}) {
    if (fabric == nullptr) continue;
    fabric->arm();
    fabric->disarm();
  }
  for (auto& node : nodes_) moved = node->round() || moved;
  return moved;
}

void World::run() {
  for (int idle = 0, rounds = 0; idle < 3; ++rounds) {
    ASSERT_LT(rounds, 100'000) << "it never comes to rest";
    idle = step() ? 0 : idle + 1;
  }
}

void World::run_ms(std::uint64_t ms) {
  constexpr std::uint64_t kStepMs = 20;
  for (std::uint64_t done = 0; done < ms; done += kStepMs) {
    clock_.advance_ns(kStepMs * 1'000'000);
    run();
  }
}

// --- looking

const AppNode* World::node_in_proxy(const std::string& name) const {
  const AppNode* found = nullptr;
  translator_->for_each_node([&](const AppNode& node) {
    if (node.name == name) found = &node;
  });
  return found;
}

void World::expect_nothing_held() {
  EXPECT_EQ(translator_->bound_streams(), 0u);
  EXPECT_EQ(translator_->records_used(), 0u);
  EXPECT_EQ(ingress_->free_count(), ingress_->slot_count()) << "a receive slot is held";
  EXPECT_EQ(egress_->received_count(), 0u) << "an egress slot is held";
  EXPECT_EQ(stack_->open_connections(), 0u);
  translator_->for_each_node([](const AppNode& node) {
    EXPECT_EQ(node.stream_count, 0u) << node.name;
    EXPECT_EQ(node.open_streams, 0u) << node.name;
    EXPECT_EQ(node.blocked_head, kNone) << node.name;
    EXPECT_TRUE(node.owed.empty()) << node.name;
    EXPECT_EQ(node.chunks->free_count(), node.chunks->count()) << node.name;
    EXPECT_TRUE(node.chunks->waiting().empty()) << node.name;
  });
  translator_->services().for_each([](service::Service& service) {
    for (const service::Member& member : service.members()) {
      EXPECT_EQ(member.connections, 0u) << "of node " << member.node;
    }
  });
}

void World::TearDown() {
  if (translator_ == nullptr) return;
  for (auto& node : nodes_) {
    node->stopped = false;
    node->release_held();
  }
  run();
  for (Client& client : clients_) {
    client.acknowledge = true;
    if (!client.reset && client.connected) client.send_reset();
  }
  run();
  run_ms(200);
  expect_nothing_held();
  for (auto& node : nodes_) {
    if (!node->alive()) continue;
    EXPECT_EQ(node->cookies_out(), 0u) << "memory of a node is not back";
  }
  for (auto& node : nodes_) node->die();
  run();
  translator_->for_each_node([](const AppNode& node) { ADD_FAILURE() << node.name << " is left"; });
  EXPECT_EQ(translator_->services().size(), 0u);
  std::sort(opened_.begin(), opened_.end());
  std::sort(closed_.begin(), closed_.end());
  EXPECT_EQ(opened_, closed_) << "every service that was opened is closed";
  nodes_.clear();
  stack_.reset();
  translator_.reset();
}

}  // namespace sanproxy::translate::testing
