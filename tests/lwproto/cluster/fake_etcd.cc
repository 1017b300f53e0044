#include "tests/lwproto/cluster/fake_etcd.h"

#include <gtest/gtest.h>
#include <httplib.h>

#include "lwproto/cluster/etcd_messages.h"

namespace sanproxy::cluster::testing {

using nlohmann::json;

namespace {

std::string bytes_in(const json& object, const char* field) {
  return object.contains(field) ? *from_base64(object[field].get<std::string>()) : "";
}

bool in_range(const std::string& key, const std::string& begin, const std::string& end) {
  if (end.empty()) return key == begin;
  return key >= begin && (end == std::string(1, '\0') || key < end);
}

}  // namespace

struct FakeEtcd::Http {
  httplib::Server server;
};

FakeEtcd::FakeEtcd(std::string host, int port) : host_(std::move(host)), port_(port) { start(); }
FakeEtcd::~FakeEtcd() { stop(); }

std::string FakeEtcd::url() const { return "http://127.0.0.1:" + std::to_string(port_); }

void FakeEtcd::start() {
  stopping_ = false;
  http_ = std::make_unique<Http>();
  httplib::Server& server = http_->server;
  server.new_task_queue = [] { return new httplib::ThreadPool(16); };
  server.set_keep_alive_timeout(1);
  server.set_socket_options([](socket_t socket) {
    const int yes = 1;
    setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
  });
  server.Post(".*", [this](const httplib::Request& request, httplib::Response& response) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      ++requests_[request.path];
      bodies_[request.path] = request.body;
      for (const auto& [name, value] : request.headers) headers_[request.path][name] = value;
      const auto scripted = scripted_.find(request.path);
      if (scripted != scripted_.end() && scripted->second.count > 0) {
        --scripted->second.count;
        response.status = scripted->second.status;
        response.set_content(scripted->second.body, "application/json");
        changed_.notify_all();
        return;
      }
    }
    const json body = json::parse(request.body, nullptr, false);
    if (request.path == "/v3/watch") {
      const json create = body["create_request"];
      const auto key = bytes_in(create, "key");
      const auto end = bytes_in(create, "range_end");
      auto from = std::make_shared<std::int64_t>(*read_number(create, "start_revision"));
      const bool held = holding_watches_;
      response.set_chunked_content_provider(
          "application/json",
          [this, key, end, from, held](std::size_t offset, httplib::DataSink& sink) {
            bool done = false;
            std::string lines = watch_lines(key, end, *from, done);
            if (held)
              lines.clear();
            else if (offset == 0)
              lines.insert(0, created_line());
            if (!lines.empty() && !sink.write(lines.data(), lines.size())) return false;
            if (done) sink.done();
            return !stopping_;
          });
      return;
    }
    int status = 200;
    const json answer = serve(request.path, body, status);
    const bool lost = [&] {
      const std::lock_guard<std::mutex> lock(mutex_);
      return losing_.contains(request.path);
    }();
    response.status = lost ? 503 : status;
    response.set_content(lost ? "" : answer.dump(), "application/json");
    changed_.notify_all();
  });
  if (port_ == 0) {
    port_ = server.bind_to_any_port(host_);
  } else {
    ASSERT_TRUE(server.bind_to_port(host_, port_));
  }
  thread_ = std::thread([this] { http_->server.listen_after_bind(); });
  while (!server.is_running()) std::this_thread::yield();
}

void FakeEtcd::stop() {
  if (!thread_.joinable()) return;
  stopping_ = true;
  changed_.notify_all();
  http_->server.stop();
  thread_.join();
  http_.reset();
}

json FakeEtcd::header() { return {{"revision", std::to_string(revision_)}}; }

void FakeEtcd::put_locked(const std::string& key, const std::string& value, std::int64_t lease) {
  Value& there = values_[key];
  there.value = value;
  there.mod = revision_;
  if (there.create == 0) there.create = revision_;
  there.lease = lease;
  events_.push_back({revision_, false, key, there});
}

