#include "lwproto/cluster/session.h"

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <utility>

#include "lwproto/cluster/bounded_json.h"

namespace sanproxy::cluster {
namespace {

using nlohmann::json;

constexpr std::uint64_t kNsPerMs = 1'000'000;
constexpr std::uint64_t kNsPerSecond = 1'000'000'000;
constexpr std::uint64_t kPauseFirstNs = 100 * kNsPerMs;
constexpr std::uint64_t kPauseMaxNs = 2 * kNsPerSecond;
// Between two rounds of writing what is announced: a storm of joins is one transaction, and
// whoever deletes our keys in a loop does not get a loop of us.
constexpr std::uint64_t kWritePauseNs = 200 * kNsPerMs;
constexpr std::size_t kOperationsMax = 100;  // of a transaction; etcd's own bound is 128
// Keys and values of a transaction; etcd's own bound is 1.5 MB with everything around them. One
// record always fits: max_value_bytes is at most as much.
constexpr std::size_t kTransactionBytesMax = std::size_t{1} << 20;
constexpr std::size_t kOperationBytes = 64;  // around a key and its value
constexpr std::size_t kRefusedShownMax = 100;
constexpr std::size_t kChangesMax = 1'024;  // that wait for the mailbox
constexpr int kWaitMaxMs = 1'000;

std::string instance_in(const std::string& value) {
  const json parsed = parse_bounded(value);
  if (!parsed.is_object() || !parsed.contains("instance")) return "";
  return parsed["instance"].is_string() ? parsed["instance"].get<std::string>() : "";
}

}  // namespace

Session::Session(SessionOptions options, Log log)
    : options_(std::move(options)),
      log_(std::move(log)),
      root_(cluster_root(options_.prefix, options_.cluster)),
      client_(options_.etcd),
      state_(root_, options_.etcd.bounds, std::uint64_t{options_.ttl_s} * kNsPerSecond,
             [this](const std::string& text) { report(text); }),
      operations_max_(kOperationsMax) {
  // Signals are for the process's other threads.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  thread_ = std::thread([this] { run(); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

Session::~Session() {
  stopping_ = true;
  client_.interrupt();
  thread_.join();
}

void Session::announce(const std::string& key, const json& value) {
  std::string text = value.dump(-1, ' ', false, json::error_handler_t::replace);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!announced_.contains(key) && announced_.size() >= options_.announced_max) {
      ++status_.announcements_refused;
      return;
    }
    std::string& known = announced_[key];
    if (known == text) return;
    known = std::move(text);
  }
  client_.wake();
}

void Session::withdraw(const std::string& key) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (announced_.erase(key) == 0) return;
  }
  client_.wake();
}

SessionStatus Session::status() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return status_;
}

std::uint64_t Session::beat_ns() const { return options_.ttl_s * kNsPerSecond / 3; }

void Session::run() {
  std::uint64_t pause_ns = kPauseFirstNs;
  while (!stopping_) {
    if (come_up()) {
      pause_ns = kPauseFirstNs;
      while (!stopping_ && serve()) {
      }
    }
    client_.end_watch();
    if (stopping_) break;
    lost(client_.last_error());
    client_.next_endpoint();
    // The state ages meanwhile, and somebody may call wake(): sleep until the time is over.
    const std::uint64_t until = clock_.now_ns() + pause_ns;
    for (std::uint64_t now = clock_.now_ns(); now < until && !stopping_; now = clock_.now_ns()) {
      client_.wait(static_cast<int>((until - now) / kNsPerMs) + 1);
    }
    pause_ns = std::min(pause_ns * 2, kPauseMaxNs);
  }
  farewell();
}

void Session::lost(const std::string& why) {
  state_.pause();
  bool news = false;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    news = status_.connected || status_.error.empty();
    if (status_.connected) ++status_.losses;
    status_.connected = false;
    status_.error = why;
  }
  if (news) log_(LogLevel::kWarning, "etcd does not answer (" + why + "); going on as before");
  if (news) mailbox_.nudge();
}

