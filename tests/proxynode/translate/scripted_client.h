// A TCP client (or server) moved by hand, segment by segment, without timers.
//
// Role: sends what it is given as the other side's window allows, acknowledges what it gets, and
//   remembers how it ended. Lost data is sent again only when the test says so.
#pragma once

#include <algorithm>
#include <deque>
#include <utility>

#include "tests/proxynode/stack/stack_harness.h"

namespace sanproxy::translate::testing {

using net::kTcpAck;
using net::kTcpFin;
using net::kTcpPsh;
using net::kTcpRst;
using net::kTcpSyn;
using stack::testing::Bytes;
using stack::testing::Segment;
using stack::testing::Sent;

class Client {
 public:
  SocketAddress self, other;
  std::size_t segment_bytes = 1460;
  std::uint16_t window = 0xffff;  // scaled by 7
  bool acknowledge = true;        // else it is silent about what it gets

  Bytes received;
  bool connected = false;
  bool fin = false;    // the other side's
  bool reset = false;  // RST came
  bool finished() const { return fin && fin_acked_; }
  std::uint64_t acknowledged() const { return una_offset_; }  // of what we sent
  std::uint64_t window_bytes() const { return peer_window_; }
  std::uint32_t sequence() const { return seq_of(sent_offset_) + (fin_sent_ ? 1 : 0); }
  std::uint32_t next_expected() const { return rcv_; }

  void connect() {
    Segment syn{.flags = kTcpSyn, .seq = iss_, .options = stack::testing::syn_options(1460, 7)};
    queue(syn);
  }
  // Answers a SYN of the other side.
  void take_syn(const Sent& syn) {
    self = syn.dst;
    other = syn.src;
    rcv_ = syn.tcp.seq + 1;
    parse_scale(syn.tcp.options);
    queue({.flags = kTcpSyn | kTcpAck,
           .seq = iss_,
           .ack = rcv_,
           .options = stack::testing::syn_options(1460, 7)});
    connected = true;
  }
  void send(const Bytes& bytes) { outbox_.insert(outbox_.end(), bytes.begin(), bytes.end()); }
  void shut() { fin_wanted_ = true; }
  // At what was acknowledged and at what was sent: one of the two is what the stack expects.
  void send_reset() {
    outgoing_.clear();
    queue({.flags = kTcpRst, .seq = seq_of(una_offset_) + (fin_acked_ ? 1 : 0), .ack = rcv_});
    queue({.flags = kTcpRst, .seq = sequence(), .ack = rcv_});
    reset = true;
  }
  void send_again() {
    sent_offset_ = una_offset_;
    fin_sent_ = fin_acked_;
  }
  void send_raw(Segment segment) { queue(std::move(segment)); }
  void acknowledge_now() { queue(plain(kTcpAck)); }

  void take(const Sent& packet) {
    if ((packet.tcp.flags & kTcpRst) != 0) {
      reset = true;
      outgoing_.clear();
      return;
    }
    if (reset) return;
    if ((packet.tcp.flags & kTcpSyn) != 0) {
      rcv_ = packet.tcp.seq + 1;
      parse_scale(packet.tcp.options);
      connected = true;
      peer_window_ = packet.tcp.window;
      acknowledge_now();
      return;
    }
    take_ack(packet);
    take_data(packet);
  }
  // The segments that are due, each once.
  std::deque<Segment> produce() {
    if (connected && !reset) push_data();
    return std::exchange(outgoing_, {});
  }

 private:
  void queue(Segment segment) {
    segment.window = window;
    outgoing_.push_back(std::move(segment));
  }
  Segment plain(std::uint8_t flags) const {
    return {.flags = flags, .seq = sequence(), .ack = rcv_};
  }
  std::uint32_t seq_of(std::uint64_t offset) const {
    return iss_ + 1 + static_cast<std::uint32_t>(offset);
  }
  void parse_scale(const Bytes& options) {
    for (std::size_t i = 0; i + 1 < options.size() && options[i] != 0;) {
      if (options[i] == 1) {
        ++i;
        continue;
      }
      if (options[i] == 3) peer_scale_ = options[i + 2];
      i += options[i + 1];
    }
  }
  void take_ack(const Sent& packet) {
    const std::uint32_t step = packet.tcp.ack - seq_of(una_offset_);
    const std::uint64_t most = outbox_.size() - una_offset_ + (fin_wanted_ ? 1 : 0);
    if (step > most) return;  // old
    const std::uint64_t bytes = std::min<std::uint64_t>(step, outbox_.size() - una_offset_);
    if (step > bytes) fin_acked_ = true;
    una_offset_ += bytes;
    sent_offset_ = std::max(sent_offset_, una_offset_);
    peer_window_ = std::uint64_t{packet.tcp.window} << peer_scale_;
  }
  void take_data(const Sent& packet) {
    const bool has_fin = (packet.tcp.flags & kTcpFin) != 0;
    const std::uint32_t length = packet.payload_bytes() + (has_fin ? 1 : 0);
    if (length == 0) return;
    if (!acknowledge) return;
    const std::uint32_t skip = rcv_ - packet.tcp.seq;
    if (skip > length || fin) {
      acknowledge_now();  // old, or a gap in front
      return;
    }
    const auto from =
        packet.tcp.payload.begin() +
        std::min<std::ptrdiff_t>(skip, packet.tcp.payload.end() - packet.tcp.payload.begin());
    received.insert(received.end(), from, packet.tcp.payload.end());
    rcv_ = packet.tcp.seq + length;
    fin = fin || has_fin;
    acknowledge_now();
  }
  void push_data() {
    while (sent_offset_ < outbox_.size() && sent_offset_ - una_offset_ < peer_window_) {
      const std::uint64_t room = peer_window_ - (sent_offset_ - una_offset_);
      const std::size_t bytes = static_cast<std::size_t>(
          std::min<std::uint64_t>({segment_bytes, outbox_.size() - sent_offset_, room}));
      Segment segment = plain(kTcpAck | kTcpPsh);
      const auto at = outbox_.begin() + static_cast<std::ptrdiff_t>(sent_offset_);
      segment.payload.assign(at, at + static_cast<std::ptrdiff_t>(bytes));
      queue(std::move(segment));
      sent_offset_ += bytes;
    }
    if (fin_wanted_ && !fin_sent_ && sent_offset_ == outbox_.size()) {
      queue(plain(kTcpAck | kTcpFin));
      fin_sent_ = true;
    }
  }

  std::uint32_t iss_ = 0xffff'f000u;  // wraps soon
  std::uint32_t rcv_ = 0;
  std::uint8_t peer_scale_ = 0;
  std::uint64_t peer_window_ = 0;
  Bytes outbox_;
  std::uint64_t sent_offset_ = 0, una_offset_ = 0;
  bool fin_wanted_ = false, fin_sent_ = false, fin_acked_ = false;
  std::deque<Segment> outgoing_;
};

}  // namespace sanproxy::translate::testing
