// Request loads: keep-alive on every connection (http), on a random one of many (random), or
// nothing after the first (idle).
#include <sys/epoll.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "bench/tools/client_options.h"
#include "bench/tools/http_reply.h"
#include "bench/tools/latency_histogram.h"
#include "bench/tools/measurement.h"

namespace sanproxy::bench {
namespace {

class RequestLoad {
 public:
  explicit RequestLoad(const ClientOptions& options)
      : options_(options), measurement_(options.watched), epoll_(epoll_create1(EPOLL_CLOEXEC)) {
    if (epoll_ < 0) fail("epoll_create1");
    request_ = "GET " + options.path + " HTTP/1.1\r\nHost: bench\r\n\r\n";
    connections_.resize(options.connections);
  }

  int run() {
    open_all();
    if (!announce_ready(options_)) return 0;
    if (options_.mode == "idle") {
      std::puts("{}");
      return 0;
    }
    const std::uint32_t first = options_.mode == "http" ? options_.connections : options_.active;
    for (std::uint32_t i = 0; i < first; ++i) send_request(i);
    run_until(monotonic_ns() + seconds_to_ns(options_.warmup_seconds));
    latencies_.clear();
    measurement_.start();
    run_until(monotonic_ns() + seconds_to_ns(options_.seconds));
    measurement_.stop();
    print();
    return 0;
  }

 private:
  struct Connection {
    int fd = -1;
    std::uint32_t missing_bytes = 0;  // of the reply under way; 0: no request under way
    std::uint64_t sent_ns = 0;
  };

  static std::uint64_t seconds_to_ns(double seconds) {
    return static_cast<std::uint64_t>(seconds * 1e9);
  }

  // Opens every connection with one request on it, a bounded number at a time.
  void open_all() {
    constexpr std::uint32_t kOpeningMax = 64;
    std::uint32_t opened = 0;
    std::uint32_t done = 0;
    while (done < options_.connections) {
      while (opened < options_.connections && opened - done < kOpeningMax) open_one(opened++);
      done += finish_opening();
    }
  }

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
        epoll_event event{EPOLLIN, {.u64 = index}};
        epoll_ctl(epoll_, EPOLL_CTL_MOD, connection.fd, &event);
        send_request(index);
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

  void send_request(std::uint32_t index) {
    Connection& connection = connections_[index];
    connection.missing_bytes = reply_bytes_;
    connection.sent_ns = monotonic_ns();
    const ssize_t n = send(connection.fd, request_.data(), request_.size(), MSG_NOSIGNAL);
    if (n != static_cast<ssize_t>(request_.size())) fail("send request");
  }

  void run_until(std::uint64_t deadline_ns) {
    while (monotonic_ns() < deadline_ns) {
      const int n = epoll_wait(epoll_, events_.data(), static_cast<int>(events_.size()), 100);
      for (int i = 0; i < n; ++i) receive(static_cast<std::uint32_t>(events_[i].data.u64));
    }
  }

  void receive(std::uint32_t index) {
    Connection& connection = connections_[index];
    const ssize_t n = recv(connection.fd, buffer_.data(), buffer_.size(), MSG_DONTWAIT);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0 || static_cast<std::size_t>(n) > connection.missing_bytes) fail("reply");
    connection.missing_bytes -= static_cast<std::uint32_t>(n);
    if (connection.missing_bytes > 0) return;
    latencies_.record(monotonic_ns() - connection.sent_ns);
    send_request(options_.mode == "http" ? index : pick_idle());
  }

  std::uint32_t pick_idle() {
    std::uniform_int_distribution<std::uint32_t> any(0, options_.connections - 1);
    for (;;) {
      const std::uint32_t index = any(random_);
      if (connections_[index].missing_bytes == 0) return index;
    }
  }

  void print() const {
    const double count = static_cast<double>(latencies_.count());
    std::printf(
        "{\"requests\": %.0f, \"seconds\": %.6f, \"per_second\": %.1f, \"p50_us\": %.2f, "
        "\"p99_us\": %.2f, \"p999_us\": %.2f, \"reply_bytes\": %u, \"cpu_s\": %s}\n",
        count, measurement_.seconds(), count / measurement_.seconds(),
        latencies_.percentile_us(0.5), latencies_.percentile_us(0.99),
        latencies_.percentile_us(0.999), reply_bytes_, measurement_.cpu_json().c_str());
  }

  const ClientOptions& options_;
  Measurement measurement_;
  int epoll_;
  std::string request_;
  std::vector<Connection> connections_;
  std::uint32_t reply_bytes_ = 0;
  LatencyHistogram latencies_;
  std::minstd_rand random_{12345};
  std::array<epoll_event, 256> events_{};
  std::array<char, 64 * 1024> buffer_{};
};

}  // namespace

int run_requests(const ClientOptions& options) {
  if (options.mode == "random" && options.active >= options.connections) {
    errno = EINVAL;
    fail("random mode needs more connections than active requests");
  }
  auto load = std::make_unique<RequestLoad>(options);
  return load->run();
}

}  // namespace sanproxy::bench
