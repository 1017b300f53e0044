// EtcdClient: requests to an etcd cluster over its JSON gateway, and one watch.
//
// Document: docs/cluster.md "etcd".
// Role: HTTP by libcurl (multi): bounded answers, time-outs, several endpoints. A request that an
//   endpoint does not answer goes to the next one; what etcd itself refuses is not repeated.
// Owner: a Session, or sanctl. Thread: one; wake() and interrupt() from any.
// Invariants:
//   1. No call lasts longer than (endpoints + 1) * timeout_ms.
//   2. No answer, and no line of a watch, is taken beyond bounds.answer_bytes_max; a list is asked
//      for in smaller pages then.
//   3. The watch goes on while a call waits: what it brings is handed out in order, in call() and
//      wait().
//   4. After interrupt() every call fails at once.
//   5. Requests and the watch go to one member, also where the endpoint is a name that leads to
//      several; once it is left, to any of them.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "lwproto/base/status.h"
#include "lwproto/cluster/etcd_messages.h"

namespace sanproxy::cluster {

struct EtcdOptions {
  std::vector<std::string> endpoints = {"http://127.0.0.1:2379"};
  std::string user, password;        // with a user, requests carry a token
  std::string ca;                    // PEM: who signs etcd's certificate
  std::string certificate, key;      // PEM: ours, if etcd asks for one
  std::uint32_t timeout_ms = 2'000;  // of one request at one endpoint
  Bounds bounds;
};

// kInvalidArgument unless it is http://HOST[:PORT] or https://HOST[:PORT].
Status check_endpoint(const std::string& url);

struct Answer {
  bool ok = false;
  Code code = Code::kOk;     // why not: kTimeout, kDisconnected, kRefused, kProtocol
  bool may_be_done = false;  // not repeatable: the request was sent, its fate is unknown
  bool too_long = false;     // beyond answer_bytes_max
  bool too_large = false;    // the request, for this etcd: less in one may be taken
  std::string error;         // for people
  nlohmann::json body;
};

class EtcdClient {
 public:
  // Called for each line of the watch.
  using OnWatch = std::function<void(const WatchAnswer&)>;

  explicit EtcdClient(EtcdOptions options);
  ~EtcdClient();
  EtcdClient(const EtcdClient&) = delete;
  EtcdClient& operator=(const EtcdClient&) = delete;

  // POST `path` ("/v3/kv/range"). A request of which an unanswered try may have been carried out
  // must be one that may be carried out twice, or `repeatable` false.
  Answer call(const std::string& path, const nlohmann::json& body, bool repeatable = true);
  // All keys from `key` to before `end`, of one revision, in pages; of those that `wanted` says
  // (all, if empty). Looks at values_max keys at most, and says when there are more (truncated).
  using Wanted = std::function<bool(const std::string& key)>;
  Result<RangeAnswer> list(const std::string& key, const std::string& end,
                           std::size_t values_max = 100'000, std::int64_t at_revision = 0,
                           const Wanted& wanted = {});

  void watch(const std::string& key, const std::string& end, std::int64_t from_revision,
             OnWatch on_watch);
  // Until etcd has said that the watch is created, or refused. False, with last_error(), if it is
  // silent for timeout_ms though it answers requests (what stands before it may hold the answer
  // back): of changes we would never hear.
  bool await_watch();
  void end_watch();
  // Whether it goes on, at the member in use: one that calls have left may be cut off, and its
  // connection silent for long.
  bool watching() const { return watch_ != nullptr && watch_running_ && watch_visit_ == visit_; }
  const std::string& watch_error() const { return watch_error_; }

  // Serves the watch for at most `timeout_ms`; returns sooner after something came or wake().
  void wait(int timeout_ms);
  void wake();
  void interrupt();
  // On the client's thread: calls work again, but each gets one endpoint and so much time.
  void resume(std::uint32_t timeout_ms);

  const std::string& endpoint() const { return options_.endpoints[current_]; }
  void next_endpoint();
  const std::string& last_error() const { return last_error_; }

 private:
  struct Transfer;
  void configure(Transfer& transfer, const std::string& path, const nlohmann::json& body);
  Answer call_once(const std::string& path, const nlohmann::json& body, bool repeatable = true);
  bool chooses_member() const;
  void choose_member(Transfer& transfer);
  bool log_in(Answer& failure);
  void perform();
  void take_watch_lines();

  EtcdOptions options_;
  std::size_t current_ = 0;
  std::string member_;       // its address, where the endpoint is a name; "": not chosen yet
  std::uint64_t visit_ = 0;  // another one at each member
  std::string token_;
  std::string last_error_;
  void* multi_ = nullptr;
  std::unique_ptr<Transfer> request_;  // one at a time; its connection is kept
  std::unique_ptr<Transfer> watch_;
  bool watch_running_ = false, watch_answered_ = false;
  std::uint64_t watch_visit_ = 0;
  std::string watch_error_;
  OnWatch on_watch_;
  std::atomic<bool> interrupted_{false};
};

}  // namespace sanproxy::cluster
