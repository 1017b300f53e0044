// lossy_relay: a bad link between two interfaces, for tests. TCP over IPv4 and IPv6 is lost,
// repeated, delayed, turned round, spoiled, cut into fragments, held in a short queue, and answered
// where it is too long; all else (ARP, neighbour discovery) passes.
//
//   lossy_relay --a IFACE --b IFACE --seed N --a-to-b FAULTS --b-to-a FAULTS
//
// FAULTS is KEY=VALUE,...; the keys are in Faults. What happens to the n-th packet of a direction
// depends on the seed, the direction and n alone. Both ends must have their offloads off (ethtool
// -K IFACE tx off tso off gso off): a frame that is longer than the interface's MTU ends the
// program with 1. Prints "ready" when it passes frames, and on SIGTERM what it did, one line a
// direction.
#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <queue>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "netnode/net/checksum.h"
#include "netnode/net/ethernet.h"
#include "netnode/net/icmp_error.h"
#include "netnode/net/packet.h"

namespace {

namespace net = sanproxy::net;

using Frame = std::vector<std::uint8_t>;

struct Faults {
  double loss = 0;       // probability that losing begins with a frame
  double burst = 1;      // and of how many it takes along on average
  double duplicate = 0;  // probability
  double corrupt = 0;    // of one bit, which every checksum finds
  double reorder = 0;    // of being late by reorder_us
  double reorder_us = 2000;
  double delay_us = 0;
  double jitter_us = 0;  // uniform, on top; frames stay in order
  double rate = 0;       // bytes a second; 0: no bound
  double queue =
      20'000;          // bytes that wait for it or, of a policer, may come at once; more are lost
  double policer = 0;  // 1: nothing waits, what exceeds the rate is lost
  double blackout_every_ms = 0;  // so often
  double blackout_ms = 0;        // nothing passes for so long
  double mtu = 0;  // longer ones are lost and answered with an ICMP error; IPv6: from 1280 on
  double mtu_after_ms = 0;  // from then on
  double fragment = 0;      // IP packets with more bytes behind the IP header are cut to this
};

Faults parse(const std::string& text) {
  Faults out;
  const std::map<std::string, double*> keys = {{"loss", &out.loss},
                                               {"burst", &out.burst},
                                               {"duplicate", &out.duplicate},
                                               {"corrupt", &out.corrupt},
                                               {"reorder", &out.reorder},
                                               {"reorder_us", &out.reorder_us},
                                               {"delay_us", &out.delay_us},
                                               {"jitter_us", &out.jitter_us},
                                               {"rate", &out.rate},
                                               {"queue", &out.queue},
                                               {"policer", &out.policer},
                                               {"blackout_every_ms", &out.blackout_every_ms},
                                               {"blackout_ms", &out.blackout_ms},
                                               {"mtu", &out.mtu},
                                               {"mtu_after_ms", &out.mtu_after_ms},
                                               {"fragment", &out.fragment}};
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find(',', at), text.size());
    const std::size_t equals = text.find('=', at);
    const auto key = equals < end ? keys.find(text.substr(at, equals - at)) : keys.end();
    if (key == keys.end()) throw std::runtime_error("not understood: " + text.substr(at, end - at));
    *key->second = std::stod(text.substr(equals + 1, end - equals - 1));
    at = end + 1;
  }
  return out;
}

std::uint64_t now_ns() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000 +
         static_cast<std::uint64_t>(now.tv_nsec);
}

std::uint64_t us(double microseconds) { return static_cast<std::uint64_t>(microseconds * 1000); }

int open_socket(const std::string& name) {
  const int fd = socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, htons(ETH_P_ALL));
  sockaddr_ll address{};
  address.sll_family = AF_PACKET;
  address.sll_protocol = htons(ETH_P_ALL);
  address.sll_ifindex = static_cast<int>(if_nametoindex(name.c_str()));
  const int on = 1, buffer_bytes = 8 << 20;
  if (fd < 0 || address.sll_ifindex == 0 ||
      setsockopt(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &on, sizeof(on)) != 0 ||
      setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &buffer_bytes, sizeof(buffer_bytes)) != 0 ||
      bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    throw std::runtime_error("cannot open " + name);
  }
  return fd;
}

