// Session: one process's part in a cluster: what it registers, and what it knows of the others.
//
// Document: docs/cluster.md.
// Role: a thread with an EtcdClient. Keeps a lease and what is announced under it; lists and
//   watches the cluster's keys; hands changes over through a mailbox. When etcd is gone it tries
//   again with growing pauses, and everybody goes on from the last known state.
// Owner: the process. Thread: own; the public calls from any, take() from one.
// Invariants:
//   1. Nothing here ever waits on the caller's thread (but the destructor, at most about a second).
//   2. What is announced is written again whenever it is missing: after a lease has run out, after
//      somebody has deleted it. What another process of our name has put in its place is left
//      alone as long as it is there.
//   3. Time is monotonic time: clocks that jump change nothing.
//   4. A record that others would refuse, or etcd does, is left out, named and counted; what etcd
//      has of it stays as it is, and all others go on.
#pragma once

#include <atomic>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "lwproto/base/clock.h"
#include "lwproto/cluster/etcd_client.h"
#include "lwproto/cluster/mailbox.h"
#include "lwproto/cluster/state.h"

namespace sanproxy::cluster {

struct SessionOptions {
  EtcdOptions etcd;
  std::string prefix = "/sanproxy";
  std::string cluster = "default";
  std::string watched;       // below the root: "" is all, "node/proxy/" the proxies
  bool registers = true;     // has a lease, and announces under it
  std::uint32_t ttl_s = 10;  // of the lease
  std::size_t announced_max = 4'096;
  std::string instance;  // of this process: who finds another's in its own key, complains
};

enum class LogLevel : std::uint8_t { kInfo, kWarning, kError };
using Log = std::function<void(LogLevel, const std::string&)>;

struct SessionStatus {
  bool connected = false;
  bool ever_connected = false;
  std::string endpoint, error;  // the error since the connection was lost; "" while connected
  std::int64_t revision = 0;    // of the store, as far as we know
  std::uint64_t connects = 0, losses = 0, compactions = 0, lease_renewals = 0, writes = 0;
  std::uint64_t announcements_refused = 0;  // beyond announced_max
  std::uint64_t records_refused = 0;        // of ours, that are too long or would not be understood
  std::uint64_t duplicates = 0;             // our own key was written by somebody else
  StateCounters state;
  std::size_t entries = 0;
  std::map<std::string, std::string> refused;  // keys and why
};

class Session {
 public:
  Session(SessionOptions options, Log log);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  // To be written under our lease (behind the root), as soon as etcd is there.
  void announce(const std::string& key, const nlohmann::json& value);
  void withdraw(const std::string& key);

  int fd() const { return mailbox_.fd(); }               // readable when take() has something
  bool has_news() const { return mailbox_.has_news(); }  // the same, without a system call
  std::vector<Change> take() { return mailbox_.take(); }
  SessionStatus status() const;

 private:
  void run();
  bool come_up();
  bool keep_lease();
  bool list();
  bool serve();
  bool write_announced();
  bool write_some(std::map<std::string, std::string>& wanted);
  void leave_out_bad(std::map<std::string, std::string>& wanted);
  std::string check(const std::string& key, const std::string& value) const;
  void leave_out(const std::string& key, std::map<std::string, std::string>& wanted,
                 const std::string& why, bool by_etcd);
  void on_watch(const WatchAnswer& answer);
  void note_own(const WatchEvent& event);
  void hand_over();
  void report(const std::string& text);
  void lost(const std::string& why);
  void farewell();
  std::uint64_t beat_ns() const;

  const SessionOptions options_;
  const Log log_;
  const std::string root_;
  SteadyClock clock_;
  EtcdClient client_;
  Mailbox mailbox_;

  // The thread's alone.
  ClusterState state_;
  std::vector<Change> changes_;
  std::map<std::string, std::string> written_;  // announced, as etcd has it
  std::set<std::string> taken_;                 // announced, and another process's by now
  struct LeftOut {
    std::size_t text_hash = 0;  // of the record that was refused
    std::string why;
    bool by_etcd = false;  // which may think otherwise the next time that we meet it
  };
  std::map<std::string, LeftOut> left_out_;  // of what is announced
  std::size_t operations_max_;               // of a transaction, that this etcd takes
  std::int64_t lease_ = 0;
  std::int64_t next_revision_ = 0;  // that the watch begins with
  bool list_again_ = false;
  std::uint64_t beat_at_ns_ = 0;
  std::uint64_t write_at_ns_ = 0;

  mutable std::mutex mutex_;
  std::map<std::string, std::string> announced_;
  SessionStatus status_;

  std::uint64_t reports_since_ns_ = 0;  // of refusals, in this period
  std::size_t reports_ = 0;

  std::atomic<bool> stopping_{false};
  std::thread thread_;
};

}  // namespace sanproxy::cluster
