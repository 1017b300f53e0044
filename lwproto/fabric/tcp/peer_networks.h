// PeerNetworks: how many handshakes of a listener each peer has, and how fast it begins them.
//
// Document: docs/tcp_fabric.md "Handshake".
// Role: pure arithmetic, so that a listener can treat peers alike however many connections one of
//   them opens. A peer here is an IPv4 address or an IPv6 /64. Owner: a TcpListener. Thread: its.
// Invariants:
//   1. A peer that has handshakes keeps its place in memory. Of the others about kRemembered are
//      kept, for their token buckets.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>

#include "lwproto/base/socket_address.h"

namespace sanproxy::fabric::tcp {

enum class HandshakeStage : std::uint8_t { kSilent, kJoining, kReady, kDead };
inline constexpr std::size_t kHandshakeStages = 4;

class PeerNetwork {
 public:
  std::uint32_t& count(HandshakeStage stage) { return counts_[static_cast<std::size_t>(stage)]; }
  std::uint32_t count(HandshakeStage stage) const {
    return counts_[static_cast<std::size_t>(stage)];
  }
  bool holds_any() const;

  // Handshakes that it may begin: `per_s`, and kSecondsAtOnce times as many at once.
  bool may_begin(std::uint32_t per_s, std::uint64_t now_ns) const {
    return next_begin_ns(per_s) <= now_ns;
  }
  std::uint64_t next_begin_ns(std::uint32_t per_s) const;
  void begin(std::uint32_t per_s, std::uint64_t now_ns);

 private:
  static constexpr std::uint64_t kSecondsAtOnce = 4;

  std::array<std::uint32_t, kHandshakeStages> counts_ = {};
  std::uint64_t all_back_ns_ = 0;  // when all of them may be begun at once again
};

class PeerNetworks {
 public:
  static constexpr std::size_t kRemembered = 1024;

  PeerNetwork& of(const IpAddress& peer);
  // What the one that has the most has at that stage.
  std::uint32_t most(HandshakeStage stage) const;
  std::size_t size() const { return networks_.size(); }

 private:
  std::map<IpAddress, PeerNetwork> networks_;  // addresses of values are stable
  std::size_t forget_at_ = kRemembered;
};

}  // namespace sanproxy::fabric::tcp
