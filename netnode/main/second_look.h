// SecondLook: whether to look once more before sleeping.
//
// Role: who waits for this processor may have something for us by the time that he has had it, and
//   then needs to wake nobody. Pure arithmetic: giving the processor away is the caller's.
// Owner and thread: the node's.
// Invariants:
//   1. Once from one work to the next: who finds nothing twice sleeps.
//   2. Never in bulk, where the others had better go on undisturbed.
#pragma once

#include <cstddef>
#include <utility>

namespace sanproxy::netnode {

class SecondLook {
 public:
  // Bytes of one round's packets from clients that are bulk.
  static constexpr std::size_t kBulkBytes = 32 * 1024;

  // A round brought so many bytes of clients' packets (0: none, which says nothing of bulk).
  void on_packets(std::size_t bytes) {
    if (bytes != 0) bulk_ = bytes >= kBulkBytes;
  }
  // A round found something, from whomever.
  void on_work() { looked_ = false; }

  // A round found nothing. True: look again; false: sleep.
  bool due() { return !bulk_ && !std::exchange(looked_, true); }

 private:
  bool bulk_ = false;
  bool looked_ = false;
};

}  // namespace sanproxy::netnode
