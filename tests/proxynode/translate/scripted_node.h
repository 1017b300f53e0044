// An application node that does what the test says, right or wrong.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "lwproto/auth/proof.h"
#include "lwproto/buffer/memory_region.h"
#include "lwproto/channel/channel.h"
#include "tests/lwproto/fabric/sim/endpoint.h"
#include "tests/proxynode/stack/stack_harness.h"

namespace sanproxy::translate::testing {

using stack::testing::Bytes;

struct NodeOptions {
  std::string name = "node";
  std::uint32_t credits = 64;
  std::uint32_t reserve = 4;
  std::uint32_t window_bytes = 512 * 1024;
  std::uint32_t streams_max = 1000;
  std::int64_t uid = 1000;
  std::string certificate_name = {};
  std::optional<wire::HelloBody> hello = {};  // instead of one of its own
};

class Node final : public channel::Delegate {
 public:
  // What it knows of one connection.
  struct Conn {
    wire::ConnectionRequestBody request{};
    wire::AcceptConnectionBody accept{};  // of an active one
    std::uint32_t window = 0;             // what we may send beyond what is freed
    Bytes received;
    std::uint64_t announced = 0;  // of it, freed by CREDIT
    Bytes outbox;
    std::uint64_t sent = 0, freed = 0, acked = 0;
    bool may_send = false;  // ACCEPT has left
    std::optional<wire::CloseCode> finish;
    std::vector<wire::CloseCode> closes;
    std::uint64_t close_offset = 0;
    bool ended() const { return !closes.empty() && closes.back() != wire::CloseCode::kFin; }
  };

  explicit Node(const NodeOptions& options);
  const wire::HelloBody& hello() const { return hello_; }
  fabric::EndpointOptions endpoint_options() const;
  void start(std::unique_ptr<fabric::Endpoint> endpoint, const wire::HelloBody& proxys);

  // --- behaviour
  bool accept = true;    // every connection at once
  bool free = true;      // what it gets at once
  bool hold = false;     // keeps the loans of what it gets
  bool stopped = false;  // does not run at all
  bool answers_heartbeats = true;
  std::vector<wire::HeartbeatBody> heartbeats;  // that have come
  std::uint32_t piece_bytes = 30'000;

  // --- words, each sent as soon as there is a credit
  std::uint32_t join(const std::string& address, std::uint8_t flags = 0, std::uint32_t weight = 1,
                     std::uint32_t connections_max = 0);
  std::uint32_t authenticate(const auth::Key& key);
  void authenticate(const wire::AuthenticateBody& body);
  void leave(std::uint32_t service, std::uint32_t request = 77);
  void shut_down(std::uint32_t service, std::uint32_t request = 78);
  void accept_connection(std::uint64_t id);
  void accept_connection(std::uint64_t id, std::uint32_t window);
  void reject_connection(std::uint64_t id, wire::CloseCode code = wire::CloseCode::kRefused);
  std::uint32_t connect(const std::string& remote, const std::string& local = "",
                        std::uint32_t service = 0);
  void connect(const wire::ConnectionRequestBody& body);
  void send(std::uint64_t id, const Bytes& bytes);  // as the window allows
  // Behind the bytes; an abortive code goes at once.
  void close(std::uint64_t id, wire::CloseCode code = wire::CloseCode::kFin);
  void free_all(std::uint64_t id);
  // Exactly these fields, legal or not.
  void raw_data(std::uint64_t id, std::uint64_t offset, const Bytes& bytes);
  void raw_close(std::uint64_t id, wire::CloseCode code, std::uint64_t offset);
  void raw_heartbeat(std::uint32_t number);  // an answer, asked for or not
  void raw_credit(std::uint64_t id, std::uint64_t freed, std::uint64_t acked = 0);

  // One round of its loop; true when something moved.
  bool round();
  void release_held();
  void die();  // the process is gone, with everything that it holds
  bool alive() const { return channel_ != nullptr && closed == 0; }
  channel::Channel& channel() { return *channel_; }

  // The proof of `key` for this channel.
  auth::Proof proof(const auth::Key& key, auth::Prover who = auth::Prover::kApplication) const;

  // --- what it has been told
  std::map<std::uint64_t, Conn> conns;
  std::vector<std::uint64_t> order;    // of requests and active accepts
  std::vector<wire::Message> answers;  // JOIN, LEAVE, SHUTDOWN, REJECT
  std::vector<std::string> story;
  int closed = 0;
  wire::CloseCode code = wire::CloseCode::kNone;
  std::size_t held() const { return held_.size(); }
  std::size_t cookies_out() const { return slots_.size() - free_slots_.size(); }

  // --- channel::Delegate
  void on_data(channel::Channel& channel, std::uint64_t connection, std::uint64_t offset,
               const channel::Payload& payload) override;
  void on_message(channel::Channel& channel, const wire::Message& message) override;
  void on_sent(channel::Channel& channel, std::uint64_t cookie, bool ok) override;
  void on_writable(channel::Channel& channel) override;
  void on_closed(channel::Channel& channel, wire::CloseCode why, const Status& status) override;

 private:
  using Word = std::function<Status()>;
  void say(Word word);
  void run_words();
  void drive(std::uint64_t id, Conn& conn);
  Status send_piece(std::uint64_t id, std::uint64_t offset, std::span<const std::byte> bytes);

  static constexpr std::size_t kSlots = 128;
  static constexpr std::size_t kSlotBytes = 65536;
  NodeOptions options_;
  wire::HelloBody hello_{};
  buffer::MemoryRegion region_;  // outlives the endpoint
  fabric::RegionKey key_ = 0;
  std::vector<bool> slots_;  // in use
  std::vector<std::size_t> free_slots_;
  std::unique_ptr<channel::Channel> channel_;
  std::deque<Word> words_;
  std::vector<fabric::Loan> held_;
  std::uint32_t next_request_ = 1;
};

}  // namespace sanproxy::translate::testing
