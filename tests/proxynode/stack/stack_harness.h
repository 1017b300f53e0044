// A Stack on an interface of memory: tests hand it segments and look at what it sends.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "lwproto/base/clock.h"
#include "lwproto/buffer/slot_pool.h"
#include "netnode/net/byte_order.h"
#include "netnode/net/checksum.h"
#include "netnode/net/packet.h"
#include "netnode/net/tcp_header.h"
#include "netnode/packet_io/packet_io.h"
#include "proxynode/stack/stack.h"

namespace sanproxy::stack::testing {

using Bytes = std::vector<std::uint8_t>;

inline Bytes pattern(std::size_t bytes, std::uint64_t offset = 0) {
  Bytes out(bytes);
  for (std::size_t i = 0; i < bytes; ++i) {
    out[i] = static_cast<std::uint8_t>((offset + i) * 131 + ((offset + i) >> 8));
  }
  return out;
}

inline std::span<const std::byte> as_span(const Bytes& bytes) {
  return {reinterpret_cast<const std::byte*>(bytes.data()), bytes.size()};
}

// A TCP segment as a test writes it.
struct Segment {
  std::uint8_t flags = 0;
  std::uint32_t seq = 0;
  std::uint32_t ack = 0;
  std::uint16_t window = 0xffff;
  Bytes options = {};
  Bytes payload = {};
};

// One that the stack sent.
struct Sent {
  SocketAddress src, dst;
  Segment tcp;
  packet_io::Offload offload;
  packet_io::PeerNumber to = 0;
  std::uint32_t payload_bytes() const { return static_cast<std::uint32_t>(tcp.payload.size()); }
  bool has(std::uint8_t flag) const { return (tcp.flags & flag) != 0; }
};

// Of a packet without SYN, from a stack with the default window scale.
inline std::uint32_t window_of(const Sent& packet) { return std::uint32_t{packet.tcp.window} << 7; }

inline Bytes make_packet(const SocketAddress& src, const SocketAddress& dst, const Segment& tcp) {
  const bool v4 = src.ip.family == Family::kIpv4;
  const std::size_t ip = v4 ? 20 : 40;
  Bytes options = tcp.options;
  while (options.size() % 4 != 0) options.push_back(0);
  const std::size_t header = 20 + options.size();
  const std::size_t l4 = header + tcp.payload.size();
  Bytes out(ip + l4);
  std::uint8_t* at = out.data();
  if (v4) {
    at[0] = 0x45;
    net::store_be16(at + 2, static_cast<std::uint16_t>(ip + l4));
    at[8] = 64;
    at[9] = 6;
    std::memcpy(at + 12, src.ip.bytes.data(), 4);
    std::memcpy(at + 16, dst.ip.bytes.data(), 4);
    net::store_raw16(at + 10, net::ipv4_header_checksum(at, 20));
  } else {
    at[0] = 0x60;
    net::store_be16(at + 4, static_cast<std::uint16_t>(l4));
    at[6] = 6;
    at[7] = 64;
    std::memcpy(at + 8, src.ip.bytes.data(), 16);
    std::memcpy(at + 24, dst.ip.bytes.data(), 16);
  }
  std::uint8_t* t = at + ip;
  net::store_be16(t, src.port);
  net::store_be16(t + 2, dst.port);
  net::store_be32(t + 4, tcp.seq);
  net::store_be32(t + 8, tcp.ack);
  t[12] = static_cast<std::uint8_t>((header / 4) << 4);
  t[13] = tcp.flags;
  net::store_be16(t + 14, tcp.window);
  if (!options.empty()) std::memcpy(t + 20, options.data(), options.size());
  if (!tcp.payload.empty()) std::memcpy(t + header, tcp.payload.data(), tcp.payload.size());
  const std::uint64_t pseudo = net::pseudo_header_sum(
      src.ip.family, src.ip.bytes.data(), dst.ip.bytes.data(), 6, static_cast<std::uint32_t>(l4));
  net::store_raw16(t + 16, net::finish(net::sum_bytes(t, l4, pseudo)));
  return out;
}

inline Bytes echo_request() {
  Bytes ping = {0x45, 0,  0, 36, 0, 1, 0, 0, 64, 1, 0, 0, 10, 77, 0, 1, 10, 77,
                0,    10, 8, 0,  0, 0, 0, 7, 0,  1, 1, 2, 3,  4,  5, 6, 7,  8};
  net::store_raw16(ping.data() + 10, net::ipv4_header_checksum(ping.data(), 20));
  net::store_raw16(ping.data() + 22, net::finish(net::sum_bytes(ping.data() + 20, 16)));
  return ping;
}

// The error of a router about `sent`, which it quotes with 8 bytes of TCP.
inline Bytes too_big(const SocketAddress& src, const SocketAddress& dst, std::uint32_t seq,
                     std::uint32_t mtu) {
  const bool v4 = src.ip.family == Family::kIpv4;
  const std::size_t ip = v4 ? 20 : 40;
  Segment segment;
  segment.seq = seq;
  segment.payload = pattern(100);
  const Bytes quoted = make_packet(src, dst, segment);
  Bytes icmp = {static_cast<std::uint8_t>(v4 ? 3 : 2),
                static_cast<std::uint8_t>(v4 ? 4 : 0),
                0,
                0,
                0,
                0,
                0,
                0};
  net::store_be32(icmp.data() + 4, mtu);
  icmp.insert(icmp.end(), quoted.begin(), quoted.begin() + static_cast<std::ptrdiff_t>(ip + 8));
  const IpAddress router = *IpAddress::parse(v4 ? "10.77.0.99" : "fd77::99");
  Bytes out(ip);
  if (v4) {
    out[0] = 0x45;
    net::store_be16(out.data() + 2, static_cast<std::uint16_t>(ip + icmp.size()));
    out[8] = 64;
    out[9] = 1;
    std::memcpy(out.data() + 12, router.bytes.data(), 4);
    std::memcpy(out.data() + 16, src.ip.bytes.data(), 4);
    net::store_raw16(out.data() + 10, net::ipv4_header_checksum(out.data(), 20));
    net::store_raw16(icmp.data() + 2, net::finish(net::sum_bytes(icmp.data(), icmp.size())));
  } else {
    out[0] = 0x60;
    net::store_be16(out.data() + 4, static_cast<std::uint16_t>(icmp.size()));
    out[6] = 58;
    out[7] = 64;
    std::memcpy(out.data() + 8, router.bytes.data(), 16);
    std::memcpy(out.data() + 24, src.ip.bytes.data(), 16);
    const std::uint64_t pseudo =
        net::pseudo_header_sum(Family::kIpv6, out.data() + 8, out.data() + 24, 58,
                               static_cast<std::uint32_t>(icmp.size()));
    net::store_raw16(icmp.data() + 2,
                     net::finish(net::sum_bytes(icmp.data(), icmp.size(), pseudo)));
  }
  out.insert(out.end(), icmp.begin(), icmp.end());
  return out;
}

class MemoryIo final : public packet_io::PacketIo {
 public:
  MemoryIo() {
    options_.driver = "memory";
    options_.addresses = {*IpPrefix::parse("10.77.0.1/24"), *IpPrefix::parse("fd77::1/64")};
  }
  const packet_io::InterfaceOptions& options() const override { return options_; }
  void set_driver(const std::string& driver) { options_.driver = driver; }
  std::uint32_t mtu_bytes() const override { return mtu; }
  int fd() const override { return -1; }
  std::size_t receive(std::span<const packet_io::ReceiveBuffer>,
                      std::span<packet_io::ReceivedPacket>) override {
    return 0;
  }
  std::size_t send(std::span<const packet_io::SendPacket> packets) override {
    std::size_t taken = 0;
    for (const packet_io::SendPacket& packet : packets) {
      if (taken == accept_max) break;
      record(packet);
      ++taken;
    }
    accept_max -= std::min(accept_max, taken);
    return taken;
  }
  void flush() override { ++flushes; }
  void add_local_address(const IpAddress&) override {}
  void remove_local_address(const IpAddress&) override {}
  void release(packet_io::PacketLoan loan) override {
    if (loan != packet_io::kNoPacketLoan) released.push_back(loan);
  }
  void send_back(const packet_io::ReceivedPacket& packet) override {
    const auto* at = reinterpret_cast<const std::uint8_t*>(packet.lent);
    sent_back.emplace_back(at, at + packet.length);
  }
  const packet_io::Counters& counters() const override { return counters_; }
  void set_segmentation(bool on) { options_.segmentation_offload = on; }

