// The control side of a Forwarder: sets of proxies and services, and who takes new sessions.
#include <algorithm>
#include <bit>
#include <map>
#include <utility>

#include "netnode/steer/forwarder.h"

namespace sanproxy::steer {

std::uint16_t Forwarder::find(const std::string& name) const {
  for (std::size_t i = 0; i < proxies_.size(); ++i) {
    if (proxies_[i].in_use && proxies_[i].config.name == name) {
      return static_cast<std::uint16_t>(i);
    }
  }
  return FlowTable::kNone;
}

std::uint64_t Forwarder::generation() const {
  std::uint64_t sum = 0;
  for (const Pool& pool : pools_) sum += pool.generation();
  return sum;
}

std::uint64_t Forwarder::sessions() const {
  std::uint64_t sum = 0;
  for (std::size_t i = 0; i < proxies_.size(); ++i) {
    sum += sessions_of(static_cast<std::uint16_t>(i));
  }
  return sum;
}

void Forwarder::apply(const ProxySet& set, std::vector<std::uint16_t>& gone) {
  gone.clear();
  ++changes_;
  for (std::size_t i = 0; i < proxies_.size(); ++i) {
    Proxy& proxy = proxies_[i];
    const bool stays =
        std::any_of(set.proxies.begin(), set.proxies.end(),
                    [&](const ProxyConfig& p) { return p.name == proxy.config.name; });
    if (!proxy.in_use || stays) continue;
    const auto place = static_cast<std::uint16_t>(i);
    gone.push_back(place);
    flows_.erase_proxy(place);
    nat_.erase_proxy(place);
    proxy = {};
  }
  for (const ProxyConfig& config : set.proxies) {
    std::uint16_t place = find(config.name);
    if (place == FlowTable::kNone) {
      const auto free =
          std::find_if(proxies_.begin(), proxies_.end(), [](const Proxy& p) { return !p.in_use; });
      place = static_cast<std::uint16_t>(free - proxies_.begin());
      if (free == proxies_.end()) proxies_.emplace_back();
      proxies_[place].in_use = true;
      for (Pool& pool : pools_) pool.forget(place);
    }
    if (!(proxies_[place].config == config)) proxies_[place].path_mtus = {};
    proxies_[place].config = config;
    proxies_[place].hash = backend_hash(config.name);
    if (config.id != 0) proxies_[place].tag = config.id;
  }
  apply_services(set.services);
  index_tags();
  index_services();
  rebuild_pools();
}

void Forwarder::index_tags() {
  // One node may be reached by several ways, of which one alone has its tag.
  std::map<std::string, std::uint16_t> of_node;
  for (const Proxy& proxy : proxies_) {
    if (proxy.in_use && proxy.tag != 0) of_node.emplace(proxy.config.node_name(), proxy.tag);
  }
  const auto rank_of = [](const Proxy& one) {
    if (one.tag == 0) return 0;
    return one.config.id == 0 ? 1 : 2;
  };
  for (std::size_t i = 0; i < pools_.size(); ++i) {
    pools_[i].clear_tags();
    // What is configured stands above what was told, and that above another way's.
    for (const int rank : {0, 1, 2}) {
      for (std::size_t p = 0; p < proxies_.size(); ++p) {
        const Proxy& proxy = proxies_[p];
        if (rank_of(proxy) != rank || !is_in(pool_keys_[i], proxy)) continue;
        const auto other = of_node.find(proxy.config.node_name());
        const std::uint16_t tag =
            proxy.tag != 0 || other == of_node.end() ? proxy.tag : other->second;
        if (tag != 0) pools_[i].set_tag(tag, static_cast<std::uint16_t>(p));
      }
    }
  }
}

bool Forwarder::is_in(const ServiceConfig& pool_key, const Proxy& proxy) {
  const std::vector<std::string>& names = pool_key.proxies;  // sorted
  return proxy.in_use && serves(proxy.config, pool_key) &&
         (names.empty() || std::binary_search(names.begin(), names.end(), proxy.config.name));
}

void Forwarder::set_tag(std::uint16_t proxy, std::uint16_t tag) {
  if (proxy >= proxies_.size() || proxies_[proxy].config.id != 0 || tag > net::kSessionTagMax ||
      proxies_[proxy].tag == tag) {
    return;
  }
  ++changes_;
  proxies_[proxy].tag = tag;
  index_tags();
}

void Forwarder::set_told_weight(std::uint16_t proxy, std::uint32_t weight) {
  weight = std::min(weight, kWeightMax);
  if (proxy >= proxies_.size() || proxies_[proxy].told_weight == weight) return;
  ++changes_;
  proxies_[proxy].told_weight = weight;
  rebuild_pools();
}

namespace {

// Equal for services that the same proxies can serve.
ServiceConfig pool_key(const ServiceConfig& service) {
  ServiceConfig key = service;
  key.address.ip = {};
  key.address.ip.family = service.address.ip.family;
  key.address.port = 0;
  std::sort(key.proxies.begin(), key.proxies.end());
  return key;
}

}  // namespace

// Services with the same list of proxies, family and protocol share a pool; a pool that stays keeps
// its history.
void Forwarder::apply_services(const std::vector<ServiceConfig>& services) {
  std::vector<Pool> pools;
  std::vector<ServiceConfig> keys;
  services_.clear();
  for (const ServiceConfig& config : services) {
    ServiceConfig key = pool_key(config);
    auto at = std::find(keys.begin(), keys.end(), key);
    if (at == keys.end()) {
      const auto old = std::find(pool_keys_.begin(), pool_keys_.end(), key);
      if (old == pool_keys_.end()) {
        pools.emplace_back(options_.maglev_entries, options_.generations);
      } else {
        pools.push_back(std::move(pools_[static_cast<std::size_t>(old - pool_keys_.begin())]));
      }
      keys.push_back(std::move(key));
      at = keys.end() - 1;
    }
    services_.push_back({config, static_cast<std::uint16_t>(at - keys.begin())});
  }
  pools_ = std::move(pools);
  pool_keys_ = std::move(keys);
}

void Forwarder::set_state(std::uint16_t proxy, ProxyState state) {
  if (proxy >= proxies_.size() || proxies_[proxy].state == state) return;
  ++changes_;
  proxies_[proxy].state = state;
  rebuild_pools();
}

void Forwarder::rebuild_pools() {
  for (std::size_t i = 0; i < pools_.size(); ++i) {
    std::vector<MaglevBackend> accepting;
    std::vector<MaglevBackend> keeping;
    for (std::size_t p = 0; p < proxies_.size(); ++p) {
      const Proxy& proxy = proxies_[p];
      if (!is_in(pool_keys_[i], proxy) || proxy.state == ProxyState::kDown) continue;
      keeping.push_back({proxy.hash, proxy.weight(), static_cast<std::uint16_t>(p)});
      if (proxy.state == ProxyState::kUp) accepting.push_back(keeping.back());
    }
    const std::uint64_t before = pools_[i].builds();
    pools_[i].rebuild(accepting, keeping);
    tables_built_ += pools_[i].builds() - before;
  }
}

void Forwarder::add_service_cell(const SocketAddress& address, std::uint8_t protocol,
                                 std::uint16_t service) {
  net::FlowKey key;
  key.dst = address.ip.bytes;
  key.family = address.ip.family;
  if (find_service(key, protocol, address.port) != nullptr) return;
  ServiceCell cell{address.ip.bytes, address.port, protocol, address.ip.family, service};
  // The place where find_service() would have found it: the first free one from its home.
  std::size_t at = home(cell.address, cell.port, cell.protocol);
  while (cells_[at].family != Family::kNone) at = (at + 1) & cell_mask_;
  cells_[at] = cell;
}

void Forwarder::index_services() {
  // Two cells a service at most, in a table that is at most half full.
  cells_.assign(std::bit_ceil(services_.size() * 4 + 2), {});
  cell_mask_ = cells_.size() - 1;
  for (std::size_t i = 0; i < services_.size(); ++i) {
    const ServiceConfig& config = services_[i].config;
    add_service_cell(config.address, config.protocol, static_cast<std::uint16_t>(i));
    add_service_cell({config.address.ip, 0}, 0, static_cast<std::uint16_t>(i));
  }
}

}  // namespace sanproxy::steer
