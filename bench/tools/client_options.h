// What the load generator was asked to do; shared by its modes.
#pragma once

#include <sys/socket.h>

#include <cstdint>
#include <string>
#include <vector>

#include "lwproto/base/socket_address.h"

namespace sanproxy::bench {

inline constexpr std::size_t kBulkBufferBytes = 256 * 1024;

struct ClientOptions {
  std::string mode;
  SocketAddress target;
  std::vector<IpAddress> sources;  // empty: the kernel's choice
  std::string path = "/bytes/13";
  std::uint32_t connections = 1;
  std::uint32_t threads = 1;  // http mode: what its connections are spread over
  std::uint32_t active = 1;   // random mode: requests under way at a time
  double seconds = 2;
  double warmup_seconds = 0.5;
  std::uint32_t message_bytes = 64;
  std::vector<int> watched;
  bool wait_go = false;
};

// Prints "READY" and, if asked to, waits for a line on standard input. False: it was closed.
bool announce_ready(const ClientOptions& options);

// A socket with TCP_NODELAY (but for `connect`), bound to source `index` modulo their number. Exits
// with a message when the machine cannot give one: a load generator has nothing better to do.
int make_socket(const ClientOptions& options, std::uint32_t index, bool non_blocking);
// Connects and waits for it.
int connect_blocking(const ClientOptions& options, std::uint32_t index);
// Starts to connect; the socket becomes writable when done.
int connect_starting(const ClientOptions& options, std::uint32_t index);
[[noreturn]] void fail(const char* what);

// Each prints one JSON object on standard output and returns the exit code.
int run_requests(const ClientOptions& options);     // http, random, idle
int run_connects(const ClientOptions& options);     // connect
int run_bulk(const ClientOptions& options);         // download, upload
int run_round_trips(const ClientOptions& options);  // rtt

}  // namespace sanproxy::bench
