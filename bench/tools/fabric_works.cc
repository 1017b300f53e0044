#include "bench/tools/fabric_works.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>

namespace sanproxy::bench {
namespace {

using fabric::Completion;
using fabric::GatherRef;

// Small messages are copied, as the channel does it.
constexpr std::uint32_t kInlineBytesMax = 1024;
constexpr std::size_t kPollBatch = 64;
constexpr std::uint32_t kSendsPerRound = 64;

// What a receiver tells its sender now and then: totals.
struct Return {
  std::uint64_t granted = 0;
  std::uint64_t received = 0;
};

// An endpoint, what is sent on it and what its sender may still send.
class Line {
 public:
  Line(std::unique_ptr<fabric::Endpoint> endpoint, const Greeting& ours, const Greeting& peers)
      : endpoint_(std::move(endpoint)), granted_(peers.receive_depth), depth_(ours.receive_depth) {}

  fabric::Endpoint& endpoint() { return *endpoint_; }
  bool prepare_references(std::uint32_t message_bytes) {
    if (message_bytes <= kInlineBytesMax) return true;
    auto region = buffer::MemoryRegion::create("fabric-bench", kRegionBytes);
    if (!region.ok()) return false;
    region_ = std::move(*region);
    std::fill(region_.data(), region_.data() + region_.size(), std::byte{0x5a});
    auto key = endpoint_->attach(region_);
    if (!key.ok()) return false;
    key_ = *key;
    return true;
  }
  bool may_send() const { return sent_ < granted_; }
  Status send(std::uint32_t bytes) {
    const std::uint32_t inline_bytes = bytes <= kInlineBytesMax ? bytes : 0;
    auto space = endpoint_->begin_send(inline_bytes);
    if (!space.ok()) return space.status();
    std::fill_n(space->begin(), inline_bytes, std::byte{0x5a});
    GatherRef ref{key_, bytes, next_offset_};
    if (inline_bytes == 0) {
      next_offset_ += bytes;
      if (next_offset_ + bytes > kRegionBytes) next_offset_ = 0;
    }
    const Status status =
        endpoint_->commit_send(inline_bytes, {&ref, inline_bytes == 0 ? 1u : 0u}, sent_);
    if (status.ok()) ++sent_;
    return status;
  }
  Status send_return(const Return& back) {
    auto space = endpoint_->begin_send(sizeof(back));
    if (!space.ok()) return space.status();
    std::memcpy(space->data(), &back, sizeof(back));
    return endpoint_->commit_send(sizeof(back), {}, 0);
  }
  void take_return(const Completion& completion) {
    Return back;
    if (completion.segments[0].length < sizeof(back)) return;
    std::memcpy(&back, completion.segments[0].data, sizeof(back));
    granted_ = std::max(granted_, back.granted);
    received_by_peer_ = std::max(received_by_peer_, back.received);
  }
  void replenish() { granted_to_peer_ += endpoint_->replenish(); }
  std::uint32_t depth() const { return depth_; }
  std::uint64_t received_by_peer() const { return received_by_peer_; }
  // In all, as the peer must be told.
  std::uint64_t granted_to_peer() const { return granted_to_peer_ + depth_; }
  bool ended = false;
  // Kept, because making them anew costs more than a poll that finds nothing.
  std::array<Completion, kPollBatch> completions;

 private:
  // Declared before the endpoint, which it must outlive.
  buffer::MemoryRegion region_;
  std::unique_ptr<fabric::Endpoint> endpoint_;
  fabric::RegionKey key_ = 0;
  std::uint64_t next_offset_ = 0;
  std::uint64_t sent_ = 0;
  std::uint64_t granted_ = 0;
  std::uint64_t received_by_peer_ = 0;
  std::uint64_t granted_to_peer_ = 0;
  std::uint32_t depth_ = 0;
};

// Calls `on_receive` for each transfer, and gives its memory back. False at the end.
template <typename OnReceive>
bool poll_line(Line& line, const OnReceive& on_receive) {
  const std::size_t count = line.endpoint().poll(line.completions);
  for (std::size_t i = 0; i < count; ++i) {
    const Completion& completion = line.completions[i];
    if (completion.kind == Completion::Kind::kReceive) {
      on_receive(completion);
      if (completion.loan != fabric::kNoLoan) line.endpoint().release(completion.loan);
    } else if (completion.kind == Completion::Kind::kDisconnected) {
      line.ended = true;
    }
  }
  return !line.ended;
}

class ThroughputServer final : public Session {
 public:
  ThroughputServer(Line line, const Greeting& peers)
      : line_(std::move(line)),
        messages_per_return_(
            std::min(line_.depth() / 4, std::max(peers.report_bytes / peers.message_bytes, 4u))) {}

