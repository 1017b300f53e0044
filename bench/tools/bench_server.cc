// bench_server: the peers' application. It does with plain kernel sockets and epoll what
// appnode-httpd and appnode-echo do as application nodes, answers with the same bytes, and is
// written to be fast, so that the comparison is fair.
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "lwproto/base/socket_address.h"

namespace sanproxy::bench {
namespace {

constexpr std::size_t kBulkBytes = 256 * 1024;
constexpr std::size_t kEchoBytesMax = 64 * 1024;
constexpr std::size_t kRequestBytesMax = 4096;
constexpr std::size_t kBodyBytesMax = 1 << 20;
constexpr std::size_t kPatternPeriodBytes = 65'536;
constexpr int kSendsPerEvent = 4;  // then the other connections have their turn

// The pattern of appnode-httpd's /bytes/N.
char pattern_byte(std::uint64_t i) {
  const std::uint64_t k = i % kPatternPeriodBytes;
  return static_cast<char>((k * 131 + (k >> 8) * 7) & 0xff);
}

enum class Mode { kHttp, kEcho, kSink, kSource };

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "bench_server: %s: %s\n", what, std::strerror(errno));
  std::exit(1);
}

struct Connection {
  std::string pending;       // what send() did not take; nothing is read while there is some
  std::string request;       // http: an unfinished request
  bool close_after = false;  // http: the client asked for it
};

class Server {
 public:
  explicit Server(Mode mode)
      : mode_(mode),
        epoll_(epoll_create1(EPOLL_CLOEXEC)),
        buffer_(kBulkBytes, 'x'),
        pattern_(mode == Mode::kHttp ? kBodyBytesMax : 0, '\0') {
    if (epoll_ < 0) fail("epoll_create1");
    for (std::size_t i = 0; i < pattern_.size(); ++i) pattern_[i] = pattern_byte(i);
  }

  void listen_at(const SocketAddress& address);
  [[noreturn]] void run();

 private:
  void accept_all();
  void refresh_headers();
  void end(int fd);
  void on_http(int fd);
  // False: the request is not ours to answer.
  bool answer(Connection& connection, std::string_view request);
  void on_echo(int fd);
  void on_sink(int fd);
  void on_source(int fd, std::uint32_t events);
  void on_writable(int fd);
  void send_or_keep(int fd, std::string_view bytes);
  void want(int fd, std::uint32_t events) {
    epoll_event event{events, {.fd = fd}};
    epoll_ctl(epoll_, EPOLL_CTL_MOD, fd, &event);
  }
  Connection& at(int fd) { return connections_[static_cast<std::size_t>(fd)]; }

  Mode mode_;
  int epoll_;
  int listener_ = -1;
  std::vector<char> buffer_;
  std::string pattern_;  // http: what bodies are made of
  std::string headers_;  // http: those that change once a second
  std::time_t headers_time_ = -1;
  std::vector<Connection> connections_;  // by descriptor; as many as the limit on descriptors
  std::string reply_;                    // http: replies to the requests of one read
};

