// ConnectionImpl: what is behind a Connection.
//
// Documents: docs/flow_control.md, docs/wire_format.md.
// Role: the two windows of one stream, its state, and the messages that it still owes the proxy.
// Owner: the Node's ConnectionPool. Thread: the Node's.
// Invariants:
//   1. What could not be sent for want of a credit is a bit in `pending`, not a queued message;
//      the Link's blocked list holds every connection with such a bit.
//   2. After our own close the connection is kClosing until CLOSE has left; then it has ended, for
//      nothing answers a terminal close. The proxy delivers what it was given.
//   3. kEnded is final and is entered once (end()); the handler learns of it from the Node's list
//      of ended connections, and the object goes back to the pool after that, once nothing is
//      owed any more (maybe_free()). `serial` then changes, so that late owners of its bytes know.
#pragma once

#include <cstdint>
#include <span>

#include "appnode-lib/client/intrusive_list.h"
#include "lwproto/flow/stream_window.h"
#include "lwproto/wire/format.h"
#include "sanproxy/connection.h"

namespace sanproxy::app::internal {

class Link;

class ConnectionImpl final : public Connection {
 public:
  enum class State : std::uint8_t { kFree, kDeciding, kConnecting, kOpen, kClosing, kEnded };
  // Bits of `pending`, in the order in which they must leave.
  enum Pending : std::uint8_t {
    kConnect = 1,
    kAccept = 2,
    kCredit = 4,
    kFin = 8,
    kClose = 16,
  };

  ConnectionImpl() = default;
  ~ConnectionImpl() = default;

  // --- life
  void begin(Link& link, State state, std::uint32_t receive_window_bytes);
  void accepted(ConnectionHandler& handler, bool own, void* user_data);
  void set_send_window(std::uint32_t window_bytes, std::uint32_t mss_bytes);
  void opened(const wire::AcceptConnectionBody& body);  // an active request was granted
  void end(CloseCode reason);
  void close_with(wire::CloseCode code);  // our decision
  void breach();
  void report_closed();  // calls on_closed()
  void maybe_free();
  // The channel is gone: nothing can be sent, nothing will come.
  void link_lost(CloseCode reason);

  // --- from the proxy
  void on_data(std::uint64_t offset, Received& data);
  void on_credit(std::uint64_t freed_offset, std::uint64_t acked_offset);
  void on_close(wire::CloseCode code, std::uint64_t offset);

  // --- sending
  std::size_t send_copy(Bytes bytes);
  std::size_t send_region(Region& region, std::size_t offset, std::size_t length, SendDone done);
  bool send_chunk(SendChunk& chunk, std::size_t length);
  SendChunk acquire_chunk(std::size_t bytes_wanted);
  void finish_sending();
  // May use the channel now; else on_writable() will come.
  bool take_turn();
  bool sendable() const { return state == State::kOpen && !fin_sent && (pending & kAccept) == 0; }
  // Sends what is owed. False when it must be tried again (and the Link will).
  bool flush_pending();
  void retry();           // from the blocked and starved lists
  void maybe_writable();  // calls on_writable() if it is owed and possible

  // --- receiving
  void freed(std::size_t bytes);

  // Hot: what every message touches comes first.
  std::uint64_t wire_id = 0;  // 0 until an active request is granted
  ConnectionHandler* handler = nullptr;
  Link* link = nullptr;
  flow::SendWindow send_window;
  flow::ReceiveWindow receive_window;
  std::uint32_t send_window_bytes = 0;
  std::uint32_t piece_bytes = 0;  // whole segments, at most a super-packet
  State state = State::kFree;
  std::uint8_t pending = 0;
  bool want_writable = false;
  bool fin_sent = false;  // finish() was called
  bool fin_received = false;
  bool own_handler = false;
  bool awaiting_answer = false;  // an active request is with the proxy
  bool closed_reported = false;
  wire::CloseCode close_code = wire::CloseCode::kNone;  // for Pending::kClose
  CloseCode end_reason = CloseCode::kNone;
  std::uint32_t serial = 0;
  std::uint32_t slot = 0;  // in the pool
  Address remote_address;
  Address local_address;
  ListHook<ConnectionImpl> blocked_hook;  // Link: no credit or queue space
  ListHook<ConnectionImpl> place_hook;    // Link: no place for a reference in the send queue
  ListHook<ConnectionImpl> starved_hook;  // Node: no send memory
  ListHook<ConnectionImpl> ended_hook;    // Node: on_closed() is due

 private:
  std::size_t admit(std::size_t bytes) const;
  bool may_refer() const;
  std::size_t writable_threshold() const;
  void on_sent(std::size_t bytes);
  bool send_failed(const ::sanproxy::Status& status);
  ::sanproxy::Status send_inline(Bytes bytes);
  ::sanproxy::Status send_piece(Region& region, std::size_t offset, std::size_t bytes,
                                std::uint32_t record);
  ::sanproxy::Status send_owed(Pending what);
  ::sanproxy::Status send_connect();
};

inline ConnectionImpl& impl(Connection& c) { return static_cast<ConnectionImpl&>(c); }
inline const ConnectionImpl& impl(const Connection& c) {
  return static_cast<const ConnectionImpl&>(c);
}

}  // namespace sanproxy::app::internal
