// Discovery: the proxies of a cluster, found by one address.
//
// Document: docs/application_library.md "A cluster's proxies".
// Role: ProxyRoster decides, from what a cluster's records say, which proxies are followed and at
//   which address each is best reached from here (pure). Discovery watches the records in etcd
//   (read only, without a lease).
// Owner: the Node. Thread: its; the Session inside has its own.
// Invariants:
//   1. Nothing here waits for etcd; has_news() is one load.
//   2. A proxy that is gone from etcd loses its place here, not its channel.
//   3. No more proxies are followed than there is room for; the others wait, are counted, and take
//      the places of those that go.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "lwproto/cluster/session.h"

namespace sanproxy::app::internal {

// Whether an address can be used from here.
using Usable = std::function<bool(const std::string&)>;

// The way to a proxy from a host: shared memory on one host, else RDMA, else TCP, of what `usable`
// says can be used here; "" if there is none.
std::string best_address(const cluster::NodeRecord& proxy, const std::string& host,
                         const Usable& usable);

class ProxyRoster {
 public:
  struct News {
    std::vector<std::string> added, removed;  // addresses of proxies
    std::vector<std::string> texts;           // for people
  };

  explicit ProxyRoster(std::string host) : host_(std::move(host)) {}

  void apply(const std::vector<cluster::Change>& changes, const Usable& usable, News& news);
  // Follows those that wait while `room` lasts.
  void fill(std::size_t room, News& news);

  std::size_t followed() const { return followed_; }
  // Known, but not followed: beyond the bound, or without a way from here.
  std::size_t left_out() const { return proxies_.size() - followed_; }
  bool follows(const std::string& address) const;

 private:
  struct Proxy {
    std::string name;
    std::string address;  // "": no way from here
    bool followed = false;
  };
  void let_go(Proxy& proxy, News& news);

  std::string host_;
  std::map<std::string, Proxy> proxies_;  // by key
  std::size_t followed_ = 0;
  std::size_t waiting_told_ = 0;
};

class Discovery {
 public:
  Discovery(std::string address, const cluster::SessionOptions& options);
  ~Discovery();

  const std::string& address() const { return address_; }
  int fd() const { return session_->fd(); }
  bool has_news() const { return session_->has_news(); }
  void take(const Usable& usable, ProxyRoster::News& news);
  ProxyRoster& roster() { return roster_; }
  const ProxyRoster& roster() const { return roster_; }

 private:
  static constexpr std::size_t kTextsMax = 64;  // between two calls of take()

  std::string address_;
  ProxyRoster roster_;
  std::mutex mutex_;
  std::vector<std::string> texts_;
  std::size_t texts_lost_ = 0;
  std::unique_ptr<cluster::Session> session_;  // last: its thread uses the others
};

}  // namespace sanproxy::app::internal
