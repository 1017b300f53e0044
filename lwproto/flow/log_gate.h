// LogGate: how often a line of one kind goes into the log.
//
// Role: lets it through or counts it: whoever provokes lines must not fill a disk.
// Owner: who logs; thread: its.
#pragma once

#include <cstdint>
#include <utility>

#include "lwproto/flow/token_bucket.h"

namespace sanproxy::flow {

class LogGate {
 public:
  explicit LogGate(Rate rate = {5, 50}) : rate_(rate) {}
  bool open(std::uint64_t now_ns) {
    if (bucket_.take(rate_, now_ns)) return true;
    ++held_;
    return false;
  }
  // Lines held back since the last that went through, once.
  std::uint64_t take_held() { return std::exchange(held_, 0); }

 private:
  Rate rate_;
  TokenBucket bucket_;
  std::uint64_t held_ = 0;
};

}  // namespace sanproxy::flow
