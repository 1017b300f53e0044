// Handover: packets that came to one worker and are of, or about, a flow of another one's.
//
// Document: docs/workers.md "Packets without ports".
// Role: the kernel's steering sees no ports in a fragment, in an ICMP error and behind extension
//   headers, and goes by addresses alone. Who gets such a packet whole and knows no flow for it
//   asks here whose it is, and sends it there over a socket.
// Owner: a Worker. Thread: its.
// Invariants:
//   1. A packet goes where steering would have sent it whole.
//   2. Nobody waits for anybody: what the other one's socket does not take is lost, as on a
//      full link. It holds no more than the system's limits for datagrams
//      (net.unix.max_dgram_qlen).
//   3. The sockets are the supervisor's as well, so that a worker that starts again finds its own.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "lwproto/base/status.h"
#include "lwproto/base/unique_fd.h"
#include "netnode/packet_io/queue_steering.h"
#include "proxynode/stack/stack.h"

namespace sanproxy::proxy {

class Handover {
 public:
  struct Ends {
    UniqueFd in, out;
  };
  // What one worker receives from all.
  static Result<Ends> make_ends();

  // `out`: of each worker, in their order.
  Handover(const packet_io::QueueSteering& steering, std::uint32_t self, UniqueFd in,
           std::vector<UniqueFd> out);

  // `packet` is whole and came by `interface`.
  stack::HandedOver pass_on(stack::InterfaceIndex interface, std::span<const std::byte> packet,
                            bool checksum_verified);

  int fd() const { return in_.get(); }
  // The next one that was passed on to us, to be used before the next call. Empty: none.
  struct Received {
    stack::InterfaceIndex interface = 0;
    bool checksum_verified = false;
    std::span<const std::byte> packet;
  };
  Received receive();

 private:
  struct Head {
    stack::InterfaceIndex interface;
    std::uint8_t checksum_verified;
  };

  packet_io::QueueSteering steering_;
  std::uint32_t self_;
  UniqueFd in_;
  std::vector<UniqueFd> out_;
  std::vector<std::byte> received_;  // a Head and the packet
};

}  // namespace sanproxy::proxy
