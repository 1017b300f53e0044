// Side and ChannelPair: two connected endpoints and what a test has seen of them.
#pragma once

#include <poll.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "lwproto/fabric/fabric.h"

namespace sanproxy::fabric::test {

using Bytes = std::vector<std::byte>;

inline Bytes bytes_of(std::string_view text) {
  Bytes out(text.size());
  std::memcpy(out.data(), text.data(), text.size());
  return out;
}
inline std::string text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}
// Bytes that differ with their position and with `seed`.
inline Bytes pattern(std::size_t length, unsigned seed) {
  Bytes out(length);
  unsigned x = seed * 2654435761u + 1;
  for (std::byte& b : out) {
    x = x * 1664525u + 1013904223u;
    b = static_cast<std::byte>(x >> 24);
  }
  return out;
}

// Far longer than anything takes, on the slowest machine: it only makes a test fail that would
// hang.
inline constexpr std::chrono::seconds kGiveUp{120};

// Sleeps on the fabrics, as their owners would, until one has something to do. False if that was
// never: a wake-up is lost, or there was nothing to wait for.
inline bool sleep_on(const std::vector<Fabric*>& fabrics) {
  std::vector<pollfd> fds;
  bool idle = true;
  for (Fabric* fabric : fabrics) {
    idle = fabric->arm() && idle;
    fds.push_back({fabric->event_fd(), POLLIN, 0});
  }
  const auto limit_ms = std::chrono::duration_cast<std::chrono::milliseconds>(kGiveUp) / 2;
  const bool woken =
      !idle || ::poll(fds.data(), fds.size(), static_cast<int>(limit_ms.count())) != 0;
  for (Fabric* fabric : fabrics) fabric->disarm();
  return woken;
}

inline bool eventually(const std::vector<Fabric*>& fabrics, const std::function<bool()>& done) {
  const auto give_up = std::chrono::steady_clock::now() + kGiveUp;
  while (!done()) {
    if (std::chrono::steady_clock::now() > give_up) return false;
    if (!sleep_on(fabrics)) {
      // Told apart from slowness: the state may be right, and nobody has said so.
      ADD_FAILURE() << "slept for ever" << (done() ? ", though what it waited for had come" : "");
      return false;
    }
  }
  return true;
}

struct Received {
  Bytes content;
  Loan loan = kNoLoan;
  std::vector<Segment> segments;

  // What is still lent has not changed.
  bool intact() const {
    std::size_t at = 0;
    for (const Segment& s : segments) {
      if (!s.transient && std::memcmp(s.data, content.data() + at, s.length) != 0) return false;
      at += s.length;
    }
    return true;
  }
};

// One end of a channel, with everything that it has reported.
struct Side {
  std::unique_ptr<Endpoint> endpoint;
  std::deque<Received> received;
  std::vector<std::pair<std::uint64_t, Status>> sent;
  std::optional<Status> disconnected;
  int completions_after_disconnected = 0;
  bool release_at_once = false;
  bool replenish = false;

  std::size_t poll(std::size_t at_most = 64) {
    std::vector<Completion> out(at_most);
    const std::size_t n = endpoint->poll(out);
    EXPECT_LE(n, at_most);
    for (std::size_t i = 0; i < n; ++i) take(out[i]);
    if (replenish) endpoint->replenish();
    return n;
  }
  void take(const Completion& c) {
    if (disconnected) ++completions_after_disconnected;
    switch (c.kind) {
      case Completion::Kind::kSend:
        sent.emplace_back(c.cookie, c.status);
        break;
      case Completion::Kind::kDisconnected:
        disconnected = c.status;
        break;
      case Completion::Kind::kReceive:
        received.push_back(read(c));
        if (release_at_once) release(received.back());
    }
  }
  static Received read(const Completion& c) {
    Received r;
    EXPECT_GE(c.segment_count, 1);
    bool lent = false;
    for (std::size_t k = 0; k < c.segment_count; ++k) {
      const Segment& s = c.segments[k];
      lent = lent || !s.transient;
      r.segments.push_back(s);
      r.content.insert(r.content.end(), s.data, s.data + s.length);
    }
    EXPECT_EQ(lent, c.loan != kNoLoan) << "a loan is what is not transient";
    r.loan = c.loan;
    return r;
  }
  void release(Received& r) {
    if (r.loan != kNoLoan) endpoint->release(std::exchange(r.loan, kNoLoan));
  }
  void release_all() {
    for (Received& r : received) {
      if (endpoint) release(r);
    }
  }
  // Commits without flushing.
  Status queue(std::span<const std::byte> inline_part, std::span<const GatherRef> refs = {},
               std::uint64_t cookie = 0) {
    auto space = endpoint->begin_send(inline_part.size());
    if (!space.ok()) return space.status();
    EXPECT_GE(space->size(), inline_part.size());
    std::copy(inline_part.begin(), inline_part.end(), space->begin());
    return endpoint->commit_send(inline_part.size(), refs, cookie);
  }
  Status send(std::span<const std::byte> inline_part, std::span<const GatherRef> refs = {},
              std::uint64_t cookie = 0) {
    Status queued = queue(inline_part, refs, cookie);
    endpoint->flush();
    return queued;
  }
};

inline std::unique_ptr<Fabric> make(const std::function<Result<std::unique_ptr<Fabric>>()>& how) {
  auto made = how();
  EXPECT_TRUE(made.ok()) << made.status().to_string();
  return made.ok() ? std::move(*made) : nullptr;
}

inline std::optional<ConnectRequest> next_request(Listener& listener,
                                                  const std::vector<Fabric*>& fabrics) {
  std::optional<ConnectRequest> request;
  eventually(fabrics, [&] {
    auto polled = listener.poll();
    if (polled.ok()) request = std::move(*polled);
    return request.has_value();
  });
  return request;
}

inline Result<std::unique_ptr<Endpoint>> finish(Connecting& connecting,
                                                const std::vector<Fabric*>& fabrics) {
  Result<std::unique_ptr<Endpoint>> answer = Status::again();
  eventually(fabrics, [&] {
    answer = connecting.poll();
    return answer.ok() || !answer.status().is_again();
  });
  return answer;
}

// Connects `client` to `server` through `listener`; false if either is refused.
inline bool connect_sides(Fabric& server_fabric, Listener& listener, Fabric& client_fabric,
                          const EndpointOptions& client_options, Side& server, Side& client) {
  auto connecting = client_fabric.connect(listener.address(), {}, client_options);
  if (!connecting.ok()) return false;
  server.endpoint.reset();
  client.endpoint.reset();
  bool refused = false;
  eventually({&server_fabric, &client_fabric}, [&] {
    if (!server.endpoint) {
      if (auto request = listener.poll(); request.ok()) {
        auto accepted = listener.accept(*request, {});
        refused = !accepted.ok();
        if (accepted.ok()) server.endpoint = std::move(*accepted);
      }
    }
    auto connected = (*connecting)->poll();
    if (connected.ok()) {
      client.endpoint = std::move(*connected);
    } else {
      refused = refused || !connected.status().is_again();
    }
    return refused || (client.endpoint && server.endpoint);
  });
  return client.endpoint && server.endpoint;
}

}  // namespace sanproxy::fabric::test
