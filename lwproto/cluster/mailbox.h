// Mailbox: changes of a cluster on their way from a Session's thread to the one that acts on them.
//
// Role: keeps the latest entry of every key that changed; wakes the taker through a descriptor.
// Owner: a Session. Thread: put() on the Session's, take() on any one other.
// Invariants:
//   1. Bounded: it holds at most one change for a key that exists or that the taker knows of, so at
//      most twice entries_max. A change that is overtaken by the next of its key is never seen.
//   2. fd() is readable while there is something to take (and perhaps when it has just gone).
#pragma once

#include <atomic>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "lwproto/base/status.h"
#include "lwproto/cluster/state.h"

namespace sanproxy::cluster {

class Mailbox {
 public:
  Mailbox();
  ~Mailbox();
  Mailbox(const Mailbox&) = delete;
  Mailbox& operator=(const Mailbox&) = delete;

  void put(std::vector<Change> changes);
  std::vector<Change> take();
  // Wakes the taker though nothing has changed.
  void nudge();
  bool has_news() const { return news_.load(std::memory_order_relaxed); }  // cheap; any thread
  int fd() const { return event_fd_; }

 private:
  std::mutex mutex_;
  std::map<std::string, Change> waiting_;
  std::set<std::string> known_;  // to the taker
  std::atomic<bool> news_{false};
  int event_fd_ = -1;
};

}  // namespace sanproxy::cluster
