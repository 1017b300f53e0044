#include "proxynode/main/control_socket.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <vector>

namespace sanproxy::proxy {
namespace {

constexpr std::size_t kTextBytes = 248;
constexpr std::size_t kQuestionBytes = 2048;
constexpr std::uint64_t kBodyBytesMax = std::uint64_t{256} << 20;

// Both ends are the same program, so this is no format for anybody else.
struct Question {
  std::uint32_t number;
  std::uint32_t limit;
  std::uint32_t post;
  std::uint32_t text_bytes;
  // The path, then names and values of parameters, each ended by a zero.
  std::array<char, kQuestionBytes> text;
};

struct Answer {
  std::uint32_t ready;
  std::uint32_t number;
  std::int32_t http_status;
  std::uint32_t reserved;
  std::uint64_t body_bytes;
  std::array<char, kTextBytes> content_type;
};

void copy_text(const std::string& from, std::array<char, kTextBytes>& to) {
  to = {};
  std::copy_n(from.begin(), std::min(from.size(), to.size() - 1), to.begin());
}

bool write_all(int fd, const std::string& text) {
  std::size_t done = 0;
  while (done < text.size()) {
    const ssize_t n = ::write(fd, text.data() + done, text.size() - done);
    if (n <= 0) return false;
    done += static_cast<std::size_t>(n);
  }
  return true;
}

std::string read_all(int fd, std::uint64_t bytes) {
  std::string out(std::min(bytes, kBodyBytesMax), '\0');
  std::size_t done = 0;
  while (done < out.size()) {
    const ssize_t n = ::pread(fd, out.data() + done, out.size() - done, static_cast<off_t>(done));
    if (n <= 0) break;
    done += static_cast<std::size_t>(n);
  }
  out.resize(done);
  return out;
}

admin::PageRequest request_of(const Question& question) {
  std::vector<std::string> words;
  const std::size_t bytes = std::min<std::size_t>(question.text_bytes, question.text.size());
  std::string text(question.text.data(), bytes);
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find('\0', at), text.size());
    words.push_back(text.substr(at, end - at));
    at = end + 1;
  }
  admin::PageRequest request;
  if (!words.empty()) request.path = words[0];
  request.limit = question.limit;
  if (question.post != 0) request.method = "POST";
  for (std::size_t i = 1; i + 1 < words.size(); i += 2) request.parameters[words[i]] = words[i + 1];
  return request;
}

union Control {
  cmsghdr header;
  char bytes[CMSG_SPACE(sizeof(int))];
};

bool send_answer(int socket, Answer answer, int body) {
  iovec piece{&answer, sizeof(answer)};
  Control control{};
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  if (body >= 0) {
    message.msg_control = control.bytes;
    message.msg_controllen = sizeof(control.bytes);
    cmsghdr* c = CMSG_FIRSTHDR(&message);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(c), &body, sizeof(int));
  }
  return ::sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL) > 0;
}

}  // namespace

Result<std::pair<UniqueFd, UniqueFd>> ControlSocket::make_pair() {
  int ends[2] = {-1, -1};
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends) != 0) {
    return Status::error(Code::kSystem, "create a socket pair", errno);
  }
  return std::pair<UniqueFd, UniqueFd>(UniqueFd(ends[0]), UniqueFd(ends[1]));
}

bool ControlSocket::ask(std::uint32_t number, const admin::PageRequest& request) {
  std::string text = request.path + '\0';
  for (const auto& [name, value] : request.parameters) {
    text.append(name).push_back('\0');
    text.append(value).push_back('\0');
  }
  Question question{number, request.limit, request.method == "POST" ? 1U : 0U, 0, {}};
  if (text.size() > question.text.size()) return false;
  question.text_bytes = static_cast<std::uint32_t>(text.size());
  std::copy(text.begin(), text.end(), question.text.begin());
  return ::send(fd(), &question, sizeof(question), MSG_DONTWAIT | MSG_NOSIGNAL) > 0;
}

ControlNews ControlSocket::receive() {
  ControlNews news;
  Answer answer{};
  iovec piece{&answer, sizeof(answer)};
  Control control{};
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  message.msg_control = control.bytes;
  message.msg_controllen = sizeof(control.bytes);
  const ssize_t n = ::recvmsg(fd(), &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return news;
  if (n != static_cast<ssize_t>(sizeof(answer))) {
    news.kind = ControlNews::Kind::kEnd;
    return news;
  }
  UniqueFd body;
  if (const cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr && c->cmsg_type == SCM_RIGHTS) {
    int received = -1;
    std::memcpy(&received, CMSG_DATA(c), sizeof(int));
    body = UniqueFd(received);
  }
  if (answer.ready != 0) {
    news.kind = ControlNews::Kind::kReady;
    return news;
  }
  news.kind = ControlNews::Kind::kAnswer;
  news.question = answer.number;
  news.page.http_status = answer.http_status;
  answer.content_type.back() = '\0';
  news.page.content_type = answer.content_type.data();
  if (body.valid()) news.page.body = read_all(body.get(), answer.body_bytes);
  return news;
}

void ControlSocket::say_ready() {
  Answer answer{};
  answer.ready = 1;
  (void)send_answer(fd(), answer, -1);
}

void ControlSocket::answer(std::uint32_t number, const admin::Page& page) {
  UniqueFd body(::memfd_create("sanproxy-page", MFD_CLOEXEC));
  // Without a descriptor or memory for it: that we live is the half of it that matters most.
  if (body.valid() && !write_all(body.get(), page.body)) body = {};
  Answer out{0, number, page.http_status, 0, body.valid() ? page.body.size() : 0, {}};
  copy_text(page.content_type, out.content_type);
  (void)send_answer(fd(), out, body.get());
}

bool ControlSocket::serve(const std::function<admin::Page(const admin::PageRequest&)>& render) {
  for (;;) {
    Question question{};
    const ssize_t n = ::recv(fd(), &question, sizeof(question), MSG_DONTWAIT);
    if (n < 0) return errno == EAGAIN || errno == EINTR;
    if (n != static_cast<ssize_t>(sizeof(question))) return false;
    answer(question.number, render(request_of(question)));
  }
}

}  // namespace sanproxy::proxy
