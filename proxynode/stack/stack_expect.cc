// What a burst of packets needs is fetched before the burst is worked on.
#include <algorithm>
#include <array>

#include "proxynode/stack/stack_impl.h"

namespace sanproxy::stack {
namespace {

// With fewer flows everything is in the cache anyway.
constexpr std::size_t kFlowsWorthIt = 2'048;
// More than this at a time and the first lines are gone before they are used.
constexpr std::size_t kAtATime = 64;

}  // namespace

// Three passes, so that each waits for the memory of the one before only once: the buckets, the
// records of the connections, and what those point to.
void Stack::Impl::expect(std::span<const std::span<const std::byte>> packets) {
  if (flows.size() < kFlowsWorthIt || packets.size() < 2) return;
  struct Expected {
    net::FlowKey key;
    std::uint32_t hash;
  };
  std::array<Expected, kAtATime> expected;
  std::size_t count = 0;
  for (const std::span<const std::byte> packet :
       packets.first(std::min(packets.size(), kAtATime))) {
    net::ParsedPacket parsed;
    if (net::parse_packet(packet, parsed) != net::DropReason::kNone || parsed.fragment ||
        parsed.l4 != net::L4::kTcp) {
      continue;
    }
    const auto* const bytes = reinterpret_cast<const std::uint8_t*>(packet.data());
    Expected& one = expected[count++];
    one.key = net::flow_key(parsed, bytes);
    one.hash = flows.hash(one.key);
    flows.prefetch_bucket(one.hash);
  }
  for (std::size_t i = 0; i < count; ++i) flows.prefetch_node(expected[i].hash);
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint32_t entry = flows.find(expected[i].key, expected[i].hash);
    if (entry == kNone || (entry & FlowTable::kTimeWaitFlag) != 0) continue;
    prefetch(connections[entry]);
    delegate.on_expected(entry);
  }
}

}  // namespace sanproxy::stack
