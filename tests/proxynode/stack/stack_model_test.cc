// A small model of a TCP client behind a network that loses, repeats and reorders: everything
// arrives, whatever the seed. A failure prints the seed that replays it.
#include <random>

#include "tests/proxynode/stack/stack_harness.h"

namespace sanproxy::stack::testing {
namespace {

struct Weather {
  const char* name;
  double loss = 0, repeat = 0, reorder = 0;
  std::uint32_t rounds_late = 0;  // of a packet that is held back
  double shorten = 0;             // of a super-segment only the first packets get through
  double window = 0;      // the client's window changes in a round, to nothing or little, too
  double too_big = 0;     // a router tells in a round of a smaller MTU
  double renege = 0;      // the client drops in a round what it has out of order
  double lie = 0;         // a segment says of bytes at random that they have come
  double full = 0;        // the device takes next to nothing in a round
  double refuse = 0;      // the application takes nothing in a round
  double slow = 0;        // and gives no window back
  std::size_t slots = 0;  // that the interface has; 0: ample
  bool lends = false;     // the interface lends its packets
};

// Sends `up`, takes `down`; go-back-n on a timer, a fixed window. Keeps what comes out of order if
// it is to acknowledge selectively.
class Client {
 public:
  Client(Peer peer, Bytes up, std::size_t down_bytes)
      : peer_(peer),
        up_(std::move(up)),
        down_bytes_(down_bytes),
        base_(peer_.snd),
        first_(peer_.rcv) {}

  void on_packet(Sent packet) {
    if (packet.has(kTcpRst)) reset = true;
    const std::int64_t room =
        std::int64_t{peer_.window} * 128 + static_cast<std::int32_t>(peer_.rcv - packet.tcp.seq);
    if (room < packet.payload_bytes()) {  // what the window does not take
      packet.tcp.payload.resize(static_cast<std::size_t>(std::max<std::int64_t>(room, 0)));
      packet.tcp.flags = static_cast<std::uint8_t>(packet.tcp.flags & ~kTcpFin);
      ack_due_ = true;
    }
    const std::int32_t acked = static_cast<std::int32_t>(packet.tcp.ack - base_);
    if (acked > static_cast<std::int32_t>(acked_)) acked_ = static_cast<std::uint32_t>(acked);
    window_ = std::uint32_t{packet.tcp.window} << 7;
    const std::int32_t skip = static_cast<std::int32_t>(peer_.rcv - packet.tcp.seq);
    const auto bytes = static_cast<std::int32_t>(packet.payload_bytes());
    if (skip > 0 && skip == bytes + 1 && packet.has(kTcpFin)) ack_due_ = true;
    if (skip >= 0 && skip < bytes) {
      received.insert(received.end(), packet.tcp.payload.begin() + skip, packet.tcp.payload.end());
      peer_.rcv += static_cast<std::uint32_t>(bytes - skip);
      take_later();
    } else if (skip < 0 && bytes > 0 && peer_.selective) {
      keep(packet.tcp.seq - first_, packet.tcp.payload);
    }
    say_later();
    if (packet.tcp.seq + packet.payload_bytes() == peer_.rcv && packet.has(kTcpFin) && !fin_seen) {
      fin_seen = true;
      peer_.rcv += 1;
    }
    if (bytes > 0 || packet.has(kTcpFin)) ack_due_ = true;
  }

