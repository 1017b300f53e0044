// Request loads: keep-alive on every connection (http), on a random one of many (random), or
// nothing after the first (idle). The connections of http may be spread over several threads.
#include <sys/epoll.h>
#include <unistd.h>

#include <array>
#include <barrier>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "bench/tools/client_options.h"
#include "bench/tools/http_reply.h"
#include "bench/tools/latency_histogram.h"
#include "bench/tools/measurement.h"

namespace sanproxy::bench {
namespace {

// One thread's share of the connections.
class RequestLoad {
 public:
  RequestLoad(const ClientOptions& options, std::uint32_t connections)
      : options_(options), epoll_(epoll_create1(EPOLL_CLOEXEC)) {
    if (epoll_ < 0) fail("epoll_create1");
    request_ = "GET " + options.path + " HTTP/1.1\r\nHost: bench\r\n\r\n";
    connections_.resize(connections);
  }

  // Opens every connection with one request on it, a bounded number at a time.
  void open_all() {
    constexpr std::uint32_t kOpeningMax = 64;
    const auto all = static_cast<std::uint32_t>(connections_.size());
    std::uint32_t opened = 0;
    std::uint32_t done = 0;
    while (done < all) {
      while (opened < all && opened - done < kOpeningMax) open_one(opened++);
      done += finish_opening();
    }
  }

  void begin() {
    const auto all = static_cast<std::uint32_t>(connections_.size());
    const std::uint32_t first = options_.mode == "http" ? all : options_.active;
    for (std::uint32_t i = 0; i < first; ++i) send_request(i, monotonic_ns());
  }

  void run_until(std::uint64_t deadline_ns) {
    while (monotonic_ns() < deadline_ns) {
      const int n = epoll_wait(epoll_, events_.data(), static_cast<int>(events_.size()), 100);
      for (int i = 0; i < n; ++i) receive(static_cast<std::uint32_t>(events_[i].data.u64));
    }
  }

  void forget_latencies() { latencies_.clear(); }
  const LatencyHistogram& latencies() const { return latencies_; }
  std::uint32_t reply_bytes() const { return reply_bytes_; }

 private:
  struct Connection {
    int fd = -1;
    std::uint32_t missing_bytes = 0;  // of the reply under way; 0: no request under way
    std::uint64_t sent_ns = 0;
  };

  void open_one(std::uint32_t index) {
    const int fd = connect_starting(options_, index);
    connections_[index].fd = fd;
    epoll_event event{EPOLLOUT, {.u64 = index}};
    if (epoll_ctl(epoll_, EPOLL_CTL_ADD, fd, &event) != 0) fail("epoll_ctl");
  }

  // Returns how many connections became ready for the load.
  std::uint32_t finish_opening() {
    std::uint32_t done = 0;
    const int n = epoll_wait(epoll_, events_.data(), static_cast<int>(events_.size()), 10'000);
    if (n == 0) {
      errno = ETIMEDOUT;
      fail("opening connections");
    }
    for (int i = 0; i < n; ++i) {
      const auto index = static_cast<std::uint32_t>(events_[i].data.u64);
      Connection& connection = connections_[index];
      if (events_[i].events & EPOLLOUT) {
        // Edge-triggered from now on: each reply is read whole, so looking again is for nothing.
        epoll_event event{EPOLLIN | EPOLLET, {.u64 = index}};
        epoll_ctl(epoll_, EPOLL_CTL_MOD, connection.fd, &event);
        send_request(index, monotonic_ns());
      } else {
        done += receive_first(connection) ? 1 : 0;
      }
    }
    return done;
  }

  // The very first reply tells how long replies are; all of a path have the same length.
  bool receive_first(Connection& connection) {
    const ssize_t n = recv(connection.fd, buffer_.data(), buffer_.size(), 0);
    if (n <= 0) fail("first reply");
    if (reply_bytes_ == 0) {
      reply_bytes_ = reply_length({buffer_.data(), static_cast<std::size_t>(n)});
      if (reply_bytes_ == 0) {
        errno = EPROTO;
        fail("first reply is not HTTP 200 with a Content-Length");
      }
    }
    if (connection.missing_bytes == 0) connection.missing_bytes = reply_bytes_;
    connection.missing_bytes -= static_cast<std::uint32_t>(n);
    return connection.missing_bytes == 0;
  }

  void send_request(std::uint32_t index, std::uint64_t now_ns) {
    Connection& connection = connections_[index];
    connection.missing_bytes = reply_bytes_;
    connection.sent_ns = now_ns;
    const ssize_t n = send(connection.fd, request_.data(), request_.size(), MSG_NOSIGNAL);
    if (n != static_cast<ssize_t>(request_.size())) fail("send request");
  }

  void receive(std::uint32_t index) {
    Connection& connection = connections_[index];
    const ssize_t n = recv(connection.fd, buffer_.data(), buffer_.size(), MSG_DONTWAIT);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0 || static_cast<std::size_t>(n) > connection.missing_bytes) fail("reply");
    connection.missing_bytes -= static_cast<std::uint32_t>(n);
    if (connection.missing_bytes > 0) return;
    const std::uint64_t now_ns = monotonic_ns();
    latencies_.record(now_ns - connection.sent_ns);
    send_request(one_each_ ? index : pick_idle(), now_ns);
  }

