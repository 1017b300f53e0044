// BlockingListener and BlockingStream over the public Node interface alone: this file is also an
// example of a bridge to a program that has buffers of its own (Received::withhold()).
#include "sanproxy/blocking.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <deque>
#include <vector>

namespace sanproxy::app {
namespace {

using SteadyTime = std::chrono::steady_clock;

constexpr int kLingerMs = 5000;  // for bytes on their way when the program is done

// One connection. Bytes are copied into `buffer`; the client's window opens as read() takes them.
struct StreamHandler final : ConnectionHandler {
  Connection* connection = nullptr;
  std::vector<std::byte> buffer;
  std::size_t taken = 0;  // of the buffer
  bool open = true;       // outgoing: false until on_open()
  bool end_of_stream = false;
  bool writable = true;
  bool detached = false;  // nobody waits any more: goes away with the connection
  CloseCode reason = CloseCode::kNone;

  std::size_t available() const { return buffer.size() - taken; }
  void on_open(Connection&) override { open = true; }
  void on_data(Connection&, Received& data) override {
    data.withhold();
    if (detached) return;
    if (taken > buffer.size() / 2) {  // so that the buffer stays within two windows
      buffer.erase(buffer.begin(), buffer.begin() + static_cast<std::ptrdiff_t>(taken));
      taken = 0;
    }
    for (const Bytes& piece : data.pieces()) {
      buffer.insert(buffer.end(), piece.begin(), piece.end());
    }
  }
  void on_writable(Connection&) override { writable = true; }
  void on_end_of_stream(Connection&) override { end_of_stream = true; }
  void on_closed(Connection&, CloseCode code) override {
    connection = nullptr;
    reason = code;
    if (detached) delete this;
  }
  std::size_t take(std::span<std::byte> into) {
    const std::size_t n = std::min(into.size(), available());
    std::memcpy(into.data(), buffer.data() + taken, n);
    taken += n;
    if (taken == buffer.size()) {
      buffer.clear();
      taken = 0;
    }
    if (connection != nullptr) connection->open_window(n);
    return n;
  }
  void give_up() {
    if (connection == nullptr) {
      delete this;
      return;
    }
    detached = true;
    connection->close();
  }
};

Status gone() { return {Code::kDisconnected, "the connection is closed"}; }

}  // namespace

// The Node, shared by a listener and its streams. The last of them to go waits for what was sent
// to arrive, because the bytes are still in our memory.
struct BlockingStream::Core {
  std::unique_ptr<Node> node;
  Service service;
  bool serving = false;

  ~Core() {
    if (node == nullptr) return;
    if (serving) service.leave();
    (void)wait_until([this] { return node->drained(); }, kLingerMs);
  }

  // False when the time is over first. Whatever the time, the node gets on.
  template <typename Condition>
  bool wait_until(Condition condition, int timeout_ms) {
    const auto end = SteadyTime::now() + std::chrono::milliseconds(timeout_ms);
    for (bool over = false; !condition();) {
      if (over) return false;
      int left_ms = -1;
      if (timeout_ms >= 0) {
        const auto left = std::chrono::ceil<std::chrono::milliseconds>(end - SteadyTime::now());
        left_ms = std::max(static_cast<int>(left.count()), 0);
        over = left_ms == 0;
      }
      node->wait(left_ms);
    }
    return true;
  }

  // The same for a call of the application's, which Node::stop() ends too.
  template <typename Condition>
  Status wait_for(Condition condition, int timeout_ms, const char* late) {
    if (wait_until([&] { return condition() || node->stopped(); }, timeout_ms)) {
      return condition() ? Status() : Status(Code::kDisconnected, "the node was stopped");
    }
    return {Code::kTimeout, late};
  }
};

struct BlockingStream::State {
  std::shared_ptr<Core> core;
  StreamHandler* handler = nullptr;

  ~State() {
    handler->give_up();
    core->node->poll();
  }
};

struct BlockingListener::State {
  std::shared_ptr<BlockingStream::Core> core = std::make_shared<BlockingStream::Core>();
  std::deque<StreamHandler*> waiting;
  std::size_t backlog = 0;

