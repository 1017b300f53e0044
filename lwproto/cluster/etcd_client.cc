#include "lwproto/cluster/etcd_client.h"

#include <curl/curl.h>

#include <algorithm>
#include <charconv>
#include <mutex>
#include <string_view>
#include <utility>

#include "lwproto/base/check.h"
#include "lwproto/base/clock.h"
#include "lwproto/base/socket_address.h"
#include "lwproto/cluster/bounded_json.h"

namespace sanproxy::cluster {
namespace {

using nlohmann::json;

constexpr std::int64_t kPageValues = 1'000;
constexpr std::size_t kTokenBytesMax = 4'096;
constexpr int kWaitPieceMs = 1'000;
constexpr long kKeepAliveIdleS = 10;
constexpr std::uint64_t kNsOfOneMs = 1'000'000;

void set_up_curl() {
  static std::once_flag once;
  std::call_once(once, [] { SANPROXY_CHECK(curl_global_init(CURL_GLOBAL_DEFAULT) == 0); });
}

// What may pass by itself, at another endpoint or later: no leader, a member that is starting, or
// that what stands before it (502) does not reach.
bool is_transient(long http_status, const std::string& text) {
  if (http_status >= 502 && http_status <= 504) return true;
  for (const char* words : {"no leader", "timed out", "leader changed", "stopped", "too many"}) {
    if (text.find(words) != std::string::npos) return true;
  }
  return false;
}

// What etcd says of a request that is beyond --max-request-bytes or --max-txn-ops.
bool is_too_large(const std::string& text) {
  for (const char* words : {"too large", "larger than max", "too many operations"}) {
    if (text.find(words) != std::string::npos) return true;
  }
  return false;
}

// It has expired, its signer is gone, or users and roles were changed since (JWT say of when they
// are).
bool is_old_token(const std::string& text) {
  for (const char* words : {"auth token", "auth store is old"}) {
    if (text.find(words) != std::string::npos) return true;
  }
  return false;
}

// Whether it may lead to several members.
bool is_name(const std::string& url) {
  const std::string_view at = std::string_view(url).substr(url.find("://") + 3);
  return !at.starts_with('[') && !IpAddress::parse(at.substr(0, at.find(':'))).ok();
}

}  // namespace

Status check_endpoint(const std::string& url) {
  constexpr auto kBad =
      Status::error(Code::kInvalidArgument, "expected http://HOST:PORT or https://HOST:PORT");
  const std::size_t colon = url.find("://");
  if (colon == std::string::npos) return kBad;
  const std::string scheme = url.substr(0, colon);
  const std::string_view at = std::string_view(url).substr(colon + 3);
  if (scheme != "http" && scheme != "https") return kBad;
  if (at.find_first_of("/ @?#\\") != std::string::npos) return kBad;
  // An IPv6 address is in brackets, so what follows the first colon behind it is the port.
  const std::size_t host_end = at.find(':', at.starts_with('[') ? at.find(']') : 0);
  const std::string_view host = at.substr(0, host_end);
  if (host.empty() || (host.starts_with('[') && !host.ends_with(']'))) return kBad;
  if (host_end == std::string_view::npos) return {};
  const std::string_view digits = at.substr(host_end + 1);
  std::uint16_t port = 0;
  const auto [stop, error] = std::from_chars(digits.data(), digits.data() + digits.size(), port);
  return error == std::errc() && stop == digits.data() + digits.size() && port != 0 ? Status()
                                                                                    : kBad;
}

struct EtcdClient::Transfer {
  CURL* easy = curl_easy_init();
  curl_slist* headers = nullptr;
  curl_slist* connect_to = nullptr;
  std::string url, body, received;
  std::size_t received_max = 0;
  bool added = false, finished = false, too_long = false;
  CURLcode result = CURLE_OK;
  char error[CURL_ERROR_SIZE] = {};

  Transfer() { SANPROXY_CHECK(easy != nullptr); }
  ~Transfer() {
    curl_easy_cleanup(easy);
    curl_slist_free_all(connect_to);
    curl_slist_free_all(headers);
  }
  Transfer(const Transfer&) = delete;
  Transfer& operator=(const Transfer&) = delete;