  std::uint32_t pick_idle() {
    std::uniform_int_distribution<std::uint32_t> any(0, options_.connections - 1);
    for (;;) {
      const std::uint32_t index = any(random_);
      if (connections_[index].missing_bytes == 0) return index;
    }
  }

  const ClientOptions& options_;
  const bool one_each_ = options_.mode == "http";
  int epoll_;
  std::string request_;
  std::vector<Connection> connections_;
  std::uint32_t reply_bytes_ = 0;
  LatencyHistogram latencies_;
  std::minstd_rand random_{12345};
  std::array<epoll_event, 256> events_{};
  std::array<char, 64 * 1024> buffer_{};
};

std::uint64_t seconds_to_ns(double seconds) { return static_cast<std::uint64_t>(seconds * 1e9); }

using Loads = std::vector<std::unique_ptr<RequestLoad>>;

// `connections` in shares that differ by one at most.
Loads divided(const ClientOptions& options) {
  Loads loads;
  for (std::uint32_t i = 0; i < options.threads; ++i) {
    const std::uint32_t share = (options.connections + i) / options.threads;
    loads.push_back(std::make_unique<RequestLoad>(options, share));
  }
  return loads;
}

// All threads begin and end their interval together.
void run_together(const ClientOptions& options, const Loads& loads, Measurement& measurement) {
  bool measuring = false;
  std::uint64_t deadline_ns = 0;
  std::barrier all(static_cast<std::ptrdiff_t>(loads.size()), [&]() noexcept {
    if (measuring) return measurement.stop();
    measuring = true;
    measurement.start();
    deadline_ns = monotonic_ns() + seconds_to_ns(options.seconds);
  });
  const auto run_one = [&](RequestLoad& load) {
    load.begin();
    load.run_until(monotonic_ns() + seconds_to_ns(options.warmup_seconds));
    load.forget_latencies();
    all.arrive_and_wait();
    load.run_until(deadline_ns);
    all.arrive_and_wait();
  };
  std::vector<std::jthread> others;
  for (std::size_t i = 1; i < loads.size(); ++i) {
    others.emplace_back([&run_one, &load = *loads[i]] { run_one(load); });
  }
  run_one(*loads.front());
}

void print(const Loads& loads, const Measurement& measurement) {
  LatencyHistogram latencies;
  for (const auto& load : loads) latencies.add(load->latencies());
  const double count = static_cast<double>(latencies.count());
  std::printf(
      "{\"requests\": %.0f, \"seconds\": %.6f, \"per_second\": %.1f, \"p50_us\": %.2f, "
      "\"p99_us\": %.2f, \"p999_us\": %.2f, \"reply_bytes\": %u, \"cpu_s\": %s}\n",
      count, measurement.seconds(), count / measurement.seconds(), latencies.percentile_us(0.5),
      latencies.percentile_us(0.99), latencies.percentile_us(0.999), loads.front()->reply_bytes(),
      measurement.cpu_json().c_str());
}

}  // namespace

int run_requests(const ClientOptions& options) {
  if (options.mode == "random" && options.active >= options.connections) {
    errno = EINVAL;
    fail("random mode needs more connections than active requests");
  }
  if (options.threads > 1 && (options.mode != "http" || options.threads > options.connections)) {
    errno = EINVAL;
    fail("several threads are for http mode, with a connection for each at least");
  }
  const Loads loads = divided(options);
  for (const auto& load : loads) load->open_all();
  if (!announce_ready(options)) return 0;
  if (options.mode == "idle") {
    std::puts("{}");
    return 0;
  }
  Measurement measurement(options.watched);
  run_together(options, loads, measurement);
  print(loads, measurement);
  return 0;
}

}  // namespace sanproxy::bench
