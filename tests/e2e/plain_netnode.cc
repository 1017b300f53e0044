// plain_netnode: the least that can stand between clients and proxies. For tests of the proxy's
// end.
//
// A TUN device and channels to proxies in the order given. A SYN goes to the first proxy that wants
// new flows; any other packet goes to the first one, and on to the next each time it comes back as
// unknown; to the last one as final. No steering, no flow table, no health but the link's.
#include <poll.h>
#include <signal.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "lwproto/buffer/memory_region.h"
#include "lwproto/daemon/log.h"
#include "lwproto/fabric/shm/shm_fabric.h"
#include "lwproto/fabric/tcp/tcp_fabric.h"
#include "netnode/net/packet.h"
#include "netnode/net/tcp_header.h"
#include "netnode/packet_io/channel_link.h"

namespace {

using namespace sanproxy;  // NOLINT
using packet_io::ChannelLink;

constexpr std::size_t kBurst = 64;
constexpr std::size_t kSlotBytes = 65536 + 128;
constexpr std::size_t kSlots = 2048;

volatile sig_atomic_t g_stop = 0;

class PlainNode {
 public:
  PlainNode(const packet_io::InterfaceOptions& device, const std::vector<std::string>& proxies)
      : region_(
            std::move(buffer::MemoryRegion::create("plain-netnode", kSlots * kSlotBytes)).value()),
        pool_(region_.bytes(), kSlotBytes),
        receive_region_(
            std::move(buffer::MemoryRegion::create("plain-netnode-rx", 256 * 73728)).value()),
        receive_pool_(receive_region_.bytes(), 73728) {
    auto io = packet_io::open_interface(device);
    if (!io.ok()) throw std::runtime_error(io.status().to_string());
    io_ = std::move(io).value();
    shm_ = std::move(fabric::make_shm_fabric()).value();
    tcp_ = std::move(fabric::make_tcp_fabric({})).value();
    for (const std::string& address : proxies) {
      packet_io::ChannelLinkOptions options;
      options.address = address;
      options.node_name = "plain";
      const bool shm = address.rfind("shm:", 0) == 0;
      options.endpoint.receive_depth = shm ? 512 : 64;
      if (!shm) options.endpoint.receive_memory = {&receive_pool_, &receive_region_, 0};
      links_.push_back(
          std::make_unique<ChannelLink>(shm ? *shm_ : *tcp_, options, numbered_, region_, clock_));
    }
    states_.resize(links_.size(), packet_io::LinkState::kDown);
  }

  void run() {
    while (g_stop == 0) {
      if (round() == 0) sleep();
    }
    for (auto& link : links_) link->disconnect();
    for (int i = 0; i < 100; ++i) {
      for (auto& link : links_) link->poll();
    }
    for (auto& link : links_) {
      const auto& c = link->counters();
      spdlog::info("out {} packets, {} bytes, {} copied; in {} packets, {} unknown; lost {}",
                   c.tx_packets, c.tx_bytes, c.tx_bytes_copied, c.rx_packets, c.rx_unknown_flow,
                   c.tx_lost);
    }
  }

 private:
  std::size_t round() {
    std::size_t work = receive_from_clients();
    for (std::size_t i = 0; i < links_.size(); ++i) {
      links_[i]->poll();
      if (links_[i]->state() != states_[i]) {
        states_[i] = links_[i]->state();
        spdlog::info("proxy {} \"{}\" id {} is {} ({})", i, links_[i]->proxy().name,
                     links_[i]->proxy().proxy_id, packet_io::link_state_name(states_[i]),
                     links_[i]->last_error().to_string());
      }
      work += receive_from_proxy(i);
      links_[i]->flush();
    }
    return work;
  }

  std::size_t receive_from_clients() {
    std::size_t posted = 0;
    for (; posted < kBurst; ++posted) {
      slots_[posted] = pool_.acquire();
      if (slots_[posted] == buffer::kNoSlot) break;
      buffers_[posted] = {pool_.data(slots_[posted]), kSlotBytes};
    }
    const std::size_t count = io_->receive({buffers_.data(), posted}, {packets_.data(), posted});
    for (std::size_t i = 0; i < count; ++i) {
      const packet_io::ReceivedPacket& packet = packets_[i];
      const buffer::SlotIndex slot = std::exchange(slots_[packet.buffer], buffer::kNoSlot);
      pool_.mark_received(slot);
      pass_on({slot, packet.offset, packet.length, packet.offload, false}, 0);
    }
    for (std::size_t i = 0; i < posted; ++i) {
      if (slots_[i] != buffer::kNoSlot) pool_.release(slots_[i]);
    }
    return count;
  }

