// Core: what all parts of one shm fabric share: the epoll set, the sleep page, the time-out timer.
//
// Document: docs/shm_fabric.md "Sleeping and waking".
// Role: turns the descriptors' readiness into calls, and runs the arm/disarm protocol over all
//   endpoints. Owner: the fabric, its endpoints, listeners and connecting attempts together
//   (shared), so that they may be destroyed in any order. Thread: the fabric's.
// Invariants:
//   1. A target is unwatched before it is destroyed, and no target is destroyed inside pump().
//   2. The sleep epoch is odd from arm() until disarm().
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "lwproto/base/clock.h"
#include "lwproto/fabric/shm/memory.h"
#include "lwproto/fabric/shm/shm_fabric.h"
#include "lwproto/fabric/shm/unix_socket.h"

namespace sanproxy::fabric::shm {

class ShmEndpoint;

class PollTarget {
 public:
  virtual void on_events(std::uint32_t events) = 0;

 protected:
  ~PollTarget() = default;
};

// A listener or a connection attempt.
class Handshaker {
 public:
  virtual bool has_work() const = 0;  // its owner should poll it
  virtual bool waiting() const = 0;   // it needs on_tick()
  virtual void on_tick() = 0;

 protected:
  ~Handshaker() = default;
};

class Core {
 public:
  static Result<std::shared_ptr<Core>> create(const ShmOptions& options);

  const ShmOptions& options() const { return options_; }
  int event_fd() const { return epoll_.get(); }
  int sleep_fd() const { return sleep_.fd(); }
  std::uint64_t now_ns() const { return clock_->now_ns(); }

  // `target` may be null for a descriptor that only wakes.
  Status watch(int fd, std::uint32_t events, PollTarget* target);
  void unwatch(int fd);
  // Edge-triggered: one wake-up a ring, without a system call to reset it.
  Status watch_doorbell(int fd);
  void unwatch_doorbell(int fd);
  void wake_in(int epoll_fd);

  // The descriptor that is kept for what peers pass to open channels: a process that has no other
  // left takes their memory all the same, one after the other. Lent before each message is read.
  void lend_spare() { spare_.reset(); }
  bool keep_spare();  // false: there is none

  void watch_regions(RegionWatcher* watcher) { region_watcher_ = watcher; }
  RegionWatcher* region_watcher() const { return region_watcher_; }

  void add(ShmEndpoint* endpoint);
  void remove(ShmEndpoint* endpoint);
  void add(Handshaker* handshaker);
  void remove(Handshaker* handshaker);
  void start_ticking();  // something waits for a time-out

  bool arm();
  void disarm();
  void pump();         // handles whatever epoll reports, without waiting
  void pump_if_due();  // the same, at most every kPumpIntervalNs

 private:
  static constexpr std::uint64_t kPumpIntervalNs = 200'000;
  static constexpr std::uint32_t kDisarmsPerPump = 32;
  // An honest peer rings once an odd epoch, so once in two. The queue of a socket holds some 270
  // rings (212,992 bytes of 768 each), and a ring that finds it full wakes nobody. Each costs half
  // a microsecond to take out, so few at a time: a round trip waits meanwhile.
  static constexpr std::uint64_t kEpochsPerEmptying = 16;

  void tick();

  ShmOptions options_;
  SteadyClock steady_;
  const Clock* clock_ = nullptr;
  UniqueFd epoll_;
  UniqueFd outer_;  // the caller's epoll set, for doorbells; ours to keep until they are out of it
  std::uint64_t emptied_epoch_ = 0;
  UniqueFd timer_;
  UniqueFd spare_;
  OwnSleepPage sleep_;
  std::uint64_t epoch_ = 0;
  std::uint32_t disarms_ = 0;
  std::uint64_t pumped_ns_ = 0;
  bool ticking_ = false;
  RegionWatcher* region_watcher_ = nullptr;
  std::vector<ShmEndpoint*> endpoints_;
  std::vector<Handshaker*> handshakers_;
};

}  // namespace sanproxy::fabric::shm
