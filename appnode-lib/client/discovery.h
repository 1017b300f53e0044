// Discovery: the proxies of a cluster, found by one address.
//
// Document: docs/application_library.md "A cluster's proxies".
// Role: "etcd://HOST:PORT[,HOST:PORT...]/CLUSTER": watches which proxies are there (read only,
// without
//   a lease) and says at which address each is best reached from here.
// Owner: the Node. Thread: its; the Session inside has its own.
// Invariants:
//   1. Nothing here waits for etcd; has_news() is one load.
//   2. A proxy that is gone from etcd loses its address here, not its channel.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "lwproto/cluster/session.h"
#include "sanproxy/node.h"

namespace sanproxy::app::internal {

bool is_cluster_address(std::string_view address);
// Lists of addresses are separated by commas, and so are the hosts inside of one: puts together
// again what was split.
std::vector<std::string> rejoin_cluster_addresses(const std::vector<std::string>& addresses);
// "etcd://..." (http) or "etcds://..." (https).
::sanproxy::Result<cluster::SessionOptions> parse_cluster_address(std::string_view address);

// The way to a proxy from a host: shared memory on one host, else RDMA, else TCP, of what `usable`
// says can be used here; "" if there is none.
std::string best_address(const cluster::NodeRecord& proxy, const std::string& host,
                         const std::function<bool(const std::string&)>& usable);

class Discovery {
 public:
  Discovery(std::string address, const cluster::SessionOptions& options);
  ~Discovery();

  const std::string& address() const { return address_; }
  int fd() const { return session_->fd(); }
  bool has_news() const { return session_->has_news(); }

  struct News {
    std::vector<std::string> added, removed;  // addresses of proxies
    std::string trouble;                      // what went wrong since the last time, if anything
  };
  News take(const std::function<bool(const std::string&)>& usable);

 private:
  std::string address_;
  std::string host_;
  std::map<std::string, std::string> known_;  // proxy -> its address
  std::mutex mutex_;
  std::string trouble_;
  std::unique_ptr<cluster::Session> session_;  // last: its thread uses the others
};

}  // namespace sanproxy::app::internal
