#include "tests/netnode/packet_io/kernel_side.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <sys/socket.h>

#include <chrono>
#include <cstdlib>
#include <cstring>

#include "netnode/net/checksum.h"

namespace sanproxy::packet_io::testing {
namespace {

constexpr const char* kThreadNamespace = "/proc/thread-self/ns/net";

sockaddr_storage to_sockaddr(const IpAddress& address, std::uint16_t port, socklen_t& size) {
  sockaddr_storage storage{};
  if (address.family == Family::kIpv4) {
    auto& v4 = reinterpret_cast<sockaddr_in&>(storage);
    v4.sin_family = AF_INET;
    v4.sin_port = htons(port);
    std::memcpy(&v4.sin_addr, address.bytes.data(), 4);
    size = sizeof(v4);
  } else {
    auto& v6 = reinterpret_cast<sockaddr_in6&>(storage);
    v6.sin6_family = AF_INET6;
    v6.sin6_port = htons(port);
    std::memcpy(&v6.sin6_addr, address.bytes.data(), 16);
    size = sizeof(v6);
  }
  return storage;
}

Bytes pseudo_header(const net::ParsedPacket& parsed) {
  const std::size_t size = parsed.family == Family::kIpv4 ? 4 : 16;
  Bytes pseudo(parsed.src, parsed.src + size);
  pseudo.insert(pseudo.end(), parsed.dst, parsed.dst + size);
  pseudo.resize(pseudo.size() + 8);
  net::store_be32(pseudo.data() + pseudo.size() - 8, parsed.l4_bytes());
  pseudo.back() = parsed.protocol;
  return pseudo;
}

}  // namespace

bool NetNamespace::available(std::string& why_not) {
  const int original = ::open(kThreadNamespace, O_RDONLY | O_CLOEXEC);
  const UniqueFd keep(original);
  const UniqueFd tun(::open("/dev/net/tun", O_RDWR | O_CLOEXEC));
  if (original < 0 || !tun.valid() || ::unshare(CLONE_NEWNET) != 0) {
    why_not = std::strerror(errno);
    return false;
  }
  return ::setns(original, CLONE_NEWNET) == 0;
}

NetNamespace::NetNamespace() : original_(::open(kThreadNamespace, O_RDONLY | O_CLOEXEC)) {
  EXPECT_EQ(::unshare(CLONE_NEWNET), 0);
  fd_ = UniqueFd(::open(kThreadNamespace, O_RDONLY | O_CLOEXEC));
  leave();
}

void NetNamespace::enter() const { ASSERT_EQ(::setns(fd_.get(), CLONE_NEWNET), 0); }
void NetNamespace::leave() const { ASSERT_EQ(::setns(original_.get(), CLONE_NEWNET), 0); }

void NetNamespace::run(const std::string& command) const {
  enter();
  EXPECT_EQ(std::system(command.c_str()), 0) << command;
  leave();
}

std::string NetNamespace::path() const {
  return "/proc/" + std::to_string(::getpid()) + "/fd/" + std::to_string(fd_.get());
}

KernelSide::KernelSide(const std::string& driver, Family family, bool segmentation_offload)
    : driver_(driver),
      v4_(family == Family::kIpv4),
      kernel_(std::make_unique<NetNamespace>()),
      buffers_(64, std::vector<std::byte>(kReceiveBufferBytesMin)) {
  InterfaceOptions options;
  options.driver = driver;
  options.name = "san0";
  options.segmentation_offload = segmentation_offload;
  const char* const kernels[] = {"10.77.0.1/24", "fd77::1/64"};
  const char* const ours[] = {"10.77.0.10/24", "fd77::10/64"};
  for (const char* text : on_veth() ? ours : kernels) {
    options.addresses.push_back(IpPrefix::parse(text).value());
  }
  kernel_->run("ip link set lo up");
  if (on_veth()) {
    ours_ = std::make_unique<NetNamespace>();
    kernel_->run("ip link add kern0 type veth peer name san0 && ip link set san0 netns " +
                 ours_->path());
    kernel_->run("ip addr add 10.77.0.1/24 dev kern0 && ip addr add fd77::1/64 dev kern0 nodad");
    ours_->run("ip link set san0 up");
    kernel_->run("ip link set kern0 up");
  }
  driver_namespace().enter();
  Result<std::unique_ptr<PacketIo>> opened = open_interface(options);
  driver_namespace().leave();
  if (!opened.ok()) {
    ADD_FAILURE() << opened.status().to_string();
    std::abort();
  }
  io_ = std::move(opened).value();
  if (driver == "tap") {
    io_->add_local_address(ip("10.77.0.10"));
    io_->add_local_address(ip("fd77::10"));
  }
}

UniqueFd KernelSide::kernel_socket(int type, int protocol) const {
  kernel_->enter();
  UniqueFd fd(::socket(v4_ ? AF_INET : AF_INET6, type | SOCK_CLOEXEC, protocol));
  EXPECT_TRUE(fd.valid()) << std::strerror(errno);
  kernel_->leave();
  return fd;
}

void KernelSide::bind(int fd, const IpAddress& address, std::uint16_t port) const {
  socklen_t size = 0;
  const sockaddr_storage to = to_sockaddr(address, port, size);
  ASSERT_EQ(::bind(fd, reinterpret_cast<const sockaddr*>(&to), size), 0) << std::strerror(errno);
}

int KernelSide::connect(int fd, const IpAddress& address, std::uint16_t port) const {
  socklen_t size = 0;
  const sockaddr_storage to = to_sockaddr(address, port, size);
  return ::connect(fd, reinterpret_cast<const sockaddr*>(&to), size) == 0 ? 0 : errno;
}

void KernelSide::send_udp(int fd, std::uint16_t port, const std::string& text) const {
  socklen_t size = 0;
  const sockaddr_storage to = to_sockaddr(our_ip(), port, size);
  ASSERT_EQ(::sendto(fd, text.data(), text.size(), 0, reinterpret_cast<const sockaddr*>(&to), size),
            static_cast<ssize_t>(text.size()))
      << std::strerror(errno);
}

std::size_t KernelSide::poll_once(std::vector<Received>& out, std::size_t burst, int timeout_ms) {
  pollfd waiting{io_->fd(), POLLIN, 0};
  if (::poll(&waiting, 1, timeout_ms) <= 0) {
    return 0;
  }
  std::vector<ReceiveBuffer> lent;
  for (std::size_t i = 0; i < burst; ++i) {
    lent.push_back({buffers_[i].data(), static_cast<std::uint32_t>(buffers_[i].size())});
  }
  std::vector<ReceivedPacket> packets(burst);
  const std::size_t count = io_->receive(lent, packets);
  EXPECT_LE(count, burst);
  io_->flush();
  for (std::size_t i = 0; i < count; ++i) {
    const ReceivedPacket& packet = packets[i];
    if (io_->lends()) {
      const auto* at = reinterpret_cast<const std::uint8_t*>(packet.lent);
      out.push_back({Bytes(at, at + packet.length), packet.offload});
      io_->release(packet.loan);
      continue;
    }
    EXPECT_LT(packet.buffer, burst);
    EXPECT_LE(packet.offset + packet.length, buffers_[packet.buffer].size());
    EXPECT_TRUE(i == 0 || packets[i - 1].buffer < packet.buffer) << "one buffer each, ascending";
    const auto* at =
        reinterpret_cast<const std::uint8_t*>(buffers_[packet.buffer].data()) + packet.offset;
    out.push_back({Bytes(at, at + packet.length), packet.offload});
  }
  return count;
}

bool KernelSide::receive_until(const std::function<bool(const Received&)>& done) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while (std::chrono::steady_clock::now() < deadline) {
    std::vector<Received> batch;
    poll_once(batch, buffers_.size(), 100);
    bool found = false;
    for (const Received& received : batch) {
      found = done(received) || found;
    }
    if (found) {
      return true;
    }
  }
  return false;
}