void FakeEtcd::erase_locked(const std::string& key) {
  if (values_.erase(key) == 0) return;
  Value gone;
  gone.mod = revision_;
  events_.push_back({revision_, true, key, gone});
}

void FakeEtcd::put(const std::string& key, const std::string& value, std::int64_t lease) {
  const std::lock_guard<std::mutex> lock(mutex_);
  ++revision_;
  put_locked(key, value, lease);
  changed_.notify_all();
}

void FakeEtcd::erase(const std::string& key) {
  const std::lock_guard<std::mutex> lock(mutex_);
  ++revision_;
  erase_locked(key);
  changed_.notify_all();
}

std::optional<std::string> FakeEtcd::get(const std::string& key) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto it = values_.find(key);
  return it == values_.end() ? std::nullopt : std::optional(it->second.value);
}

std::map<std::string, std::string> FakeEtcd::all() {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::map<std::string, std::string> out;
  for (const auto& [key, value] : values_) out[key] = value.value;
  return out;
}

std::int64_t FakeEtcd::revision() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return revision_;
}

void FakeEtcd::compact() {
  const std::lock_guard<std::mutex> lock(mutex_);
  compacted_ = revision_;
  events_.clear();
}

void FakeEtcd::expire_leases() {
  const std::lock_guard<std::mutex> lock(mutex_);
  leases_.clear();
  ++revision_;
  std::vector<std::string> gone;
  for (const auto& [key, value] : values_) {
    if (value.lease != 0) gone.push_back(key);
  }
  for (const std::string& key : gone) erase_locked(key);
  changed_.notify_all();
}

void FakeEtcd::wipe() {
  const std::lock_guard<std::mutex> lock(mutex_);
  leases_.clear();
  values_.clear();
  events_.clear();
  compacted_ = ++revision_;
}

std::size_t FakeEtcd::lease_count() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return leases_.size();
}

void FakeEtcd::answer(const std::string& path, int count, int status, std::string body) {
  const std::lock_guard<std::mutex> lock(mutex_);
  scripted_[path] = {count, status, std::move(body)};
}

void FakeEtcd::lose_answers(const std::string& path, bool lose) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (lose) {
    losing_.insert(path);
  } else {
    losing_.erase(path);
  }
}

void FakeEtcd::set_request_bytes_max(std::size_t bytes) {
  const std::lock_guard<std::mutex> lock(mutex_);
  request_bytes_max_ = bytes;
}

std::size_t FakeEtcd::requests(const std::string& path) {
  const std::lock_guard<std::mutex> lock(mutex_);
  return requests_[path];
}

std::string FakeEtcd::last_body(const std::string& path) {
  const std::lock_guard<std::mutex> lock(mutex_);
  return bodies_[path];
}

std::string FakeEtcd::last_header(const std::string& path, const std::string& name) {
  const std::lock_guard<std::mutex> lock(mutex_);
  return headers_[path][name];
}

json FakeEtcd::range(const json& request) {
  const auto begin = bytes_in(request, "key");
  const auto end = bytes_in(request, "range_end");
  const auto limit = static_cast<std::size_t>(*read_number(request, "limit"));
  json values = json::array();
  bool more = false;
  for (const auto& [key, value] : values_) {
    if (!in_range(key, begin, end)) continue;
    if (limit != 0 && values.size() == limit) {
      more = true;
      break;
    }
    values.push_back({{"key", to_base64(key)},
                      {"value", to_base64(value.value)},
                      {"mod_revision", std::to_string(value.mod)},
                      {"lease", std::to_string(value.lease)}});
  }
  json out = {{"header", header()}};
  if (!values.empty()) out["kvs"] = values;
  if (more) out["more"] = true;
  return out;
}

// MOD LESS, and CREATE EQUAL 0.
bool FakeEtcd::holds(const json& compare) {
  const auto begin = bytes_in(compare, "key");
  const auto end = bytes_in(compare, "range_end");
  for (const auto& [key, value] : values_) {
    if (!in_range(key, begin, end)) continue;
    if (compare["target"] == "CREATE") return false;
    if (value.mod >= *read_number(compare, "mod_revision")) return false;
  }
  return true;
}