void Server::listen_at(const SocketAddress& address) {
  constexpr int kBacklog = 4096;
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_port = htons(address.port);
  std::memcpy(&at.sin_addr, address.ip.bytes.data(), 4);
  listener_ = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  const int one = 1;
  setsockopt(listener_, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
  if (bind(listener_, reinterpret_cast<sockaddr*>(&at), sizeof(at)) != 0) fail("bind");
  if (listen(listener_, kBacklog) != 0) fail("listen");
  epoll_event event{EPOLLIN, {.fd = listener_}};
  if (epoll_ctl(epoll_, EPOLL_CTL_ADD, listener_, &event) != 0) fail("epoll_ctl");
}

void Server::run() {
  std::array<epoll_event, 256> events{};
  for (;;) {
    const int n = epoll_wait(epoll_, events.data(), static_cast<int>(events.size()), -1);
    if (n < 0 && errno != EINTR) fail("epoll_wait");
    for (int i = 0; i < n; ++i) {
      const int fd = events[i].data.fd;
      if (fd == listener_) {
        accept_all();
      } else if (mode_ == Mode::kSource) {
        on_source(fd, events[i].events);
      } else if (events[i].events & EPOLLOUT) {
        on_writable(fd);
      } else if (mode_ == Mode::kHttp) {
        on_http(fd);
      } else if (mode_ == Mode::kEcho) {
        on_echo(fd);
      } else {
        on_sink(fd);
      }
    }
  }
}

void Server::accept_all() {
  for (;;) {
    const int fd = accept4(listener_, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) return;
    const int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    if (connections_.size() <= static_cast<std::size_t>(fd)) connections_.resize(fd + 1);
    at(fd) = {};
    epoll_event event{mode_ == Mode::kSource ? EPOLLIN | EPOLLOUT : EPOLLIN, {.fd = fd}};
    if (epoll_ctl(epoll_, EPOLL_CTL_ADD, fd, &event) != 0) fail("epoll_ctl");
  }
}

void Server::end(int fd) {
  at(fd) = {};
  close(fd);
}

void Server::send_or_keep(int fd, std::string_view bytes) {
  const ssize_t n = send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
  if (n == static_cast<ssize_t>(bytes.size())) return;
  if (n < 0 && errno != EAGAIN) return;  // the next read reports the end
  at(fd).pending.assign(bytes.substr(n < 0 ? 0 : static_cast<std::size_t>(n)));
  want(fd, EPOLLOUT);
}

void Server::on_writable(int fd) {
  Connection& connection = at(fd);
  const ssize_t n = send(fd, connection.pending.data(), connection.pending.size(), MSG_NOSIGNAL);
  if (n < 0 && errno == EAGAIN) return;
  if (n < 0) return end(fd);
  connection.pending.erase(0, static_cast<std::size_t>(n));
  if (!connection.pending.empty()) return;
  if (connection.close_after) return end(fd);
  want(fd, EPOLLIN);
}

void Server::on_http(int fd) {
  constexpr std::string_view kEnd = "\r\n\r\n";
  const ssize_t n = recv(fd, buffer_.data(), kRequestBytesMax, 0);
  if (n < 0 && errno == EAGAIN) return;
  if (n <= 0) return end(fd);
  Connection& connection = at(fd);
  std::string_view rest(buffer_.data(), static_cast<std::size_t>(n));
  if (!connection.request.empty()) {
    connection.request.append(rest);
    rest = connection.request;
  }
  reply_.clear();
  for (auto stop = rest.find(kEnd); stop != rest.npos; stop = rest.find(kEnd)) {
    if (!answer(connection, rest.substr(0, stop + kEnd.size()))) return end(fd);
    rest.remove_prefix(stop + kEnd.size());
  }
  if (rest.size() > kRequestBytesMax) return end(fd);
  if (!rest.empty() || !connection.request.empty()) connection.request = std::string(rest);
  if (!reply_.empty()) send_or_keep(fd, reply_);
  if (connection.close_after && connection.pending.empty()) end(fd);
}

void Server::refresh_headers() {
  const std::time_t now = std::time(nullptr);
  if (now == headers_time_) return;
  headers_time_ = now;
  char date[64];
  std::tm parts{};
  gmtime_r(&now, &parts);
  std::strftime(date, sizeof(date), "Date: %a, %d %b %Y %H:%M:%S GMT\r\n", &parts);
  headers_ = "HTTP/1.1 200 OK\r\nServer: appnode-httpd\r\n";
  headers_.append(date).append("Content-Type: application/octet-stream\r\n");
}

bool Server::answer(Connection& connection, std::string_view request) {
  constexpr std::string_view kGet = "GET /bytes/";
  if (!request.starts_with(kGet)) return false;
  std::size_t length = 0;
  const char* digits = request.data() + kGet.size();
  const auto parsed = std::from_chars(digits, request.data() + request.size(), length);
  if (parsed.ec != std::errc() || length > kBodyBytesMax) return false;
  connection.close_after = request.find("\r\nConnection: close\r\n") != request.npos;
  char number[24];
  const auto end = std::to_chars(number, number + sizeof(number), length).ptr;
  refresh_headers();
  reply_.append(headers_)
      .append("Content-Length: ")
      .append(number, end)
      .append(connection.close_after ? "\r\nConnection: close\r\n\r\n" : "\r\n\r\n");
  reply_.append(pattern_, 0, length);
  return true;
}

void Server::on_echo(int fd) {
  const ssize_t n = recv(fd, buffer_.data(), kEchoBytesMax, 0);
  if (n < 0 && errno == EAGAIN) return;
  if (n <= 0) return end(fd);
  send_or_keep(fd, {buffer_.data(), static_cast<std::size_t>(n)});
}

void Server::on_sink(int fd) {
  const ssize_t n = recv(fd, buffer_.data(), buffer_.size(), 0);
  if (n < 0 && errno == EAGAIN) return;
  if (n <= 0) end(fd);
}

void Server::on_source(int fd, std::uint32_t events) {
  if (events & EPOLLIN) {
    char unread[kRequestBytesMax];
    const ssize_t n = recv(fd, unread, sizeof(unread), 0);
    if (n == 0 || (n < 0 && errno != EAGAIN)) return end(fd);
  }
  for (int i = 0; i < kSendsPerEvent; ++i) {
    const ssize_t n = send(fd, buffer_.data(), buffer_.size(), MSG_NOSIGNAL);
    if (n < 0 && errno != EAGAIN) return end(fd);
    if (n < static_cast<ssize_t>(buffer_.size())) return;
  }
}

void raise_descriptor_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

}  // namespace
}  // namespace sanproxy::bench

int main(int argc, char** argv) {
  using sanproxy::bench::Mode;
  std::string listen;
  Mode mode = Mode::kHttp;
  const std::map<std::string, Mode> modes{{"http", Mode::kHttp},
                                          {"echo", Mode::kEcho},
                                          {"sink", Mode::kSink},
                                          {"source", Mode::kSource}};
  CLI::App app{"A plain epoll server: what the peers of the benchmark serve with."};
  app.add_option("--mode", mode)->transform(CLI::CheckedTransformer(modes));
  app.add_option("--listen", listen, "IP:PORT")->required();
  CLI11_PARSE(app, argc, argv);
  const auto address = sanproxy::SocketAddress::parse(listen);
  if (!address.ok() || address->ip.family != sanproxy::Family::kIpv4) {
    std::fprintf(stderr, "bench_server: --listen: expected an IPv4 ADDRESS:PORT\n");
    return 2;
  }
  sanproxy::bench::raise_descriptor_limit();
  sanproxy::bench::Server server(mode);
  server.listen_at(*address);
  server.run();
}
