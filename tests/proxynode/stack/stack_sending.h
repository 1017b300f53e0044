// What tests of sending share: a client that takes what it is sent.
#pragma once

#include "tests/proxynode/stack/stack_harness.h"

namespace sanproxy::stack::testing {

// A connected client that takes what it is sent.
class SendingTest : public ConnectedStackTest {
 protected:
  // Everything is acknowledged until nothing more comes; returns the stream in order.
  Bytes drain(Peer& peer, std::uint32_t limit_bytes = UINT32_MAX) {
    Bytes stream;
    for (;;) {
      const auto sent = take();
      if (sent.empty()) return stream;
      for (const Sent& packet : sent) accept(peer, packet, stream);
      if (stream.size() >= limit_bytes) return stream;
      send(peer, kTcpAck);
    }
  }
  // What a receiver does with one packet; out-of-order ones are dropped.
  void accept(Peer& peer, const Sent& packet, Bytes& stream) {
    const std::int32_t skip = static_cast<std::int32_t>(peer.rcv - packet.tcp.seq);
    const auto bytes = static_cast<std::int32_t>(packet.payload_bytes());
    if (skip < 0 || skip >= bytes) return;
    stream.insert(stream.end(), packet.tcp.payload.begin() + skip, packet.tcp.payload.end());
    peer.rcv += static_cast<std::uint32_t>(bytes - skip);
  }
  // What a receiver takes that answers each burst, in no more than 2,000 ticks.
  Bytes receive_in_time(Peer& peer, std::size_t bytes) {
    Bytes stream;
    for (int i = 0; i < 2000 && stream.size() < bytes; ++i) {
      advance_ms(20);
      const auto sent = take();
      for (const Sent& packet : sent) accept(peer, packet, stream);
      if (!sent.empty()) send(peer, kTcpAck);
    }
    return stream;
  }
  // Grows the congestion window well beyond a super-segment.
  void warm_up(Peer& peer, ConnIndex conn) {
    static const Bytes data = pattern(600'000);
    ASSERT_TRUE(stack_->write(conn, as_span(data), WriteMode::kReference).ok());
    ASSERT_EQ(drain(peer).size(), data.size());
  }
};

}  // namespace sanproxy::stack::testing
