// The part of the data path that the kernel takes over: established sessions behind NAT.
//
// Document: docs/netnode.md "In the kernel".
#include "netnode/main/data_path.h"

namespace sanproxy::netnode {
namespace {

static_assert(steer::kNatCarriedS == packet_io::FlowRedirect::kHoldsForS);

IpAddress source_of(const net::FlowKey& flow) { return {flow.family, flow.src}; }

}  // namespace

void DataPath::set_redirect(packet_io::FlowRedirect* redirect) {
  redirect_ = redirect;
  keep_redirect_right();
  forwarder_.nat().set_carrier(this);
}

// What was told by tables or next hops that have changed holds no more.
void DataPath::keep_redirect_right() {
  const auto now_s = static_cast<std::uint32_t>(now_ms() / 1'000);
  redirect_->set_time(now_s);
  forwarder_.nat().watch_time(now_s);
  std::uint64_t ways = forwarder_.changes();
  for (const auto& interface : interfaces()) ways += interface->way_changes();
  if (ways == ways_seen_) return;
  ways_seen_ = ways;
  redirect_->invalidate();
}

// One direction alone would be of little use: both or none.
bool DataPath::carry(const net::FlowKey& client, const net::FlowKey& proxy,
                     std::uint16_t addresses_delta, std::uint16_t ports_delta) {
  packet_io::KernelWay there, back;
  if (!way_to(proxy.src.data(), proxy.family).io().kernel_way(source_of(proxy), there) ||
      !way_to(client.src.data(), client.family).io().kernel_way(source_of(client), back)) {
    return false;
  }
  const packet_io::FlowTranslation to_proxy{proxy.reversed(), addresses_delta, ports_delta, false};
  const packet_io::FlowTranslation to_client{client.reversed(),
                                             static_cast<std::uint16_t>(~addresses_delta),
                                             static_cast<std::uint16_t>(~ports_delta), true};
  if (!redirect_->put(client, to_proxy, there)) return false;
  if (redirect_->put(proxy, to_client, back)) return true;
  redirect_->erase(client);
  return false;
}

void DataPath::leave(const net::FlowKey& client, const net::FlowKey& proxy) {
  redirect_->erase(client);
  redirect_->erase(proxy);
}

}  // namespace sanproxy::netnode