  static std::size_t take(char* data, std::size_t, std::size_t bytes, void* user) {
    auto& self = *static_cast<Transfer*>(user);
    if (self.received.size() + bytes > self.received_max) {
      self.too_long = true;
      return 0;
    }
    self.received.append(data, bytes);
    return bytes;
  }
};

EtcdClient::EtcdClient(EtcdOptions options) : options_(std::move(options)) {
  set_up_curl();
  SANPROXY_CHECK(!options_.endpoints.empty());
  multi_ = curl_multi_init();
  SANPROXY_CHECK(multi_ != nullptr);
  request_ = std::make_unique<Transfer>();
}

EtcdClient::~EtcdClient() {
  end_watch();
  if (request_->added) curl_multi_remove_handle(multi_, request_->easy);
  request_.reset();
  curl_multi_cleanup(multi_);
}

void EtcdClient::configure(Transfer& t, const std::string& path, const json& body) {
  t.url = endpoint() + path;
  t.body = body.dump(-1, ' ', false, json::error_handler_t::replace);
  t.received.clear();
  t.received_max = options_.bounds.answer_bytes_max;
  t.finished = t.too_long = false;
  t.error[0] = '\0';
  curl_slist_free_all(t.headers);
  t.headers = curl_slist_append(nullptr, "Content-Type: application/json");
  t.headers = curl_slist_append(t.headers, "Expect:");
  if (!token_.empty()) {
    t.headers = curl_slist_append(t.headers, ("Authorization: " + token_).c_str());
  }
  curl_easy_reset(t.easy);
  const auto set = [&t](CURLoption option, auto value) {
    SANPROXY_CHECK(curl_easy_setopt(t.easy, option, value) == CURLE_OK);
  };
  set(CURLOPT_URL, t.url.c_str());
  set(CURLOPT_NOSIGNAL, 1L);
  set(CURLOPT_NOPROXY, "*");  // the environment's proxies are for browsers
  set(CURLOPT_PROTOCOLS_STR, "http,https");
  set(CURLOPT_HTTP_VERSION, static_cast<long>(CURL_HTTP_VERSION_1_1));
  set(CURLOPT_POSTFIELDS, t.body.c_str());
  set(CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(t.body.size()));
  set(CURLOPT_HTTPHEADER, t.headers);
  set(CURLOPT_ERRORBUFFER, t.error);
  set(CURLOPT_WRITEFUNCTION, &Transfer::take);
  set(CURLOPT_WRITEDATA, &t);
  set(CURLOPT_CONNECTTIMEOUT_MS, static_cast<long>(options_.timeout_ms));
  set(CURLOPT_TCP_KEEPALIVE, 1L);
  set(CURLOPT_TCP_KEEPIDLE, kKeepAliveIdleS);
  set(CURLOPT_TCP_KEEPINTVL, kKeepAliveIdleS);
  if (!options_.ca.empty()) set(CURLOPT_CAINFO, options_.ca.c_str());
  if (!options_.certificate.empty()) set(CURLOPT_SSLCERT, options_.certificate.c_str());
  if (!options_.key.empty()) set(CURLOPT_SSLKEY, options_.key.c_str());
  choose_member(t);
}

// The next request decides which member that is.
bool EtcdClient::chooses_member() const { return member_.empty() && is_name(endpoint()); }

// Of a name with several addresses the first that takes a connection would be asked again and
// again, whether or not it ever answers: any of them until one has, then that one.
void EtcdClient::choose_member(Transfer& t) {
  const auto set = [&t](CURLoption option, auto value) {
    SANPROXY_CHECK(curl_easy_setopt(t.easy, option, value) == CURLE_OK);
  };
  curl_slist_free_all(std::exchange(t.connect_to, nullptr));
  if (chooses_member()) {
    set(CURLOPT_DNS_CACHE_TIMEOUT, 0L);
    set(CURLOPT_DNS_SHUFFLE_ADDRESSES, 1L);
    set(CURLOPT_FORBID_REUSE, 1L);
  } else if (!member_.empty()) {
    t.connect_to = curl_slist_append(nullptr, ("::" + member_ + ":").c_str());
    set(CURLOPT_CONNECT_TO, t.connect_to);
  }
}

void EtcdClient::next_endpoint() {
  if (options_.endpoints.size() > 1 || is_name(endpoint())) ++visit_;
  current_ = (current_ + 1) % options_.endpoints.size();
  member_.clear();
}

// Lets transfers go on, notes those that have ended, and hands out what the watch brought.
void EtcdClient::perform() {
  int running = 0;
  curl_multi_perform(multi_, &running);
  int left = 0;
  while (const CURLMsg* message = curl_multi_info_read(multi_, &left)) {
    if (message->msg != CURLMSG_DONE) continue;
    for (Transfer* t : {request_.get(), watch_.get()}) {
      if (t == nullptr || t->easy != message->easy_handle) continue;
      t->finished = true;
      t->result = message->data.result;
    }
  }
  take_watch_lines();
}

void EtcdClient::take_watch_lines() {
  if (watch_ == nullptr || !watch_running_) return;
  std::string& text = watch_->received;
  std::size_t begin = 0;
  const auto fail = [&](std::string why) {
    watch_error_ = std::move(why);
    watch_running_ = false;
  };
  for (std::size_t end = text.find('\n'); end != std::string::npos && watch_running_;
       begin = end + 1, end = text.find('\n', begin)) {
    if (end == begin) continue;
    const auto answer = read_watch(std::string_view(text).substr(begin, end - begin),
                                   options_.bounds.value_bytes_max);
    if (!answer.ok()) {
      fail(answer.status().text());
    } else {
      watch_answered_ = true;
      on_watch_(*answer);
      if (answer->canceled) fail(answer->reason.empty() ? "canceled by etcd" : answer->reason);
    }
  }
  text.erase(0, begin);
  if (watch_running_ && watch_->finished) {
    if (watch_->too_long) {
      fail("an answer of the watch is longer than max_answer_bytes");
    } else if (std::string refused = error_text(parse_bounded(text)); !refused.empty()) {
      fail(std::move(refused));
    } else {
      fail(watch_->error[0] != '\0' ? watch_->error : "etcd has ended the watch");
    }
  }
}

void EtcdClient::wait(int timeout_ms) {
  perform();
  if (interrupted_ || timeout_ms <= 0) return;
  curl_multi_poll(multi_, nullptr, 0, timeout_ms, nullptr);
  perform();
}

void EtcdClient::wake() { curl_multi_wakeup(multi_); }

void EtcdClient::interrupt() {
  interrupted_ = true;
  wake();
}

void EtcdClient::resume(std::uint32_t timeout_ms) {
  options_.endpoints = {endpoint()};
  current_ = 0;
  options_.timeout_ms = timeout_ms;
  interrupted_ = false;
}

Answer EtcdClient::call_once(const std::string& path, const json& body, bool repeatable) {
  Transfer& t = *request_;
  configure(t, path, body);
  SANPROXY_CHECK(curl_easy_setopt(t.easy, CURLOPT_TIMEOUT_MS,
                                  static_cast<long>(options_.timeout_ms)) == CURLE_OK);
  // On a connection that it has used before, libcurl repeats by itself what was not answered, and
  // does not tell whether anything was sent.
  const bool fresh = !repeatable || chooses_member();
  SANPROXY_CHECK(curl_easy_setopt(t.easy, CURLOPT_FRESH_CONNECT, fresh ? 1L : 0L) == CURLE_OK);
  curl_multi_add_handle(multi_, t.easy);
  t.added = true;
  perform();
  while (!t.finished && !interrupted_) {
    curl_multi_poll(multi_, nullptr, 0, kWaitPieceMs, nullptr);
    perform();
  }
  curl_multi_remove_handle(multi_, t.easy);
  t.added = false;
  Answer out;
  const auto fail = [&](Code code, const std::string& why) {
    out.code = code;
    out.error = endpoint() + ": " + why;
    return std::move(out);
  };
  if (!t.finished) return fail(Code::kDisconnected, "interrupted");
  if (t.too_long) {
    out.too_long = true;
    return fail(Code::kProtocol, "the answer is longer than max_answer_bytes");
  }
  if (t.result != CURLE_OK) {
    curl_off_t connect_us = 0;
    curl_easy_getinfo(t.easy, CURLINFO_CONNECT_TIME_T, &connect_us);
    out.may_be_done = connect_us != 0;
    const Code code = t.result == CURLE_OPERATION_TIMEDOUT ? Code::kTimeout : Code::kDisconnected;
    return fail(code, t.error[0] != '\0' ? t.error : curl_easy_strerror(t.result));
  }
  long http_status = 0;
  curl_easy_getinfo(t.easy, CURLINFO_RESPONSE_CODE, &http_status);
  out.body = parse_bounded(t.received);
  const std::string refused = error_text(out.body);
  if (http_status != 200 || !refused.empty()) {
    const std::string why =
        refused.empty() ? "HTTP status " + std::to_string(http_status) : refused;
    out.too_large = is_too_large(why);
    const bool transient = !out.too_large && is_transient(http_status, why);
    out.may_be_done = transient;
    return fail(transient ? Code::kDisconnected : Code::kRefused, why);
  }
  if (!out.body.is_object()) return fail(Code::kProtocol, "the answer is not JSON");
  out.ok = true;
  if (char* ip = nullptr; chooses_member() &&
                          curl_easy_getinfo(t.easy, CURLINFO_PRIMARY_IP, &ip) == CURLE_OK &&
                          ip != nullptr) {
    const std::string address = ip;
    member_ = address.find(':') == std::string::npos ? address : "[" + address + "]";
  }
  return out;
}

// Gets a token for options_.user.
bool EtcdClient::log_in(Answer& failure) {
  token_.clear();
  Answer answer = call_once("/v3/auth/authenticate",
                            {{"name", options_.user}, {"password", options_.password}});
  const auto token = answer.body.is_object() ? answer.body.find("token") : answer.body.end();
  if (answer.ok && token != answer.body.end() && token->is_string()) {
    // It goes into a header as it is.
    const auto& text = token->get_ref<const std::string&>();
    if (text.size() <= kTokenBytesMax && printable(text, kTokenBytesMax) == text) {
      token_ = text;
      return true;
    }
  }
  if (answer.ok) {
    answer.ok = false;
    answer.code = Code::kProtocol;
    answer.error = endpoint() + ": no token in the answer";
  }
  failure = std::move(answer);
  return false;
}

Answer EtcdClient::call(const std::string& path, const json& body, bool repeatable) {
  Answer answer;
  bool logged_in_now = false;
  // Once around: the endpoint in use may have gone just now, and so may the next.
  for (std::size_t tries = options_.endpoints.size() + 1; tries > 0; --tries) {
    if (!options_.user.empty() && token_.empty()) {
      if (!log_in(answer)) {
        last_error_ = answer.error;
        if (answer.code != Code::kTimeout && answer.code != Code::kDisconnected) return answer;
        next_endpoint();
        continue;
      }
      logged_in_now = true;
    }
    answer = call_once(path, body, repeatable);
    if (answer.ok) return answer;
    last_error_ = answer.error;
    if (interrupted_) return answer;
    if (!token_.empty() && !logged_in_now && is_old_token(answer.error)) {
      token_.clear();
      continue;
    }
    if (answer.code != Code::kTimeout && answer.code != Code::kDisconnected) return answer;
    if (answer.may_be_done && !repeatable) return answer;
    if (tries > 1) next_endpoint();
  }
  return answer;
}

Result<RangeAnswer> EtcdClient::list(const std::string& key, const std::string& end,
                                     std::size_t values_max, std::int64_t at_revision,
                                     const Wanted& wanted) {
  RangeAnswer all;
  std::string from = key;
  std::int64_t page_values = kPageValues;
  std::size_t seen = 0, bytes = 0;
  while (true) {
    const Answer answer =
        call("/v3/kv/range", range_request(from, end, at_revision, end.empty() ? 0 : page_values));
    if (answer.too_long && !end.empty() && page_values > 1) {
      page_values = std::max<std::int64_t>(page_values / 8, 1);
      continue;
    }
    if (!answer.ok) return Status::error(answer.code, "etcd does not list its keys");
    auto page = read_range(answer.body, options_.bounds.value_bytes_max);
    if (!page.ok()) {
      last_error_ = endpoint() + ": " + page.status().text();
      return page.status();
    }
    if (at_revision == 0) at_revision = page->revision;
    for (KeyValue& value : page->values) {
      if (++seen > values_max) {
        all.truncated = true;
        break;
      }
      if (wanted && !wanted(value.key)) continue;
      if (bytes + value.value.size() > options_.bounds.total_bytes_max) {
        value.value.clear();
        value.fault = Fault::kTotalTooLong;
      }
      bytes += value.value.size();
      all.values.push_back(std::move(value));
    }
    if (!page->more || page->last_key.empty()) break;
    all.truncated = all.truncated || seen == values_max;
    if (all.truncated) break;
    from = page->last_key + '\0';
  }
  all.revision = at_revision;
  return all;
}

void EtcdClient::watch(const std::string& key, const std::string& end, std::int64_t from_revision,
                       OnWatch on_watch) {
  end_watch();
  on_watch_ = std::move(on_watch);
  watch_error_.clear();
  watch_ = std::make_unique<Transfer>();
  configure(*watch_, "/v3/watch", watch_request(key, end, from_revision));
  curl_multi_add_handle(multi_, watch_->easy);
  watch_running_ = true;
  watch_answered_ = false;
  watch_visit_ = visit_;
}

bool EtcdClient::await_watch() {
  const SteadyClock clock;
  const std::uint64_t until = clock.now_ns() + options_.timeout_ms * kNsOfOneMs;
  perform();
  while (watching() && !watch_answered_ && !interrupted_) {
    const std::uint64_t now = clock.now_ns();
    if (now >= until) {
      last_error_ = endpoint() + ": the watch is not answered";
      return false;
    }
    curl_multi_poll(multi_, nullptr, 0, static_cast<int>((until - now) / kNsOfOneMs) + 1, nullptr);
    perform();
  }
  return true;
}

void EtcdClient::end_watch() {
  watch_running_ = false;
  if (watch_ == nullptr) return;
  curl_multi_remove_handle(multi_, watch_->easy);
  watch_.reset();
}

}  // namespace sanproxy::cluster
