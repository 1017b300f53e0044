// HttpListener: HTTP/1.1 for operators, on a kernel socket, in one thread of its own
// (libmicrohttpd).
//
// Document: docs/administration.md.
// Role: requests in, pages out; what pages there are is its owner's business.
// Owner: AdminServer. Thread: start() and destruction on the owner's; `handle` is called on the
//   listener's own.
// Invariants:
//   1. A peer can hold kConnectionsMax connections at most, each with kRequestBytesMax of what it
//      sends, and kPageBytesMax of pages that are not read, together with all others.
//   2. Whoever comes gets a connection: at the bound one whose client has gone is ended, else the
//      one that has been without a request for longest. One that has said or taken nothing for
//      kTimeoutSeconds is ended, too.
//   3. Destruction waits for `handle`, never for a peer.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "lwproto/base/socket_address.h"
#include "lwproto/base/status.h"

namespace sanproxy::daemon {

struct Page {
  int http_status = 200;
  std::string content_type = "text/plain; charset=utf-8";
  std::string body;
};

struct HttpRequest {
  std::string method;  // "GET" (also for HEAD) or "POST"; nothing else gets here
  std::string path;    // decoded, as everything here
  std::vector<std::pair<std::string, std::string>> parameters;
  std::string content_type;
  IpAddress peer;  // IPv4 as such, also on an IPv6 socket
};

class HttpListener {
 public:
  using Handle = std::function<Page(const HttpRequest&)>;
  static constexpr unsigned kConnectionsMax = 32;
  static constexpr std::size_t kRequestBytesMax = 32 * 1024;
  static constexpr std::size_t kPageBytesMax = std::size_t{64} << 20;
  static constexpr unsigned kTimeoutSeconds = 5;

  // kSystem with errno when the address is not to be had.
  static Result<std::unique_ptr<HttpListener>> start(const SocketAddress& address, Handle handle);
  ~HttpListener();

 private:
  struct Impl;
  HttpListener();
  std::unique_ptr<Impl> impl_;
};

}  // namespace sanproxy::daemon