  std::deque<Sent> sent;
  std::deque<Bytes> other;  // not TCP
  std::vector<packet_io::PacketLoan> released;
  std::vector<Bytes> sent_back;
  std::uint32_t mtu = 1500;
  std::size_t accept_max = SIZE_MAX;
  int flushes = 0;

 private:
  void record(const packet_io::SendPacket& packet) {
    Bytes bytes;
    for (std::uint32_t i = 0; i < packet.piece_count; ++i) {
      const auto* piece = static_cast<const std::uint8_t*>(packet.pieces[i].iov_base);
      bytes.insert(bytes.end(), piece, piece + packet.pieces[i].iov_len);
    }
    ASSERT_EQ(bytes.size(), packet.length);
    net::ParsedPacket parsed;
    ASSERT_EQ(net::parse_packet({reinterpret_cast<std::byte*>(bytes.data()), bytes.size()}, parsed),
              net::DropReason::kNone);
    if (parsed.l4 != net::L4::kTcp) {
      other.push_back(bytes);
      return;
    }
    const std::uint8_t* l4 = bytes.data() + parsed.l3_header_bytes;
    ASSERT_TRUE(packet.offload.checksum_partial);
    ASSERT_EQ(packet.offload.checksum_start, parsed.l3_header_bytes);
    ASSERT_EQ(net::load_raw16(l4 + 16),
              net::fold(net::pseudo_header_sum(parsed.family, parsed.src, parsed.dst, 6,
                                               parsed.l4_bytes())));
    const net::TcpHeader tcp = net::load_tcp_header(l4);
    Sent out;
    out.src = {parsed.src_address(), tcp.src_port};
    out.dst = {parsed.dst_address(), tcp.dst_port};
    out.tcp.flags = tcp.flags;
    out.tcp.seq = tcp.seq;
    out.tcp.ack = tcp.ack;
    out.tcp.window = tcp.window;
    out.tcp.options.assign(l4 + 20, l4 + tcp.header_bytes);
    out.tcp.payload.assign(l4 + tcp.header_bytes, l4 + parsed.l4_bytes());
    out.offload = packet.offload;
    out.to = packet.to;
    if (packet.offload.segmentation != packet_io::Segmentation::kNone) {
      ASSERT_GT(out.tcp.payload.size(), packet.offload.segment_bytes);
      ASSERT_EQ(packet.offload.header_bytes, parsed.l3_header_bytes + tcp.header_bytes);
    } else {
      ASSERT_LE(bytes.size(), mtu) << "a packet longer than the MTU without segmentation";
    }
    sent.push_back(std::move(out));
  }

