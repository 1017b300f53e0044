// Connection: one client's byte stream, as the application sees it.
//
// Documents: docs/application_library.md, docs/flow_control.md.
// Role: what an application holds for each connection, and the handler it is told things by.
// Thread: the Node's. Nothing here is locked, nothing here blocks.
// Invariants:
//   1. A Connection& is valid from Request::accept() or Node::connect() until on_closed() has
//      returned, and no longer.
//   2. on_closed() comes exactly once for every accepted or outgoing connection, always from
//      Node::poll() (or the Node's destructor), never from inside a call to the connection.
//   3. The library queues no bytes: send() takes what fits the connection's window now and says
//      how much that was; on_writable() follows when more will fit. Memory is thereby bounded.
//   4. What is sent during a poll round leaves in one batch at the end of that round.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <utility>

#include "sanproxy/address.h"

namespace sanproxy::app {

class Connection;
class Node;
namespace internal {
class ConnectionImpl;
class Link;
class NodeImpl;
struct Kept;
struct Region;
}  // namespace internal

using Bytes = std::span<const std::byte>;

inline Bytes as_bytes(std::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}
inline std::string_view as_text(Bytes bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// Why a connection, a join or a proxy's channel ended. The values are those of the protocol
// (docs/wire_format.md) and, from 1000, the library's own.
enum class CloseCode : std::uint16_t {
  kNone = 0,
  kFin = 1,       // both sides ended their direction in order
  kFinBoth = 2,   // we called close()
  kReset = 3,     // RST from the client, or we called reset()
  kRefused = 4,   // an outgoing connection was refused
  kTimedOut = 5,  // TCP gave up
  kNodeDied = 6,
  kProxyShutdown = 7,
  kServiceShutdown = 8,
  kLimitReached = 9,
  kNotPermitted = 10,
  kNotFound = 11,
  kProtocolError = 12,
  kVersionMismatch = 13,
  kUnreachable = 14,
  kAddressInUse = 15,
  kProxyLost = 1000,   // the proxy, or the channel to it, went away
  kNodeClosed = 1001,  // our own Node was destroyed
};
const char* to_string(CloseCode code);

// Received bytes that the application keeps beyond on_data(). Move-only; destruction gives the
// memory back and opens the client's TCP window by as much. Must not outlive its Node.
class Borrowed {
 public:
  Borrowed() = default;
  ~Borrowed() { release(); }
  Borrowed(Borrowed&& other) noexcept : kept_(std::exchange(other.kept_, nullptr)) {}
  Borrowed& operator=(Borrowed&& other) noexcept;

  bool valid() const { return kept_ != nullptr; }
  std::size_t size() const;
  std::span<const Bytes> pieces() const;
  void release();

 private:
  friend class Received;
  explicit Borrowed(internal::Kept* kept) : kept_(kept) {}
  internal::Kept* kept_ = nullptr;
};

// Bytes that have just arrived, on loan while on_data() runs: no copy was made for you. When
// on_data() returns they are given back, unless keep() or withhold() said otherwise.
class Received {
 public:
  std::size_t size() const { return size_; }
  // In order; usually there is exactly one.
  std::span<const Bytes> pieces() const { return {pieces_.data(), piece_count_}; }

  // Takes the bytes out of the call. Large payloads stay where they are, or are copied when receive
  // buffers are short; small ones (up to 1 KB) are copied into a pooled buffer. Not valid() if
  // NodeOptions::kept_bytes_max is reached: the bytes must then be used now.
  [[nodiscard]] Borrowed keep();
  // For programs that copy the bytes into a buffer of their own: the memory goes back at once,
  // but the client's window stays closed until Connection::open_window() says that the program
  // has made room.
  void withhold() { withheld_ = true; }

 private:
  friend class internal::ConnectionImpl;
  friend class internal::Link;
  Received() = default;
  std::array<Bytes, 8> pieces_;
  std::size_t piece_count_ = 0;
  std::size_t size_ = 0;
  std::uint64_t loan_ = 0;
  internal::ConnectionImpl* connection_ = nullptr;
  bool kept_ = false;
  bool withheld_ = false;
};

// Memory of the library's own to write outgoing bytes into, sent without a copy. Move-only;
// destruction without sending gives it back. Must not outlive its Node.
class SendChunk {
 public:
  SendChunk() = default;
  ~SendChunk() { release(); }
  SendChunk(SendChunk&& other) noexcept
      : node_(std::exchange(other.node_, nullptr)),
        data_(other.data_),
        size_(other.size_),
        handle_(other.handle_) {}
  SendChunk& operator=(SendChunk&& other) noexcept;

  bool valid() const { return node_ != nullptr; }
  std::span<std::byte> bytes() const { return {data_, size_}; }
  void release();

 private:
  friend class internal::ConnectionImpl;
  internal::NodeImpl* node_ = nullptr;
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
  std::uint32_t handle_ = 0;
};

// Memory that the application fills itself and sends from by reference, again and again, without
// the bytes being touched: files, prepared answers. From Node::register_memory(). Move-only. The
// handle may be destroyed at any time, also behind its Node: the memory stays until nothing refers
// to it.
class RegisteredMemory {
 public:
  RegisteredMemory() = default;
  ~RegisteredMemory() { release(); }
  RegisteredMemory(RegisteredMemory&& other) noexcept : region_(std::move(other.region_)) {}
  RegisteredMemory& operator=(RegisteredMemory&& other) noexcept;

  bool valid() const { return region_ != nullptr; }
  std::span<std::byte> bytes() const;
  // Sends whose bytes the proxy may still read. Change only bytes that none of them covers.
  std::size_t in_use() const;
  void release();

 private:
  friend class Connection;
  friend class Node;
  friend class internal::ConnectionImpl;
  friend class internal::NodeImpl;
  explicit RegisteredMemory(std::shared_ptr<internal::Region> region)
      : region_(std::move(region)) {}
  std::shared_ptr<internal::Region> region_;
};

// Called once for a send from RegisteredMemory when the proxy no longer reads any of its bytes.
// `ok` is false if the proxy, or our Node, went away first. From Node::poll(), the Node's
// destructor, or send() itself where all of it was copied.
struct SendDone {
  void (*call)(void* context, bool ok) = nullptr;
  void* context = nullptr;
};

// What an application does with one connection, or with many: the same handler may serve any
// number of them (Connection::user tells them apart). Calls come from Node::poll(), and on_closed()
// from the Node's destructor too. None may throw, as no other function may that the library calls:
// what stands behind the exception is lost, and the Node is of no use any more.
class ConnectionHandler {
 public:
  virtual ~ConnectionHandler() = default;
  // Outgoing connections only: the remote side has accepted; sending works from here on.
  virtual void on_open(Connection&) {}
  virtual void on_data(Connection&, Received& data) = 0;
  // After a send() or acquire() that fell short: there is room again.
  virtual void on_writable(Connection&) {}
  // The client has ended its direction (FIN). Sending still works. By default we end ours too.
  virtual void on_end_of_stream(Connection& connection);
  // The last call; the Connection is gone when it returns.
  virtual void on_closed(Connection&, CloseCode) {}
};

class Connection {
 public:
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  // --- sending. Returns the bytes taken: less than asked (maybe 0) when the window, the channel
  // or the library's memory is full, and on_writable() follows then.
  std::size_t send(Bytes bytes);  // copied
  std::size_t send(std::string_view text) { return send(as_bytes(text)); }
  // By reference. The range must lie inside the memory, and must not change until `done`.
  std::size_t send(const RegisteredMemory& memory, std::size_t offset, std::size_t length,
                   SendDone done = {});
  // Up to `bytes_wanted` (at most 64,240) bytes to write into, never more than the window takes;
  // not valid() when there is no room now, and on_writable() follows.
  SendChunk acquire(std::size_t bytes_wanted);
  // Sends the first `length` bytes of a chunk. True: the chunk is spent. False: nothing happened,
  // the chunk is still yours, and on_writable() follows.
  [[nodiscard]] bool send(SendChunk& chunk, std::size_t length);
  std::size_t writable_bytes() const;  // that the window takes now

  // --- ending
  void finish();  // FIN: we send no more; receiving goes on
  void close();   // orderly end of both directions: what was sent is delivered first
  void reset();   // RST, at once
  // True until close(), reset() or the other side's end. False too after finish() for sending.
  bool is_open() const;
  bool can_send() const;

  // Gives back `bytes` that were withheld (Received::withhold()); more than that opens the window
  // for bytes that the program still keeps, and at most for all that it has.
  void open_window(std::size_t bytes);

  // --- about it
  std::uint64_t id() const;  // never repeats while the proxy lives
  Address remote() const;    // the client, or whom we connected to
  Address local() const;     // the service's address that the client used
  std::uint64_t bytes_sent() const;
  std::uint64_t bytes_acknowledged() const;  // by the client's TCP
  std::uint64_t bytes_received() const;
  Node& node() const;

  void* user = nullptr;  // the application's own

 protected:
  Connection() = default;
  ~Connection() = default;
};

// A client that wants to connect; valid while the request handler runs. Neither accept() nor
// reject() is a reject(kRefused).
class Request {
 public:
  Request(const Request&) = delete;
  Request& operator=(const Request&) = delete;
  const Address& client() const { return client_; }
  const Address& local() const { return local_; }
  // `handler` is borrowed: it must live until its on_closed() for this connection.
  Connection& accept(ConnectionHandler& handler, void* user = nullptr);
  // The library owns `handler` and destroys it after on_closed().
  Connection& accept(std::unique_ptr<ConnectionHandler> handler, void* user = nullptr);
  // kReset, kRefused, kTimedOut or one of those behind kNodeDied but kVersionMismatch; any other is
  // taken for kRefused. The client sees a RST.
  void reject(CloseCode code = CloseCode::kRefused);

 private:
  friend class internal::Link;
  explicit Request(internal::ConnectionImpl& connection) : connection_(&connection) {}
  Address client_;
  Address local_;
  internal::ConnectionImpl* connection_;
  CloseCode code_ = CloseCode::kRefused;
  bool accepted_ = false;
};

}  // namespace sanproxy::app
