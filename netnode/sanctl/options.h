// Options of sanctl that every command has: whom it talks to, and how it answers.
//
// Document: docs/sanctl.md. Thread: the main one.
#pragma once

#include <stdexcept>
#include <string>

#include "lwproto/cluster/etcd_client.h"

namespace sanproxy::sanctl {

struct Options {
  std::string admin;          // IP:PORT of one node's admin endpoint
  cluster::EtcdOptions etcd;  // or a cluster's etcd; no endpoints: not this way
  std::string cluster = "default";
  std::string prefix = "/sanproxy";
  bool json = false;

  bool whole_cluster() const { return !etcd.endpoints.empty(); }
};

// Ends the command: a text for people, and the exit status (docs/sanctl.md "Exit status").
class Failure : public std::runtime_error {
 public:
  explicit Failure(const std::string& text, int exit_status = 1)
      : std::runtime_error(text), exit_status_(exit_status) {}
  int exit_status() const { return exit_status_; }

 private:
  int exit_status_;
};
inline constexpr int kExitUsage = 2;
inline constexpr int kExitTimeout = 3;   // drain: not empty in time
inline constexpr int kExitConflict = 4;  // config: somebody else was faster

}  // namespace sanproxy::sanctl