  packet_io::InterfaceOptions options_;
  packet_io::Counters counters_;
};

// Records what it is told, in words; and lets a test act inside of a callback.
class Recorder final : public Delegate {
 public:
  struct Conn {
    ConnectionInfo info;
    Bytes received;
    bool fin = false;
    bool closed = false;
    std::uint64_t acked = 0;
    EndReason reason = EndReason::kFinished;
    std::vector<RxPayload> held;
  };

  bool on_accepted(ConnIndex conn, const ConnectionInfo& info) override {
    conns[conn] = Conn{};
    conns[conn].info = info;
    last = conn;
    ++accepted;
    return accept && (!in_accepted || in_accepted(conn));
  }
  void on_connected(ConnIndex conn, const ConnectionInfo& info) override {
    conns[conn] = Conn{};
    conns[conn].info = info;
    last = conn;
    ++connected;
  }
  void on_expected(ConnIndex conn) const override { expected.push_back(conn); }
  bool on_received(ConnIndex conn, RxPayload& payload) override {
    ++offered;
    if (refuse) return false;
    if (payload.piece_count() == 0) ADD_FAILURE() << "an empty payload";
    if (hold) {
      conns[conn].held.push_back(std::move(payload));
      return true;
    }
    std::uint32_t bytes = 0;
    while (!payload.empty()) {
      const RxPayload::Piece piece = payload.pop_front();
      const auto* at = reinterpret_cast<const std::uint8_t*>(piece.bytes.data());
      conns[conn].received.insert(conns[conn].received.end(), at, at + piece.bytes.size());
      bytes += static_cast<std::uint32_t>(piece.bytes.size());
      RxPayload::release(piece.handle);
    }
    if (consume && stack != nullptr) stack->consume(conn, bytes);
    if (in_received) in_received(conn);
    return true;
  }
  void on_fin(ConnIndex conn) override {
    conns[conn].fin = true;
    if (in_fin) in_fin(conn);
  }
  void on_acked(ConnIndex conn, std::uint64_t acked_offset) override {
    EXPECT_GE(acked_offset, conns[conn].acked);
    conns[conn].acked = acked_offset;
    if (in_acked) in_acked(conn);
  }
  bool on_closed(ConnIndex conn, EndReason reason) override {
    EXPECT_FALSE(conns[conn].closed) << "on_closed() twice";
    conns[conn].closed = true;
    conns[conn].reason = reason;
    conns[conn].held.clear();
    ++closed;
    if (in_closed) in_closed(conn);
    return !keep_closed;
  }

