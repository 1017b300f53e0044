// FakeProxy: the other end of a channel, in the same process and thread as the Node under test.
//
// Role: listens on a real shm or tcp socket, speaks the wire format through lwproto/channel, does
// no TCP.
//   It records what the application node sends and sends what a test tells it to.
// Harness: a Node with a manual clock and its FakeProxy; pump() gives both a turn.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "appnode-lib/client/node_impl.h"
#include "lwproto/auth/proof.h"
#include "lwproto/base/clock.h"
#include "lwproto/channel/channel.h"
#include "lwproto/fabric/shm/shm_fabric.h"
#include "lwproto/fabric/tcp/tcp_fabric.h"
#include "sanproxy/appnode.h"

namespace sanproxy::app::test {

class FakeProxy final : public channel::Delegate {
 public:
  struct Stream {
    bool accepted = false;
    bool rejected = false;
    std::uint32_t window_bytes = 0;  // what the application granted
    std::string data;                // a test may clear it
    std::uint64_t received = 0;      // all of it
    std::uint64_t sent = 0;
    std::uint64_t freed = 0;  // by the application
    std::vector<std::pair<wire::CloseCode, std::uint64_t>> closes;
    wire::CloseCode reject_code = wire::CloseCode::kNone;
  };
  struct Options {
    fabric::EndpointOptions endpoint;
    wire::CloseCode refuse_channels = wire::CloseCode::kNone;  // with this
    bool answer_joins = true;
    bool free_at_once = true;  // CREDIT for every DATA
    bool hold_loans = false;   // keep what came by reference until release_loans()
    wire::CloseCode join_code = wire::CloseCode::kNone;
    bool answer_keys = true;
    wire::CloseCode hello_code = wire::CloseCode::kNone;  // refuses the channel
    int key_limit = 0;  // so many AUTHENTICATEs are refused with kLimitReached
    std::vector<auth::Key> keys = {};
    const auth::Key* impostor_key = nullptr;  // answers every AUTHENTICATE with this one's proof
  };

  explicit FakeProxy(std::string address);  // shm: or tcp:
  ~FakeProxy() override;

  void start();
  void stop();  // disconnects everybody, as if the process had died
  const std::string& address() const { return address_; }  // with the port that it got
  bool connected() const { return channel_ != nullptr && !channel_->closed(); }
  std::size_t pump();
  channel::Channel& channel() { return *channel_; }
  Stream& stream(std::uint64_t id) { return streams_[id]; }

  std::uint64_t request(std::uint32_t service, std::uint32_t window_bytes = 256 * 1024);
  void send(std::uint64_t id, std::string_view text);
  void send_large(std::uint64_t id, std::size_t bytes);  // by reference, pattern 'a'..'z'
  void send_close(std::uint64_t id, wire::CloseCode code);
  void send_credit(std::uint64_t id, std::uint64_t freed, std::uint64_t acked);
  void release_loans();

  Options options;
  std::vector<wire::Message> messages;  // all but DATA and CREDIT
  std::uint32_t joins = 0;
  std::vector<std::string> proven;  // names of keys
  std::uint32_t last_service = 0;
  void answer_join(const wire::Message& message);
  std::size_t loans_held() const { return loans_.size(); }
  std::size_t sent_back = 0;  // completed references of ours
  wire::CloseCode closed_code = wire::CloseCode::kNone;

 private:
  void on_data(channel::Channel&, std::uint64_t id, std::uint64_t offset,
               const channel::Payload& payload) override;
  void on_message(channel::Channel&, const wire::Message& message) override;
  void on_sent(channel::Channel&, std::uint64_t, bool) override { ++sent_back; }
  void on_writable(channel::Channel&) override {}
  void on_closed(channel::Channel&, wire::CloseCode code, const ::sanproxy::Status&) override {
    closed_code = code;
  }
  void on_join(const wire::Message& message);
  void on_authenticate(const wire::Message& message);
  void on_close(const wire::Message& message);

  std::string address_;
  std::unique_ptr<fabric::Fabric> fabric_;
  std::unique_ptr<fabric::Listener> listener_;
  buffer::MemoryRegion region_;
  fabric::RegionKey region_key_ = 0;
  std::unique_ptr<channel::Channel> channel_;
  std::map<std::uint64_t, Stream> streams_;
  std::vector<fabric::Loan> loans_;
  std::uint32_t next_index_ = 0;
  std::uint16_t epoch_ = 0;
};

// Records what a connection is told.
struct Recorder : ConnectionHandler {
  Connection* connection = nullptr;
  std::string data;
  int opens = 0, writables = 0, ends = 0, closes = 0;
  CloseCode code = CloseCode::kNone;
  std::function<void(Connection&, Received&)> data_hook;
  std::function<void(Connection&)> end_hook;
  std::function<void(Connection&)> writable_hook;

  void on_open(Connection& c) override {
    ++opens;
    connection = &c;
  }
  void on_data(Connection& c, Received& received) override {
    connection = &c;
    for (const Bytes& piece : received.pieces()) data.append(as_text(piece));
    if (data_hook) data_hook(c, received);
  }
  void on_writable(Connection& c) override {
    ++writables;
    if (writable_hook) writable_hook(c);
  }
  void on_end_of_stream(Connection& c) override {
    ++ends;
    if (end_hook) end_hook(c);
  }
  void on_closed(Connection&, CloseCode why) override {
    ++closes;
    code = why;
    connection = nullptr;
  }
};

class Harness : public ::testing::Test {
 protected:
  Harness();
  ~Harness() override;

  // A node that knows of the proxy, unless `options.proxies` says otherwise.
  void make_node(NodeOptions options = {});
  void pump();
  // Until the condition holds; fails the test if it never does.
  [[nodiscard]] bool pump_until(const std::function<bool()>& condition);
  void pump_some(int rounds = 20);
  // Node, proxy and one joined service that accepts with `handler`.
  void serve(ConnectionHandler& handler, NodeOptions options = {});
  // A handler that lives as long as the Node.
  Recorder& recorder() { return recorders_.emplace_back(); }
  // A client's connection that the application has accepted.
  std::uint64_t open(std::uint32_t window_bytes = 256 * 1024);
  // And whose handler has seen it.
  std::uint64_t opened(Recorder& handler, std::uint32_t window_bytes = 256 * 1024);

  std::deque<Recorder> recorders_;
  std::string directory_;
  std::string address_;
  ManualClock clock_;
  FakeProxy proxy_;
  std::unique_ptr<internal::NodeImpl> impl_;
  Node* node_ = nullptr;
  Service service_;
};

}  // namespace sanproxy::app::test