// Cuts an unfragmented packet as its sender would: so IPv6 too.
std::vector<Frame> cut(const Frame& frame, const net::ParsedPacket& parsed, std::size_t bytes,
                       std::uint32_t id) {
  constexpr std::size_t kLink = net::kEthernetHeaderBytes;
  const bool v4 = parsed.family == sanproxy::Family::kIpv4;
  const std::size_t header = v4 ? parsed.l3_header_bytes : net::kIpv6HeaderBytes;
  const std::size_t payload = parsed.total_bytes - header;
  std::vector<Frame> out;
  for (std::size_t from = 0; from < payload; from += bytes) {
    const std::size_t to = std::min(from + bytes, payload);
    const bool more = to < payload;
    const auto begin = frame.begin() + static_cast<std::ptrdiff_t>(kLink + header);
    Frame one(frame.begin(), begin);
    if (!v4) {
      const std::uint8_t next = std::exchange(one[kLink + 6], std::uint8_t{44});
      const std::size_t at = one.size();
      one.resize(at + 8);
      one[at] = next;
      net::store_be16(&one[at + 2], static_cast<std::uint16_t>(from | (more ? 1U : 0U)));
      net::store_be32(&one[at + 4], id);
    }
    one.insert(one.end(), begin + static_cast<std::ptrdiff_t>(from),
               begin + static_cast<std::ptrdiff_t>(to));
    std::uint8_t* const ip = &one[kLink];
    const std::size_t total = one.size() - kLink;
    if (v4) {
      net::store_be16(ip + 2, static_cast<std::uint16_t>(total));
      net::store_be16(ip + 4, static_cast<std::uint16_t>(id));
      net::store_be16(ip + 6, static_cast<std::uint16_t>(from / 8 | (more ? 0x2000U : 0U)));
      net::store_raw16(ip + 10, 0);
      net::store_raw16(ip + 10, net::ipv4_header_checksum(ip, header));
    } else {
      net::store_be16(ip + 4, static_cast<std::uint16_t>(total - net::kIpv6HeaderBytes));
    }
    out.push_back(std::move(one));
  }
  return out;
}

// One way of the link.
class Direction {
 public:
  Direction(int in_fd, int out_fd, const Faults& faults, std::uint64_t seed)
      : in_fd_(in_fd), out_fd_(out_fd), faults_(faults), random_(seed), start_ns_(now_ns()) {}

  void take(Frame frame) {
    const std::span<const std::byte> packet = std::as_bytes(
        std::span(frame).subspan(std::min<std::size_t>(frame.size(), net::kEthernetHeaderBytes)));
    net::ParsedPacket parsed;
    if (net::parse_packet(packet, parsed) != net::DropReason::kNone ||
        parsed.protocol != net::kProtocolTcp) {
      send(frame);
      return;
    }
    if (faults_.mtu > 0 && parsed.total_bytes > mtu(parsed) &&
        age_ms(now_ns()) >= faults_.mtu_after_ms) {
      answer(frame, packet, parsed);
    } else if (faults_.fragment > 0 && !parsed.fragment && parsed.l4_bytes() > faults_.fragment) {
      for (Frame& one : cut(frame, parsed, static_cast<std::size_t>(faults_.fragment), ++id_)) {
        harm(std::move(one));
      }
    } else {
      harm(std::move(frame));
    }
  }

  void deliver(std::uint64_t now) {
    for (; !waiting_.empty() && waiting_.top().due_ns <= now; waiting_.pop()) {
      send(waiting_.top().frame);
    }
  }

  std::uint64_t next_ns() const { return waiting_.empty() ? UINT64_MAX : waiting_.top().due_ns; }

  void report(const char* name) const {
    std::printf(
        "%s: %lu passed, %lu lost, %lu beyond the queue, %lu in blackouts, %lu twice, "
        "%lu late, %lu spoiled, %lu too long\n",
        name, sent_, lost_, beyond_, dark_, twice_, late_, spoiled_, long_);
  }