json FakeEtcd::transact(const json& request) {
  std::size_t bytes = 0;
  for (const json& one : request.value("success", json::array())) {
    if (!one.contains("request_put")) continue;
    bytes +=
        bytes_in(one["request_put"], "key").size() + bytes_in(one["request_put"], "value").size();
  }
  if (bytes > request_bytes_max_) return {{"error", "etcdserver: request is too large"}};
  for (const json& one : request.value("compare", json::array())) {
    if (!holds(one)) return {{"header", header()}};
  }
  ++revision_;
  for (const json& one : request.value("success", json::array())) {
    if (one.contains("request_put")) {
      const json& put = one["request_put"];
      const auto lease = *read_number(put, "lease");
      if (lease != 0 && !leases_.contains(lease)) {
        return {{"error", "etcdserver: requested lease not found"}};
      }
      put_locked(bytes_in(put, "key"), bytes_in(put, "value"), lease);
    } else {
      erase_locked(bytes_in(one["request_delete_range"], "key"));
    }
  }
  return {{"header", header()}, {"succeeded", true}};
}

json FakeEtcd::serve(const std::string& path, const json& body, int& status) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (path == "/v3/kv/range") return range(body);
  if (path == "/v3/kv/txn") {
    json out = transact(body);
    if (out.contains("error")) {
      status = out["error"].get<std::string>().find("not found") == std::string::npos ? 400 : 404;
    }
    return out;
  }
  if (path == "/v3/lease/grant") {
    leases_[++next_lease_] = true;
    return {{"ID", std::to_string(next_lease_)}, {"TTL", body["TTL"]}};
  }
  const auto id = *read_number(body, "ID");
  if (path == "/v3/lease/keepalive") {
    json result = {{"ID", std::to_string(id)}};
    if (leases_.contains(id)) result["TTL"] = "10";
    return {{"result", result}};
  }
  if (path == "/v3/lease/revoke") {
    leases_.erase(id);
    ++revision_;
    std::vector<std::string> gone;
    for (const auto& [key, value] : values_) {
      if (value.lease == id) gone.push_back(key);
    }
    for (const std::string& key : gone) erase_locked(key);
    return {{"header", header()}};
  }
  status = 404;
  return {{"error", "Not Found"}};
}

void FakeEtcd::hold_watches(bool hold) { holding_watches_ = hold; }

std::string FakeEtcd::created_line() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return json{{"result", {{"header", header()}, {"created", true}}}}.dump() + "\n";
}

std::string FakeEtcd::watch_lines(const std::string& key, const std::string& end,
                                  std::int64_t& from, bool& done) {
  std::unique_lock<std::mutex> lock(mutex_);
  if (from <= compacted_) {
    done = true;
    return json{{"result",
                 {{"header", header()},
                  {"canceled", true},
                  {"compact_revision", std::to_string(compacted_)}}}}
               .dump() +
           "\n";
  }
  changed_.wait_for(lock, std::chrono::milliseconds(20),
                    [&] { return stopping_ || revision_ >= from; });
  json list = json::array();
  for (const Event& event : events_) {
    if (event.revision < from || !in_range(event.key, key, end)) continue;
    json value = {{"key", to_base64(event.key)}, {"mod_revision", std::to_string(event.value.mod)}};
    if (!event.deleted) {
      value["value"] = to_base64(event.value.value);
      value["lease"] = std::to_string(event.value.lease);
    }
    json one = {{"kv", value}};
    if (event.deleted) one["type"] = "DELETE";
    list.push_back(one);
  }
  from = std::max(from, revision_ + 1);
  if (list.empty()) return "";
  return json{{"result", {{"header", header()}, {"events", list}}}}.dump() + "\n";
}

}  // namespace sanproxy::cluster::testing
