#include "appnode-lib/examples/http_site.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <charconv>
#include <cstring>
#include <optional>
#include <stdexcept>

namespace examples {
namespace {

// So long that a window's worth of the pattern is always in one piece.
constexpr std::size_t kPatternBytes = 32 * kPatternPeriodBytes;
constexpr std::size_t kTextsBytes = 64 * 1024;
constexpr std::size_t kFilesMax = 4096;
constexpr std::string_view kHello = "Hello from an application node that does no TCP.\n";
constexpr std::string_view kIndex =
    "appnode-httpd, an example of sanproxy\n\n"
    "GET  /hello    a small answer\n"
    "GET  /healthz  ok (with --root: the file of that name)\n"
    "GET  /bytes/N  N bytes of a pattern\n"
    "POST /upload   counts and hashes the body\n"
    "POST /sink     counts the body\n";

std::string_view type_of(std::string_view path) {
  static const std::unordered_map<std::string_view, std::string_view> kTypes = {
      {"html", "text/html; charset=utf-8"},
      {"htm", "text/html; charset=utf-8"},
      {"css", "text/css; charset=utf-8"},
      {"js", "text/javascript; charset=utf-8"},
      {"json", "application/json"},
      {"txt", "text/plain; charset=utf-8"},
      {"md", "text/markdown; charset=utf-8"},
      {"svg", "image/svg+xml"},
      {"png", "image/png"},
      {"jpg", "image/jpeg"},
      {"jpeg", "image/jpeg"},
      {"gif", "image/gif"},
      {"webp", "image/webp"},
      {"ico", "image/x-icon"},
      {"pdf", "application/pdf"},
      {"wasm", "application/wasm"},
      {"woff2", "font/woff2"},
      {"xml", "application/xml"},
  };
  const std::size_t dot = path.rfind('.');
  if (dot == std::string_view::npos) return "application/octet-stream";
  const auto found = kTypes.find(path.substr(dot + 1));
  return found == kTypes.end() ? "application/octet-stream" : found->second;
}

int hex(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

// Percent-decoding; nothing for a broken escape or a zero byte.
std::optional<std::string> decoded(std::string_view path) {
  std::string out;
  for (std::size_t i = 0; i < path.size(); ++i) {
    char c = path[i];
    if (c == '%') {
      if (i + 2 >= path.size() || hex(path[i + 1]) < 0 || hex(path[i + 2]) < 0) return {};
      c = static_cast<char>(hex(path[i + 1]) * 16 + hex(path[i + 2]));
      i += 2;
    }
    if (c == '\0') return {};
    out.push_back(c);
  }
  return out;
}

// The kernel keeps the path below the root: neither ".." nor a link leads out of it.
int open_beneath(int root, const char* path) {
  open_how how{};
  how.flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK;
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS;
  return static_cast<int>(syscall(SYS_openat2, root, path, &how, sizeof(how)));
}

std::int64_t ns_of(const timespec& time) { return time.tv_sec * 1'000'000'000 + time.tv_nsec; }

// Of a file that cannot be opened. What is short here says nothing of the file.
int status_of(int error) {
  switch (error) {
    case EACCES:
      return 403;
    case EMFILE:
    case ENFILE:
    case ENOMEM:
    case EAGAIN:
      return 503;
    default:
      return 404;
  }
}

std::shared_ptr<int> owned(int descriptor) {
  return {new int(descriptor), [](int* p) {
            ::close(*p);
            delete p;
          }};
}

}  // namespace

std::byte pattern_byte(std::uint64_t i) {
  const std::uint64_t k = i % kPatternPeriodBytes;
  return static_cast<std::byte>((k * 131 + (k >> 8) * 7) & 0xff);
}

const char* reason_phrase(int status) {
  switch (status) {
    case 200:
      return "OK";
    case 301:
      return "Moved Permanently";
    case 400:
      return "Bad Request";
    case 403:
      return "Forbidden";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 417:
      return "Expectation Failed";
    case 431:
      return "Request Header Fields Too Large";
    case 501:
      return "Not Implemented";
    case 503:
      return "Service Unavailable";
    case 505:
      return "HTTP Version Not Supported";
    default:
      return "Internal Server Error";
  }
}

HttpSite::HttpSite(app::Node& node, const std::string& root, std::size_t cache_bytes_max) {
  const auto take = [&](std::size_t bytes) {
    auto memory = node.register_memory(bytes);
    if (!memory.ok()) throw std::runtime_error(memory.status().to_string());
    return std::move(*memory);
  };
  pattern_ = take(kPatternBytes);
  for (std::size_t i = 0; i < kPatternBytes; ++i) pattern_.bytes()[i] = pattern_byte(i);
  texts_ = take(kTextsBytes);
  if (root.empty()) return;
  root_ = ::open(root.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (root_ < 0) throw std::runtime_error(root + ": " + std::strerror(errno));
  if (cache_bytes_max > 0) cache_ = take(cache_bytes_max);
}

HttpSite::~HttpSite() {
  if (root_ >= 0) ::close(root_);
}

void HttpSite::refresh_date() {
  const std::time_t now = std::time(nullptr);
  if (now == now_) return;
  now_ = now;
  char text[64];
  std::tm parts{};
  gmtime_r(&now, &parts);
  std::strftime(text, sizeof(text), "Date: %a, %d %b %Y %H:%M:%S GMT\r\n", &parts);
  date_line_ = text;
  ok_lines_ = "HTTP/1.1 200 OK\r\nServer: appnode-httpd\r\n" + date_line_;
  hello_answer_ = ok_lines_ + "Content-Type: text/plain; charset=utf-8\r\n";
  hello_answer_.append("Content-Length: ").append(std::to_string(kHello.size()));
  hello_answer_.append("\r\n\r\n").append(kHello);
}

std::string_view HttpSite::date_line() {
  refresh_date();
  return date_line_;
}

std::string_view HttpSite::ok_lines() {
  refresh_date();
  return ok_lines_;
}

std::string_view HttpSite::hello_answer() {
  refresh_date();
  return hello_answer_;
}

Content HttpSite::text(int status, std::string_view body) {
  const auto known = text_contents_.find(std::string(body));
  if (known != text_contents_.end()) return known->second;
  Content content;
  content.status = status;
  if (texts_used_ + body.size() > texts_.bytes().size()) return content;
  std::memcpy(texts_.bytes().data() + texts_used_, body.data(), body.size());
  content.kind = Content::Kind::kMemory;
  content.memory = &texts_;
  content.offset = texts_used_;
  content.length = body.size();
  texts_used_ += body.size();
  text_contents_.emplace(body, content);
  return content;
}

Content HttpSite::error(int status) {
  return text(status, std::to_string(status) + " " + reason_phrase(status) + "\n");
}

Content HttpSite::find(std::string_view path) {
  if (!path.starts_with('/')) return error(400);
  if (path == "/hello") return text(200, kHello);
  if (path.starts_with("/bytes/")) return find_bytes(path.substr(7));
  if (root_ >= 0) return find_file(path);
  if (path == "/healthz") return text(200, "ok\n");  // [[service]] health asks for it
  if (path == "/") return text(200, kIndex);
  return error(404);
}

Content HttpSite::find_bytes(std::string_view count) {
  Content content;
  const auto [end, failure] =
      std::from_chars(count.data(), count.data() + count.size(), content.length);
  if (failure != std::errc() || end != count.data() + count.size() || content.length > kBytesMax) {
    return error(400);
  }
  content.kind = Content::Kind::kPattern;
  content.type = "application/octet-stream";
  content.memory = &pattern_;
  return content;
}

Content HttpSite::cached(const CachedFile& file) const {
  Content content;
  content.kind = file.version.size == 0 ? Content::Kind::kNone : Content::Kind::kMemory;
  content.type = file.type;
  content.memory = &cache_;
  content.offset = file.offset;
  content.length = file.version.size;
  content.pin = cache_pin_;
  return content;
}

Content HttpSite::find_file(std::string_view path) {
  refresh_date();
  std::string key(path);
  if (key.back() == '/') key += "index.html";
  const auto known = files_.find(key);
  if (known != files_.end() && known->second.checked_at == now_) return cached(known->second);
  const auto name = decoded(std::string_view(key).substr(1));
  if (!name) return error(400);
  const int descriptor = open_beneath(root_, name->c_str());
  if (descriptor < 0) return error(status_of(errno));
  const std::shared_ptr<int> file = owned(descriptor);
  struct stat info {};
  if (fstat(descriptor, &info) != 0) return error(404);
  if (S_ISDIR(info.st_mode)) return error(301);  // the session adds the slash
  if (!S_ISREG(info.st_mode)) return error(403);
  const auto size = static_cast<std::uint64_t>(info.st_size);
  const Version version{info.st_dev, info.st_ino, size, ns_of(info.st_mtim), ns_of(info.st_ctim)};
  if (known != files_.end() && known->second.version == version) {
    known->second.checked_at = now_;
    return cached(known->second);
  }
  CachedFile fresh{0, version, now_, type_of(*name)};
  if (load(descriptor, size, fresh.offset)) {
    return cached(files_[key] = fresh);
  }
  Content content;
  content.kind = Content::Kind::kFile;
  content.type = fresh.type;
  content.file = file;
  content.length = size;
  return content;
}

// Into the cache, if there is room or room can be made.
bool HttpSite::load(int file, std::uint64_t size, std::size_t& offset) {
  if (!cache_.valid() || size > cache_.bytes().size() / 2) return false;
  if (cache_used_ + size > cache_.bytes().size() || files_.size() >= kFilesMax) {
    // A client is still being sent some of it, or will be.
    if (cache_.in_use() != 0 || cache_pin_.use_count() != 1) return false;
    forget_all_files();
  }
  std::size_t done = 0;
  while (done < size) {
    const ssize_t n = pread(file, cache_.bytes().data() + cache_used_ + done, size - done,
                            static_cast<off_t>(done));
    if (n <= 0) return false;
    done += static_cast<std::size_t>(n);
  }
  offset = cache_used_;
  cache_used_ += size;
  return true;
}

void HttpSite::forget_all_files() {
  files_.clear();
  cache_used_ = 0;
}

}  // namespace examples
