// Node: an application's membership in sanproxy. Service: one address that it serves.
//
// Document: docs/application_library.md.
// Role: holds a channel to each proxy (and connects again by itself, and joins again), hands
//   requests and bytes to the application, and runs or is run by an event loop.
// Owner: the application. Thread: one thread a Node; a process may have many Nodes. Only stop()
//   may be called from elsewhere, signal handlers included. Behind a fork() the Node is the
//   parent's: the child may destroy its copy, which tells nobody, and do nothing else with it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "sanproxy/connection.h"
#include "sanproxy/link.h"

namespace sanproxy::app {

// A secret that the proxies have too, and may ask for before they let us join.
struct KeyOptions {
  std::string name{};    // as the proxies call it
  std::string file{};    // holds the secret: 16 to 4096 bytes, not readable by everybody; or
  std::string secret{};  // the secret itself
};

// How the etcd of a cluster is asked, and how much of the cluster is followed. What is not set
// comes from SANPROXY_ETCD_USER, _PASSWORD_FILE, _CA, _CERTIFICATE, _KEY and
// SANPROXY_CLUSTER_PROXIES_MAX.
struct ClusterOptions {
  static constexpr std::size_t kProxiesMaxDefault = 128;
  static constexpr std::size_t kProxiesMaxMost = 1024;
  // Proxies found in clusters, in all; further ones are left out and told of. 0: not set.
  std::size_t proxies_max = 0;
  std::string user{}, password_file{};  // of etcd; the password is the file's first line
  std::string ca{};                     // PEM: who signs etcd's certificate ("etcds://...")
  std::string certificate{}, key{};     // PEM: ours, if etcd asks for one
};

struct NodeOptions {
  // "shm:/run/sanproxy/proxy.sock", "verbs://10.9.0.1:7471", "tcp://10.9.0.1:7471", any mixture;
  // "etcd://HOST:PORT[,HOST:PORT...]/CLUSTER" is all proxies of a cluster, as they come and go.
  // If empty, SANPROXY_PROXY (comma separated) is used.
  std::vector<std::string> proxies{};
  // Shown by the proxy; by default the program's name and pid. Printable UTF-8; 64 bytes count.
  std::string name{};
  // At most 8; if empty, SANPROXY_KEY ("NAME:FILE", comma separated) is used. Each proxy is asked
  // to prove that it has the key as well: one that shows a wrong proof is not joined.
  std::vector<KeyOptions> keys{};

  // --- links. Where not set, SANPROXY_LINK and SANPROXY_TLS_CERTIFICATE, _KEY, _CA and
  // _PROXY_NAME are used.
  LinkOptions link{};  // asked of every proxy's link
  TlsFiles tls{};      // tcp links use TLS if set, and only then
  ClusterOptions cluster{};

  // --- bounds
  std::size_t connections_max = 65'536;
  // Bytes that a client may have on the way to us, for each connection.
  std::uint32_t receive_window_bytes = 4 * 1024 * 1024;
  // For outgoing bytes that are copied or written into chunks; touched only as far as needed.
  std::size_t send_memory_bytes = std::size_t{64} << 20;
  // For copies that are kept (Received::keep()): of small pieces, and, up to three quarters of it,
  // of larger ones where receive buffers are short.
  std::size_t kept_bytes_max = std::size_t{64} << 20;

  // Receive buffers (72 KB each) that are posted for each proxy over verbs and tcp, 16 to 65,536;
  // twice as many are kept. On shm the memory is the proxy's.
  std::uint32_t receive_buffers = 128;

  // --- optional news, called from poll()
  std::function<void(std::string_view proxy)> on_proxy_up{};
  std::function<void(std::string_view proxy, std::string_view reason)> on_proxy_down{};
  std::function<void(std::string_view service, std::string_view proxy)> on_joined{};
  std::function<void(std::string_view service, std::string_view proxy, CloseCode)>
      on_join_refused{};
  // The etcd of a cluster is lost or back, a proxy there cannot be reached or is one too many.
  std::function<void(std::string_view cluster, std::string_view text)> on_cluster_news{};
  // The proxy does not take the proof of this key. Services are asked for all the same.
  std::function<void(std::string_view key, std::string_view proxy, CloseCode)> on_key_refused{};
};

struct JoinOptions {
  // Share of the connections, against other nodes, where the operator has set the service's balance
  // to weighted or least-connections. The default, round-robin, gives each the same.
  std::uint16_t weight = 1;
  std::uint32_t connections_max = 0;  // at a time, from each worker of each proxy; 0 is no limit
  // Be asked at the handshake, not at the first data; holds for all members as long as one asks.
  bool immediate = false;
};

using RequestHandler = std::function<void(Request&)>;

// A handle, cheap to copy; valid as long as its Node. A default one is of no service, and has left.
class Service {
 public:
  Service() = default;
  const Address& address() const { return address_; }
  std::size_t joined_count() const;  // proxies where the join stands
  // No new connections; open ones go on. Requests already on their way still come.
  void leave();
  // Ends the service for everybody: other members are told. Open connections go on. Not for ever:
  // members that do not leave() either join again with their next channel.
  void shutdown();
  bool left() const;  // nothing more will come

 private:
  friend class Node;
  friend class internal::NodeImpl;
  Service(internal::NodeImpl* node, std::uint32_t index, std::uint64_t serial,
          const Address& address)
      : node_(node), index_(index), serial_(serial), address_(address) {}
  internal::NodeImpl* node_ = nullptr;
  std::uint32_t index_ = 0;   // its place; another's once this one has left
  std::uint64_t serial_ = 0;  // of the join
  Address address_;
};

class Node {
 public:
  // Does not wait for a proxy: connecting, and connecting again, goes on in the background.
  // Fails on impossible options only.
  static Result<std::unique_ptr<Node>> create(NodeOptions options = {});
  virtual ~Node() = default;
  Node(const Node&) = delete;
  Node& operator=(const Node&) = delete;

  // Serves `address` ("IP:PORT"; "0.0.0.0:PORT" or "[::]:PORT" is every address) at each proxy.
  Result<Service> join(std::string_view address, RequestHandler on_request,
                       JoinOptions options = {});
  // An outgoing connection, made by a proxy where we have joined a service at an IP address (not
  // "every address") of the same family: it comes from there. kNotFound where we have not (yet),
  // kDisconnected without a proxy. on_open() or on_closed() follows.
  Result<Connection*> connect(std::string_view remote, ConnectionHandler& handler,
                              void* user = nullptr);
  // Zero-filled memory to send from by reference.
  Result<RegisteredMemory> register_memory(std::size_t bytes);

  // --- running: either give the thread to it ... Inside a handler, where it runs already, all of
  // these return at once: wait() and poll() 0, arm() false.
  void run();   // until stop()
  void stop();  // from any thread or signal handler
  bool stopped() const;
  // Sleeps until something happens or the time is over (-1: no end), then handles it. Returns
  // what poll() returns.
  std::size_t wait(int timeout_ms);

  // ... or put fd() into an event loop of your own:
  //   loop: while (!node.arm()) node.poll();  sleep until fd() is readable;  node.poll();
  int fd() const;
  bool arm();          // true: nothing is left to do, sleeping is safe
  std::size_t poll();  // handles what is there, flushes; returns how much it was

  // --- about it
  std::size_t connection_count() const;
  std::size_t proxies_up() const;
  // Of clusters: known, but beyond proxies_max or without a way from here.
  std::size_t proxies_left_out() const;
  // True when every service has left and no connection is open: the end of a graceful stop.
  bool drained() const;

 protected:
  Node() = default;
};

}  // namespace sanproxy::app
