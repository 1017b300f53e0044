// Fragments: later fragments of a datagram follow its first one.
//
// Document: docs/netnode.md "Fragments".
// Role: remembers which flow a datagram belongs to, and who waits for that to be known. Knows no
//   bytes: a held fragment is a token of its owner's.
// Owner: a Forwarder. Thread: its.
// Invariants:
//   1. At most `datagrams_max` datagrams and `held_max` tokens, each for timeout_ms at most. The
//      oldest datagram makes room; a token that finds no room is not taken.
//   2. Every token comes back exactly once: from release() or from expire().
#pragma once

#include <cstdint>
#include <vector>

#include "netnode/net/flow_key.h"
#include "netnode/net/fragment.h"

namespace sanproxy::steer {

struct FragmentOptions {
  std::uint32_t datagrams_max = 1024;
  std::uint32_t held_max = 64;
  std::uint32_t timeout_ms = 2'000;
};

class Fragments {
 public:
  using Token = std::uint32_t;
  // Source, destination and protocol of the datagram, and its id in the place of the ports.
  using Datagram = net::FlowKey;
  static Datagram datagram(const net::ParsedPacket& parsed, const net::FragmentView& view);

  Fragments(const FragmentOptions& options, std::uint64_t seed);

  // The first fragment has been seen: its datagram belongs to `flow`.
  void learn(const Datagram& datagram, const net::FlowKey& flow, std::uint64_t now_ms);
  // The flow of a datagram whose first fragment has been seen.
  const net::FlowKey* find(const Datagram& datagram, std::uint64_t now_ms) const;
  // Keeps a later fragment until the first one is there. False: no room.
  bool hold(const Datagram& datagram, Token token, std::uint64_t now_ms);
  // One that waits for `datagram`, in the order of holding. False: none (left).
  bool release(const Datagram& datagram, Token& token);
  // One that has waited for too long. False: none.
  bool expire(std::uint64_t now_ms, Token& token);
  std::size_t held() const { return held_.size(); }
  // Datagrams forgotten before their time because another one took their place.
  std::uint64_t displaced() const { return displaced_; }

 private:
  struct Known {
    Datagram datagram;
    net::FlowKey flow;
    std::uint64_t until_ms = 0;  // 0: free
  };
  struct Held {
    Datagram datagram;
    Token token = 0;
    std::uint64_t until_ms = 0;
  };
  static constexpr std::size_t kWays = 4;

  FragmentOptions options_;
  std::uint64_t seed_;
  std::vector<Known> known_;  // sets of kWays
  std::uint64_t displaced_ = 0;
  std::vector<Held> held_;  // oldest first; within the capacity reserved at construction
};

}  // namespace sanproxy::steer
