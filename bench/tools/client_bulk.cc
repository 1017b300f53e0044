// Bulk loads: read or write as fast as the other end allows, on one or several connections.
#include <sys/epoll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <memory>
#include <vector>

#include "bench/tools/client_options.h"
#include "bench/tools/measurement.h"

namespace sanproxy::bench {
namespace {

class BulkLoad {
 public:
  explicit BulkLoad(const ClientOptions& options)
      : options_(options),
        measurement_(options.watched),
        epoll_(epoll_create1(EPOLL_CLOEXEC)),
        download_(options.mode == "download"),
        per_connection_bytes_(options.connections),
        buffer_(kBulkBufferBytes, 'b') {
    if (epoll_ < 0) fail("epoll_create1");
  }

  int run() {
    for (std::uint32_t i = 0; i < options_.connections; ++i) open(i);
    if (!announce_ready(options_)) return 0;
    run_until(monotonic_ns() + static_cast<std::uint64_t>(options_.warmup_seconds * 1e9));
    std::fill(per_connection_bytes_.begin(), per_connection_bytes_.end(), 0);
    measurement_.start();
    run_until(monotonic_ns() + static_cast<std::uint64_t>(options_.seconds * 1e9));
    measurement_.stop();
    print();
    return 0;
  }

 private:
  void open(std::uint32_t index) {
    const int fd = connect_blocking(options_, index);
    fds_.push_back(fd);
    // A byte from us: an application node is asked for a connection only when data has come.
    if (download_ && send(fd, "g", 1, MSG_NOSIGNAL) != 1) fail("send");
    epoll_event event{download_ ? EPOLLIN : EPOLLOUT, {.u64 = index}};
    if (epoll_ctl(epoll_, EPOLL_CTL_ADD, fd, &event) != 0) fail("epoll_ctl");
  }

  void run_until(std::uint64_t deadline_ns) {
    while (monotonic_ns() < deadline_ns) {
      const int n = epoll_wait(epoll_, events_.data(), static_cast<int>(events_.size()), 100);
      for (int i = 0; i < n; ++i) move(events_[i].data.u64);
    }
  }

  void move(std::uint64_t index) {
    const int fd = fds_[index];
    const ssize_t n = download_
                          ? recv(fd, buffer_.data(), buffer_.size(), MSG_DONTWAIT)
                          : send(fd, buffer_.data(), buffer_.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) fail(download_ ? "the server ended a download" : "the server ended an upload");
    per_connection_bytes_[index] += static_cast<std::uint64_t>(n);
  }

  void print() const {
    std::uint64_t sum = 0;
    for (const std::uint64_t bytes : per_connection_bytes_) sum += bytes;
    const auto [low, high] =
        std::minmax_element(per_connection_bytes_.begin(), per_connection_bytes_.end());
    std::printf(
        "{\"bytes\": %llu, \"seconds\": %.6f, \"gbit_per_second\": %.4f, "
        "\"slowest_to_fastest\": %.3f, \"cpu_s\": %s}\n",
        static_cast<unsigned long long>(sum), measurement_.seconds(),
        static_cast<double>(sum) * 8e-9 / measurement_.seconds(),
        *high == 0 ? 0.0 : static_cast<double>(*low) / static_cast<double>(*high),
        measurement_.cpu_json().c_str());
  }

  const ClientOptions& options_;
  Measurement measurement_;
  int epoll_;
  bool download_;
  std::vector<int> fds_;
  std::vector<std::uint64_t> per_connection_bytes_;
  std::vector<char> buffer_;
  std::array<epoll_event, 64> events_{};
};

}  // namespace

int run_bulk(const ClientOptions& options) {
  auto load = std::make_unique<BulkLoad>(options);
  return load->run();
}

}  // namespace sanproxy::bench
