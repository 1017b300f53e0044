// SendKick: telling the kernel that there is something in a send ring, until it has it.
//
// Document: docs/packet_io.md "AF_XDP".
// Role: how often to ask, what an answer means, and whether something is left. Pure: the calls are
//   the caller's.
// Owner and thread: a driver's.
// Invariants:
//   1. What was pushed is unsent() until the kernel has taken all of it or does not wait to be
//   told.
//   2. At most kCallsMax calls a time.
#pragma once

#include <cerrno>

namespace sanproxy::packet_io {

class SendKick {
 public:
  static constexpr int kCallsMax = 64;

  void pushed() { unsent_ = true; }
  bool unsent() const { return unsent_; }

  // `waits`: whether the kernel waits to be told. `call` tells it: 0, or an errno. `reclaim` takes
  // back what has been sent, between two calls.
  template <typename Waits, typename Call, typename Reclaim>
  void run(Waits waits, Call call, Reclaim reclaim) {
    for (int i = 0; i < kCallsMax; ++i) {
      const int error = waits() ? call() : 0;
      if (error == 0) {
        unsent_ = false;
        return;
      }
      // EAGAIN: one call sends a batch, and there is more. EBUSY: one was lost, and there is more.
      if (error != EAGAIN && error != EINTR && error != EBUSY) return;
      reclaim();
    }
  }

 private:
  bool unsent_ = false;
};

}  // namespace sanproxy::packet_io
