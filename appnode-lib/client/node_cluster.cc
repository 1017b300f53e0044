// NodeImpl: proxies that come and go while the node runs: those of clusters, and workers.
#include <unistd.h>

#include <algorithm>

#include "appnode-lib/client/convert.h"
#include "appnode-lib/client/node_impl.h"
#include "lwproto/buffer/pool_sizes.h"
#include "lwproto/fabric/address.h"

namespace sanproxy::app::internal {

Link* NodeImpl::find_link(const std::string& address) {
  const auto known = std::find_if(links_.begin(), links_.end(),
                                  [&](const auto& other) { return other->address() == address; });
  return known == links_.end() ? nullptr : known->get();
}

// --- clusters

Status NodeImpl::set_up_cluster(const std::string& address) {
  const auto session = parse_cluster_address(address, options_.cluster);
  if (!session.ok()) return to_public(session.status());
  clusters_.push_back(std::make_unique<Discovery>(address, *session));
  return watch(clusters_.back()->fd());
}

// Whether a proxy that says it listens there can be reached from here.
bool NodeImpl::usable(const std::string& address) {
  const auto parsed = fabric::FabricAddress::parse(address);
  if (!parsed.ok()) return false;
  // The host of a socket's path is known, its mount namespace is not.
  if (!parsed->path.empty()) return access(parsed->path.c_str(), W_OK) == 0;
  return !parsed->socket.ip.is_any() && fabric_for(address).ok();
}

// A proxy that is gone from its cluster keeps the channel that it has: etcd may be what is wrong.
void NodeImpl::follow_clusters() {
  const Usable can_use = [this](const std::string& address) { return usable(address); };
  std::vector<ProxyRoster::News> news(clusters_.size());
  std::size_t followed = 0;
  for (std::size_t i = 0; i < clusters_.size(); ++i) {
    clusters_[i]->take(can_use, news[i]);
    followed += clusters_[i]->roster().followed();
  }
  for (std::size_t i = 0; i < clusters_.size(); ++i) {
    ProxyRoster& roster = clusters_[i]->roster();
    const std::size_t before = roster.followed();
    roster.fill(options_.cluster.proxies_max - followed, news[i]);
    followed += roster.followed() - before;
  }
  for (const ProxyRoster::News& one : news) {
    for (const std::string& address : one.removed) drop_proxy(address);
  }
  for (std::size_t i = 0; i < clusters_.size(); ++i) {
    for (const std::string& address : news[i].added) add_proxy(address);
    if (!options_.on_cluster_news) continue;
    for (const std::string& text : news[i].texts) {
      options_.on_cluster_news(clusters_[i]->address(), text);
    }
  }
}

void NodeImpl::add_proxy(const std::string& address) {
  if (Link* link = find_link(address)) {
    link->revive();
    if (link->up()) follow_workers(*link, link->workers());
    return;
  }
  const Status added = add_link(address, LinkOrigin::kCluster);
  if (!added.ok() && options_.on_proxy_down) options_.on_proxy_down(address, added.text());
}

void NodeImpl::drop_proxy(const std::string& address) {
  const bool wanted = std::any_of(clusters_.begin(), clusters_.end(), [&](const auto& cluster) {
    return cluster->roster().follows(address);
  });
  Link* const first = find_link(address);
  if (wanted || first == nullptr || first->origin() == LinkOrigin::kConfigured) return;
  first->retire();
  const auto base = fabric::FabricAddress::parse(address);
  for (std::uint32_t i = 1; base.ok() && i < wire::kWorkersMax; ++i) {
    const auto worker = base->of_worker(i);
    Link* const link = worker.ok() ? find_link(worker->to_string()) : nullptr;
    if (link != nullptr && link->origin() == LinkOrigin::kWorker) link->retire();
  }
}

std::size_t NodeImpl::proxies_left_out() const {
  std::size_t sum = 0;
  for (const auto& cluster : clusters_) sum += cluster->roster().left_out();
  return sum;
}

// --- workers

void NodeImpl::follow_workers(const Link& link, std::uint32_t workers) {
  const auto base = fabric::FabricAddress::parse(link.address());
  if (!base.ok()) return;
  for (std::uint32_t i = 1; i < wire::kWorkersMax; ++i) {
    const auto address = base->of_worker(i);
    if (!address.ok()) break;
    const std::string text = address->to_string();
    Link* const known = find_link(text);
    if (known == nullptr) {
      if (i >= workers) break;
      const Status added = add_link(text, LinkOrigin::kWorker);
      if (!added.ok() && options_.on_proxy_down) options_.on_proxy_down(text, added.text());
    } else if (i < workers) {
      known->revive();
    } else if (known->origin() == LinkOrigin::kWorker) {
      known->retire();
    }
  }
}

// --- links that come while running

// One that is done for, with everything that belonged to it; its place and its memory serve the
// next, so that proxies that come under ever new addresses take no more and more.
Link* NodeImpl::spare_link(bool receives_into_pool) {
  for (const auto& link : links_) {
    if (link->finished() && link->receives_into_pool() == receives_into_pool && !in_use(*link)) {
      return link.get();
    }
  }
  return nullptr;
}

bool NodeImpl::in_use(const Link& link) {
  for (std::uint32_t slot = 0; slot < pool_.slot_count(); ++slot) {
    const ConnectionImpl* connection = pool_.at(slot);
    if (connection->link == &link && connection->state != ConnectionImpl::State::kFree) return true;
  }
  return false;
}

// Channels of these have memory of their own, so that they can come at any time.
Status NodeImpl::add_link(const std::string& address, LinkOrigin origin) {
  auto fabric = fabric_for(address);
  if (!fabric.ok()) return fabric.status();
  LinkPlace place = link_place(**fabric, address);
  place.origin = origin;
  if (Link* spare = spare_link((*fabric)->receives_into_pool)) {
    spare->move_to(std::move(place));
    return {};
  }
  if (links_.size() >= kLinksMax) {
    return {Code::kExhausted, "so many proxies and workers are connected that there is no place"};
  }
  if ((*fabric)->receives_into_pool) {
    auto region = buffer::MemoryRegion::create(
        "appnode-receive", std::size_t{2} * options_.receive_buffers * buffer::kEgressSlotBytes);
    if (!region.ok()) return to_public(region.status());
    auto memory = std::make_unique<LinkMemory>();
    memory->region = std::move(*region);
    memory->pool =
        std::make_unique<buffer::SlotPool>(memory->region.bytes(), buffer::kEgressSlotBytes);
    place.endpoint.receive_memory = {memory->pool.get(), &memory->region, 0};
    place.pool = memory->pool.get();
    link_memory_.push_back(std::move(memory));
  }
  add_link(std::move(place));
  return {};
}

}  // namespace sanproxy::app::internal
