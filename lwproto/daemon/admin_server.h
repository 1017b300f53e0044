// AdminServer: the HTTP endpoint for operators (GET and POST; which pages there are is its user's
// business).
//
// Document: docs/administration.md.
// Role: HTTP in a thread of its own (HttpListener); pages are rendered by the worker between two
//   loop rounds, so they need no lock around the data path's state.
// Owner: the process. Thread: construct, serve() and destroy on the worker's thread.
// Invariants:
//   1. One request is rendered at a time; others wait in the listener's bounded connections.
//   2. POST is taken from loopback and from where the operator says, and only with a Content-Type
//      that no web page can send to another site unasked (docs/security.md).
//   3. A worker that does not answer within kAnswerTimeout gives 503, never a hanging client.
#pragma once

#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "lwproto/base/socket_address.h"
#include "lwproto/base/status.h"
#include "lwproto/daemon/http_listener.h"

namespace sanproxy::daemon {

struct PageRequest {
  std::string path;
  std::uint32_t limit = 100;
  std::string method = "GET";  // or "POST", without a body
  std::map<std::string, std::string> parameters = {};
};

class AdminServer {
 public:
  using Render = std::function<Page(const PageRequest&)>;

  // `may_change`: from where POST is taken, beside loopback addresses.
  static Result<std::unique_ptr<AdminServer>> start(const SocketAddress& address,
                                                    std::vector<IpPrefix> may_change = {});
  ~AdminServer();

  int fd() const { return wake_fd_; }  // readable when serve() has something to do
  void serve(const Render& render);

 private:
  AdminServer() = default;
  Page answer(const HttpRequest& request);
  std::optional<Page> ask(const PageRequest& request);

  std::vector<IpPrefix> may_change_;
  int wake_fd_ = -1;
  std::mutex mutex_;
  bool ending_ = false;
  std::condition_variable answered_;
  std::optional<PageRequest> question_;
  std::optional<Page> answer_;
  std::unique_ptr<HttpListener> listener_;
};

}  // namespace sanproxy::daemon
