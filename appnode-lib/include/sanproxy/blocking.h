// BlockingListener and BlockingStream: the library for programs that need no event loop.
//
// Document: docs/application_library.md "Twenty lines".
// Role: calls that wait, over a Node of their own. One thread owns a listener and all its
//   streams; while one call waits, the other streams of the same listener still receive (up to
//   their window) but nobody handles them.
//   No call belongs into NodeOptions' callbacks, which run while another one waits: nothing would
//   come. node().stop(), from a signal handler or another thread, ends the calls that wait:
//   kDisconnected.
// Ownership: a stream may outlive its listener object; both keep the Node.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "sanproxy/node.h"

namespace sanproxy::app {

class BlockingStream {
 public:
  BlockingStream();
  ~BlockingStream();  // close()
  BlockingStream(BlockingStream&&) noexcept;
  BlockingStream& operator=(BlockingStream&&) noexcept;

  // Makes an outgoing connection, over a Node of its own. It comes from the address of `service`
  // ("IP:PORT", not "every address"), which is joined as long as the stream lives: clients that
  // come there are refused. Who serves one anyway takes BlockingListener::connect().
  static Result<BlockingStream> connect(std::string_view remote, std::string_view service,
                                        NodeOptions options = {}, int timeout_ms = 10'000);

  // At least one byte; 0 at the client's FIN; kTimeout; kDisconnected after a reset;
  // kInvalidArgument if `into` is empty. A timeout of 0 takes what is there.
  Result<std::size_t> read(std::span<std::byte> into, int timeout_ms = -1);
  // All of it, or an error.
  Status write(Bytes bytes, int timeout_ms = -1);
  Status write(std::string_view text) { return write(as_bytes(text)); }
  void shutdown_write();
  void close();
  Address remote() const;

 private:
  friend class BlockingListener;
  struct Core;
  struct State;
  static Result<BlockingStream> connect(std::shared_ptr<Core> core, std::string_view remote,
                                        int timeout_ms);
  explicit BlockingStream(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

class BlockingListener {
 public:
  ~BlockingListener();
  BlockingListener(BlockingListener&&) noexcept;
  BlockingListener& operator=(BlockingListener&&) noexcept;

  // Joins `service` ("IP:PORT"). At most `backlog` accepted connections wait for accept(); more
  // are refused. Waits for no proxy: NodeOptions::on_proxy_down tells of one that cannot be
  // reached, on_join_refused of one that does not let us join, both while a call waits.
  static Result<BlockingListener> open(std::string_view service, NodeOptions options = {},
                                       std::size_t backlog = 128);
  // The next connection, or kTimeout.
  Result<BlockingStream> accept(int timeout_ms = -1);
  // Makes an outgoing connection, from the address of the service.
  Result<BlockingStream> connect(std::string_view remote, int timeout_ms = 10'000);
  Node& node();

 private:
  struct State;
  explicit BlockingListener(std::shared_ptr<State> state);
  std::shared_ptr<State> state_;
};

}  // namespace sanproxy::app
