#include "lwproto/daemon/admin_server.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <chrono>

namespace sanproxy::daemon {
namespace {

constexpr std::chrono::seconds kAnswerTimeout{2};
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
Result<PageRequest> page_request(const HttpRequest& request) {
  PageRequest out{request.path, PageRequest{}.limit, request.method, {}};
  if (request.parameters.size() > kParametersMax) {
    return Status::error(Code::kInvalidArgument, "more than 16 parameters");
  }
  for (const auto& [name, value] : request.parameters) {
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
const char* refusal(const HttpRequest& request, const std::vector<IpPrefix>& may_change) {
  const bool here = from_loopback(request.peer) ||
                    std::any_of(may_change.begin(), may_change.end(), [&](const IpPrefix& prefix) {
                      return prefix.contains(request.peer);
                    });
  if (!here) return "changes are taken from loopback only, or as [admin] changes_from says\n";
  if (!request.content_type.starts_with("application/json")) {
    return "a change needs \"Content-Type: application/json\"\n";
  }
  return nullptr;
}

}  // namespace

Result<std::unique_ptr<AdminServer>> AdminServer::start(const SocketAddress& address,
                                                        std::vector<IpPrefix> may_change) {
  std::unique_ptr<AdminServer> self(new AdminServer());
  self->wake_fd_ = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (self->wake_fd_ < 0) return Status::error(Code::kSystem, "eventfd", errno);
  self->may_change_ = std::move(may_change);
  AdminServer* raw = self.get();
  auto listener = HttpListener::start(
      address, [raw](const HttpRequest& request) { return raw->answer(request); });
  if (!listener.ok()) return listener.status();
  self->listener_ = std::move(*listener);
  return self;
}

AdminServer::~AdminServer() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    ending_ = true;
  }
  answered_.notify_one();  // nobody will answer any more
  listener_.reset();
  if (wake_fd_ >= 0) close(wake_fd_);
}

Page AdminServer::answer(const HttpRequest& request) {
  if (request.method != "GET") {
    if (const char* why = refusal(request, may_change_)) return {403, "text/plain", why};
  }
  const auto question = page_request(request);
  if (!question.ok()) {
    return {400, "text/plain", std::string(question.status().text()) + "\n"};
  }
  auto page = ask(*question);
  if (!page) return {503, "text/plain", "the worker does not answer\n"};
  return std::move(*page);
}

std::optional<Page> AdminServer::ask(const PageRequest& request) {
  std::unique_lock<std::mutex> lock(mutex_);
  question_ = request;
  answer_.reset();
  const std::uint64_t one = 1;
  if (write(wake_fd_, &one, sizeof(one)) != sizeof(one)) return std::nullopt;
  answered_.wait_for(lock, kAnswerTimeout, [this] { return answer_.has_value() || ending_; });
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
