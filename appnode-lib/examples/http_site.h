// HttpSite: everything that appnode-httpd can answer with, in registered memory where possible.
//
//   /            what there is (or the index of --root)
//   /hello       a small fixed answer
//   /bytes/N     N bytes (up to 2^40): byte i of the answer is pattern[i % 65536], where
//                pattern[k] is the low byte of (k * 131 + (k >> 8) * 7)
//   /PATH        a file below --root
//   /upload      POST, PUT: takes the body, answers {"received":N,"fnv1a64":"16 hex digits"}
//   /sink        POST, PUT: takes the body, answers {"received":N}
//
// Role: finds the content for a path. Files up to a bound stay in registered memory, from where
//   they are sent without being touched; the others are read as they are sent.
// Owner: main(). Thread: the Node's.
#pragma once

#include <cstdint>
#include <ctime>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>

#include "sanproxy/appnode.h"

namespace examples {

namespace app = sanproxy::app;

inline constexpr std::size_t kPatternPeriodBytes = 65536;
inline constexpr std::uint64_t kBytesMax = std::uint64_t{1} << 40;

std::byte pattern_byte(std::uint64_t i);

// What an answer's body is made of. Memory and descriptor stay the site's.
struct Content {
  enum class Kind : std::uint8_t { kNone, kMemory, kPattern, kFile };
  Kind kind = Kind::kNone;
  int status = 200;
  std::string_view type = "text/plain; charset=utf-8";
  const app::RegisteredMemory* memory = nullptr;  // kMemory, kPattern
  std::size_t offset = 0;                         // kMemory: inside `memory`
  std::shared_ptr<int> file;                      // kFile: an open descriptor
  std::shared_ptr<const int> pin;                 // in the cache: it stays there meanwhile
  std::uint64_t length = 0;
};

class HttpSite {
 public:
  // Throws std::runtime_error when `root` or the memory cannot be had (start-up only).
  HttpSite(app::Node& node, const std::string& root, std::size_t cache_bytes_max);
  ~HttpSite();

  // `path`: a target without authority and query. A status other than 200 has a short text as
  // content.
  Content find(std::string_view path);
  Content error(int status);
  // "Date: ...\r\n", written once a second.
  std::string_view date_line();
  // The status line of a 200, and the fields that every answer has; written once a second.
  std::string_view ok_lines();
  // The whole answer to GET /hello of a connection that stays open.
  std::string_view hello_answer();

 private:
  // Another file in its place may well be as long and as old (links to releases, copies).
  struct Version {
    std::uint64_t device = 0;
    std::uint64_t number = 0;
    std::uint64_t size = 0;
    std::int64_t modified_ns = 0;
    std::int64_t changed_ns = 0;
    bool operator==(const Version&) const = default;
  };
  struct CachedFile {
    std::size_t offset = 0;
    Version version;
    std::time_t checked_at = 0;
    std::string_view type;
  };

  void refresh_date();
  Content text(int status, std::string_view text);
  Content find_bytes(std::string_view count);
  Content find_file(std::string_view path);
  Content cached(const CachedFile& file) const;
  bool load(int file, std::uint64_t size, std::size_t& offset);
  void forget_all_files();

  int root_ = -1;  // directory descriptor
  app::RegisteredMemory pattern_;
  app::RegisteredMemory texts_;  // short answers
  std::size_t texts_used_ = 0;
  std::unordered_map<std::string, Content> text_contents_;
  app::RegisteredMemory cache_;  // files, one behind the other
  std::size_t cache_used_ = 0;
  // Whoever has a copy may still send something of it.
  std::shared_ptr<const int> cache_pin_ = std::make_shared<const int>(0);
  std::unordered_map<std::string, CachedFile> files_;
  std::time_t now_ = 0;
  std::string date_line_;
  std::string ok_lines_;
  std::string hello_answer_;
};

const char* reason_phrase(int status);

}  // namespace examples