  // To the first proxy from `first` on that may take it.
  void pass_on(packet_io::LinkSend packet, std::size_t first) {
    const std::byte* const data = pool_.data(packet.slot) + packet.offset;
    net::ParsedPacket parsed;
    bool syn = false;
    if (net::parse_packet({data, packet.length}, parsed) == net::DropReason::kNone &&
        parsed.l4 == net::L4::kTcp) {
      const auto tcp = net::load_tcp_header(data + parsed.l3_header_bytes);
      syn = (tcp.flags & (net::kTcpSyn | net::kTcpAck)) == net::kTcpSyn;
    }
    for (std::size_t i = first; i < links_.size(); ++i) {
      if (!links_[i]->takes_packets() || (syn && links_[i]->proxy().draining)) continue;
      packet.final = std::none_of(links_.begin() + static_cast<std::ptrdiff_t>(i) + 1, links_.end(),
                                  [](const auto& link) { return link->takes_packets(); });
      if (links_[i]->send({&packet, 1}) == 1) return;
      break;  // full: dropped, as a wire would
    }
    pool_.release(packet.slot);
  }

  std::size_t receive_from_proxy(std::size_t index) {
    const std::size_t count = links_[index]->receive(received_);
    std::size_t to_send = 0;
    for (std::size_t i = 0; i < count; ++i) {
      const packet_io::LinkReceived& packet = received_[i];
      if (packet.unknown_flow) {
        ask_the_next(packet, index + 1);
        continue;
      }
      packet_io::SendPacket& out = out_[to_send++];
      std::copy_n(packet.pieces.begin(), packet.piece_count, out.pieces.begin());
      out.piece_count = packet.piece_count;
      out.length = packet.length;
      out.offload = packet.offload;
    }
    (void)io_->send({out_.data(), to_send});  // a full device drops
    io_->flush();
    links_[index]->release_received();
    return count;
  }

  void ask_the_next(const packet_io::LinkReceived& packet, std::size_t first) {
    const buffer::SlotIndex slot = pool_.acquire();
    if (slot == buffer::kNoSlot) return;
    pool_.mark_received(slot);
    std::byte* at = pool_.data(slot);
    for (std::uint32_t i = 0; i < packet.piece_count; ++i) {
      std::memcpy(at, packet.pieces[i].iov_base, packet.pieces[i].iov_len);
      at += packet.pieces[i].iov_len;
    }
    pass_on({slot, 0, packet.length, packet.offload, false}, first);
  }

  void sleep() {
    std::uint64_t next = UINT64_MAX;
    for (auto& link : links_) next = std::min(next, link->next_timer_ns());
    const std::uint64_t now = clock_.now_ns();
    const int timeout_ms =
        next <= now ? 0
                    : static_cast<int>(std::min<std::uint64_t>((next - now) / 1'000'000, 50) + 1);
    const bool may_sleep = shm_->arm() && tcp_->arm();
    std::array<pollfd, 3> fds = {pollfd{io_->fd(), POLLIN, 0}, pollfd{shm_->event_fd(), POLLIN, 0},
                                 pollfd{tcp_->event_fd(), POLLIN, 0}};
    (void)::poll(fds.data(), fds.size(), may_sleep ? timeout_ms : 0);
    shm_->disarm();
    tcp_->disarm();
  }

  SteadyClock clock_;
  buffer::MemoryRegion region_;
  buffer::SlotPool pool_;
  packet_io::PacketPool numbered_{pool_};
  buffer::MemoryRegion receive_region_;
  buffer::SlotPool receive_pool_;
  std::unique_ptr<packet_io::PacketIo> io_;
  std::unique_ptr<fabric::Fabric> shm_;
  std::unique_ptr<fabric::Fabric> tcp_;
  std::vector<std::unique_ptr<ChannelLink>> links_;
  std::vector<packet_io::LinkState> states_;
  std::array<buffer::SlotIndex, kBurst> slots_{};
  std::array<packet_io::ReceiveBuffer, kBurst> buffers_{};
  std::array<packet_io::ReceivedPacket, kBurst> packets_{};
  std::array<packet_io::LinkReceived, kBurst> received_;
  std::array<packet_io::SendPacket, kBurst> out_;
};

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"plain_netnode: a TUN device and channels to proxies"};
  packet_io::InterfaceOptions device;
  device.driver = "tun";
  std::vector<std::string> addresses, proxies;
  app.add_option("--tun", device.name)->required();
  app.add_option("--address", addresses)->required();
  app.add_option("--proxy", proxies)->required();
  CLI11_PARSE(app, argc, argv);
  for (const std::string& address : addresses) {
    device.addresses.push_back(*IpPrefix::parse(address));
  }
  signal(SIGTERM, [](int) { g_stop = 1; });
  signal(SIGPIPE, SIG_IGN);
  try {
    PlainNode node(device, proxies);
    spdlog::info("ready");
    node.run();
  } catch (const std::exception& e) {
    spdlog::error("{}", e.what());
    return 1;
  }
  return 0;
}
