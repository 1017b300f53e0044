// TcpPeer: just enough of a TCP server to talk to a kernel's client across a driver.
#pragma once

#include <string>

#include "tests/netnode/packet_io/kernel_side.h"

namespace sanproxy::packet_io::testing {

class TcpPeer {
 public:
  explicit TcpPeer(KernelSide& side) : side_(side) {}

  // Takes one packet: answers a SYN, keeps and acknowledges data. True if it was for us.
  bool input(const Received& received);
  bool established() const { return established_; }
  const std::string& data() const { return data_; }
  std::size_t largest_packet_bytes() const { return largest_packet_bytes_; }
  std::uint16_t segment_bytes() const { return segment_bytes_; }
  bool saw_partial_checksum() const { return partial_; }

  // One super-packet with all of `text`, its header and its data in pieces of their own.
  void send_super_packet(const std::string& text, std::uint16_t segment_bytes);
  // As if a handshake had been done with `port` of `client`.
  void pretend_established(const IpAddress& client, std::uint16_t port);

 private:
  void send_segment(std::uint8_t flags, const Bytes& options);
  Bytes headers(std::uint8_t flags, const Bytes& options, std::size_t data) const;

  KernelSide& side_;
  IpAddress client_;
  std::uint16_t client_port_ = 0;
  std::uint32_t seq_ = 1'000'000;
  std::uint32_t ack_ = 0;
  bool established_ = false, partial_ = false;
  std::string data_;
  std::size_t largest_packet_bytes_ = 0;
  std::uint16_t segment_bytes_ = 0;
};

}  // namespace sanproxy::packet_io::testing