  ~State() {
    for (StreamHandler* handler : waiting) handler->give_up();
    if (core->node == nullptr) return;
    core->service.leave();
    core->node->poll();  // a stream may live on, and nobody call it for long
  }
};

// --- BlockingStream

BlockingStream::BlockingStream() = default;
BlockingStream::BlockingStream(std::unique_ptr<State> state) : state_(std::move(state)) {}
BlockingStream::~BlockingStream() = default;
BlockingStream::BlockingStream(BlockingStream&&) noexcept = default;
BlockingStream& BlockingStream::operator=(BlockingStream&&) noexcept = default;

Result<BlockingStream> BlockingStream::connect(std::string_view remote, std::string_view service,
                                               NodeOptions options, int timeout_ms) {
  auto node = Node::create(std::move(options));
  if (!node.ok()) return node.status();
  auto core = std::make_shared<Core>();
  core->node = std::move(*node);
  auto joined = core->node->join(service, [](Request& request) { request.reject(); });
  if (!joined.ok()) return joined.status();
  core->service = *joined;
  core->serving = true;
  return connect(std::move(core), remote, timeout_ms);
}

Result<BlockingStream> BlockingStream::connect(std::shared_ptr<Core> core, std::string_view remote,
                                               int timeout_ms) {
  const Status joined = core->wait_for([&] { return core->service.joined_count() > 0; }, timeout_ms,
                                       "no proxy has let us join the service");
  if (!joined.ok()) return joined;
  auto handler = std::make_unique<StreamHandler>();
  handler->open = false;
  auto connection = core->node->connect(remote, *handler);
  if (!connection.ok()) return connection.status();
  handler->connection = *connection;
  auto state = std::make_unique<State>();
  state->core = std::move(core);
  state->handler = handler.release();
  StreamHandler& stream = *state->handler;
  const Status answered =
      state->core->wait_for([&] { return stream.open || stream.connection == nullptr; }, timeout_ms,
                            "the remote end does not answer");
  if (!answered.ok()) return answered;
  if (!stream.open) return Status(Code::kRefused, to_string(stream.reason));
  return BlockingStream(std::move(state));
}

Result<std::size_t> BlockingStream::read(std::span<std::byte> into, int timeout_ms) {
  if (state_ == nullptr) return gone();
  StreamHandler& stream = *state_->handler;
  const auto ready = [&] {
    return stream.available() != 0 || stream.end_of_stream || stream.connection == nullptr;
  };
  if (into.empty()) return Status(Code::kInvalidArgument, "no room to read into");
  // Who reads what came long ago answers the proxy too, and opens the window.
  if (ready()) state_->core->node->poll();
  const Status status = state_->core->wait_for(ready, timeout_ms, "nothing has arrived");
  if (!status.ok()) return status;
  if (stream.available() != 0) return stream.take(into);
  if (stream.end_of_stream || stream.reason == CloseCode::kFin) return std::size_t{0};
  return gone();
}

Status BlockingStream::write(Bytes bytes, int timeout_ms) {
  if (state_ == nullptr) return gone();
  StreamHandler& stream = *state_->handler;
  while (!bytes.empty()) {
    if (stream.connection == nullptr || !stream.connection->can_send()) return gone();
    const std::size_t n = stream.connection->send(bytes);
    bytes = bytes.subspan(n);
    if (bytes.empty()) break;
    stream.writable = false;
    const Status status =
        state_->core->wait_for([&] { return stream.writable || stream.connection == nullptr; },
                               timeout_ms, "the other end takes no more");
    if (!status.ok()) return status;
  }
  state_->core->node->poll();
  return {};
}

void BlockingStream::shutdown_write() {
  if (state_ == nullptr || state_->handler->connection == nullptr) return;
  state_->handler->connection->finish();
  state_->core->node->poll();
}

void BlockingStream::close() { state_.reset(); }

Address BlockingStream::remote() const {
  if (state_ == nullptr || state_->handler->connection == nullptr) return {};
  return state_->handler->connection->remote();
}

// --- BlockingListener

BlockingListener::BlockingListener(std::shared_ptr<State> state) : state_(std::move(state)) {}
BlockingListener::~BlockingListener() = default;
BlockingListener::BlockingListener(BlockingListener&&) noexcept = default;
BlockingListener& BlockingListener::operator=(BlockingListener&&) noexcept = default;

Result<BlockingListener> BlockingListener::open(std::string_view service, NodeOptions options,
                                                std::size_t backlog) {
  auto node = Node::create(std::move(options));
  if (!node.ok()) return node.status();
  auto state = std::make_shared<State>();
  state->core->node = std::move(*node);
  state->backlog = backlog;
  // The Core, and with it this function, may outlive the listener.
  auto on_request = [weak = std::weak_ptr<State>(state)](Request& request) {
    const auto listener = weak.lock();
    if (listener == nullptr) return;
    if (listener->waiting.size() >= listener->backlog) {
      return request.reject(CloseCode::kLimitReached);
    }
    auto* handler = new StreamHandler;
    handler->connection = &request.accept(*handler);
    listener->waiting.push_back(handler);
  };
  auto joined = state->core->node->join(service, std::move(on_request));
  if (!joined.ok()) return joined.status();
  state->core->service = *joined;
  state->core->serving = true;
  return BlockingListener(std::move(state));
}

Result<BlockingStream> BlockingListener::accept(int timeout_ms) {
  State& self = *state_;
  const Status status =
      self.core->wait_for([&] { return !self.waiting.empty(); }, timeout_ms, "no connection came");
  if (!status.ok()) return status;
  auto state = std::make_unique<BlockingStream::State>();
  state->core = self.core;
  state->handler = self.waiting.front();
  self.waiting.pop_front();
  return BlockingStream(std::move(state));
}

Result<BlockingStream> BlockingListener::connect(std::string_view remote, int timeout_ms) {
  return BlockingStream::connect(state_->core, remote, timeout_ms);
}

Node& BlockingListener::node() { return *state_->core->node; }

}  // namespace sanproxy::app
