// The public calls of Connection, Request, SendChunk and RegisteredMemory: thin over the impls.
#include "appnode-lib/client/connection_impl.h"
#include "appnode-lib/client/convert.h"
#include "appnode-lib/client/node_impl.h"
#include "lwproto/base/check.h"

namespace sanproxy::app {

using internal::ConnectionImpl;
using internal::impl;
using State = ConnectionImpl::State;

void ConnectionHandler::on_end_of_stream(Connection& connection) { connection.close(); }

std::size_t Connection::send(Bytes bytes) { return impl(*this).send_copy(bytes); }

std::size_t Connection::send(const RegisteredMemory& memory, std::size_t offset, std::size_t length,
                             SendDone done) {
  SANPROXY_CHECK(memory.valid());
  return impl(*this).send_region(*memory.region_, offset, length, done);
}

SendChunk Connection::acquire(std::size_t bytes_wanted) {
  return impl(*this).acquire_chunk(bytes_wanted);
}

bool Connection::send(SendChunk& chunk, std::size_t length) {
  return impl(*this).send_chunk(chunk, length);
}

std::size_t Connection::writable_bytes() const {
  const ConnectionImpl& self = impl(*this);
  return self.sendable() ? self.send_window.available() : 0;
}

void Connection::finish() { impl(*this).finish_sending(); }
void Connection::close() { impl(*this).close_with(wire::CloseCode::kFinBoth); }
void Connection::reset() { impl(*this).close_with(wire::CloseCode::kReset); }

bool Connection::is_open() const {
  const State state = impl(*this).state;
  return state == State::kOpen || state == State::kConnecting;
}

bool Connection::can_send() const {
  const ConnectionImpl& self = impl(*this);
  return self.state == State::kOpen && !self.fin_sent;
}

void Connection::open_window(std::size_t bytes) { impl(*this).freed(bytes); }

std::uint64_t Connection::id() const { return impl(*this).wire_id; }
Address Connection::remote() const { return impl(*this).remote_address; }
Address Connection::local() const { return impl(*this).local_address; }
std::uint64_t Connection::bytes_sent() const { return impl(*this).send_window.sent(); }
std::uint64_t Connection::bytes_acknowledged() const { return impl(*this).send_window.acked(); }
std::uint64_t Connection::bytes_received() const { return impl(*this).receive_window.received(); }
Node& Connection::node() const { return impl(*this).link->node(); }

// --- Request

Connection& Request::accept(ConnectionHandler& handler, void* user) {
  SANPROXY_CHECK(!accepted_);
  accepted_ = true;
  connection_->accepted(handler, false, user);
  return *connection_;
}

Connection& Request::accept(std::unique_ptr<ConnectionHandler> handler, void* user) {
  SANPROXY_CHECK(!accepted_ && handler != nullptr);
  accepted_ = true;
  connection_->accepted(*handler.release(), true, user);
  return *connection_;
}

void Request::reject(CloseCode code) { code_ = code; }

// --- memory

SendChunk& SendChunk::operator=(SendChunk&& other) noexcept {
  if (this != &other) {
    release();
    node_ = std::exchange(other.node_, nullptr);
    data_ = other.data_;
    size_ = other.size_;
    handle_ = other.handle_;
  }
  return *this;
}

void SendChunk::release() {
  if (node_ != nullptr) std::exchange(node_, nullptr)->send_memory().release(handle_);
}

RegisteredMemory& RegisteredMemory::operator=(RegisteredMemory&& other) noexcept {
  if (this != &other) {
    release();
    region_ = std::move(other.region_);
  }
  return *this;
}

std::span<std::byte> RegisteredMemory::bytes() const {
  if (region_ == nullptr) return {};
  return region_->memory.bytes().first(region_->bytes);
}

std::size_t RegisteredMemory::in_use() const { return region_ == nullptr ? 0 : region_->in_use; }

void RegisteredMemory::release() {
  if (region_ == nullptr) return;
  region_->released = true;
  region_.reset();
}

}  // namespace sanproxy::app
