// Cases: one way each of breaking docs/wire_format.md, and what the proxy has to make of it.
//
// Role: the registry that rogue_node runs from, and what cases share.
// Thread: one.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "lwproto/base/socket_address.h"
#include "tests/rogue/rogue_channel.h"

namespace sanproxy::rogue {

struct Context {
  std::string proxy;         // "shm:...", "tcp://...", "verbs://..."
  std::string packets;       // where network nodes connect; only "packet_" cases need it
  SocketAddress service;     // ours alone; that at its port + 2 has a health check
  std::string key;           // "NAME:FILE", that the proxy has too
  SocketAddress foreign;     // a well-behaved node's, in service at this moment
  std::uint32_t divide = 1;  // floods are so much smaller, for an emulated machine
};

// "" when the proxy did what it had to; else what was seen instead.
using Verdict = std::string;

struct Case {
  std::string name;
  std::string rule;  // what is broken
  std::function<Verdict(const Context&)> run;
};
// Cases whose name begins with "shm_" need a proxy that listens on shm; the others take any.

std::vector<Case> hello_cases();
std::vector<Case> transfer_cases();
std::vector<Case> message_cases();
std::vector<Case> stream_cases();
std::vector<Case> service_cases();
std::vector<Case> active_cases();
std::vector<Case> key_cases();
std::vector<Case> resource_cases();
std::vector<Case> shm_cases();
std::vector<Case> packet_cases();
std::vector<Case> health_cases();

// A TCP client of our own service.
class Client {
 public:
  explicit Client(const SocketAddress& service);
  ~Client();
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;
  bool connected() const { return connected_; }
  std::uint16_t port() const;  // our own
  bool send(std::size_t bytes);
  void reset();
  // How the connection ends, reading whatever comes: "fin", "reset", "open" (after the time).
  std::string end(int timeout_ms = 10'000);
  // Behind a FIN: whether a RST follows.
  bool is_reset(int timeout_ms = 5'000);

 private:
  int fd_ = -1;
  bool connected_ = false;
};

// The name of our joined service, or 0.
std::uint32_t join(RogueChannel& channel, const SocketAddress& address, std::uint32_t request = 1);

// A joined channel with one client's connection that is asked for, not yet answered.
struct Asked {
  explicit Asked(const Context& context);
  bool ok() const { return connection != 0; }
  bool accept(std::uint32_t window_bytes = 256 * 1024);
  bool data(std::uint64_t offset, std::uint32_t bytes);

  RogueChannel channel;
  std::uint32_t service = 0;
  std::unique_ptr<Client> client;
  std::uint64_t connection = 0;
  std::uint32_t window_bytes = 0;  // that we may send
};

// --- verdicts

// The channel ended, with this code in ERROR if one arrived.
Verdict channel_closed(RogueChannel& channel, wire::CloseCode code);
// This stream ended with CLOSE_CONNECTION (or the channel did), with this code.
Verdict stream_closed(RogueChannel& channel, std::uint64_t connection, wire::CloseCode code);
// The channel still answers.
Verdict channel_lives(RogueChannel& channel, const Context& context);

}  // namespace sanproxy::rogue