  Stack* stack = nullptr;
  bool keep_closed = false;
  bool accept = true, consume = true, refuse = false, hold = false;
  std::function<bool(ConnIndex)> in_accepted;
  std::function<void(ConnIndex)> in_received, in_fin, in_acked, in_closed;
  std::map<ConnIndex, Conn> conns;
  ConnIndex last = 0;
  int accepted = 0, connected = 0, closed = 0, offered = 0;
  mutable std::vector<ConnIndex> expected;
};

inline Bytes syn_options(std::uint16_t mss = 1460, int scale = 7, bool timestamps = false,
                         std::uint32_t ts = 1) {
  Bytes out = {2, 4, static_cast<std::uint8_t>(mss >> 8), static_cast<std::uint8_t>(mss)};
  if (scale >= 0) out.insert(out.end(), {1, 3, 3, static_cast<std::uint8_t>(scale)});
  if (timestamps) {
    out.insert(out.end(), {1, 1, 8, 10, 0, 0, 0, 0, 0, 0, 0, 0});
    net::store_be32(out.data() + out.size() - 8, ts);
  }
  return out;
}

// What a receiver has beyond what it acknowledges: [left, right) (RFC 2018).
using Blocks = std::vector<std::pair<std::uint32_t, std::uint32_t>>;

inline Bytes sack_options(const Blocks& blocks) {
  Bytes out = {1, 1, 5, static_cast<std::uint8_t>(2 + 8 * blocks.size())};
  for (const auto& [left, right] : blocks) {
    out.resize(out.size() + 8);
    net::store_be32(out.data() + out.size() - 8, left);
    net::store_be32(out.data() + out.size() - 4, right);
  }
  return out;
}

inline Bytes ts_options(std::uint32_t value, std::uint32_t echo = 0) {
  Bytes out = {1, 1, 8, 10, 0, 0, 0, 0, 0, 0, 0, 0};
  net::store_be32(out.data() + 4, value);
  net::store_be32(out.data() + 8, echo);
  return out;
}

using net::kTcpAck;
using net::kTcpFin;
using net::kTcpPsh;
using net::kTcpRst;
using net::kTcpSyn;

class StackTest : public ::testing::Test {
 protected:
  static constexpr std::size_t kSlotBytes = packet_io::kReceiveBufferBytesMin;

  void make(const StackOptions& options, std::size_t slots = 256) {
    stack_.reset();
    recorder_ = Recorder{};
    memory_.assign(slots * kSlotBytes, std::byte{0});
    pool_ = std::make_unique<buffer::SlotPool>(memory_, kSlotBytes);
    auto created = Stack::create(options, clock_, *pool_, recorder_);
    ASSERT_TRUE(created.ok()) << created.status().to_string();
    stack_ = std::move(created).value();
    recorder_.stack = stack_.get();
    ASSERT_TRUE(stack_->add_interface(io_).ok());
  }
  void SetUp() override {
    make(StackOptions{
        .connections_max = 1000, .time_wait_max = 100, .heap_bytes_max = std::size_t{64} << 20});
  }
  void TearDown() override {
    recorder_.conns.clear();
    stack_.reset();
    if (pool_ != nullptr) {
      EXPECT_EQ(pool_->free_count(), pool_->slot_count()) << "a receive slot is lost";
    }
  }

  ListenerId listen(const std::string& address = "10.77.0.10:80", std::uint64_t cookie = 7) {
    auto id = stack_->listen(*SocketAddress::parse(address), cookie);
    EXPECT_TRUE(id.ok()) << id.status().to_string();
    return id.ok() ? *id : 0;
  }

