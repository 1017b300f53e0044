#include "lwproto/daemon/admin_server.h"

#include <httplib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <chrono>

namespace sanproxy::daemon {
namespace {

constexpr std::chrono::seconds kAnswerTimeout{2};
constexpr std::size_t kHttpThreads = 4;
constexpr int kStartPollsMax = 1000;
constexpr std::uint32_t kLimitMax = 100'000;

std::uint32_t limit_of(const httplib::Request& request) {
  if (!request.has_param("limit")) return PageRequest{}.limit;
  const std::string text = request.get_param_value("limit");
  std::uint32_t limit = 0;
  for (const char c : text) {
    if (c < '0' || c > '9' || limit > kLimitMax) return PageRequest{}.limit;
    limit = limit * 10 + static_cast<std::uint32_t>(c - '0');
  }
  return std::min(limit, kLimitMax);
}

}  // namespace

struct AdminServer::Http {
  httplib::Server server;
};

AdminServer::AdminServer() : http_(std::make_unique<Http>()) {}

Result<std::unique_ptr<AdminServer>> AdminServer::start(const SocketAddress& address) {
  std::unique_ptr<AdminServer> self(new AdminServer());
  self->wake_fd_ = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (self->wake_fd_ < 0) return Status::error(Code::kSystem, "eventfd", errno);
  httplib::Server& server = self->http_->server;
  server.new_task_queue = [] { return new httplib::ThreadPool(kHttpThreads); };
  server.set_payload_max_length(4096);
  server.set_read_timeout(5);
  server.set_write_timeout(5);
  // The library would share the port with another proxy (SO_REUSEPORT).
  server.set_socket_options([](socket_t socket) {
    const int yes = 1;
    setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
  });
  AdminServer* raw = self.get();
  const auto answer = [raw](const httplib::Request& request, httplib::Response& response) {
    const auto page = raw->ask({request.path, limit_of(request), request.method});
    if (!page) {
      response.status = 503;
      response.set_content("the worker does not answer\n", "text/plain");
      return;
    }
    response.status = page->http_status;
    response.set_content(page->body, page->content_type);
  };
  server.Get(".*", answer);
  server.Post(".*", answer);
  if (!server.bind_to_port(address.ip.to_string().c_str(), address.port)) {
    return Status::error(Code::kSystem, "cannot listen on the admin address", errno);
  }
  self->thread_ = std::thread([raw] { raw->http_->server.listen_after_bind(); });
  // stop() has no effect before the thread has got there.
  for (int i = 0; i < kStartPollsMax && !server.is_running(); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return self;
}

AdminServer::~AdminServer() {
  if (thread_.joinable()) {
    http_->server.stop();
    thread_.join();
  }
  if (wake_fd_ >= 0) close(wake_fd_);
}

std::optional<Page> AdminServer::ask(const PageRequest& request) {
  const std::lock_guard<std::mutex> turn(turn_);
  std::unique_lock<std::mutex> lock(mutex_);
  question_ = request;
  answer_.reset();
  const std::uint64_t one = 1;
  if (write(wake_fd_, &one, sizeof(one)) != sizeof(one)) return std::nullopt;
  answered_.wait_for(lock, kAnswerTimeout, [this] { return answer_.has_value(); });
  question_.reset();
  return std::exchange(answer_, std::nullopt);
}

void AdminServer::serve(const Render& render) {
  std::uint64_t count = 0;
  if (read(wake_fd_, &count, sizeof(count)) != sizeof(count)) return;
  std::unique_lock<std::mutex> lock(mutex_);
  if (!question_) return;
  answer_ = render(*question_);
  answered_.notify_one();
}

}  // namespace sanproxy::daemon
