#include "appnode-lib/client/discovery.h"

#include <algorithm>
#include <utility>

#include "lwproto/cluster/host.h"

namespace sanproxy::app::internal {

std::string best_address(const cluster::NodeRecord& proxy, const std::string& host,
                         const Usable& usable) {
  for (const std::string_view scheme : {"shm:", "verbs:", "tcp:"}) {
    if (scheme == "shm:" && (host.empty() || proxy.host != host)) continue;
    for (const std::string& address : proxy.fabrics) {
      if (address.starts_with(scheme) && usable(address)) return address;
    }
  }
  return "";
}

// --- ProxyRoster

void ProxyRoster::apply(const std::vector<cluster::Change>& changes, const Usable& usable,
                        News& news) {
  for (const cluster::Change& change : changes) {
    const auto known = proxies_.find(change.key);
    const auto* record = change.entry ? std::get_if<cluster::NodeRecord>(&*change.entry) : nullptr;
    // Further workers are found through the first one.
    if (record == nullptr || record->worker != 0) {
      if (known == proxies_.end()) continue;
      let_go(known->second, news);
      proxies_.erase(known);
      continue;
    }
    Proxy& proxy = known != proxies_.end() ? known->second : proxies_[change.key];
    const bool fresh = proxy.name.empty();
    proxy.name = record->name;
    std::string address = best_address(*record, host_, usable);
    if (!fresh && address == proxy.address) continue;
    let_go(proxy, news);
    proxy.address = std::move(address);
    if (proxy.address.empty()) {
      news.texts.push_back("there is no way from here to proxy \"" + proxy.name + "\"");
    }
  }
}

void ProxyRoster::fill(std::size_t room, News& news) {
  std::size_t waiting = 0;
  for (auto& [key, proxy] : proxies_) {
    if (proxy.followed || proxy.address.empty()) continue;
    if (room == 0) {
      ++waiting;
      continue;
    }
    --room;
    proxy.followed = true;
    ++followed_;
    news.added.push_back(proxy.address);
  }
  if (waiting != std::exchange(waiting_told_, waiting) && waiting != 0) {
    news.texts.push_back("proxies_max is reached: " + std::to_string(waiting) +
                         " proxies are left out");
  }
}

void ProxyRoster::let_go(Proxy& proxy, News& news) {
  if (!std::exchange(proxy.followed, false)) return;
  --followed_;
  news.removed.push_back(proxy.address);
}

bool ProxyRoster::follows(const std::string& address) const {
  return std::any_of(proxies_.begin(), proxies_.end(), [&](const auto& one) {
    return one.second.followed && one.second.address == address;
  });
}

// --- Discovery

Discovery::Discovery(std::string address, const cluster::SessionOptions& options)
    : address_(std::move(address)), roster_(cluster::host_id()) {
  session_ = std::make_unique<cluster::Session>(options,
                                                [this](cluster::LogLevel, const std::string& text) {
                                                  const std::lock_guard<std::mutex> lock(mutex_);
                                                  if (texts_.size() < kTextsMax) {
                                                    texts_.push_back(text);
                                                  } else {
                                                    ++texts_lost_;
                                                  }
                                                });
}

Discovery::~Discovery() = default;

void Discovery::take(const Usable& usable, ProxyRoster::News& news) {
  roster_.apply(session_->take(), usable, news);
  const std::lock_guard<std::mutex> lock(mutex_);
  std::move(texts_.begin(), texts_.end(), std::back_inserter(news.texts));
  texts_.clear();
  if (texts_lost_ != 0) {
    news.texts.push_back("and " + std::to_string(std::exchange(texts_lost_, 0)) + " more");
  }
}

}  // namespace sanproxy::app::internal