  bool run() override {
    if (!poll_line(line_, [this](const Completion&) { ++received_; })) return false;
    line_.replenish();
    const Return back{line_.granted_to_peer(), received_};
    if (back.granted - told_ >= messages_per_return_ && line_.send_return(back).ok()) {
      told_ = back.granted;
    }
    line_.endpoint().flush();
    return true;
  }

 private:
  Line line_;
  std::uint32_t messages_per_return_;
  std::uint64_t received_ = 0;
  std::uint64_t told_ = line_.depth();
};

// One that measures, and may have to give up.
class ClientSession : public Session {
 public:
  const char* error() const override { return error_; }

 protected:
  bool fail(const char* why) {
    error_ = why;
    return false;
  }
  const char* error_ = nullptr;
};

class ThroughputClient final : public ClientSession {
 public:
  ThroughputClient(Line line, const LoadOptions& load)
      : line_(std::move(line)), load_(load), interval_(load.warmup_seconds, load.seconds) {}

  bool run() override {
    if (!ready_ && !(ready_ = line_.prepare_references(load_.message_bytes))) {
      return fail("no memory to send from");
    }
    if (!poll_line(line_, [this](const Completion& c) { line_.take_return(c); })) {
      return fail("the server ended the channel");
    }
    line_.replenish();
    std::uint32_t sent = 0;
    for (; sent < kSendsPerRound && line_.may_send(); ++sent) {
      const Status status = line_.send(load_.message_bytes);
      if (status.is_again()) break;
      if (!status.ok()) return fail(status.text());
    }
    busy_ = sent == kSendsPerRound;
    line_.endpoint().flush();
    return interval_.see(line_.received_by_peer());
  }
  bool busy() const override { return busy_; }
  std::string report() const override {
    if (error_ != nullptr) return {};
    std::array<char, 256> text;
    std::snprintf(text.data(), text.size(),
                  "\"messages\": %llu, \"messages_per_s\": %.1f, \"mb_per_s\": %.3f",
                  static_cast<unsigned long long>(interval_.count()), interval_.per_second(),
                  interval_.per_second() * load_.message_bytes / 1e6);
    return text.data();
  }

 private:
  Line line_;
  LoadOptions load_;
  Interval interval_;
  bool ready_ = false;
  bool busy_ = false;
};

class EchoServer final : public Session {
 public:
  EchoServer(Line line, std::uint32_t message_bytes)
      : line_(std::move(line)), message_bytes_(message_bytes) {}

  bool run() override {
    if (!ready_ && !(ready_ = line_.prepare_references(message_bytes_))) return false;
    if (!poll_line(line_, [this](const Completion&) { ++owed_; })) return false;
    while (owed_ != 0 && line_.send(message_bytes_).ok()) --owed_;
    line_.endpoint().flush();
    // Behind the answer, which is what the client waits for.
    line_.replenish();
    line_.endpoint().publish();
    return true;
  }

 private:
  Line line_;
  std::uint32_t message_bytes_;
  std::uint64_t owed_ = 0;
  bool ready_ = false;
};

class RoundTripClient final : public ClientSession {
 public:
  RoundTripClient(Line line, const LoadOptions& load)
      : line_(std::move(line)), load_(load), interval_(load.warmup_seconds, load.seconds) {}

