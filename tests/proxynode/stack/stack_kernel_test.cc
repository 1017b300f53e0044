// The stack against the kernel's TCP, over a TUN device in a network namespace of its own.
#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sched.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <fstream>
#include <map>
#include <thread>
#include <vector>

#include "lwproto/base/clock.h"
#include "lwproto/buffer/slot_pool.h"
#include "netnode/packet_io/packet_io.h"
#include "proxynode/stack/stack.h"

namespace sanproxy::stack {
namespace {

constexpr std::size_t kSlots = 128;
constexpr std::size_t kBurst = 32;
constexpr std::size_t kChunk = 44 * 1448;

std::byte byte_at(std::uint64_t offset) {
  return static_cast<std::byte>(offset * 31 + (offset >> 8) * 7 + (offset >> 16));
}

// The service: checks what it receives against the pattern, sends as much of the pattern as the
// first 8 bytes ask for, and closes after the client's FIN.
class PatternServer final : public Delegate {
 public:
  struct Conn {
    std::uint64_t received = 0, to_send = 0, written = 0, acked = 0;
    bool fin = false, shut = false;
    std::uint8_t head[8] = {};
  };

  explicit PatternServer() : source_(kChunk * 300 + 65536) {
    for (std::size_t i = 0; i < source_.size(); ++i) source_[i] = byte_at(i);
  }
  bool on_accepted(ConnIndex conn, const ConnectionInfo&) override {
    conns_[conn] = {};
    return true;
  }
  void on_connected(ConnIndex, const ConnectionInfo&) override {}
  bool on_received(ConnIndex index, RxPayload& payload) override {
    Conn& conn = conns_[index];
    std::uint32_t total = 0;
    while (!payload.empty()) {
      const auto piece = payload.pop_front();
      for (const std::byte b : piece.bytes) {
        if (conn.received < 8) {
          conn.head[conn.received] = static_cast<std::uint8_t>(b);
        } else if (b != byte_at(conn.received)) {
          ++wrong_bytes;
        }
        ++conn.received;
      }
      if (conn.received >= 8) std::memcpy(&conn.to_send, conn.head, 8);
      total += static_cast<std::uint32_t>(piece.bytes.size());
      RxPayload::release(piece.handle);
    }
    stack->consume(index, total);
    push(index);
    return true;
  }
  void on_fin(ConnIndex index) override {
    conns_[index].fin = true;
    push(index);
  }
  void on_acked(ConnIndex index, std::uint64_t acked) override {
    conns_[index].acked = acked;
    push(index);
  }
  bool on_closed(ConnIndex index, EndReason reason) override {
    if (reason != EndReason::kFinished) ++abnormal;
    conns_.erase(index);
    ++closed;
    return true;
  }

  Stack* stack = nullptr;
  std::atomic<int> closed{0};
  std::atomic<int> abnormal{0};
  std::atomic<std::uint64_t> wrong_bytes{0};

 private:
  void push(ConnIndex index) {
    Conn& conn = conns_[index];
    while (conn.written < conn.to_send) {
      const std::uint64_t at = conn.written % (kChunk * 300);
      const auto bytes =
          std::min<std::uint64_t>({kChunk, conn.to_send - conn.written, kChunk * 300 - at});
      const WriteMode mode = bytes <= 512 ? WriteMode::kCopy : WriteMode::kReference;
      if (!stack->write(index, {source_.data() + at, bytes}, mode).ok()) break;
      conn.written += bytes;
    }
    if (conn.fin && conn.written == conn.to_send && !conn.shut) {
      conn.shut = true;
      stack->close(index);
    }
  }

