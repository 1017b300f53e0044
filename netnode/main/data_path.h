// DataPath: packets in, verdicts, packets out: the hot path of a network node.
//
// Document: docs/netnode.md "Life of a packet".
// Role: receives bursts from the interfaces, has them judged by the Forwarder, and carries the
//   verdicts out: translation, tunnel headers, channels, answers of our own.
// Owner: a Node. Thread: its.
// Invariants:
//   1. A slot is posted at an interface, held for its first fragment, on its way out, or free.
//   2. A packet that does not go on is counted: by the Forwarder, the Nat, or here.
//   3. ICMP errors of our own are no more than the node's rate (RFC 1812 4.3.2.8, RFC 4443 2.4 f).
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "lwproto/base/clock.h"
#include "lwproto/buffer/memory_region.h"
#include "netnode/main/config.h"
#include "netnode/main/way_out.h"
#include "netnode/packet_io/flow_redirect.h"
#include "netnode/packet_io/packet_io.h"
#include "netnode/packet_io/packet_pool.h"
#include "netnode/steer/forwarder.h"

namespace sanproxy::netnode {

struct DataPathCounters {
  std::array<std::uint64_t, 8> nat_drops{};  // by steer::NatResult
  std::uint64_t to_nat = 0, to_tunnel = 0, to_channel = 0, to_client = 0, echo_replies = 0;
  std::uint64_t packet_too_big = 0;    // answered so
  std::uint64_t dropped_too_big = 0;   // that could not be answered so
  std::uint64_t icmp_limited = 0;      // that were not, for there had been too many answers
  std::uint64_t dropped_no_route = 0;  // no tunnel address of the right family
  std::uint64_t dropped_hop_limit = 0;
  std::uint64_t dropped_tunnel_in = 0;
  // UDP super-packets with metadata that do not fit, and datagrams of them without a buffer.
  std::uint64_t dropped_uncut = 0;
  std::uint64_t dropped_channel = 0;  // too many waited for the channel, or it was down
  // What a proxy sent over a channel: no packet that could go on; from an address of no service.
  std::uint64_t dropped_reply_malformed = 0, dropped_reply_foreign = 0;
  std::uint64_t dropped_sent_back = 0;  // no buffer for a packet that came back, or not one of ours
};

// Carries packets to proxies over channels; in the same process round as the rest.
class ChannelWay {
 public:
  virtual ~ChannelWay() = default;
  // Takes the slot over, whatever becomes of it. False: not sent, and released.
  virtual bool send(std::uint16_t proxy, buffer::SlotIndex slot, std::uint32_t offset,
                    std::uint32_t length, const packet_io::Offload& offload, bool final) = 0;
};

class DataPath : private steer::NatCarrier {
 public:
  DataPath(const NetnodeConfig& config, const Clock& clock, packet_io::PacketPool& pool);
  ~DataPath() override;

  void add_interface(std::unique_ptr<packet_io::PacketIo> io, std::vector<IpPrefix> routes);
  void set_channel_way(ChannelWay* way) { channels_ = way; }
  // Carries established sessions behind NAT from now on; all interfaces are attached to it.
  void set_redirect(packet_io::FlowRedirect* redirect);
  // Addresses that the interfaces answer for: ours, and those of the services.
  void answer_for(const steer::ProxySet& set);

  // One burst from each interface; returns the packets received. flush() comes after.
  std::size_t receive();
  std::size_t received_bytes() const { return received_bytes_; }  // by the last receive()
  void flush();
  // An interface has something left to send: receive() tries again, so do not sleep for long.
  bool unsent() const;
  // A packet that the channel of proxy `from` brought for a client.
  void to_client(std::uint16_t from, std::span<const iovec> pieces, std::uint32_t length,
                 const packet_io::Offload& offload);
  // A packet that came back: `slot` holds a copy.
  void retry(std::uint16_t from, buffer::SlotIndex slot, std::uint32_t offset, std::uint32_t length,
             const packet_io::Offload& offload);
  // Packets that waited for a channel which went down meanwhile.
  void lost_in_channel(std::size_t count) { counters_.dropped_channel += count; }
  // Housekeeping; some times a second.
  void on_time();