  // What it sends in this round.
  std::vector<Segment> step(std::uint32_t round) {
    std::vector<Segment> out;
    const auto total = static_cast<std::uint32_t>(up_.size());
    if (acked_ != last_acked_) {
      last_acked_ = acked_;
      timer_ = round;
    }
    if (round - timer_ > 15 && sent_ > acked_) {  // 300 ms
      sent_ = acked_;
      timer_ = round;
    }
    if (sent_ < acked_) sent_ = acked_;
    if (round - timer_ > 15 && sent_ == acked_ && sent_ < total && window_ == 0) {
      out.push_back(at(sent_, 0, false));  // a probe of the closed window
      out.back().seq -= 1;
      timer_ = round;
    }
    for (int i = 0; i < 8 && sent_ < total && sent_ - acked_ < window_; ++i) {
      const std::uint32_t bytes =
          std::min({total - sent_, std::uint32_t{3000}, window_ - (sent_ - acked_)});
      out.push_back(at(sent_, bytes, false));
      sent_ += bytes;
    }
    // Our FIN when everything of both sides is through.
    if (sent_ == total && received.size() == down_bytes_ && sent_ <= total) {
      out.push_back(at(total, 0, true));
      sent_ = total + 1;
    }
    if (out.empty() && ack_due_) out.push_back(at(sent_, 0, false));
    ack_due_ = false;
    return out;
  }
  void set_window(std::uint16_t window) {
    peer_.window = window;
    ack_due_ = true;
  }
  void renege() {
    later_.clear();
    peer_.blocks.clear();
  }
  bool finished() const { return fin_seen && acked_ == up_.size() + 1; }

  Bytes received;
  bool fin_seen = false, reset = false;
  const Peer& peer() const { return peer_; }

 private:
  void keep(std::uint32_t offset, const Bytes& bytes) {
    newest_ = offset;
    Bytes& kept = later_[offset];
    if (kept.size() < bytes.size()) kept = bytes;
  }
  void take_later() {
    while (!later_.empty() && later_.begin()->first <= received.size()) {
      const auto& [offset, bytes] = *later_.begin();
      const std::size_t had = received.size() - offset;
      if (had < bytes.size()) {
        received.insert(received.end(), bytes.begin() + static_cast<std::ptrdiff_t>(had),
                        bytes.end());
      }
      later_.erase(later_.begin());
    }
    peer_.rcv = first_ + static_cast<std::uint32_t>(received.size()) + (fin_seen ? 1 : 0);
  }
  // The newest block first, three in all: what fits beside timestamps.
  void say_later() {
    Blocks all;
    for (const auto& [offset, bytes] : later_) {
      const std::uint32_t end = offset + static_cast<std::uint32_t>(bytes.size());
      if (!all.empty() && offset <= all.back().second) {
        all.back().second = std::max(all.back().second, end);
      } else {
        all.emplace_back(offset, end);
      }
    }
    std::stable_partition(all.begin(), all.end(), [&](const auto& block) {
      return block.first <= newest_ && newest_ < block.second;
    });
    if (all.size() > 3) all.resize(3);
    for (auto& [left, right] : all) {
      left += first_;
      right += first_;
    }
    peer_.blocks = all;
  }
  Segment at(std::uint32_t offset, std::uint32_t bytes, bool fin) const {
    Segment out = peer_.segment(static_cast<std::uint8_t>(fin ? kTcpAck | kTcpFin : kTcpAck));
    out.seq = base_ + offset;
    out.payload.assign(up_.begin() + offset, up_.begin() + offset + bytes);
    return out;
  }

  Peer peer_;
  Bytes up_;
  std::size_t down_bytes_;
  std::uint32_t base_, first_;
  std::map<std::uint32_t, Bytes> later_;  // by offset
  std::uint32_t newest_ = 0;
  std::uint32_t sent_ = 0, acked_ = 0, last_acked_ = 0, timer_ = 0, window_ = 65535;
  bool ack_due_ = true;
};

class StackModel : public ConnectedStackTest, public ::testing::WithParamInterface<Weather> {
 protected:
  // Packets wait here, each until its round.
  template <typename T>
  struct Link {
    std::vector<std::pair<std::uint32_t, T>> waiting;
    void put(const Weather& weather, std::mt19937& random, std::uint32_t round, const T& packet) {
      std::uniform_real_distribution<double> chance(0, 1);
      if (chance(random) < weather.loss) return;
      const bool late = chance(random) < weather.reorder;
      waiting.emplace_back(round + (late ? weather.rounds_late : 0), packet);
      if (chance(random) < weather.repeat) waiting.emplace_back(round + 1, packet);
    }
    std::vector<T> due(std::uint32_t round) {
      std::vector<T> out;
      std::erase_if(waiting, [&](auto& entry) {
        if (entry.first > round) return false;
        out.push_back(std::move(entry.second));
        return true;
      });
      return out;
    }
  };