void KernelSide::send(Bytes packet, const Offload& offload) {
  send_pieces({std::move(packet)}, offload);
}

void KernelSide::send_pieces(const std::vector<Bytes>& pieces, const Offload& offload) {
  SendPacket packet;
  packet.offload = offload;
  for (const Bytes& piece : pieces) {
    packet.pieces[packet.piece_count++] = {const_cast<std::uint8_t*>(piece.data()), piece.size()};
    packet.length += static_cast<std::uint32_t>(piece.size());
  }
  EXPECT_EQ(io_->send({&packet, 1}), 1U);
  io_->flush();
}

Bytes udp_packet(const KernelSide& side, std::uint16_t src_port, std::uint16_t dst_port,
                 const std::string& text) {
  Bytes udp(8);
  net::store_be16(udp.data(), src_port);
  net::store_be16(udp.data() + 2, dst_port);
  net::store_be16(udp.data() + 4, static_cast<std::uint16_t>(8 + text.size()));
  udp.insert(udp.end(), text.begin(), text.end());
  Bytes packet = side.v4() ? net::testing::ipv4(17, udp) : net::testing::ipv6(17, udp);
  const std::size_t size = side.our_ip().size();
  std::uint8_t* at = packet.data() + (side.v4() ? 12 : 8);
  std::memcpy(at, side.our_ip().bytes.data(), size);
  std::memcpy(at + size, side.kernel_ip().bytes.data(), size);
  if (side.v4()) {
    net::testing::fix_ipv4_checksum(packet);
  }
  net::ParsedPacket parsed;
  EXPECT_EQ(net::parse_packet(net::testing::as_span(packet), parsed), net::DropReason::kNone);
  const Bytes pseudo = pseudo_header(parsed);
  std::uint8_t* l4 = packet.data() + parsed.l3_header_bytes;
  const std::uint64_t sum = net::sum_bytes(pseudo.data(), pseudo.size());
  net::store_raw16(l4 + 6, net::finish(net::sum_bytes(l4, parsed.l4_bytes(), sum)));
  return packet;
}

std::string udp_text(const Bytes& packet, std::uint16_t port) {
  net::ParsedPacket parsed;
  if (net::parse_packet(net::testing::as_span(packet), parsed) != net::DropReason::kNone ||
      parsed.l4 != net::L4::kUdp ||
      net::load_be16(packet.data() + parsed.l3_header_bytes + 2) != port) {
    return "";
  }
  const auto* text = reinterpret_cast<const char*>(packet.data()) + parsed.l3_header_bytes + 8;
  return std::string(text, parsed.l4_bytes() - 8);
}

bool l4_checksum_ok(const Bytes& packet) {
  net::ParsedPacket parsed;
  if (net::parse_packet(net::testing::as_span(packet), parsed) != net::DropReason::kNone) {
    return false;
  }
  const Bytes pseudo = pseudo_header(parsed);
  const std::uint64_t sum = net::sum_bytes(pseudo.data(), pseudo.size());
  return net::finish(
             net::sum_bytes(packet.data() + parsed.l3_header_bytes, parsed.l4_bytes(), sum)) == 0;
}

std::string case_name(const ::testing::TestParamInfo<DriverCase>& info) {
  return std::string(info.param.driver) + (info.param.family == Family::kIpv4 ? "_ipv4" : "_ipv6");
}

}  // namespace sanproxy::packet_io::testing
