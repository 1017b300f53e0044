// KernelSide: network namespaces in which a driver meets a real kernel.
//
// Role: for each driver, opens it with the kernel's stack (addresses 10.77.0.1 and fd77::1) on the
//   other side and 10.77.0.10 and fd77::10 as ours. The namespaces have no names and vanish with
//   this object.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "lwproto/base/unique_fd.h"
#include "netnode/packet_io/packet_io.h"
#include "tests/netnode/net/packet_builder.h"

namespace sanproxy::packet_io::testing {

using net::testing::Bytes;

inline IpAddress ip(const char* text) { return IpAddress::parse(text).value(); }

// Moves the calling thread between namespaces.
class NetNamespace {
 public:
  static bool available(std::string& why_not);
  NetNamespace();  // a fresh one; the thread stays where it was
  void enter() const;
  void leave() const;
  // Runs a shell command inside; a failure is a test failure.
  void run(const std::string& command) const;
  std::string path() const;

 private:
  UniqueFd original_;
  UniqueFd fd_;
};

// Received packets with their own buffers, which sit at the end of exact allocations.
struct Received {
  Bytes packet;
  Offload offload;
};

class KernelSide {
 public:
  KernelSide(const std::string& driver, Family family, bool segmentation_offload = true);

  PacketIo& io() { return *io_; }
  const NetNamespace& kernel() const { return *kernel_; }
  // The device at the kernel's end, and the one that our driver sits on.
  std::string kernel_device() const { return on_veth() ? "kern0" : "san0"; }
  const NetNamespace& driver_namespace() const { return on_veth() ? *ours_ : *kernel_; }
  // One end of a veth is the driver's; else the device is made by the driver.
  bool on_veth() const { return driver_ == "packet" || driver_ == "xdp"; }
  // Does the driver know super-packets?
  bool super_packets() const { return driver_ != "xdp"; }
  IpAddress kernel_ip() const { return ip(v4_ ? "10.77.0.1" : "fd77::1"); }
  IpAddress our_ip() const { return ip(v4_ ? "10.77.0.10" : "fd77::10"); }
  bool v4() const { return v4_; }
  bool ethernet() const { return driver_ != "tun"; }

  UniqueFd kernel_socket(int type, int protocol = 0) const;
  // bind() or connect() at the kernel's end; connect may be in progress afterwards.
  void bind(int fd, const IpAddress& address, std::uint16_t port) const;
  int connect(int fd, const IpAddress& address, std::uint16_t port) const;
  void send_udp(int fd, std::uint16_t port, const std::string& text) const;

  // Receives until `done` says so of a packet (true), or ten seconds have passed (false).
  bool receive_until(const std::function<bool(const Received&)>& done);
  // Sends; fails the test when the device does not take it.
  void send(Bytes packet, const Offload& offload = {});
  void send_pieces(const std::vector<Bytes>& pieces, const Offload& offload);
  std::size_t poll_once(std::vector<Received>& out, std::size_t burst, int timeout_ms);

 private:
  std::string driver_;
  bool v4_;
  std::unique_ptr<NetNamespace> kernel_, ours_;
  std::unique_ptr<PacketIo> io_;
  std::vector<std::vector<std::byte>> buffers_;
};

// A UDP packet from us to the kernel's end with its checksum complete.
Bytes udp_packet(const KernelSide& side, std::uint16_t src_port, std::uint16_t dst_port,
                 const std::string& text);
// The text of a UDP packet to `port`, or "" for any other packet.
std::string udp_text(const Bytes& packet, std::uint16_t port);
// Whether the transport checksum of a whole packet is right.
bool l4_checksum_ok(const Bytes& packet);

struct DriverCase {
  const char* driver;
  Family family;
};
std::string case_name(const ::testing::TestParamInfo<DriverCase>& info);

class DriverTest : public ::testing::TestWithParam<DriverCase> {
 protected:
  void SetUp() override {
    std::string why_not;
    if (!NetNamespace::available(why_not)) {
      GTEST_SKIP() << "needs network namespaces and /dev/net/tun: " << why_not;
    }
    side = std::make_unique<KernelSide>(GetParam().driver, GetParam().family);
  }
  std::unique_ptr<KernelSide> side;
};

}  // namespace sanproxy::packet_io::testing
