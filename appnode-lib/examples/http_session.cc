#include "appnode-lib/examples/http_session.h"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <memory>
#include <utility>

namespace examples {
namespace {

constexpr std::size_t kSmallAnswerBytesMax = 1024;  // goes out as one piece
constexpr std::size_t kFileReadBytes = 64 * 1024;
constexpr std::string_view kContinue = "HTTP/1.1 100 Continue\r\n\r\n";

// The answer's head, and the body too if it is small; a fixed buffer, no allocation.
class HeadWriter {
 public:
  HeadWriter& add(std::string_view text) {
    used_ += text.copy(buffer_ + used_, sizeof(buffer_) - used_);  // no text may be no address
    return *this;
  }
  template <std::size_t kSize>  // a literal: its length is known, so nothing is called
  HeadWriter& add(const char (&text)[kSize]) {
    return add(std::string_view(text, kSize - 1));
  }
  HeadWriter& add(std::uint64_t number) {
    char digits[20];
    const auto end = std::to_chars(digits, digits + sizeof(digits), number).ptr;
    return add({digits, static_cast<std::size_t>(end - digits)});
  }
  std::size_t size() const { return used_; }
  std::string_view text() const { return {buffer_, used_}; }

 private:
  char buffer_[kHeadBytesMax + 2048];
  std::size_t used_ = 0;
};

// Without authority (RFC 9112, 3.2.2: a server takes the absolute form, too) and query.
std::string_view path_of(std::string_view target) {
  constexpr std::string_view kScheme = "http://";
  const auto same = [](char a, char b) { return (a | 0x20) == b || a == b; };
  if (target.size() > kScheme.size() && target.front() != '/' &&
      std::equal(kScheme.begin(), kScheme.end(), target.begin(),
                 [&](char b, char a) { return same(a, b); })) {
    target.remove_prefix(kScheme.size());
    target.remove_prefix(std::min(target.find_first_of("/?"), target.size()));
    if (!target.starts_with('/')) return "/";
  }
  return target.substr(0, target.find('?'));
}

}  // namespace

HttpSession::HttpSession(HttpSite& site, HttpSessions& all) : site_(site), all_(all) {
  place_ = all_.size();
  all_.push_back(this);
}

HttpSession::~HttpSession() {
  all_.back()->place_ = place_;
  std::swap(all_[place_], all_.back());
  all_.pop_back();
}

void HttpSession::accept(app::Request& request, HttpSite& site, HttpSessions& all) {
  auto session = std::make_unique<HttpSession>(site, all);
  HttpSession& one = *session;
  one.connection_ = &request.accept(std::move(session));
}

void HttpSession::end_idle(const HttpSessions& all) {
  const HttpSessions before(all.begin(), all.end());  // some may go at once
  for (HttpSession* one : before) {
    if (one->is_idle() && one->connection_ != nullptr) one->end(*one->connection_);
  }
}

bool HttpSession::is_idle() const {
  return state_ == State::kHead && partial_head_.empty() && set_aside_.empty() && unsent_.empty();
}

// --- receiving

void HttpSession::on_data(app::Connection& connection, app::Received& data) {
  std::size_t left = 0;
  for (const app::Bytes& piece : data.pieces()) {
    std::string_view in = app::as_text(piece);
    if (set_aside_.empty()) feed(connection, in);
    if (state_ == State::kDone) return;
    set_aside_.append(in);
    left += in.size();
  }
  if (left == 0) {
    if (connection.node().stopped() && is_idle()) end(connection);
    return;
  }
  data.withhold();
  connection.open_window(data.size() - left);
}

void HttpSession::feed(app::Connection& connection, std::string_view& in) {
  while (!in.empty() && (state_ == State::kHead || state_ == State::kBody)) {
    if (state_ == State::kHead) {
      feed_head(connection, in);
    } else {
      feed_body(connection, in);
    }
  }
}

void HttpSession::feed_head(app::Connection& connection, std::string_view& in) {
  // RFC 9112, 2.2: an empty line in front of a request is ignored.
  if (std::exchange(lone_cr_, false)) {
    if (in.front() != '\n') return refuse(connection, 400);
    in.remove_prefix(1);
  }
  while (partial_head_.empty() && in.starts_with("\r\n")) in.remove_prefix(2);
  if (partial_head_.empty() && in == "\r") {
    lone_cr_ = true;
    in = {};
  }
  if (in.empty()) return;
  const std::size_t before = partial_head_.size();
  std::string_view head = in;
  if (before != 0) {
    partial_head_.append(in.substr(0, kHeadBytesMax - before));
    head = partial_head_;
  }
  switch (scanner_.scan(head)) {
    case HeadScanner::Result::kIncomplete:
      if (before == 0) partial_head_ = in;
      in = {};
      return;
    case HeadScanner::Result::kBroken:
      return refuse(connection, 400);
    case HeadScanner::Result::kTooLong:
      return refuse(connection, 431);
    case HeadScanner::Result::kComplete:
      break;
  }
  const std::size_t bytes = scanner_.head_bytes();
  scanner_.reset();
  in.remove_prefix(bytes - before);
  if (before == 0) return on_head(connection, head.substr(0, bytes));
  const std::string whole = std::exchange(partial_head_, {});
  on_head(connection, std::string_view(whole).substr(0, bytes));
}

void HttpSession::on_head(app::Connection& connection, std::string_view text) {
  RequestHead head;
  if (const int status = parse_head(text, head); status != 0) return refuse(connection, status);
  close_after_ = !head.keep_alive || connection.node().stopped();  // stopping: the last answer
  old_client_ = head.minor_version == 0;
  head_only_ = head.method == Method::kHead;
  const std::string_view path = path_of(head.target);
  const bool is_get = head.method == Method::kGet || head_only_;
  const bool takes_body = path == "/upload" || path == "/sink";
  receives_ = hashes_ = false;
  receives_path_ = takes_body;
  // The hot case first: nothing to look up, nothing to write.
  if (head.method == Method::kGet && path == "/hello" && !head.has_body() && !close_after_ &&
      !old_client_) {
    const std::string_view answer = site_.hello_answer();
    const std::size_t sent = connection.send(answer);
    if (sent == answer.size()) return;
    unsent_ = answer.substr(sent);
    content_ = {};
    sent_ = 0;
    state_ = State::kAnswer;
    return;
  }
  if (head.method == Method::kUnknown) {
    content_ = site_.error(501);
  } else if (takes_body && (head.method == Method::kPost || head.method == Method::kPut)) {
    receives_ = true;
    hashes_ = path == "/upload";
  } else if (takes_body || !is_get) {
    content_ = site_.error(405);
  } else {
    content_ = site_.find(path);
    if (content_.status == 301) location_ = std::string(path) + "/";
  }
  if (!head.has_body()) {
    body_.start_length(0, hashes_);
    return respond(connection);
  }
  if (head.expect_continue && connection.send(kContinue) != kContinue.size()) {
    return refuse(connection, 417);  // a client that takes not even this
  }
  if (head.chunked) {
    body_.start_chunked(hashes_);
  } else {
    body_.start_length(head.content_length, hashes_);
  }
  state_ = State::kBody;
}

void HttpSession::feed_body(app::Connection& connection, std::string_view& in) {
  switch (body_.consume(in)) {
    case BodyReader::Result::kMore:
      return;
    case BodyReader::Result::kBroken:
      return refuse(connection, 400);
    case BodyReader::Result::kDone:
      return respond(connection);
  }
}

// --- answering

void HttpSession::respond(app::Connection& connection) {
  if (!receives_) return start(connection, {});
  std::string json = "{\"received\":" + std::to_string(body_.received());
  if (hashes_) {
    char hex[17];
    std::snprintf(hex, sizeof(hex), "%016llx", static_cast<unsigned long long>(body_.fnv1a64()));
    json.append(",\"fnv1a64\":\"").append(hex).append("\"");
  }
  json += "}\n";
  content_ = {};
  content_.type = "application/json";
  content_.length = json.size();
  start(connection, json);
}

// An answer that ends the connection: what stands behind a broken request means nothing.
void HttpSession::refuse(app::Connection& connection, int status) {
  close_after_ = true;
  old_client_ = head_only_ = false;
  content_ = site_.error(status);
  start(connection, {});
}

// Sends the head for content_ and as much of the body as goes: `body` or content_'s own.
void HttpSession::start(app::Connection& connection, std::string_view body) {
  HeadWriter head;
  if (content_.status == 200) {
    head.add(site_.ok_lines());
  } else {
    head.add("HTTP/1.1 ").add(static_cast<std::uint64_t>(content_.status)).add(" ");
    head.add(std::string_view(reason_phrase(content_.status)));
    head.add("\r\nServer: appnode-httpd\r\n").add(site_.date_line());
  }
  if (content_.status == 405) {
    head.add("Allow: ").add(std::string_view(receives_path_ ? "POST, PUT" : "GET, HEAD"));
    head.add("\r\n");
  }
  if (content_.status == 301) head.add("Location: ").add(location_).add("\r\n");
  head.add("Content-Type: ").add(content_.type).add("\r\nContent-Length: ");
  head.add(content_.length).add("\r\n");
  if (close_after_) {
    head.add("Connection: close\r\n");
  } else if (old_client_) {
    head.add("Connection: keep-alive\r\n");
  }
  head.add("\r\n").add(body);
  sent_ = 0;
  if (head_only_) {
    content_.kind = Content::Kind::kNone;
  } else if (content_.memory != nullptr && content_.kind != Content::Kind::kNone &&
             head.size() + content_.length <= kSmallAnswerBytesMax) {
    head.add(app::as_text(content_.memory->bytes().subspan(content_.offset, content_.length)));
    content_.kind = Content::Kind::kNone;
  }
  const std::size_t sent = connection.send(head.text());
  if (sent < head.size()) unsent_ = head.text().substr(sent);  // it was empty
  state_ = State::kAnswer;
  pump(connection);
}

void HttpSession::pump(app::Connection& connection) {
  if (!unsent_.empty()) {
    unsent_.erase(0, connection.send(unsent_));
    if (!unsent_.empty()) return;
  }
  if (!pump_content(connection)) return;
  content_.file.reset();
  content_.pin.reset();
  if (close_after_) {
    end(connection);
  } else {
    state_ = State::kHead;
  }
}

// True when all of the content has been sent.
bool HttpSession::pump_content(app::Connection& connection) {
  while (content_.kind != Content::Kind::kNone && sent_ < content_.length) {
    std::uint64_t want = content_.length - sent_;
    std::size_t sent = 0;
    if (content_.kind == Content::Kind::kFile) {
      want = std::min<std::uint64_t>(want, 1);  // any progress is good
      sent = pump_file(connection);
    } else {
      std::size_t offset = content_.offset + sent_;
      if (content_.kind == Content::Kind::kPattern) {
        offset = sent_ % kPatternPeriodBytes;
        want = std::min<std::uint64_t>(want, content_.memory->bytes().size() - offset);
      }
      sent = connection.send(*content_.memory, offset, static_cast<std::size_t>(want));
    }
    sent_ += sent;
    if (sent < want) return false;  // on_writable() comes
  }
  return true;
}

// One chunk of a file that is too large for the cache.
std::size_t HttpSession::pump_file(app::Connection& connection) {
  const std::uint64_t left = content_.length - sent_;
  app::SendChunk chunk =
      connection.acquire(static_cast<std::size_t>(std::min<std::uint64_t>(left, kFileReadBytes)));
  if (!chunk.valid()) return 0;
  const ssize_t n =
      pread(*content_.file, chunk.bytes().data(), chunk.bytes().size(), static_cast<off_t>(sent_));
  if (n <= 0) {  // the file has shrunk: the length that we promised cannot be kept
    state_ = State::kDone;
    connection.reset();
    return 0;
  }
  const auto bytes = static_cast<std::size_t>(n);
  return connection.send(chunk, bytes) ? bytes : 0;
}

void HttpSession::end(app::Connection& connection) {
  state_ = State::kDone;
  set_aside_ = {};
  connection.close();
}

// --- going on

void HttpSession::on_writable(app::Connection& connection) {
  if (state_ == State::kAnswer) pump(connection);
  while (!set_aside_.empty() && (state_ == State::kHead || state_ == State::kBody)) {
    const std::string bytes = std::exchange(set_aside_, {});
    std::string_view in = bytes;
    feed(connection, in);
    if (state_ == State::kDone) return;
    set_aside_ = in;
    connection.open_window(bytes.size() - in.size());
  }
  const bool last = client_is_done_ && (state_ == State::kHead || state_ == State::kBody);
  if (last || (connection.node().stopped() && is_idle())) end(connection);
}

void HttpSession::on_end_of_stream(app::Connection& connection) {
  client_is_done_ = true;
  if (state_ != State::kAnswer) end(connection);  // else when the answer has been sent
}

}  // namespace examples
