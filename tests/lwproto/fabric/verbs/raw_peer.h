// RawPeer: a client that speaks RDMA but not our protocol, or speaks it wrong on purpose.
//
// Role: plain librdmacm and libibverbs, blocking, for one connection. Owner: a test; its calls are
//   made in a thread of their own, while the test polls the listener.
#pragma once

#include <infiniband/verbs.h>
#include <rdma/rdma_cma.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "lwproto/fabric/verbs/handshake.h"

namespace sanproxy::fabric::verbs::test {

class RawPeer {
 public:
  using Bytes = std::vector<std::byte>;

  RawPeer();
  ~RawPeer() { close(); }
  RawPeer(const RawPeer&) = delete;
  RawPeer& operator=(const RawPeer&) = delete;

  // Connects from this address of ours (IPv4), not from that of the way.
  void connect_from(const std::string& ip) { from_ = ip; }
  // `receives` buffers are posted before. False when it was turned away; reply() says with what.
  bool connect(const std::string& address, std::span<const std::byte> private_data,
               unsigned receives = 8);
  // As an honest peer would; `hello` true goes on to the answer.
  bool connect_honestly(const std::string& address, unsigned receives = 600);
  bool say_hello(const LinkParameters& link = {});
  const Bytes& reply() const { return reply_; }

  // Each waits for its completion and returns that one's status.
  ibv_wc_status send(std::span<const std::byte> bytes, std::optional<std::uint32_t> immediate);
  ibv_wc_status send(Kind kind, std::uint32_t number, std::size_t bytes);
  // Without waiting: so many of them.
  bool send_burst(Kind kind, std::uint32_t number, std::size_t bytes, unsigned count);
  ibv_wc_status write_where_nothing_is();
  // Writes nothing, to nowhere, and tells so: that meets one of their receives.
  ibv_wc_status write_nothing(std::uint32_t immediate);
  // From now on the device answers nothing, not even with an error.
  bool fall_silent();
  // The immediate data of the next transfer that comes; 0 at the end of the connection.
  std::uint32_t receive();
  void close();

 private:
  static constexpr std::size_t kMemoryBytes = 256 * 1024;
  static constexpr unsigned kReceiveBytes = 128 * 1024;

  bool prepare(unsigned receives);
  bool gone();
  ibv_wc_status post_and_wait(ibv_send_wr& request);
  std::optional<ibv_wc> wait_for(bool receive);

  std::string from_;
  rdma_cm_id* id_ = nullptr;
  ibv_mr* key_ = nullptr;
  Bytes memory_;  // sends from the first half, receives into the second
  Bytes reply_;
  std::vector<ibv_wc> put_aside_;
};

// A header that a listener with default options accepts.
CmHeader honest_header();

}  // namespace sanproxy::fabric::verbs::test
