// XdpSocketIo: IP packets across an existing Ethernet interface by AF_XDP.
//
// Documents: Linux Documentation/networking/af_xdp.rst; docs/packet_io.md "AF_XDP".
// Role: the frames for our addresses come into memory that is ours (the UMEM) past the kernel's
//   stack, and are lent from there; what is sent is put together in a frame, checksums and
//   segments by us. Everything else on the interface stays the kernel's.
// Owner and thread: a worker's.
// Invariants:
//   1. Every frame of the UMEM is in one place: free, in the fill ring, lent, or on its way out.
//   2. A frame that is lent comes back by release(); when too many are lent the fill ring runs dry
//      and the device drops (counted by the kernel: rx_dropped_kernel).
#include <linux/if_link.h>
#include <linux/if_xdp.h>
#include <poll.h>
#include <sys/socket.h>
#include <xdp/xsk.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "lwproto/buffer/memory_region.h"
#include "lwproto/daemon/log.h"
#include "netnode/net/checksum.h"
#include "netnode/net/segments.h"
#include "netnode/net/tcp_header.h"
#include "netnode/packet_io/device_gone.h"
#include "netnode/packet_io/drivers.h"
#include "netnode/packet_io/ethernet_port.h"
#include "netnode/packet_io/link_config.h"
#include "netnode/packet_io/send_kick.h"
#include "netnode/packet_io/solicited_groups.h"
#include "netnode/packet_io/xdp_device.h"
#include "netnode/packet_io/xdp_program.h"

namespace sanproxy::packet_io {
namespace {

constexpr std::uint32_t kFrameBytes = 4096;
constexpr std::uint32_t kRingFrames = 2048;         // of each ring
constexpr std::uint32_t kReceiveFrames = 8192;      // in the fill ring, received, lent
constexpr std::uint32_t kSendFrames = kRingFrames;  // on their way out
constexpr std::uint32_t kFrames = kReceiveFrames + kSendFrames;
static_assert(std::size_t{kFrames} * kFrameBytes == kXdpMemoryBytes);
constexpr std::uint32_t kMtuBytesMax = kFrameBytes - XDP_PACKET_HEADROOM - 64;
constexpr std::uint32_t kAddressesMax = 16'384;

struct UmemDeleter {
  void operator()(xsk_umem* umem) const { (void)xsk_umem__delete(umem); }
};
struct SocketDeleter {
  void operator()(xsk_socket* socket) const { xsk_socket__delete(socket); }
};

class XdpSocketIo final : public PacketIo, private FrameSink {
 public:
  // `own`: where the options bring no memory.
  XdpSocketIo(InterfaceOptions options, const LinkInfo& link, const DeviceFacts& facts,
              buffer::MemoryRegion own);
  Status open();

  const InterfaceOptions& options() const override { return options_; }
  std::uint32_t mtu_bytes() const override { return link_.mtu_bytes; }
  int fd() const override { return xsk_socket__fd(socket_.get()); }
  const char* lost() const override { return mac_trouble(link_.index, link_.mac); }
  std::size_t receive(std::span<const ReceiveBuffer> buffers,
                      std::span<ReceivedPacket> out) override;
  std::size_t send(std::span<const SendPacket> packets) override;
  void flush() override;
  bool unsent() const override { return send_kick_.unsent(); }
  bool kernel_way(const IpAddress& dst, KernelWay& out) override;
  std::uint64_t way_changes() const override { return port_.neighbor().changes(); }
  void add_local_address(const IpAddress& ip) override;
  void remove_local_address(const IpAddress& ip) override;
  bool lends() const override { return true; }
  void release(PacketLoan loan) override;
  FrameMemory frames() const override { return {memory_, kFrameBytes}; }
  std::string mode() const override { return mode_; }
  const Counters& counters() const override;

 private:
  std::byte* frame(std::uint64_t address) const { return memory_.data() + address; }
  Status create_socket(bool driver_mode, bool zero_copy);
  void fill();
  void reclaim();
  std::size_t accept(std::span<ReceivedPacket> out, std::uint32_t at, std::size_t count);
  void look_for_unfinished_checksum(const std::byte* packet, ReceivedPacket& out) const;
  bool send_one(const SendPacket& packet);
  bool send_segments(const LinkHeader& header, std::span<const std::byte> packet,
                     std::uint32_t segment_bytes);
  std::byte* next_frame();
  void push(std::byte* data, std::uint32_t bytes);
  void push_packet(std::byte* data, std::uint32_t bytes);
  void send_frame(std::span<const std::byte> bytes, const Offload& offload) override;
  void kick();

