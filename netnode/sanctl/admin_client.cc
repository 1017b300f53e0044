#include "netnode/sanctl/admin_client.h"

#include <curl/curl.h>

#include <cctype>
#include <cerrno>
#include <cstdlib>
#include <memory>
#include <mutex>

#include "lwproto/base/check.h"
#include "lwproto/base/socket_address.h"
#include "lwproto/cluster/bounds.h"
#include "netnode/sanctl/options.h"

namespace sanproxy::sanctl {
namespace {

using nlohmann::json;

constexpr std::size_t kAnswerBytesMax = std::size_t{64} << 20;
constexpr long kConnectMsMax = 2'000;  // a lost SYN is repeated after one second
constexpr long kSilentSMax = 5;
constexpr long kAnswerMsMax = 60'000;

struct Received {
  std::string body;
  bool too_long = false;

  static std::size_t take(char* data, std::size_t, std::size_t bytes, void* user) {
    auto& self = *static_cast<Received*>(user);
    self.too_long = self.body.size() + bytes > kAnswerBytesMax;
    if (self.too_long) return 0;
    self.body.append(data, bytes);
    return bytes;
  }
};

[[noreturn]] void unreachable(const std::string& address, CURL* easy, CURLcode code) {
  long error = 0;
  curl_easy_getinfo(easy, CURLINFO_OS_ERRNO, &error);
  const bool is_refused = code == CURLE_COULDNT_CONNECT && error == ECONNREFUSED;
  const std::string text = "no answer from the admin endpoint " + address + " (" +
                           (is_refused ? "Connection refused" : curl_easy_strerror(code)) +
                           "): is the node running, and is that its [admin] listen?";
  if (is_refused) throw ConnectionRefused(text);
  curl_off_t connect_us = 0;
  curl_easy_getinfo(easy, CURLINFO_CONNECT_TIME_T, &connect_us);
  if (connect_us != 0) throw Failure(text);  // a process has the port, though it may hang
  throw NoAnswer(text);
}

[[noreturn]] void refused(const std::string& address, const std::string& path, long status,
                          std::string why) {
  while (!why.empty() && why.back() == '\n') why.pop_back();
  throw Failure(
      address + path + ": " +
          (why.empty() ? "HTTP status " + std::to_string(status) : cluster::printable(why)),
      status == 400 ? kExitUsage : 1);
}

// The body of an answer that is not a refusal.
std::string request(const std::string& address, const std::string& path, bool is_post) {
  static std::once_flag once;
  std::call_once(once, [] { SANPROXY_CHECK(curl_global_init(CURL_GLOBAL_DEFAULT) == 0); });
  const auto parsed = SocketAddress::parse(address);
  if (!parsed.ok()) throw Failure("\"" + cluster::printable(address) + "\" is not IP:PORT");
  const std::string url = "http://" + parsed->to_string() + path;
  const std::unique_ptr<CURL, decltype(&curl_easy_cleanup)> easy(curl_easy_init(),
                                                                 &curl_easy_cleanup);
  SANPROXY_CHECK(easy != nullptr);
  const auto set = [&easy](CURLoption option, auto value) {
    SANPROXY_CHECK(curl_easy_setopt(easy.get(), option, value) == CURLE_OK);
  };
  Received received;
  set(CURLOPT_URL, url.c_str());
  set(CURLOPT_PATH_AS_IS, 1L);  // nodes may be named ".."
  set(CURLOPT_NOSIGNAL, 1L);
  set(CURLOPT_NOPROXY, "*");  // the environment's proxies are for browsers
  set(CURLOPT_PROTOCOLS_STR, "http");
  set(CURLOPT_WRITEFUNCTION, &Received::take);
  set(CURLOPT_WRITEDATA, &received);
  set(CURLOPT_CONNECTTIMEOUT_MS, kConnectMsMax);
  set(CURLOPT_LOW_SPEED_LIMIT, 1L);
  set(CURLOPT_LOW_SPEED_TIME, kSilentSMax);
  set(CURLOPT_TIMEOUT_MS, kAnswerMsMax);
  const std::unique_ptr<curl_slist, decltype(&curl_slist_free_all)> headers(
      curl_slist_append(nullptr, "Content-Type: application/json"), &curl_slist_free_all);
  if (is_post) {
    set(CURLOPT_POSTFIELDS, "");
    set(CURLOPT_HTTPHEADER, headers.get());
  }
  const CURLcode code = curl_easy_perform(easy.get());
  if (received.too_long) throw Failure(address + path + ": the answer is longer than 64 MB");
  if (code != CURLE_OK) unreachable(address, easy.get(), code);
  long status = 0;
  curl_easy_getinfo(easy.get(), CURLINFO_RESPONSE_CODE, &status);
  if (status != 200) refused(address, path, status, received.body);
  return std::move(received.body);
}

std::string percent_encode(const std::string& text, const char* also_safe) {
  static constexpr char kHex[] = "0123456789ABCDEF";
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (std::isalnum(byte) != 0 || std::string(also_safe).find(c) != std::string::npos) {
      out += c;
    } else {
      out += {'%', kHex[byte >> 4], kHex[byte & 15]};
    }
  }
  return out;
}

}  // namespace

std::string AdminClient::get_text(const std::string& path) const {
  return request(address_, path, /*is_post=*/false);
}

json AdminClient::get_json(const std::string& path) const {
  json out = json::parse(get_text(path), nullptr, false);
  if (!out.is_object()) throw Failure(address_ + path + ": the answer is not what it should be");
  return out;
}

void AdminClient::post(const std::string& path) const {
  (void)request(address_, path, /*is_post=*/true);
}

std::string with_query(const std::string& path, const std::map<std::string, std::string>& query) {
  std::string out = path;
  for (const auto& [name, value] : query) {
    out += (out.size() == path.size() ? "?" : "&") + name + "=" + percent_encode(value, "-._~");
  }
  return out;
}

std::string encode_segment(const std::string& text) { return percent_encode(text, "-._~:"); }

std::map<std::string, double> parse_metrics(const std::string& text) {
  std::map<std::string, double> out;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    const std::string line = text.substr(at, end - at);
    at = end + 1;
    const std::size_t space = line.rfind(' ');
    if (line.empty() || line[0] == '#' || space == std::string::npos) continue;
    char* stop = nullptr;
    const double value = std::strtod(line.c_str() + space + 1, &stop);
    if (*stop == '\0') out[line.substr(0, space)] = value;
  }
  return out;
}

double sum_of_series(const std::map<std::string, double>& metrics, const std::string& name,
                     const std::string& label) {
  double out = 0;
  for (auto it = metrics.lower_bound(name); it != metrics.end() && it->first.starts_with(name);
       ++it) {
    const std::string rest = it->first.substr(name.size());
    if (!rest.empty() && rest[0] != '{') continue;
    if (rest.find("worker=\"") != std::string::npos) continue;
    if (rest.find(label) != std::string::npos) out += it->second;
  }
  return out;
}

}  // namespace sanproxy::sanctl