  std::vector<std::byte> source_;
  std::map<ConnIndex, Conn> conns_;
};

// Owns stack and device; loop() is what a worker does.
class Worker {
 public:
  bool start() {
    packet_io::InterfaceOptions options;
    options.driver = "tun";
    options.name = "santest0";
    options.addresses = {*IpPrefix::parse("10.77.0.1/24"), *IpPrefix::parse("fd77::1/64")};
    auto io = packet_io::open_interface(options);
    EXPECT_TRUE(io.ok()) << io.status().to_string();
    if (!io.ok()) return false;
    io_ = std::move(io).value();
    memory_.resize(kSlots * kSlotBytes);
    pool_ = std::make_unique<buffer::SlotPool>(memory_, kSlotBytes);
    StackOptions stack_options{.connections_max = 5000, .heap_bytes_max = std::size_t{256} << 20};
    auto stack = Stack::create(stack_options, clock_, *pool_, server);
    EXPECT_TRUE(stack.ok());
    stack_ = std::move(stack).value();
    server.stack = stack_.get();
    EXPECT_TRUE(stack_->add_interface(*io_).ok());
    EXPECT_TRUE(stack_->listen(*SocketAddress::parse("10.77.0.10:80"), 0).ok());
    EXPECT_TRUE(stack_->listen(*SocketAddress::parse("[fd77::10]:80"), 0).ok());
    return true;
  }
  // Until `done` and all connections have ended.
  void loop(const std::atomic<bool>& done) {
    while (!done.load() || stack_->open_connections() > 0) {
      const std::size_t got = round();
      if (got > 0) continue;
      const std::uint64_t now = clock_.now_ns();
      const std::uint64_t next = std::min(stack_->next_timer_ns(), now + 50'000'000);
      pollfd fd{io_->fd(), POLLIN, 0};
      const int wait_ms = next > now ? static_cast<int>((next - now) / 1'000'000 + 1) : 0;
      poll(&fd, 1, wait_ms);
    }
  }
  ~Worker() {
    stack_.reset();
    for (const buffer::SlotIndex slot : posted_) pool_->release(slot);
    if (pool_ != nullptr) {
      EXPECT_EQ(pool_->free_count(), pool_->slot_count());
    }
  }

  PatternServer server;
  Stack& stack() { return *stack_; }

 private:
  static constexpr std::size_t kSlotBytes = (packet_io::kReceiveBufferBytesMin + 63) / 64 * 64;

  std::size_t round() {
    while (posted_.size() < kBurst) {
      const buffer::SlotIndex slot = pool_->acquire();
      if (slot == buffer::kNoSlot) break;
      posted_.push_back(slot);
    }
    std::vector<packet_io::ReceiveBuffer> buffers;
    for (const buffer::SlotIndex slot : posted_) {
      buffers.push_back({pool_->data(slot), static_cast<std::uint32_t>(kSlotBytes)});
    }
    std::vector<packet_io::ReceivedPacket> packets(buffers.size());
    const std::size_t got = io_->receive(buffers, packets);
    std::vector<bool> used(posted_.size());
    for (std::size_t i = 0; i < got; ++i) {
      used[packets[i].buffer] = true;
      stack_->input(0, posted_[packets[i].buffer], packets[i]);
    }
    std::deque<buffer::SlotIndex> left;
    for (std::size_t i = 0; i < posted_.size(); ++i) {
      if (!used[i]) left.push_back(posted_[i]);
    }
    posted_ = std::move(left);
    if (stack_->next_timer_ns() <= clock_.now_ns()) stack_->on_time();
    stack_->flush();
    return got;
  }