 private:
  // A burst is over when nothing came for so long: it would lose one lonely retransmission after
  // the other, until its sender's timer has backed off to minutes.
  static constexpr std::uint64_t kBurstGapNs = 50'000'000;
  // Of a packet in fragments one at most is spoiled: the same bit of two words, one set and one
  // cleared, goes unseen by TCP's checksum.
  static constexpr std::uint64_t kFragmentsMax = 8;

  struct Waiting {
    std::uint64_t due_ns;
    std::uint64_t number;
    Frame frame;
    bool operator<(const Waiting& other) const {
      return due_ns != other.due_ns ? due_ns > other.due_ns : number > other.number;
    }
  };

  std::uint32_t mtu(const net::ParsedPacket& parsed) const {
    const auto bytes = static_cast<std::uint32_t>(faults_.mtu);
    return parsed.family == sanproxy::Family::kIpv4 ? bytes : std::max(bytes, 1280U);
  }

  void answer(const Frame& frame, std::span<const std::byte> packet,
              const net::ParsedPacket& parsed) {
    ++long_;
    Frame error(net::kEthernetHeaderBytes + net::kPacketTooBigBytesMax);
    std::copy_n(frame.begin() + 6, 6, error.begin());
    std::copy_n(frame.begin(), 6, error.begin() + 6);
    std::copy_n(frame.begin() + 12, 2, error.begin() + 12);
    const std::size_t bytes = net::build_packet_too_big(
        packet, parsed, mtu(parsed),
        std::as_writable_bytes(std::span(error).subspan(net::kEthernetHeaderBytes)));
    if (bytes != 0) (void)::send(in_fd_, error.data(), net::kEthernetHeaderBytes + bytes, 0);
  }

  double age_ms(std::uint64_t now) const { return static_cast<double>(now - start_ns_) / 1e6; }

  // As many draws for each frame, whatever becomes of it: what the next one meets does not depend
  // on it.
  void harm(Frame frame) {
    std::array<double, 6> chance{};
    for (double& one : chance) one = std::uniform_real_distribution<double>(0, 1)(random_);
    const std::uint64_t bit = random_();
    const std::uint64_t now = now_ns();
    const double ms = age_ms(now);
    if (faults_.blackout_every_ms > 0 && std::fmod(ms, faults_.blackout_every_ms) >
                                             faults_.blackout_every_ms - faults_.blackout_ms) {
      ++dark_;
      return;
    }
    if (now - harmed_ns_ > kBurstGapNs) losing_ = false;
    harmed_ns_ = now;
    losing_ = losing_ ? chance[0] > 1 / faults_.burst : chance[0] < faults_.loss;
    if (losing_) {
      ++lost_;
      return;
    }
    std::uint64_t due = 0;
    if (!admit(frame.size(), now, due)) {
      ++beyond_;
      return;
    }
    due += us(faults_.delay_us + faults_.jitter_us * chance[1]);
    if (chance[2] < faults_.reorder) {
      ++late_;
      due += us(faults_.reorder_us);
    } else {
      due = last_due_ns_ = std::max(due, last_due_ns_);
    }
    ++since_spoiled_;
    if (chance[3] < faults_.corrupt && since_spoiled_ > kFragmentsMax) {
      ++spoiled_;
      since_spoiled_ = 0;
      const std::size_t bits = (frame.size() - net::kEthernetHeaderBytes) * 8;
      frame[net::kEthernetHeaderBytes + bit % bits / 8] ^=
          static_cast<std::uint8_t>(1U << (bit % 8));
    }
    if (chance[4] < faults_.duplicate) {
      ++twice_;
      waiting_.push({due + us(1000 * chance[5]), ++number_, frame});
    }
    waiting_.push({due, ++number_, std::move(frame)});
  }

