// Connection load: open, one request, read to the end, close; a number of them in parallel. The
// server closes first, as HTTP servers do, so that TIME_WAIT does not stay with the client.
#include <sys/epoll.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "bench/tools/client_options.h"
#include "bench/tools/http_reply.h"
#include "bench/tools/latency_histogram.h"
#include "bench/tools/measurement.h"

namespace sanproxy::bench {
namespace {

class ConnectLoad {
 public:
  explicit ConnectLoad(const ClientOptions& options)
      : options_(options), measurement_(options.watched), epoll_(epoll_create1(EPOLL_CLOEXEC)) {
    if (epoll_ < 0) fail("epoll_create1");
    request_ = "GET " + options.path + " HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n";
    connections_.resize(options.connections);
  }

  int run() {
    if (!announce_ready(options_)) return 0;
    for (std::uint32_t i = 0; i < options_.connections; ++i) open(i);
    run_until(monotonic_ns() + static_cast<std::uint64_t>(options_.warmup_seconds * 1e9));
    latencies_.clear();
    measurement_.start();
    run_until(monotonic_ns() + static_cast<std::uint64_t>(options_.seconds * 1e9));
    measurement_.stop();
    const double count = static_cast<double>(latencies_.count());
    std::printf(
        "{\"connections\": %.0f, \"seconds\": %.6f, \"per_second\": %.1f, \"failed\": %llu, "
        "\"p50_us\": %.2f, \"p99_us\": %.2f, \"p999_us\": %.2f, \"cpu_s\": %s}\n",
        count, measurement_.seconds(), count / measurement_.seconds(),
        static_cast<unsigned long long>(failed_), latencies_.percentile_us(0.5),
        latencies_.percentile_us(0.99), latencies_.percentile_us(0.999),
        measurement_.cpu_json().c_str());
    return 0;
  }

 private:
  struct Connection {
    int fd = -1;
    bool sent = false;
    std::uint32_t received_bytes = 0;
    std::uint64_t opened_ns = 0;
  };

  void open(std::uint32_t index) {
    Connection& connection = connections_[index];
    connection = {};
    connection.opened_ns = monotonic_ns();
    connection.fd = connect_starting(options_, next_source_++);
    // Edge-triggered, once for all that is to come: every event is used up.
    epoll_event event{EPOLLOUT | EPOLLIN | EPOLLRDHUP | EPOLLET, {.u64 = index}};
    if (epoll_ctl(epoll_, EPOLL_CTL_ADD, connection.fd, &event) != 0) fail("epoll_ctl");
  }

  void run_until(std::uint64_t deadline_ns) {
    while (monotonic_ns() < deadline_ns) {
      const int n = epoll_wait(epoll_, events_.data(), static_cast<int>(events_.size()), 100);
      for (int i = 0; i < n; ++i) {
        handle(static_cast<std::uint32_t>(events_[i].data.u64), events_[i].events);
      }
    }
  }

  void handle(std::uint32_t index, std::uint32_t events) {
    Connection& connection = connections_[index];
    if (!connection.sent) {
      if (events & (EPOLLOUT | EPOLLERR | EPOLLHUP)) send_request(connection, index);
      return;
    }
    if (!(events & (EPOLLIN | EPOLLRDHUP | EPOLLERR | EPOLLHUP))) return;
    for (;;) {
      const ssize_t n = recv(connection.fd, buffer_.data(), buffer_.size(), 0);
      if (n < 0 && errno == EAGAIN) return;
      if (n <= 0) {
        finish(index, n == 0 && connection.received_bytes == reply_bytes_);
        return;
      }
      if (reply_bytes_ == 0) {
        reply_bytes_ = reply_length({buffer_.data(), static_cast<std::size_t>(n)});
      }
      connection.received_bytes += static_cast<std::uint32_t>(n);
      // All that is here was read; the end of the stream will be an event of its own.
      if (!(events & EPOLLRDHUP) && static_cast<std::size_t>(n) < buffer_.size()) return;
    }
  }

  void send_request(Connection& connection, std::uint32_t index) {
    const ssize_t n = send(connection.fd, request_.data(), request_.size(), MSG_NOSIGNAL);
    if (n != static_cast<ssize_t>(request_.size())) {
      finish(index, false);
      return;
    }
    connection.sent = true;
  }

  void finish(std::uint32_t index, bool whole) {
    constexpr std::uint64_t kFailedMax = 10'000;
    close(connections_[index].fd);
    if (whole) {
      latencies_.record(monotonic_ns() - connections_[index].opened_ns);
    } else if (++failed_ > kFailedMax) {
      errno = ECONNABORTED;
      fail("too many connections failed");
    }
    open(index);
  }

  const ClientOptions& options_;
  Measurement measurement_;
  int epoll_;
  std::string request_;
  std::vector<Connection> connections_;
  std::uint32_t reply_bytes_ = 0;
  std::uint32_t next_source_ = 0;
  std::uint64_t failed_ = 0;
  LatencyHistogram latencies_;
  std::array<epoll_event, 256> events_{};
  std::array<char, 64 * 1024> buffer_{};
};

}  // namespace

int run_connects(const ClientOptions& options) {
  auto load = std::make_unique<ConnectLoad>(options);
  return load->run();
}

}  // namespace sanproxy::bench
