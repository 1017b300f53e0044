#include "lwproto/daemon/admin_server.h"

#include <httplib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <chrono>

namespace sanproxy::daemon {
namespace {

constexpr std::chrono::seconds kAnswerTimeout{2};
constexpr std::size_t kHttpThreads = 4;
constexpr int kStartPollsMax = 1000;
constexpr std::uint32_t kLimitMax = 100'000;

constexpr std::size_t kParametersMax = 16;
constexpr std::size_t kParameterBytesMax = 256;

// A number of a limit's range; false if the text is none.
bool read_limit(const std::string& text, std::uint32_t& limit) {
  const char* const end = text.data() + text.size();
  const auto [at, error] = std::from_chars(text.data(), end, limit);
  return error == std::errc{} && at == end && limit <= kLimitMax;
}

// An error says what is wrong with the request's parameters. None is passed over in silence.
Result<PageRequest> page_request(const httplib::Request& request) {
  PageRequest out{request.path, PageRequest{}.limit, request.method, {}};
  if (request.params.size() > kParametersMax) {
    return Status::error(Code::kInvalidArgument, "more than 16 parameters");
  }
  for (const auto& [name, value] : request.params) {
    if (name.size() > kParameterBytesMax || value.size() > kParameterBytesMax) {
      return Status::error(Code::kInvalidArgument, "a parameter of more than 256 bytes");
    }
    if (!out.parameters.emplace(name, value).second) {
      return Status::error(Code::kInvalidArgument, "a parameter is given twice");
    }
    if (name == "limit" && !value.empty() && !read_limit(value, out.limit)) {
      return Status::error(Code::kInvalidArgument, "limit is a number from 0 to 100000");
    }
  }
  return out;
}

bool from_loopback(const IpAddress& ip) {
  IpAddress local = IpAddress::any(Family::kIpv6);
  local.bytes[15] = 1;
  return ip == local || (ip.family == Family::kIpv4 && ip.bytes[0] == 127);
}

// Why this peer may not change anything; nullptr if it may.
const char* refusal(const httplib::Request& request, const std::vector<IpPrefix>& may_change) {
  std::string text = request.remote_addr;
  if (text.rfind("::ffff:", 0) == 0) text.erase(0, 7);
  const auto ip = IpAddress::parse(text);
  const bool here =
      ip.ok() && (from_loopback(*ip) ||
                  std::any_of(may_change.begin(), may_change.end(),
                              [&](const IpPrefix& prefix) { return prefix.contains(*ip); }));
  if (!here) return "changes are taken from loopback only, or as [admin] changes_from says\n";
  if (request.get_header_value("Content-Type").rfind("application/json", 0) != 0) {
    return "a change needs \"Content-Type: application/json\"\n";
  }
  return nullptr;
}

}  // namespace

struct AdminServer::Http {
  httplib::Server server;
};

AdminServer::AdminServer() : http_(std::make_unique<Http>()) {}

Result<std::unique_ptr<AdminServer>> AdminServer::start(const SocketAddress& address,
                                                        std::vector<IpPrefix> may_change) {
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
  const auto answer = [raw, may_change = std::move(may_change)](const httplib::Request& request,
                                                                httplib::Response& response) {
    if (request.method != "GET") {
      if (const char* why = refusal(request, may_change)) {
        response.status = 403;
        return response.set_content(why, "text/plain");
      }
    }
    const auto question = page_request(request);
    if (!question.ok()) {
      response.status = 400;
      return response.set_content(std::string(question.status().text()) + "\n", "text/plain");
    }
    const auto page = raw->ask(*question);
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