  steer::Forwarder& forwarder() { return forwarder_; }
  const steer::Forwarder& forwarder() const { return forwarder_; }
  const DataPathCounters& counters() const { return counters_; }
  void count_lost_retry() { ++counters_.dropped_sent_back; }
  std::vector<const packet_io::PacketIo*> interfaces() const;
  const WayOutCounters& way_out(std::size_t interface) const;
  std::uint64_t now_ms() const { return clock_.now_ns() / 1'000'000; }

 private:
  struct Interface;
  // Room for a tunnel's or a frame's headers in front of a packet that is copied into a slot.
  static constexpr std::uint32_t kCopyOffset = 128;
  // A packet in a slot of ours.
  struct Here {
    buffer::SlotIndex slot = buffer::kNoSlot;
    std::uint32_t offset = 0;
    std::uint32_t length = 0;
    packet_io::Offload offload;
  };

  std::span<std::byte> bytes_of(const Here& packet) const {
    return {pool_.data(packet.slot) + packet.offset, packet.length};
  }
  bool post(Interface& in, std::size_t place);
  std::size_t receive(Interface& in);
  std::size_t receive_lent(Interface& in);
  void judge(std::span<const Here> packets);
  void judge_plain(std::span<const Here> packets);  // no UDP super-packet among them
  void judge_datagrams(const Here& whole);
  void act(const Here& packet, steer::Verdict& verdict);
  void to_proxy(const Here& packet, const steer::Verdict& verdict);
  void nat_to_proxy(const Here& packet, const steer::Verdict& verdict,
                    const steer::ProxyConfig& proxy);
  // `sent` counts it when it goes on.
  void nat_result(const Here& packet, const net::ParsedPacket& parsed, steer::NatResult result,
                  std::uint64_t& sent);
  void to_tunnel(const Here& packet, const steer::Verdict& verdict,
                 const steer::ProxyConfig& proxy);
  void tunnel_one(WayOut& out, const net::TunnelSpec& spec, const steer::Verdict& verdict,
                  std::span<const std::byte> header, std::span<const std::byte> payload,
                  buffer::SlotIndex slot);
  void error_to_proxy(const Here& packet, const steer::Verdict& verdict);
  void error_to_client(const Here& packet, const steer::Verdict& verdict);
  void echo(const Here& packet, const steer::Verdict& verdict);
  void release_held(const steer::Verdict& first);
  void send_here(const Here& packet, const std::uint8_t* dst, Family family);
  bool fits(const Here& packet, const net::ParsedPacket& parsed, std::uint32_t mtu_bytes);
  void answer_too_big(const Here& packet, const net::ParsedPacket& parsed, std::uint32_t mtu_bytes);
  void release(const Here& packet) { pool_.release(packet.slot); }
  std::uint32_t generation() const override { return redirect_->generation(); }
  bool carry(const net::FlowKey& client, const net::FlowKey& proxy, std::uint16_t addresses_delta,
             std::uint16_t ports_delta) override;
  void leave(const net::FlowKey& client, const net::FlowKey& proxy) override;
  void keep_redirect_right();
  WayOut& way_to(const std::uint8_t* dst, Family family);
  bool is_own(const Interface& interface, const IpAddress& ip) const;

  const Clock& clock_;
  packet_io::PacketPool& pool_;
  steer::Forwarder forwarder_;
  std::vector<IpAddress> tunnel_addresses_;
  const flow::Rate icmp_errors_;
  flow::TokenBucket icmp_bucket_;
  std::vector<std::unique_ptr<Interface>> interfaces_;
  ChannelWay* channels_ = nullptr;
  packet_io::FlowRedirect* redirect_ = nullptr;
  std::uint64_t ways_seen_ = 0;  // what the flows there were told by: tables and next hops
  std::vector<Here> held_;       // by token, which is the slot
  std::vector<IpAddress> answered_for_;
  std::array<steer::Verdict, steer::kBurstMax> verdicts_;
  std::size_t received_bytes_ = 0;
  DataPathCounters counters_;
};

}  // namespace sanproxy::netnode