bool Session::come_up() {
  // It may be another etcd, or the same with other limits.
  operations_max_ = kOperationsMax;
  std::erase_if(left_out_, [](const auto& one) { return one.second.by_etcd; });
  if (options_.registers && !keep_lease()) return false;
  if (!list()) return false;
  if (options_.registers && !write_announced()) return false;
  bool news = false;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    news = !status_.connected;
    status_.connected = status_.ever_connected = true;
    status_.error.clear();
    ++status_.connects;
  }
  if (news) {
    log_(LogLevel::kInfo, "cluster \"" + options_.cluster + "\" at " + client_.endpoint() + ": " +
                              std::to_string(state_.entries().size()) + " entries");
    mailbox_.nudge();
  }
  return true;
}

// Renews the lease, or gets one.
bool Session::keep_lease() {
  beat_at_ns_ = clock_.now_ns() + beat_ns();
  if (lease_ != 0) {
    const Answer answer = client_.call("/v3/lease/keepalive", {{"ID", std::to_string(lease_)}});
    if (!answer.ok) return false;
    const auto result = answer.body.find("result");
    const auto ttl = result != answer.body.end() && result->is_object()
                         ? read_number(*result, "TTL")
                         : Result<std::int64_t>(std::int64_t{0});
    if (ttl.ok() && *ttl > 0) return true;
    log_(LogLevel::kInfo, "our lease has run out: registering again");
    lease_ = 0;
  }
  const Answer answer =
      client_.call("/v3/lease/grant", {{"TTL", std::to_string(options_.ttl_s)}, {"ID", "0"}});
  if (!answer.ok) return false;
  const auto id = read_number(answer.body, "ID");
  if (!id.ok() || *id == 0) return false;
  lease_ = *id;
  written_.clear();
  const std::lock_guard<std::mutex> lock(mutex_);
  ++status_.lease_renewals;
  return true;
}

// Lists everything, and watches from there. False: etcd is lost.
bool Session::list() {
  list_again_ = false;
  const std::string begin = root_ + options_.watched;
  const auto wanted = [this](const std::string& key) {
    const std::string_view rest = std::string_view(key).substr(std::min(key.size(), root_.size()));
    return is_entry_key(rest) || rest == "schema";
  };
  auto all =
      client_.list(begin, prefix_end(begin), options_.etcd.bounds.entries_max * 2, 0, wanted);
  if (!all.ok()) return false;
  if (all->truncated) {  // the schema is behind the others
    auto schema = client_.list(root_ + "schema", "", 1, all->revision);
    if (!schema.ok()) return false;
    std::move(schema->values.begin(), schema->values.end(), std::back_inserter(all->values));
  }
  next_revision_ = all->revision + 1;
  state_.apply_snapshot(all->values, clock_.now_ns(), changes_, all->truncated);
  // What etcd has under our lease, also of a transaction whose answer never came: what is not as
  // announced will be written, what is announced no more deleted.
  std::map<std::string, std::string> found;
  for (const KeyValue& value : all->values) {
    if (lease_ == 0 || value.lease != lease_) continue;
    found.insert_or_assign(value.key.substr(root_.size()), value.value);
  }
  written_ = std::move(found);
  std::set<std::string> taken;  // still
  for (const KeyValue& value : all->values) {
    std::string key = value.key.substr(root_.size());
    if (value.lease != lease_ && taken_.contains(key)) taken.insert(std::move(key));
  }
  taken_ = std::move(taken);
  write_at_ns_ = 0;
  hand_over();
  client_.watch(begin, prefix_end(begin), next_revision_,
                [this](const WatchAnswer& answer) { on_watch(answer); });
  return client_.await_watch();
}

void Session::on_watch(const WatchAnswer& answer) {
  if (answer.canceled) {
    if (answer.compact_revision != 0) {
      const std::lock_guard<std::mutex> lock(mutex_);
      ++status_.compactions;
    }
    return;
  }
  for (const WatchEvent& event : answer.events) {
    next_revision_ = std::max(next_revision_, event.value.mod_revision + 1);
    const bool schema = event.value.key == root_ + "schema";
    state_.apply_event(event, changes_);
    list_again_ = list_again_ || schema;
    note_own(event);
  }
  if (changes_.size() >= kChangesMax) hand_over();
}