  bool run() override {
    if (!ready_ && !(ready_ = line_.prepare_references(load_.message_bytes))) {
      return fail("no memory to send from");
    }
    bool answered = false;
    if (!poll_line(line_, [&](const Completion&) { answered = true; })) {
      return fail("the server ended the channel");
    }
    if (answered) {
      if (over_) return false;
      waiting_ = false;
    }
    if (!waiting_) {
      const Status status = line_.send(load_.message_bytes);
      if (!status.ok() && !status.is_again()) return fail(status.text());
      waiting_ = status.ok();
      line_.endpoint().flush();
      if (waiting_) look_at_clock();
      line_.replenish();
      line_.endpoint().publish();
    }
    return true;
  }
  std::string report() const override {
    return error_ != nullptr ? "" : trips_report(interval_, histogram_);
  }

 private:
  // From one question that has left to the next, while the peer works.
  void look_at_clock() {
    const std::uint64_t now = monotonic_ns();
    if (sent_ns_ != 0) {
      if (interval_.counting()) histogram_.record(now - sent_ns_);
      over_ = !interval_.see(++trips_, now);
    }
    sent_ns_ = now;
  }

  Line line_;
  LoadOptions load_;
  Interval interval_;
  LatencyHistogram histogram_;
  std::uint64_t trips_ = 0;
  std::uint64_t sent_ns_ = 0;
  bool over_ = false;  // and one more answer is to come
  bool waiting_ = false;
  bool ready_ = false;
};

}  // namespace

std::string trips_report(const Interval& interval, const LatencyHistogram& histogram) {
  std::array<char, 256> text;
  std::snprintf(text.data(), text.size(),
                "\"messages\": %llu, \"messages_per_s\": %.1f, \"p50_us\": %.2f, "
                "\"p99_us\": %.2f, \"mean_us\": %.2f",
                static_cast<unsigned long long>(interval.count()), interval.per_second(),
                histogram.percentile_us(0.5), histogram.percentile_us(0.99),
                interval.count() == 0 ? 0.0 : 1e6 / interval.per_second());
  return text.data();
}

Greeting make_greeting(const LoadOptions& load, const fabric::EndpointOptions& options) {
  Greeting out;
  out.work = load.work;
  out.message_bytes = load.message_bytes;
  out.receive_depth = options.receive_depth;
  out.report_bytes = load.report_bytes;
  return out;
}

std::vector<std::byte> bytes_of(const Greeting& greeting) {
  std::vector<std::byte> out(sizeof(greeting));
  std::memcpy(out.data(), &greeting, sizeof(greeting));
  return out;
}

bool read_greeting(std::span<const std::byte> bytes, Greeting& out) {
  if (bytes.size() != sizeof(out)) return false;
  const Greeting expected;
  std::memcpy(&out, bytes.data(), sizeof(out));
  return out.magic == expected.magic && out.message_bytes != 0 && out.message_bytes <= 65'536 &&
         out.receive_depth != 0 && out.report_bytes != 0;
}

std::unique_ptr<Session> make_server(std::unique_ptr<fabric::Endpoint> endpoint,
                                     const Greeting& ours, const Greeting& peers) {
  if (over_channel(peers.work)) return make_channel_server(std::move(endpoint), ours, peers);
  Line line(std::move(endpoint), ours, peers);
  if (peers.work == Work::kRoundTrips) {
    return std::make_unique<EchoServer>(std::move(line), peers.message_bytes);
  }
  return std::make_unique<ThroughputServer>(std::move(line), peers);
}

std::unique_ptr<Session> make_client(std::unique_ptr<fabric::Endpoint> endpoint,
                                     const Greeting& ours, const Greeting& peers,
                                     const LoadOptions& load) {
  if (over_channel(load.work)) {
    return make_channel_client(std::move(endpoint), ours, peers, load);
  }
  Line line(std::move(endpoint), ours, peers);
  if (load.work == Work::kRoundTrips) {
    return std::make_unique<RoundTripClient>(std::move(line), load);
  }
  return std::make_unique<ThroughputClient>(std::move(line), load);
}

}  // namespace sanproxy::bench
