#include "lwproto/cluster/mailbox.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include "lwproto/base/check.h"

namespace sanproxy::cluster {

Mailbox::Mailbox() : event_fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  SANPROXY_CHECK(event_fd_ >= 0);
}

Mailbox::~Mailbox() { close(event_fd_); }

void Mailbox::put(std::vector<Change> changes) {
  if (changes.empty()) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  for (Change& change : changes) {
    if (!change.entry && !known_.contains(change.key)) {
      waiting_.erase(change.key);  // came and went unseen
    } else {
      waiting_[change.key] = std::move(change);
    }
  }
  if (!waiting_.empty()) nudge();
}

void Mailbox::nudge() {
  news_ = true;
  const std::uint64_t one = 1;
  (void)!write(event_fd_, &one, sizeof(one));
}

std::vector<Change> Mailbox::take() {
  const std::lock_guard<std::mutex> lock(mutex_);
  news_ = false;
  std::uint64_t count = 0;
  (void)!read(event_fd_, &count, sizeof(count));
  std::vector<Change> out;
  out.reserve(waiting_.size());
  for (auto& [key, change] : waiting_) {
    if (change.entry) {
      known_.insert(key);
    } else {
      known_.erase(key);
    }
    out.push_back(std::move(change));
  }
  waiting_.clear();
  return out;
}

}  // namespace sanproxy::cluster
