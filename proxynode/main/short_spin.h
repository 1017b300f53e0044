// ShortSpin: whether to look once more before sleeping.
//
// Document: docs/configuration.md, spin_us.
// Role: a sleep costs a wake-up by somebody else, 10 to 30 us across processors of a virtual
//   machine. Where answers come sooner than that, looking again is quicker and cheaper. Pure
//   arithmetic: the clock is the caller's.
// Owner and thread: a worker's.
// Invariants:
//   1. It never looks longer than the bound after the last work.
//   2. It always looks once: whoever waits for this processor goes first, and what he leaves for us
//      is then taken at once, in one piece, without a sleep or a wake-up.
//   3. It goes on looking only while most of the last waits were shorter than the bound, and little
//      was done between them: with much under way, whoever answers needs the processor more, and
//      sleeping until more has come costs less than taking it piece by piece.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace sanproxy::proxy {

class ShortSpin {
 public:
  // Packets and transfers from one wait to the next, up to which little was done.
  static constexpr std::size_t kLittleWork = 4;

  // 0 never looks again.
  explicit ShortSpin(std::uint64_t bound_ns) : bound_ns_(bound_ns) {}

  bool enabled() const { return bound_ns_ != 0; }

  // A round found nothing. True: look again; false: sleep.
  bool look_again(std::uint64_t now_ns) {
    if (!waiting_) {
      waiting_ = true;
      since_ns_ = now_ns;
      if (done_ > kLittleWork) score_ = std::max(score_ - kLongCosts, 0);
      return true;
    }
    return done_ <= kLittleWork && score_ >= kWorthIt && now_ns - since_ns_ < bound_ns_;
  }

  // Whether on_work() wants to know the time.
  bool waiting() const { return waiting_; }

  // A round found something.
  void on_work(std::uint64_t now_ns, std::size_t amount) {
    if (!waiting_) {
      done_ += amount;
      return;
    }
    waiting_ = false;
    done_ = amount;
    score_ = now_ns - since_ns_ < bound_ns_ ? std::min(score_ + 1, kScoreMax)
                                            : std::max(score_ - kLongCosts, 0);
  }

 private:
  // A long wait weighs as much as two short ones, so that two of three must be short; so does much
  // work before it.
  static constexpr int kLongCosts = 2;
  static constexpr int kWorthIt = 4;
  static constexpr int kScoreMax = 8;

  std::uint64_t bound_ns_;
  std::uint64_t since_ns_ = 0;
  std::size_t done_ = 0;  // since the last wait
  int score_ = 0;
  bool waiting_ = false;
};

}  // namespace sanproxy::proxy