// Of refusals there may be any number, and each is a line in the log.
void Session::report(const std::string& text) {
  const std::uint64_t now = clock_.now_ns();
  if (now - reports_since_ns_ >= kReportPeriodNs) {
    if (reports_ > kReportsMax) {
      log_(LogLevel::kWarning,
           std::to_string(reports_ - kReportsMax) + " more refusals were counted, not logged");
    }
    reports_since_ns_ = now;
    reports_ = 0;
  }
  if (++reports_ > kReportsMax) return;
  log_(LogLevel::kWarning, text);
  mailbox_.nudge();
}

// Somebody has touched what we had written.
void Session::note_own(const WatchEvent& event) {
  if (!event.value.key.starts_with(root_)) return;
  const std::string key = event.value.key.substr(root_.size());
  if (event.deleted) taken_.erase(key);
  const auto ours = written_.find(key);
  if (ours == written_.end()) return;
  if (!event.deleted && event.value.lease == lease_) return;  // our own, on its way back
  const std::string other = event.deleted ? "" : instance_in(event.value.value);
  // Records of nodes of older versions bear no instance, but another's lease.
  if ((!other.empty() || event.value.lease != 0) && other != options_.instance) {
    log_(LogLevel::kError,
         printable(event.value.key) + ": another process registers under our name");
    taken_.insert(key);  // to write it back would be answered in kind, for ever
    const std::lock_guard<std::mutex> lock(mutex_);
    ++status_.duplicates;
  }
  written_.erase(ours);
}

// One round: until something happens. False when etcd is lost.
bool Session::serve() {
  const std::uint64_t now = clock_.now_ns();
  if (now >= beat_at_ns_) {
    if (options_.registers) {
      if (!keep_lease()) return false;
    } else {
      // A member that is cut off from the others answers nothing to this, and would go on watching.
      beat_at_ns_ = now + beat_ns();
      if (!client_.call("/v3/kv/range", range_request(root_ + "schema", "")).ok) return false;
    }
  }
  if (options_.registers && now >= write_at_ns_ && !write_announced()) return false;
  state_.expire(now, changes_);
  hand_over();
  if (list_again_) return list();
  if (!client_.watching()) {
    log_(LogLevel::kInfo,
         "the watch has ended: " + (client_.watch_error().empty() ? "another member is asked now"
                                                                  : client_.watch_error()));
    return list();  // from scratch: also what to do after a compaction
  }
  std::uint64_t next = beat_at_ns_;
  if (write_at_ns_ > now) next = std::min(next, write_at_ns_);
  const std::uint64_t ms = next > now ? (next - now) / kNsPerMs + 1 : 0;
  client_.wait(static_cast<int>(std::min<std::uint64_t>(ms, kWaitMaxMs)));
  return true;
}

bool Session::write_announced() {
  std::map<std::string, std::string> wanted;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    wanted = announced_;
  }
  leave_out_bad(wanted);
  const std::uint64_t before = status_.writes;
  while (!stopping_) {
    // Also what was taken while we wrote.
    std::erase_if(wanted, [this](const auto& one) { return taken_.contains(one.first); });
    if (written_ == wanted) break;
    if (clock_.now_ns() >= beat_at_ns_ && !keep_lease()) return false;  // many of them take long
    if (!write_some(wanted)) return false;
  }
  if (status_.writes != before) write_at_ns_ = clock_.now_ns() + kWritePauseNs;
  return true;
}

// Records that nobody could read. What has been looked at before is not parsed again.
void Session::leave_out_bad(std::map<std::string, std::string>& wanted) {
  std::erase_if(left_out_, [&](const auto& one) { return !wanted.contains(one.first); });
  std::vector<std::pair<std::string, LeftOut>> bad;
  for (const auto& [key, value] : wanted) {
    const auto there = written_.find(key);
    if (there != written_.end() && there->second == value) continue;
    const auto before = left_out_.find(key);
    if (before != left_out_.end() && before->second.text_hash == std::hash<std::string>()(value)) {
      bad.emplace_back(key, before->second);
    } else if (std::string why = check(key, value); !why.empty()) {
      bad.emplace_back(key, LeftOut{.why = std::move(why)});
    } else {
      left_out_.erase(key);
    }
  }
  for (const auto& [key, one] : bad) leave_out(key, wanted, one.why, one.by_etcd);
}

