// Core: what all parts of one tcp fabric share: the epoll set, the time-out timer, and the
// connections that wait for their peer to take the last bytes.
//
// Document: docs/tcp_fabric.md "Sleeping", "The end".
// Role: turns the sockets' readiness into calls. Owner: the fabric, its endpoints, listeners and
//   connecting attempts together (shared), so that they may be destroyed in any order.
// Thread: the fabric's.
// Invariants:
//   1. A target is unwatched before it is destroyed, and none is destroyed while the events of one
//      epoll_wait() are handled.
//   2. The sockets of channels are watched edge-triggered: one that has nothing new costs nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <vector>

#include "lwproto/base/clock.h"
#include "lwproto/fabric/tcp/tcp_fabric.h"
#include "lwproto/fabric/tcp/tls_context.h"
#include "lwproto/fabric/tcp/transport.h"

namespace sanproxy::fabric::tcp {

class PollTarget {
 public:
  virtual void on_events(std::uint32_t events) = 0;

 protected:
  ~PollTarget() = default;
};

// An endpoint, a listener or a connection attempt.
class Participant {
 public:
  virtual bool take_work() = 0;  // flushes; true when its owner should poll it rather than sleep
  virtual bool waiting() const = 0;  // it needs on_tick()
  virtual void on_tick() = 0;
  // Asked for by sweep_soon(): what has ended may be destroyed, no event names it any more.
  virtual void sweep() {}

 protected:
  ~Participant() = default;
};

class Core {
 public:
  static Result<std::shared_ptr<Core>> create(const TcpOptions& options);
  ~Core();

  const TcpOptions& options() const { return options_; }
  TcpCounters& counters() { return *counters_; }
  int event_fd() const { return epoll_.get(); }
  std::uint64_t now_ns() const { return clock_->now_ns(); }
  std::unique_ptr<Transport> make_transport(UniqueFd fd, bool server) const;
  bool secure() const { return tls_ != nullptr; }
  std::uint64_t& windows_given() { return windows_given_; }  // the sum of all WindowShares

  Status watch(int fd, PollTarget* target);
  Status watch_listener(int fd, PollTarget* target);  // level-triggered, for reading only
  void rewatch(int fd, PollTarget* target);           // hands a watched socket to another target
  void unwatch(int fd);

  void add(Participant* participant);
  void remove(Participant* participant);
  void start_ticking();  // something waits for a time-out
  void sweep_soon() { sweep_due_ = true; }

  // Ends a watched connection: shuts it down for writing, then reads and discards until the peer
  // closes too or close_timeout_ms is over, because closing a socket with unread bytes destroys
  // what is on its way out.
  void part(std::unique_ptr<Transport> transport);

  // Wakes a sleeper at that time of wake_clock_ns(), once.
  void wake_at(std::uint64_t when_ns);
  std::uint64_t wake_clock_ns() const { return steady_.now_ns(); }

  bool arm();
  void disarm();
  void pump();         // handles whatever epoll reports, without waiting
  void pump_if_due();  // the same, at most every kPumpIntervalNs

 private:
  static constexpr std::uint64_t kPumpIntervalNs = 5'000;

  struct Lingering final : PollTarget {
    void on_events(std::uint32_t events) override;
    std::unique_ptr<Transport> transport;
    std::uint64_t deadline_ns = 0;
    bool done = false;
  };

  void tick();
  void sweep();
  void sweep_lingering();

  TcpOptions options_;
  TcpCounters own_counters_;
  TcpCounters* counters_ = nullptr;
  SteadyClock steady_;
  const Clock* clock_ = nullptr;
  std::unique_ptr<TlsContext> tls_;
  UniqueFd epoll_;
  UniqueFd timer_;
  UniqueFd alarm_;
  std::uint64_t alarm_ns_ = 0;  // 0: not set
  std::uint64_t pumped_ns_ = 0;
  std::uint64_t windows_given_ = 0;
  bool ticking_ = false;
  bool sweep_due_ = false;
  std::vector<Participant*> participants_;
  std::list<Lingering> lingering_;  // addresses are stable; oldest first
};

}  // namespace sanproxy::fabric::tcp