  // Blocks around what is under way: of what did not come, overlapping, and of what was never sent.
  static void lie(std::mt19937& random, Segment& segment, const Peer& client) {
    Blocks blocks;
    for (std::size_t count = 1 + random() % 3; blocks.size() < count;) {
      const auto left = static_cast<std::uint32_t>(client.rcv - 3000 + random() % 60'000);
      blocks.emplace_back(left, static_cast<std::uint32_t>(left + random() % 30'000 - 100));
    }
    segment.options = client.timestamps ? ts_options(client.now) : Bytes{};
    const Bytes sack = sack_options(blocks);
    segment.options.insert(segment.options.end(), sack.begin(), sack.end());
  }

  void lend(Bytes packet) {
    for (const packet_io::PacketLoan loan : std::exchange(io_.released, {})) lent_.erase(loan);
    const packet_io::PacketLoan loan = ++loan_;
    deliver_lent(lent_[loan] = std::move(packet), loan);
  }

  void run(std::uint32_t seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    std::mt19937 random(seed);
    Peer peer;
    peer.timestamps = seed % 2 == 0;
    peer.selective = seed % 4 < 2;
    peer.snd = static_cast<std::uint32_t>(random());  // wraps around now and then
    peer.self.port = static_cast<std::uint16_t>(20'000 + seed);
    const ConnIndex conn = open(peer);
    const Bytes up = pattern(150'000 + random() % 50'000, seed);
    const Bytes down = pattern(300'000 + random() % 100'000, seed + 1);
    Client client(peer, up, down.size());
    Link<Sent> to_client;
    Link<Segment> to_stack;
    std::uniform_real_distribution<double> chance(0, 1);
    std::uint32_t mtu = 1500;
    std::size_t written = 0, consumed = 0;
    bool closing = false;
    recorder_.consume = GetParam().slow == 0;
    const bool early = seed % 3 == 0;  // our end comes with the last byte, and the client's later
    for (std::uint32_t round = 0; round < 60'000; ++round) {
      while (written < down.size()) {
        const std::size_t bytes =
            std::min<std::size_t>(1 + random() % 63'000, down.size() - written);
        const WriteMode mode = bytes < 500 ? WriteMode::kCopy : WriteMode::kReference;
        if (!stack_->write(conn, as_span(down).subspan(written, bytes), mode).ok()) break;
        written += bytes;
      }
      recorder_.refuse = chance(random) < GetParam().refuse;
      const std::size_t taken = recorder_.conns[conn].received.size();
      const bool ending = recorder_.conns[conn].fin && written == down.size();
      if (!recorder_.consume && (ending || chance(random) >= GetParam().slow)) {
        const std::size_t bytes = ending ? taken - consumed : random() % (taken - consumed + 1);
        stack_->consume(conn, static_cast<std::uint32_t>(bytes));
        consumed += bytes;
      }
      if ((recorder_.conns[conn].fin || early) && written == down.size() && !closing) {
        closing = true;
        if (early) {
          ASSERT_TRUE(stack_->shutdown_send(conn).ok());
        } else {
          stack_->close(conn);
        }
      }
      if (chance(random) < GetParam().window) {
        constexpr std::array<std::uint16_t, 6> kWindows{0, 1, 5, 12, 100, 511};
        client.set_window(kWindows[random() % kWindows.size()]);
      }
      if (chance(random) < GetParam().renege) client.renege();
      io_.accept_max = chance(random) < GetParam().full ? random() % 4 : SIZE_MAX;
      auto sent = take();
      io_.accept_max = SIZE_MAX;
      if (!sent.empty() && mtu > 600 && chance(random) < GetParam().too_big) {
        mtu -= static_cast<std::uint32_t>(random() % 90);
        deliver_bytes(too_big(peer.other, peer.self, sent.back().tcp.seq, mtu));
      }
      for (Sent& packet : sent) {
        if (packet.offload.segment_bytes != 0 && chance(random) < GetParam().shorten) {
          const std::size_t whole = packet.payload_bytes() / packet.offload.segment_bytes;
          packet.tcp.payload.resize(random() % (whole + 1) * packet.offload.segment_bytes);
          packet.tcp.flags = static_cast<std::uint8_t>(packet.tcp.flags & ~kTcpFin);
        }
        to_client.put(GetParam(), random, round, packet);
      }
      for (const Sent& packet : to_client.due(round)) client.on_packet(packet);
      for (Segment& segment : client.step(round)) {
        if (peer.selective && chance(random) < GetParam().lie) lie(random, segment, client.peer());
        to_stack.put(GetParam(), random, round, segment);
      }
      for (const Segment& segment : to_stack.due(round)) {
        if (GetParam().lends) {
          lend(make_packet(peer.self, peer.other, segment));
        } else {
          deliver(peer.self, peer.other, segment);
        }
      }
      advance_ms(20);
      if (recorder_.conns[conn].closed) break;
    }
    EXPECT_TRUE(recorder_.conns[conn].closed) << "it hangs";
    EXPECT_EQ(recorder_.conns[conn].reason, EndReason::kFinished);
    EXPECT_TRUE(recorder_.conns[conn].received == up);
    EXPECT_TRUE(client.received == down);
    EXPECT_FALSE(client.reset);
    recorder_.conns.clear();
    take();
  }

  std::map<packet_io::PacketLoan, Bytes> lent_;
  packet_io::PacketLoan loan_ = 0;
};

TEST_P(StackModel, everything_arrives_in_order) {
  if (GetParam().slow != 0) {  // a window that closes
    make({.connections_max = 10,
          .receive_window_bytes = 64 * 1024,
          .heap_bytes_max = std::size_t{8} << 20},
         GetParam().slots != 0 ? GetParam().slots : 256);
    listen();
  }
  for (std::uint32_t seed = 1; seed <= 12 && !HasFailure(); ++seed) run(seed);
  EXPECT_EQ(stack_->open_connections(), 0u);
}

INSTANTIATE_TEST_SUITE_P(
    Networks, StackModel,
    ::testing::Values(
        Weather{"fair", 0, 0, 0, 0}, Weather{"reordering", 0, 0, 0.1, 3},
        Weather{"repeating", 0, 0.2, 0.05, 2}, Weather{"losing", 0.02, 0, 0, 0},
        Weather{"bad", 0.1, 0.1, 0.1, 5}, Weather{"awful", 0.3, 0.1, 0.2, 4},
        Weather{"policed", 0, 0, 0, 0, 0.5}, Weather{"tight", 0, 0, 0, 0, 0, 0.2},
        Weather{"narrowing", 0.02, 0, 0.1, 3, 0.1, 0, 0.05},
        Weather{"worst", 0.05, 0.05, 0.1, 4, 0.3, 0.1, 0.02},
        Weather{"forgetful", 0.05, 0.02, 0.1, 4, 0.1, 0, 0, 0.05},
        Weather{"lying", 0.02, 0.02, 0.05, 3, 0.1, 0, 0.01, 0.02, 0.1, 0.1},
        Weather{.name = "refusing", .refuse = 0.8, .slow = 0.5},
        Weather{.name = "slow", .loss = 0.02, .reorder = 0.1, .rounds_late = 3, .slow = 0.9},
        Weather{.name = "short",
                .loss = 0.05,
                .reorder = 0.2,
                .rounds_late = 4,
                .refuse = 0.5,
                .slow = 0.5,
                .slots = 10},
        Weather{.name = "lent",
                .loss = 0.05,
                .repeat = 0.05,
                .reorder = 0.2,
                .rounds_late = 4,
                .refuse = 0.5,
                .slow = 0.5,
                .lends = true}),
    [](const auto& one) { return one.param.name; });

}  // namespace
}  // namespace sanproxy::stack::testing