// "" for a record that others will understand.
std::string Session::check(const std::string& key, const std::string& value) const {
  if (root_.size() + key.size() > kKeyBytesMax) {
    return "the key is longer than " + std::to_string(kKeyBytesMax) + " bytes";
  }
  if (value.size() > options_.etcd.bounds.value_bytes_max) {
    return std::to_string(value.size()) + " bytes are more than max_value_bytes";
  }
  return parse_entry(key, value).error;
}

void Session::leave_out(const std::string& key, std::map<std::string, std::string>& wanted,
                        const std::string& why, bool by_etcd) {
  const auto record = wanted.find(key);
  const std::size_t hash = std::hash<std::string>()(record->second);
  const auto [known, fresh] = left_out_.try_emplace(key);
  if (fresh) report(printable(root_ + key) + " cannot be registered: " + why);
  if (fresh || known->second.text_hash != hash) {
    const std::lock_guard<std::mutex> lock(mutex_);
    ++status_.records_refused;
  }
  known->second = {hash, why, by_etcd};
  const auto there = written_.find(key);
  if (there == written_.end()) {
    wanted.erase(record);
  } else {
    record->second = there->second;
  }
}

// One transaction of those that differ.
bool Session::write_some(std::map<std::string, std::string>& wanted) {
  json operations = json::array();
  std::string last_put;
  std::size_t bytes = 0;
  auto after = written_;
  for (const auto& [key, value] : wanted) {
    if (operations.size() == operations_max_) break;
    const auto there = written_.find(key);
    if (there != written_.end() && there->second == value) continue;
    bytes += root_.size() + key.size() + value.size() + kOperationBytes;
    if (!operations.empty() && bytes > kTransactionBytesMax) break;
    operations.push_back(put_operation(root_ + key, value, lease_));
    after[key] = value;
    last_put = key;
  }
  for (const auto& [key, value] : written_) {
    if (operations.size() == operations_max_ || bytes > kTransactionBytesMax) break;
    if (wanted.contains(key)) continue;
    operations.push_back(delete_operation(root_ + key));
    after.erase(key);
  }
  // Before the call: what the watch says of it arrives during the call.
  const auto before = std::exchange(written_, after);
  const std::size_t count = operations.size();
  const Answer answer =
      client_.call("/v3/kv/txn", transaction(json::array(), std::move(operations)));
  if (!answer.ok) {
    written_ = before;
    // Somebody may have deleted one of them meanwhile: written_ does not know of it any more.
    list_again_ = list_again_ || answer.too_large;
    if (answer.too_large && count > 1) {
      operations_max_ = count / 2;
      return true;
    }
    if (answer.too_large && !last_put.empty()) {
      leave_out(last_put, wanted, answer.error, /*by_etcd=*/true);
      return true;
    }
    // The lease has run out between two beats: the next attempt gets another.
    if (answer.error.find("lease not found") != std::string::npos) lease_ = 0;
    return false;
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  ++status_.writes;
  return true;
}

void Session::hand_over() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    status_.endpoint = client_.endpoint();
    status_.revision = next_revision_ - 1;
    status_.state = state_.counters();
    status_.entries = state_.entries().size();
    status_.refused.clear();
    for (const auto& [key, one] : left_out_) {
      if (status_.refused.size() == kRefusedShownMax) break;
      status_.refused.emplace(printable(key), "cannot be registered: " + one.why);
    }
    for (const auto& one : state_.refused()) {
      if (status_.refused.size() == kRefusedShownMax) break;
      status_.refused.emplace(printable(one.first), one.second);
    }
  }
  mailbox_.put(std::exchange(changes_, {}));
}

// What we announced goes now, not when the lease runs out.
void Session::farewell() {
  if (lease_ == 0) return;
  client_.resume(/*timeout_ms=*/500);
  (void)client_.call("/v3/lease/revoke", {{"ID", std::to_string(lease_)}});
}

}  // namespace sanproxy::cluster
