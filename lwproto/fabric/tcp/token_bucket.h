// TokenBucket: how much may leave now, so that the mean stays at a rate and no burst is larger than
// agreed.
//
// Document: docs/tcp_fabric.md "Link parameters".
// Role: pure arithmetic for variable bit rate; the kernel paces what has left at the peak rate.
// Owner: a TcpEndpoint. Thread: any one.
// Invariants:
//   1. In any time t at most rate * t + burst bytes are spent.
//   2. Once something may leave it is at least kGrantMin bytes: TLS offers a record again as a
//   whole.
#pragma once

#include <algorithm>
#include <cstdint>

namespace sanproxy::fabric::tcp {

class TokenBucket {
 public:
  static constexpr std::int64_t kGrantMin = 16 * 1024;

  // `burst_bytes` is at least 2 * kGrantMin.
  TokenBucket(std::uint64_t rate_bytes_per_s, std::uint64_t burst_bytes, std::uint64_t now_ns)
      : rate_(rate_bytes_per_s),
        full_(static_cast<std::int64_t>(burst_bytes)),
        tokens_(full_),
        filled_ns_(now_ns) {}

  // 0, or how many bytes may leave now.
  std::uint64_t allowance(std::uint64_t now_ns) {
    fill(now_ns);
    return tokens_ >= kGrantMin ? static_cast<std::uint64_t>(tokens_) : 0;
  }
  void spend(std::uint64_t bytes) { tokens_ -= static_cast<std::int64_t>(bytes); }
  // How long until allowance() is not 0; after it was.
  std::uint64_t wait_ns() const {
    const auto missing = static_cast<std::uint64_t>(std::max<std::int64_t>(kGrantMin - tokens_, 0));
    return static_cast<std::uint64_t>(static_cast<double>(missing) * 1e9 /
                                      static_cast<double>(rate_)) +
           1;
  }

 private:
  void fill(std::uint64_t now_ns) {
    const double earned =
        static_cast<double>(now_ns - filled_ns_) * 1e-9 * static_cast<double>(rate_);
    if (earned >= static_cast<double>(full_ - tokens_)) {
      tokens_ = full_;
      filled_ns_ = now_ns;
      return;
    }
    const auto whole = static_cast<std::int64_t>(earned);
    if (whole <= 0) return;
    tokens_ += whole;
    // The fraction of a byte is not lost, its time is kept for the next call; but never too much.
    const double spent_ns = static_cast<double>(whole) * 1e9 / static_cast<double>(rate_);
    filled_ns_ = std::min(filled_ns_ + static_cast<std::uint64_t>(spent_ns) + 1, now_ns);
  }

  std::uint64_t rate_;
  std::int64_t full_;
  std::int64_t tokens_;
  std::uint64_t filled_ns_;
};

}  // namespace sanproxy::fabric::tcp
