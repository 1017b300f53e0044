// packet_bench: small packets a second through a driver on a veth, in and out.
//
//   packet_bench --driver packet|xdp [--seconds 1] [--bytes 64]
//
// Makes two network namespaces of its own. In: a second thread floods UDP packets from the other
// end's kernel while the driver receives. Out: the driver sends to an address there that drops.
// Prints one line of JSON: packets a second and nanoseconds of the driver's thread for each.
#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <array>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "netnode/net/byte_order.h"
#include "netnode/net/checksum.h"
#include "netnode/packet_io/packet_io.h"

namespace {

using namespace sanproxy;  // NOLINT

constexpr std::size_t kBurst = 64;
constexpr std::uint16_t kPort = 9;

double seconds_of(clockid_t clock) {
  timespec now{};
  ::clock_gettime(clock, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) / 1e9;
}

void run(const std::string& command) {
  if (std::system(command.c_str()) != 0) {
    std::fprintf(stderr, "packet_bench: \"%s\" failed\n", command.c_str());
    std::exit(1);
  }
}

int new_namespace() {
  if (::unshare(CLONE_NEWNET) != 0) {
    std::fprintf(stderr, "packet_bench: needs root (unshare: %s)\n", std::strerror(errno));
    std::exit(1);
  }
  return ::open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
}

struct Rate {
  double per_second = 0;
  double ns_each = 0;
};

Rate rate(std::uint64_t packets, double wall_s, double cpu_s) {
  if (packets == 0) return {};
  return {static_cast<double>(packets) / wall_s, cpu_s * 1e9 / static_cast<double>(packets)};
}

// From the kernel of `space`, as fast as it goes.
void flood(int space, std::size_t bytes, const std::atomic<bool>& stop) {
  (void)::setns(space, CLONE_NEWNET);
  const int fd = ::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(kPort);
  ::inet_pton(AF_INET, "10.77.0.10", &to.sin_addr);
  (void)::connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof(to));
  std::vector<char> payload(bytes - 28, 'x');
  iovec piece{payload.data(), payload.size()};
  std::array<mmsghdr, kBurst> messages{};
  for (mmsghdr& message : messages) {
    message.msg_hdr.msg_iov = &piece;
    message.msg_hdr.msg_iovlen = 1;
  }
  while (!stop.load(std::memory_order_relaxed)) (void)::sendmmsg(fd, messages.data(), kBurst, 0);
  ::close(fd);
}

Rate measure_in(packet_io::PacketIo& io, double seconds) {
  std::vector<std::vector<std::byte>> memory(
      kBurst, std::vector<std::byte>(packet_io::kReceiveBufferBytesMin));
  std::array<packet_io::ReceiveBuffer, kBurst> buffers{};
  for (std::size_t i = 0; i < kBurst; ++i) {
    buffers[i] = {memory[i].data(), static_cast<std::uint32_t>(memory[i].size())};
  }
  std::array<packet_io::ReceivedPacket, kBurst> packets{};
  std::uint64_t count = 0;
  const double start = seconds_of(CLOCK_MONOTONIC), cpu = seconds_of(CLOCK_THREAD_CPUTIME_ID);
  while (seconds_of(CLOCK_MONOTONIC) - start < seconds) {
    const std::size_t got = io.receive(buffers, packets);
    for (std::size_t i = 0; io.lends() && i < got; ++i) io.release(packets[i].loan);
    count += got;
    if (got != 0) continue;
    io.flush();
    pollfd waiting{io.fd(), POLLIN, 0};
    (void)::poll(&waiting, 1, 10);
  }
  return rate(count, seconds_of(CLOCK_MONOTONIC) - start,
              seconds_of(CLOCK_THREAD_CPUTIME_ID) - cpu);
}

Rate measure_out(packet_io::PacketIo& io, std::size_t bytes, double seconds) {
  std::vector<std::uint8_t> packet(bytes);
  packet[0] = 0x45;
  net::store_be16(packet.data() + 2, static_cast<std::uint16_t>(bytes));
  packet[8] = 64;
  packet[9] = 17;
  ::inet_pton(AF_INET, "10.77.0.10", packet.data() + 12);
  ::inet_pton(AF_INET, "10.77.0.1", packet.data() + 16);
  net::store_raw16(packet.data() + 10, net::ipv4_header_checksum(packet.data(), 20));
  net::store_be16(packet.data() + 20, kPort);
  net::store_be16(packet.data() + 22, kPort);
  net::store_be16(packet.data() + 24, static_cast<std::uint16_t>(bytes - 20));
  std::array<packet_io::SendPacket, kBurst> packets;
  for (packet_io::SendPacket& one : packets) {
    one.pieces[0] = {packet.data(), packet.size()};
    one.piece_count = 1;
    one.length = static_cast<std::uint32_t>(bytes);
  }
  const std::uint64_t before = io.counters().tx_packets;
  const double start = seconds_of(CLOCK_MONOTONIC), cpu = seconds_of(CLOCK_THREAD_CPUTIME_ID);
  while (seconds_of(CLOCK_MONOTONIC) - start < seconds) {
    (void)io.send(packets);
    io.flush();
  }
  return rate(io.counters().tx_packets - before, seconds_of(CLOCK_MONOTONIC) - start,
              seconds_of(CLOCK_THREAD_CPUTIME_ID) - cpu);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"packet_bench: small packets a second through a driver on a veth"};
  std::string driver = "packet";
  double seconds = 1;
  std::size_t bytes = 64;
  app.add_option("--driver", driver)->check(CLI::IsMember({"packet", "xdp"}));
  app.add_option("--seconds", seconds)->check(CLI::Range(0.1, 60.0));
  app.add_option("--bytes", bytes, "of each IP packet")->check(CLI::Range(28, 1500));
  CLI11_PARSE(app, argc, argv);

  const int far = new_namespace();
  run("ip link add kern0 type veth peer name san0 && ip addr add 10.77.0.1/24 dev kern0 && "
      "ip link set kern0 up");
  const int near = new_namespace();
  const std::string here = "/proc/" + std::to_string(::getpid()) + "/fd/" + std::to_string(near);
  (void)::setns(far, CLONE_NEWNET);
  run("ip link set san0 netns " + here);
  (void)::setns(near, CLONE_NEWNET);
  run("ip link set san0 up");
  packet_io::InterfaceOptions options;
  options.driver = driver;
  options.name = "san0";
  options.addresses = {*IpPrefix::parse("10.77.0.10/24")};
  auto io = packet_io::open_interface(options);
  if (!io.ok()) {
    std::fprintf(stderr, "packet_bench: %s\n", io.status().to_string().c_str());
    return 1;
  }
  std::atomic<bool> stop = false;
  std::thread sender(flood, far, bytes, std::cref(stop));
  const Rate in = measure_in(**io, seconds);
  stop = true;
  sender.join();
  const Rate out = measure_out(**io, bytes, seconds);
  std::printf(
      "{\"driver\": \"%s\", \"mode\": \"%s\", \"bytes\": %zu, \"in_per_s\": %.0f, "
      "\"in_ns\": %.0f, \"out_per_s\": %.0f, \"out_ns\": %.0f}\n",
      driver.c_str(), (*io)->mode().c_str(), bytes, in.per_second, in.ns_each, out.per_second,
      out.ns_each);
  return 0;
}
