// BlockingListener and BlockingStream: the library for programs that need no event loop.
//
// Document: docs/application_library.md "Twenty lines".
// Role: calls that wait, over a Node of their own. One thread owns a listener and all its
//   streams; while one call waits, the other streams of the same listener still receive (up to
//   their window) but nobody handles them.
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

  // Makes an outgoing connection.
  static Result<BlockingStream> connect(std::string_view remote, NodeOptions options = {},
                                        int timeout_ms = 10'000);

  // At least one byte; 0 at the client's FIN; kTimeout; kDisconnected after a reset.
  Result<std::size_t> read(std::span<std::byte> into, int timeout_ms = -1);
  // All of it, or an error.
  Status write(Bytes bytes, int timeout_ms = -1);
  Status write(std::string_view text) { return write(as_bytes(text)); }
  void shutdown_write();
  void close();
  Address remote() const;

 private:
  friend class BlockingListener;
  struct State;
  explicit BlockingStream(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

class BlockingListener {
 public:
  ~BlockingListener();
  BlockingListener(BlockingListener&&) noexcept;
  BlockingListener& operator=(BlockingListener&&) noexcept;

  // Joins `service` ("IP:PORT"). At most `backlog` accepted connections wait for accept(); more
  // are refused.
  static Result<BlockingListener> open(std::string_view service, NodeOptions options = {},
                                       std::size_t backlog = 128);
  // The next connection, or kTimeout.
  Result<BlockingStream> accept(int timeout_ms = -1);
  Node& node();

 private:
  struct State;
  explicit BlockingListener(std::shared_ptr<State> state);
  std::shared_ptr<State> state_;
};

}  // namespace sanproxy::app