  // Whether the queue takes it, and when it leaves.
  bool admit(std::size_t bytes, std::uint64_t now, std::uint64_t& leaves_ns) {
    leaves_ns = now;
    if (faults_.rate <= 0) return true;
    busy_until_ns_ = std::max(busy_until_ns_, now);
    const double waiting = static_cast<double>(busy_until_ns_ - now) * faults_.rate / 1e9;
    if (waiting + static_cast<double>(bytes) > faults_.queue) return false;
    busy_until_ns_ += static_cast<std::uint64_t>(static_cast<double>(bytes) / faults_.rate * 1e9);
    if (faults_.policer == 0) leaves_ns = busy_until_ns_;
    return true;
  }

  void send(const Frame& frame) {
    if (::send(out_fd_, frame.data(), frame.size(), 0) >= 0) ++sent_;
  }

  int in_fd_, out_fd_;
  Faults faults_;
  std::mt19937_64 random_;
  std::uint64_t start_ns_;
  std::priority_queue<Waiting> waiting_;
  std::uint64_t since_spoiled_ = kFragmentsMax;
  std::uint64_t number_ = 0, last_due_ns_ = 0, busy_until_ns_ = 0;
  std::uint32_t id_ = 0;
  bool losing_ = false;
  std::uint64_t harmed_ns_ = 0;  // the last frame
  std::uint64_t sent_ = 0, lost_ = 0, beyond_ = 0, dark_ = 0, twice_ = 0, late_ = 0, spoiled_ = 0,
                long_ = 0;
};

volatile sig_atomic_t stopped = 0;

void receive(int fd, Direction& direction, Frame& buffer) {
  for (int i = 0; i < 64; ++i) {
    const ssize_t got = recv(fd, buffer.data(), buffer.size(), MSG_TRUNC);
    if (got < 0) return;
    if (static_cast<std::size_t>(got) > buffer.size()) {
      std::fprintf(stderr, "a frame of %zd bytes: the sender's offloads are not off\n", got);
      std::exit(1);
    }
    direction.take(Frame(buffer.begin(), buffer.begin() + got));
  }
}

void run(int a, int b, Direction& a_to_b, Direction& b_to_a) {
  Frame buffer(1600);
  sigset_t during_poll;
  sigemptyset(&during_poll);
  while (stopped == 0) {
    const std::uint64_t next = std::min(a_to_b.next_ns(), b_to_a.next_ns());
    const std::uint64_t now = now_ns();
    const std::uint64_t pause =
        next <= now ? 0 : std::min<std::uint64_t>(next - now, 1'000'000'000);
    const timespec timeout{static_cast<time_t>(pause / 1'000'000'000),
                           static_cast<long>(pause % 1'000'000'000)};
    std::array<pollfd, 2> fds = {{{a, POLLIN, 0}, {b, POLLIN, 0}}};
    if (ppoll(fds.data(), fds.size(), &timeout, &during_poll) < 0 && errno != EINTR) return;
    receive(a, a_to_b, buffer);
    receive(b, b_to_a, buffer);
    a_to_b.deliver(now_ns());
    b_to_a.deliver(now_ns());
  }
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("A bad link between two interfaces.");
  std::string a, b, a_to_b, b_to_a;
  std::uint64_t seed = 1;
  app.add_option("--a", a)->required();
  app.add_option("--b", b)->required();
  app.add_option("--seed", seed);
  app.add_option("--a-to-b", a_to_b);
  app.add_option("--b-to-a", b_to_a);
  CLI11_PARSE(app, argc, argv);
  sigset_t mask;
  sigemptyset(&mask);
  sigaddset(&mask, SIGTERM);
  sigprocmask(SIG_BLOCK, &mask, nullptr);  // but for the time in ppoll()
  struct sigaction action {};
  action.sa_handler = [](int) { stopped = 1; };
  sigaction(SIGTERM, &action, nullptr);
  try {
    const int fd_a = open_socket(a), fd_b = open_socket(b);
    Direction there(fd_a, fd_b, parse(a_to_b), seed * 2);
    Direction back(fd_b, fd_a, parse(b_to_a), seed * 2 + 1);
    std::puts("ready");
    std::fflush(stdout);
    run(fd_a, fd_b, there, back);
    there.report("a to b");
    back.report("b to a");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "lossy_relay: %s\n", error.what());
    return 1;
  }
  return 0;
}
