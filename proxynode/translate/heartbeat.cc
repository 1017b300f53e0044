#include "proxynode/translate/heartbeat.h"

namespace sanproxy::translate {
namespace {

constexpr std::uint64_t kNsPerMs = 1'000'000;

}  // namespace

Heartbeat::Heartbeat(const HeartbeatOptions& options, std::uint64_t now_ns)
    : interval_ns_(options.interval_ms * kNsPerMs),
      timeout_ns_(options.timeout_ms * kNsPerMs),
      health_(options.thresholds),
      heard_ns_(now_ns) {
  if (interval_ns_ == 0) return;
  due_ns_ = now_ns + interval_ns_;
  (void)health_.on_result(true);  // it has just said HELLO
}

void Heartbeat::set_options(const HeartbeatOptions& options, std::uint64_t now_ns) {
  const bool asked_before = interval_ns_ != 0;
  interval_ns_ = options.interval_ms * kNsPerMs;
  timeout_ns_ = options.timeout_ms * kNsPerMs;
  if (interval_ns_ == 0 || !asked_before) {
    health_ = flow::Health(options.thresholds);
    if (interval_ns_ != 0) (void)health_.on_result(true);
  }
  health_.set_options(options.thresholds);
  due_ns_ = interval_ns_ == 0 ? UINT64_MAX : now_ns + interval_ns_;
}

Heartbeat::Step Heartbeat::look(std::uint64_t now_ns, std::uint64_t in, std::uint64_t out) {
  Step step;
  if (now_ns < due_ns_) return step;
  const bool heard = in != in_;
  const bool said = out != out_;
  remember(in, out);
  if (heard) heard_ns_ = now_ns;
  if (heard || owed_) step.good = heard;
  step.ask = !owed_ && !(heard && said);
  if (step.ask) {
    owed_ = true;
    asked_ns_ = now_ns;
    ++number_;
  }
  due_ns_ = now_ns + (step.ask || !heard ? timeout_ns_ : interval_ns_);
  return step;
}

bool Heartbeat::answered(std::uint32_t number, std::uint64_t now_ns, std::uint64_t in,
                         std::uint64_t out) {
  if (!owed_ || number != number_) return false;
  owed_ = false;
  heard_ns_ = now_ns;
  remember(in, out);
  due_ns_ = interval_ns_ == 0 ? UINT64_MAX : now_ns + interval_ns_;
  return true;
}

bool Heartbeat::on_result(bool good) {
  if (!good) ++missed_;
  return health_.on_result(good);
}

}  // namespace sanproxy::translate