  InterfaceOptions options_;
  LinkInfo link_;
  DeviceFacts facts_;
  buffer::MemoryRegion own_memory_;
  std::span<std::byte> memory_;  // the UMEM
  std::unique_ptr<XdpProgram> program_;
  xsk_ring_prod fill_{}, tx_{};
  xsk_ring_cons completed_{}, rx_{};
  std::unique_ptr<xsk_umem, UmemDeleter> umem_;
  std::unique_ptr<xsk_socket, SocketDeleter> socket_;
  std::vector<std::uint64_t> free_receive_, free_send_;
  std::vector<std::byte> whole_;  // a packet in one piece, to be cut into segments
  SolicitedGroups groups_;
  std::string mode_;
  SendKick send_kick_;
  mutable Counters counters_;
  EthernetPort port_;
};

XdpSocketIo::XdpSocketIo(InterfaceOptions options, const LinkInfo& link, const DeviceFacts& facts,
                         buffer::MemoryRegion own)
    : options_(std::move(options)),
      link_(link),
      facts_(facts),
      own_memory_(std::move(own)),
      memory_(own_memory_.valid() ? own_memory_.bytes() : options_.frame_memory),
      whole_(kReceiveBufferBytesMin),
      groups_(link.index),
      port_(NeighborConfig{link.mac, options_.addresses, options_.gateways, true}, true,
            Metadata::kOfPacket, *this, counters_) {
  // Whoever hands us packets knows: no super-packets from the stack.
  options_.segmentation_offload = false;
  for (std::uint64_t i = 0; i < kReceiveFrames; ++i) free_receive_.push_back(i * kFrameBytes);
  for (std::uint64_t i = kReceiveFrames; i < kFrames; ++i) free_send_.push_back(i * kFrameBytes);
}

// --- opening

Status XdpSocketIo::create_socket(bool driver_mode, bool zero_copy) {
  xsk_umem_config umem_config{};
  umem_config.fill_size = kRingFrames;
  umem_config.comp_size = kRingFrames;
  umem_config.frame_size = kFrameBytes;
  xsk_umem* umem = nullptr;
  socket_.reset();
  umem_.reset();
  int error =
      -xsk_umem__create(&umem, memory_.data(), memory_.size(), &fill_, &completed_, &umem_config);
  if (error != 0) return Status::error(Code::kSystem, "register the UMEM", error);
  umem_.reset(umem);
  xsk_socket_config config{};
  config.rx_size = kRingFrames;
  config.tx_size = kRingFrames;
  config.libxdp_flags = XSK_LIBXDP_FLAGS__INHIBIT_PROG_LOAD;
  config.xdp_flags = driver_mode ? XDP_FLAGS_DRV_MODE : XDP_FLAGS_SKB_MODE;
  config.bind_flags =
      static_cast<__u16>(XDP_USE_NEED_WAKEUP | (zero_copy ? XDP_ZEROCOPY : XDP_COPY));
  xsk_socket* socket = nullptr;
  error = -xsk_socket__create(&socket, options_.name.c_str(), 0, umem, &rx_, &tx_, &config);
  if (error != 0) return Status::error(Code::kSystem, "bind the XDP socket", error);
  socket_.reset(socket);
  return {};
}

// By the driver without a copy where it can, by the driver with a copy, by the kernel in its stead.
Status XdpSocketIo::open() {
  struct Mode {
    bool driver, zero_copy;
    const char* name;
  };
  Status status;
  for (const Mode& mode : {Mode{true, true, "driver mode, zero copy"},
                           Mode{true, false, "driver mode, one copy by the kernel"},
                           Mode{false, false, "generic mode, one copy by the kernel"}}) {
    if (mode.zero_copy && facts_.veth) continue;  // has none
    program_.reset();
    auto program = XdpProgram::attach(link_.index, facts_.queues, kAddressesMax, mode.driver,
                                      options_.redirect);
    status = program.status();
    if (status.code() == Code::kPermission || status.code() == Code::kExists) return status;
    if (!program.ok()) continue;
    program_ = std::move(program).value();
    status = create_socket(mode.driver, mode.zero_copy);
    if (status.ok()) status = program_->set_socket(0, xsk_socket__fd(socket_.get()));
    if (!status.ok()) continue;
    mode_ = mode.name;
    break;
  }
  if (!status.ok()) return status;
  if (options_.redirect != nullptr) {
    status = options_.redirect->attach(link_.index, FlowRedirect::Hook::kIngress);
    if (!status.ok()) return status;
  }
  spdlog::info("interface {}: AF_XDP in {}", options_.name, mode_);
  fill();
  for (const IpPrefix& address : options_.addresses) add_local_address(address.ip);
  return {};
}

void XdpSocketIo::add_local_address(const IpAddress& ip) {
  if (port_.neighbor().is_local(ip) || !port_.neighbor().add_local(ip)) return;
  Status status = program_->add(ip);
  // Questions of neighbours go to a group of the address; a host may be in it as well, but then it
  // has the same last three bytes.
  if (groups_.add(ip) && status.ok()) status = program_->add(solicited_node_address(ip));
  if (status.ok()) return;
  spdlog::error("interface {}: {}", options_.name, status.to_string());
  remove_local_address(ip);  // not half of it: it may be asked for again when there is room
}

void XdpSocketIo::remove_local_address(const IpAddress& ip) {
  if (!port_.neighbor().is_local(ip)) return;
  port_.remove_local(ip);
  program_->remove(ip);
  if (groups_.remove(ip)) program_->remove(solicited_node_address(ip));
}

bool XdpSocketIo::kernel_way(const IpAddress& dst, KernelWay& out) {
  out = {static_cast<std::uint32_t>(link_.index), link_.mtu_bytes, false, true, {}};
  return port_.frame_to(dst, out.frame);
}

const Counters& XdpSocketIo::counters() const {
  xdp_statistics statistics{};
  socklen_t size = sizeof(statistics);
  if (::getsockopt(fd(), SOL_XDP, XDP_STATISTICS, &statistics, &size) == 0) {
    counters_.rx_dropped_kernel =
        statistics.rx_dropped + statistics.rx_ring_full + statistics.rx_fill_ring_empty_descs;
  }
  return counters_;
}

// --- receiving

void XdpSocketIo::fill() {
  const auto count = static_cast<std::uint32_t>(
      std::min<std::size_t>(free_receive_.size(), xsk_prod_nb_free(&fill_, kRingFrames)));
  std::uint32_t at = 0;
  if (count == 0 || xsk_ring_prod__reserve(&fill_, count, &at) != count) return;
  for (std::uint32_t i = 0; i < count; ++i) {
    *xsk_ring_prod__fill_addr(&fill_, at + i) = free_receive_.back();
    free_receive_.pop_back();
  }
  xsk_ring_prod__submit(&fill_, count);
}

// On a veth there is no wire: a checksum that the sender's kernel left to the device is still
// undone. It is told by its value, the pseudo-header's sum alone.
void XdpSocketIo::look_for_unfinished_checksum(const std::byte* packet, ReceivedPacket& out) const {
  net::ParsedPacket parsed;
  if (net::parse_packet({packet, out.length}, parsed) != net::DropReason::kNone ||
      parsed.fragment || (parsed.l4 != net::L4::kTcp && parsed.l4 != net::L4::kUdp)) {
    return;
  }
  const std::uint16_t at =
      parsed.l4 == net::L4::kTcp ? net::kTcpChecksumOffset : net::kUdpChecksumOffset;
  const std::uint64_t sum = net::pseudo_header_sum(parsed.family, parsed.src, parsed.dst,
                                                   parsed.protocol, parsed.l4_bytes());
  if (net::load_raw16(packet + parsed.l3_header_bytes + at) != net::fold(sum)) return;
  out.offload.checksum_partial = true;
  out.offload.checksum_start = parsed.l3_header_bytes;
  out.offload.checksum_offset = at;
}

std::size_t XdpSocketIo::accept(std::span<ReceivedPacket> out, std::uint32_t at,
                                std::size_t count) {
  std::size_t accepted = 0;
  for (std::uint32_t i = 0; i < count; ++i) {
    const xdp_desc* const received = xsk_ring_cons__rx_desc(&rx_, at + i);
    const std::uint64_t base = received->addr / kFrameBytes * kFrameBytes;
    const std::byte* const data = frame(received->addr);
    ReceivedPacket packet;
    if (!port_.inbound({}, {data, received->len}, packet)) {
      free_receive_.push_back(base);
      continue;
    }
    packet.lent = data + net::kEthernetHeaderBytes;
    packet.loan = static_cast<PacketLoan>(base / kFrameBytes + 1);
    if (facts_.veth) look_for_unfinished_checksum(packet.lent, packet);
    counters_.rx_bytes += packet.length;
    out[accepted++] = packet;
  }
  return accepted;
}

std::size_t XdpSocketIo::receive(std::span<const ReceiveBuffer>, std::span<ReceivedPacket> out) {
  port_.neighbor().on_time();
  fill();
  kick();  // for what the kernel has not taken yet
  std::size_t count = 0;
  std::size_t looked_at = 0;
  while (count < out.size() && looked_at < kDropsPerBurstMax + out.size()) {
    std::uint32_t at = 0;
    const auto got = xsk_ring_cons__peek(&rx_, static_cast<__u32>(out.size() - count), &at);
    if (got == 0) break;
    count += accept(out.subspan(count), at, got);
    xsk_ring_cons__release(&rx_, got);
    looked_at += got;
  }
  ++counters_.rx_calls;
  counters_.rx_packets += count;
  // The kernel sleeps on an empty fill ring until it is told that there is something again.
  if (xsk_ring_prod__needs_wakeup(&fill_)) {
    (void)::recvfrom(fd(), nullptr, 0, MSG_DONTWAIT, nullptr, nullptr);
  }
  return count;
}

void XdpSocketIo::release(PacketLoan loan) {
  if (loan != kNoPacketLoan) free_receive_.push_back(std::uint64_t{loan - 1} * kFrameBytes);
}

// --- sending

void XdpSocketIo::reclaim() {
  std::uint32_t at = 0;
  const std::uint32_t count = xsk_ring_cons__peek(&completed_, kRingFrames, &at);
  for (std::uint32_t i = 0; i < count; ++i) {
    free_send_.push_back(*xsk_ring_cons__comp_addr(&completed_, at + i) / kFrameBytes *
                         kFrameBytes);
  }
  if (count != 0) xsk_ring_cons__release(&completed_, count);
}

void XdpSocketIo::kick() {
  if (!send_kick_.unsent()) return;
  ++counters_.tx_calls;
  send_kick_.run(
      [this] { return xsk_ring_prod__needs_wakeup(&tx_) != 0; },
      [this] { return ::sendto(fd(), nullptr, 0, MSG_DONTWAIT, nullptr, 0) < 0 ? errno : 0; },
      [this] { reclaim(); });
}

// A free frame, or nullptr when all are on their way.
std::byte* XdpSocketIo::next_frame() {
  if (free_send_.empty()) reclaim();
  if (free_send_.empty()) {
    kick();
    reclaim();
  }
  if (free_send_.empty() || xsk_prod_nb_free(&tx_, 1) == 0) return nullptr;
  return frame(free_send_.back());
}

// Sends what was put into next_frame().
void XdpSocketIo::push(std::byte* data, std::uint32_t bytes) {
  std::uint32_t at = 0;
  if (xsk_ring_prod__reserve(&tx_, 1, &at) != 1) return;  // next_frame() has looked
  free_send_.pop_back();
  xdp_desc* const out = xsk_ring_prod__tx_desc(&tx_, at);
  out->addr = static_cast<std::uint64_t>(data - memory_.data());
  out->len = bytes;
  out->options = 0;
  xsk_ring_prod__submit(&tx_, 1);
  send_kick_.pushed();
}

// A packet of the caller's; what neighbour discovery sends it counts itself.
void XdpSocketIo::push_packet(std::byte* data, std::uint32_t bytes) {
  push(data, bytes);
  ++counters_.tx_packets;
  counters_.tx_bytes += bytes - net::kEthernetHeaderBytes;
  counters_.tx_bytes_copied += bytes - net::kEthernetHeaderBytes;
}

// False: the device is full.
bool XdpSocketIo::send_segments(const LinkHeader& header, std::span<const std::byte> packet,
                                std::uint32_t segment_bytes) {
  net::ParsedPacket parsed;
  if (net::parse_packet(packet, parsed) != net::DropReason::kNone || parsed.l4 != net::L4::kTcp ||
      parsed.fragment || segment_bytes == 0) {
    ++counters_.tx_errors;
    return true;
  }
  net::TcpSegments segments(packet, parsed, segment_bytes);
  if (!segments.possible() ||
      net::kEthernetHeaderBytes + segments.header_bytes() + segment_bytes > kFrameBytes) {
    ++counters_.tx_errors;
    return true;
  }
  while (true) {
    std::byte* const out = next_frame();
    if (out == nullptr) {
      ++counters_.tx_dropped_full;  // the rest of this one; its sender repeats it
      return false;
    }
    std::memcpy(out, header.ethernet.data(), net::kEthernetHeaderBytes);
    std::span<const std::byte> payload;
    std::byte* const at = out + net::kEthernetHeaderBytes;
    if (!segments.next({at, segments.header_bytes()}, payload)) return true;
    std::memcpy(at + segments.header_bytes(), payload.data(), payload.size());
    push_packet(out, static_cast<std::uint32_t>(net::kEthernetHeaderBytes +
                                                segments.header_bytes() + payload.size()));
  }
}

bool XdpSocketIo::send_one(const SendPacket& packet) {
  LinkHeader header;
  if (!port_.outbound(packet, header)) return true;
  std::byte* const out = next_frame();
  if (out == nullptr) return false;
  const bool cut = packet.offload.segmentation != Segmentation::kNone;
  if ((!cut && packet.length > link_.mtu_bytes) || packet.length > whole_.size()) {
    ++counters_.tx_errors;
    return true;
  }
  std::byte* const to = cut ? whole_.data() : out + net::kEthernetHeaderBytes;
  std::size_t at = 0;
  for (std::uint32_t i = 0; i < packet.piece_count; ++i) {
    if (packet.pieces[i].iov_len > packet.length - at) {
      ++counters_.tx_errors;
      return true;
    }
    std::memcpy(to + at, packet.pieces[i].iov_base, packet.pieces[i].iov_len);
    at += packet.pieces[i].iov_len;
  }
  if (cut) return send_segments(header, {to, at}, packet.offload.segment_bytes);
  if (packet.offload.checksum_partial &&
      !net::complete_checksum({to, at}, packet.offload.checksum_start,
                              packet.offload.checksum_offset)) {
    ++counters_.tx_errors;
    return true;
  }
  std::memcpy(out, header.ethernet.data(), net::kEthernetHeaderBytes);
  push_packet(out, static_cast<std::uint32_t>(net::kEthernetHeaderBytes + at));
  return true;
}

std::size_t XdpSocketIo::send(std::span<const SendPacket> packets) {
  for (std::size_t i = 0; i < packets.size(); ++i) {
    if (!send_one(packets[i])) return i;
  }
  return packets.size();
}

void XdpSocketIo::flush() {
  kick();
  reclaim();
  port_.neighbor().on_time();
}

// Frames of neighbour discovery, and packets that had waited for it.
void XdpSocketIo::send_frame(std::span<const std::byte> bytes, const Offload& offload) {
  std::byte* const out = next_frame();
  if (out == nullptr || bytes.size() > kFrameBytes) {
    ++counters_.tx_dropped_full;
    return;
  }
  std::memcpy(out, bytes.data(), bytes.size());
  if (offload.checksum_partial &&
      !net::complete_checksum(
          {out + net::kEthernetHeaderBytes, bytes.size() - net::kEthernetHeaderBytes},
          offload.checksum_start, offload.checksum_offset)) {
    ++counters_.tx_errors;
    return;
  }
  push(out, static_cast<std::uint32_t>(bytes.size()));
  kick();
}

Status check_link(const LinkInfo& link, const InterfaceOptions& options, const DeviceFacts& facts) {
  const Status usual = check_ethernet_link(
      link, options.mtu_bytes, "driver \"xdp\" needs an Ethernet interface (lo and tun are none)");
  if (!usual.ok()) return usual;
  if (options.mtu_bytes > kMtuBytesMax) {
    return Status::error(Code::kInvalidArgument, "driver \"xdp\" takes an MTU of at most 3776");
  }
  if (facts.queues > 1) {
    return Status::error(Code::kInvalidArgument,
                         "driver \"xdp\" serves one queue, and the interface has several: run "
                         "ethtool -L NAME combined 1");
  }
  return Status();
}

}  // namespace

Result<std::unique_ptr<PacketIo>> open_xdp(const InterfaceOptions& options) {
  Result<LinkConfig> config = LinkConfig::open();
  if (!config.ok()) return config.status();
  Result<LinkInfo> link = config->query(options.name);
  if (!link.ok()) return link.status();
  const DeviceFacts facts = facts_of(options.name);
  Status status = check_link(*link, options, facts);
  if (!status.ok()) return status;
  link->mtu_bytes = options.mtu_bytes;
  buffer::MemoryRegion own;
  if (options.frame_memory.empty()) {
    auto memory = buffer::MemoryRegion::create("sanproxy-umem", kXdpMemoryBytes);
    if (!memory.ok()) return memory.status();
    own = std::move(memory).value();
  } else if (options.frame_memory.size() != kXdpMemoryBytes) {
    return Status::error(Code::kInvalidArgument, "frame_memory is not of kXdpMemoryBytes");
  }
  auto io = std::make_unique<XdpSocketIo>(options, *link, facts, std::move(own));
  status = io->open();
  if (!status.ok()) return status;
  return std::unique_ptr<PacketIo>(std::move(io));
}

}  // namespace sanproxy::packet_io
