// ServiceManager: tells systemd that we are ready, alive, or stopping.
//
// Document: sd_notify(3), its protocol; deploy/systemd.
// Role: one datagram a message to the socket in NOTIFY_SOCKET; without one, nothing.
// Owner: the process's loop. Thread: its.
// Invariants:
//   1. Never blocks. Takes the variables out of the environment, so that children stay silent.
#pragma once

#include <cstdint>
#include <string>

#include "lwproto/base/unique_fd.h"

namespace sanproxy::daemon {

class ServiceManager {
 public:
  ServiceManager();

  void ready() { say("READY=1"); }
  void stopping() { say("STOPPING=1"); }
  // Where WatchdogSec= asks for it, a sign of life, twice in that time. Call it every second.
  void beat(std::uint64_t now_ns);

 private:
  void say(const char* text);

  UniqueFd socket_;
  std::string path_;
  std::uint64_t beat_every_ns_ = 0;
  std::uint64_t next_beat_ns_ = 0;
};

}  // namespace sanproxy::daemon
