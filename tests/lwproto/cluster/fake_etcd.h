// FakeEtcd: enough of etcd's JSON gateway, in process, with faults on demand.
//
// Role: a store with revisions, leases (that run out when told), transactions and watches; answers
//   can be scripted to fail, to be silent or to be too long.
// Thread: its public calls from the test's; HTTP threads of its own.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

namespace sanproxy::cluster::testing {

class FakeEtcd {
 public:
  // `host`: of loopback; `port` 0: any that is free.
  explicit FakeEtcd(std::string host = "127.0.0.1", int port = 0);
  ~FakeEtcd();

  std::string url() const;
  // As if the member were away: nobody listens, and open watches end.
  void stop();
  void start();

  void put(const std::string& key, const std::string& value, std::int64_t lease = 0);
  void erase(const std::string& key);
  std::optional<std::string> get(const std::string& key);
  std::map<std::string, std::string> all();
  std::int64_t revision();
  void compact();        // everything that has happened is forgotten, the keys stay
  void expire_leases();  // all of them, with their keys
  void wipe();           // a new, empty store
  std::size_t lease_count();
  void set_request_bytes_max(std::size_t bytes);

  // The next `count` requests to `path` get this answer.
  void answer(const std::string& path, int count, int status, std::string body);
  // While true, requests to `path` are carried out and answered as if they had failed.
  void lose_answers(const std::string& path, bool lose);
  // As what stands before etcd and holds back answers that have no end.
  void hold_watches(bool hold);
  std::size_t requests(const std::string& path);
  std::string last_body(const std::string& path);
  std::string last_header(const std::string& path, const std::string& name);
  // Looks again and again until `condition` holds; false if it does not in 20 seconds.
  template <typename Condition>
  bool wait_for(Condition condition) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (!condition()) {
      if (std::chrono::steady_clock::now() > end) return false;
      std::unique_lock<std::mutex> lock(mutex_);
      changed_.wait_for(lock, std::chrono::milliseconds(5));
    }
    return true;
  }

 private:
  struct Http;
  struct Value {
    std::string value;
    std::int64_t create = 0, mod = 0, lease = 0;
  };
  struct Event {
    std::int64_t revision;
    bool deleted;
    std::string key;
    Value value;
  };
  struct Scripted {
    int count, status;
    std::string body;
  };
  nlohmann::json serve(const std::string& path, const nlohmann::json& body, int& status);
  nlohmann::json range(const nlohmann::json& request);
  nlohmann::json transact(const nlohmann::json& request);
  bool holds(const nlohmann::json& compare);
  void put_locked(const std::string& key, const std::string& value, std::int64_t lease);
  void erase_locked(const std::string& key);
  nlohmann::json header();
  std::string created_line();
  std::string watch_lines(const std::string& key, const std::string& end, std::int64_t& from,
                          bool& done);

  std::unique_ptr<Http> http_;
  std::thread thread_;
  const std::string host_;
  int port_ = 0;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::string, Value> values_;
  std::vector<Event> events_;
  std::map<std::int64_t, bool> leases_;
  std::map<std::string, Scripted> scripted_;
  std::set<std::string> losing_;
  std::map<std::string, std::size_t> requests_;
  std::size_t request_bytes_max_ = 1536 * 1024;  // etcd's own
  std::map<std::string, std::string> bodies_;
  std::map<std::string, std::map<std::string, std::string>> headers_;
  std::int64_t revision_ = 1, compacted_ = 0, next_lease_ = 7'000'000'000;
  std::atomic<bool> stopping_{false}, holding_watches_{false};
};

}  // namespace sanproxy::cluster::testing