  void deliver_bytes(const Bytes& packet, packet_io::Offload offload = {}) {
    const buffer::SlotIndex slot = pool_->acquire();
    ASSERT_NE(slot, buffer::kNoSlot);
    constexpr std::uint32_t kOffset = 10;  // as of a vnet header: odd alignments must do
    std::copy_n(reinterpret_cast<const std::byte*>(packet.data()), packet.size(),
                pool_->data(slot) + kOffset);
    stack_->input(0, slot,
                  {.offset = kOffset,
                   .length = static_cast<std::uint32_t>(packet.size()),
                   .offload = offload});
  }
  // As from an interface that lends: the stack may read `packet` until it releases the loan.
  void deliver_lent(const Bytes& packet, packet_io::PacketLoan loan, packet_io::PeerNumber from = 0,
                    bool others_may_know = false) {
    packet_io::ReceivedPacket received;
    received.length = static_cast<std::uint32_t>(packet.size());
    received.lent = reinterpret_cast<const std::byte*>(packet.data());
    received.loan = loan;
    received.from = from;
    received.others_may_know = others_may_know;
    stack_->input(0, received);
  }
  void deliver(const SocketAddress& src, const SocketAddress& dst, const Segment& segment) {
    deliver_bytes(make_packet(src, dst, segment));
  }

  void advance_ms(std::uint64_t ms, std::uint64_t step_ms = 20) {
    for (std::uint64_t done = 0; done < ms; done += step_ms) {
      clock_.advance_ns(step_ms * 1'000'000);
      if (stack_->next_timer_ns() <= clock_.now_ns()) stack_->on_time();
      stack_->flush();
    }
  }
  std::deque<Sent> take() {
    stack_->flush();
    return std::exchange(io_.sent, {});
  }
  std::uint32_t count(TcpState state) {
    return stack_->state_counts()[static_cast<std::size_t>(state)];
  }

  ManualClock clock_;
  MemoryIo io_;
  Recorder recorder_;
  std::vector<std::byte> memory_;
  std::unique_ptr<buffer::SlotPool> pool_;
  std::unique_ptr<Stack> stack_;
};

// One client's side of a connection, moved by hand.
struct Peer {
  SocketAddress self = *SocketAddress::parse("10.77.0.1:40000");
  SocketAddress other = *SocketAddress::parse("10.77.0.10:80");
  std::uint32_t snd = 1000;  // next sequence number of ours
  std::uint32_t rcv = 0;     // next one expected
  std::uint16_t window = 0xffff;
  bool timestamps = false;
  bool selective = false;  // it says so in its SYN
  std::uint32_t now = 1;
  Blocks blocks = {};  // goes with each segment

  Segment segment(std::uint8_t flags, Bytes payload = {}) const {
    Segment out{.flags = flags,
                .seq = snd,
                .ack = rcv,
                .window = window,
                .options = {},
                .payload = std::move(payload)};
    if (timestamps) out.options = ts_options(now);
    if (!blocks.empty()) {
      const Bytes sack = sack_options(blocks);
      out.options.insert(out.options.end(), sack.begin(), sack.end());
    }
    return out;
  }
};

// StackTest with a listener and the means to open connections to it.
class ConnectedStackTest : public StackTest {
 protected:
  void SetUp() override {
    StackTest::SetUp();
    listen();
    recorder_.stack = stack_.get();
  }
  void send(Peer& peer, std::uint8_t flags, Bytes payload = {}) {
    const std::size_t bytes = payload.size();
    deliver(peer.self, peer.other, peer.segment(flags, std::move(payload)));
    peer.snd += static_cast<std::uint32_t>(bytes) + ((flags & kTcpFin) != 0 ? 1 : 0);
  }
  // The SYN and the stack's answer.
  bool half_open(Peer& peer, int scale = 7, std::uint16_t mss = 1460) {
    Segment syn = peer.segment(kTcpSyn);
    syn.ack = 0;
    syn.options = syn_options(mss, scale, peer.timestamps, peer.now);
    if (peer.selective) syn.options.insert(syn.options.end(), {1, 1, 4, 2});
    deliver(peer.self, peer.other, syn);
    peer.snd += 1;
    const auto sent = take();
    if (sent.size() != 1 || sent[0].tcp.flags != (kTcpSyn | kTcpAck)) return false;
    EXPECT_EQ(sent[0].tcp.ack, peer.snd);
    peer.rcv = sent[0].tcp.seq + 1;
    return true;
  }
  ConnIndex open(Peer& peer, int scale = 7, std::uint16_t mss = 1460) {
    EXPECT_TRUE(half_open(peer, scale, mss));
    send(peer, kTcpAck);
    EXPECT_TRUE(take().empty());
    EXPECT_TRUE(stack_->is_open(recorder_.last));
    return recorder_.last;
  }
};

}  // namespace sanproxy::stack::testing