  SteadyClock clock_;
  std::unique_ptr<packet_io::PacketIo> io_;
  std::vector<std::byte> memory_;
  std::unique_ptr<buffer::SlotPool> pool_;
  std::unique_ptr<Stack> stack_;
  std::deque<buffer::SlotIndex> posted_;
};

int connect_to(bool ipv6) {
  const int fd = socket(ipv6 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const timeval limit{60, 0};
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
  int result = -1;
  if (ipv6) {
    sockaddr_in6 to{};
    to.sin6_family = AF_INET6;
    to.sin6_port = htons(80);
    inet_pton(AF_INET6, "fd77::10", &to.sin6_addr);
    result = connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof(to));
  } else {
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_port = htons(80);
    inet_pton(AF_INET, "10.77.0.10", &to.sin_addr);
    result = connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof(to));
  }
  if (result == 0) return fd;
  close(fd);
  return -1;
}

// Sends `up` bytes (the first 8 say `down`), reads `down` and the end. Returns what went wrong.
std::string exchange(bool ipv6, std::uint64_t up, std::uint64_t down) {
  const int fd = connect_to(ipv6);
  if (fd < 0) return std::string("connect: ") + std::strerror(errno);
  std::string failure;
  std::thread sender([&] {
    std::vector<std::byte> chunk;
    for (std::uint64_t sent = 0; sent < up;) {
      chunk.resize(std::min<std::uint64_t>(up - sent, 200'000));
      for (std::size_t i = 0; i < chunk.size(); ++i) chunk[i] = byte_at(sent + i);
      if (sent == 0) std::memcpy(chunk.data(), &down, 8);
      const ssize_t n = send(fd, chunk.data(), chunk.size(), MSG_NOSIGNAL);
      if (n <= 0) break;
      sent += static_cast<std::uint64_t>(n);
    }
    shutdown(fd, SHUT_WR);
  });
  std::vector<std::byte> in(256 * 1024);
  std::uint64_t got = 0;
  for (;;) {
    const ssize_t n = recv(fd, in.data(), in.size(), 0);
    if (n < 0) failure = std::string("recv: ") + std::strerror(errno);
    if (n <= 0) break;
    for (ssize_t i = 0; i < n; ++i) {
      if (in[static_cast<std::size_t>(i)] != byte_at((got + i) % (kChunk * 300))) {
        failure = "wrong byte";
      }
    }
    got += static_cast<std::uint64_t>(n);
  }
  sender.join();
  close(fd);
  if (failure.empty() && got != down) failure = "short: " + std::to_string(got);
  return failure;
}

class StackKernel : public ::testing::Test {
 protected:
  void SetUp() override {
    if (unshare(CLONE_NEWNET) != 0) GTEST_SKIP() << "no right to make a network namespace";
    if (access("/dev/net/tun", R_OK | W_OK) != 0) GTEST_SKIP() << "no /dev/net/tun";
    std::ofstream("/proc/sys/net/ipv4/tcp_congestion_control") << "reno";
    ASSERT_TRUE(worker_.start());
  }
  // The clients run in a thread of their own while this one is the worker.
  void run(const std::function<void()>& clients) {
    std::atomic<bool> done{false};
    std::thread thread([&] {
      clients();
      done = true;
    });
    worker_.loop(done);
    thread.join();
    EXPECT_EQ(worker_.server.wrong_bytes, 0u);
    EXPECT_EQ(worker_.server.abnormal, 0);
  }
  Worker worker_;
};

TEST_F(StackKernel, sixty_four_megabytes_each_way_arrive_as_sent_over_ipv4_and_ipv6) {
  for (const bool ipv6 : {false, true}) {
    run([&] { EXPECT_EQ(exchange(ipv6, 64 << 20, 64 << 20), "") << (ipv6 ? "ipv6" : "ipv4"); });
  }
  EXPECT_EQ(worker_.stack().counters().dropped_checksum, 0u);
  EXPECT_EQ(worker_.stack().counters().dropped_malformed, 0u);
}

TEST_F(StackKernel, two_thousand_short_connections_one_after_the_other) {
  run([&] {
    for (int i = 0; i < 2000; ++i) {
      ASSERT_EQ(exchange(i % 2 == 1, 8 + i % 3000, i * 7 % 70'000), "") << "connection " << i;
    }
  });
}

TEST_F(StackKernel, thirty_two_connections_at_a_time) {
  run([&] {
    std::vector<std::thread> threads;
    for (int t = 0; t < 32; ++t) {
      threads.emplace_back([t] {
        for (int i = 0; i < 4; ++i) {
          EXPECT_EQ(exchange(t % 2 == 1, 1'000'000 + t, 1'500'000 + i), "");
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
  });
}

TEST_F(StackKernel, a_client_that_resets_is_reported) {
  std::atomic<bool> done{false};
  std::thread thread([&] {
    const int fd = connect_to(false);
    EXPECT_GE(fd, 0);
    const std::uint64_t ask = 100;
    EXPECT_EQ(send(fd, &ask, 8, 0), 8);
    const linger hard{1, 0};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof(hard));
    close(fd);
    done = true;
  });
  worker_.loop(done);
  thread.join();
  EXPECT_EQ(worker_.server.abnormal, 1);
}

}  // namespace
}  // namespace sanproxy::stack
