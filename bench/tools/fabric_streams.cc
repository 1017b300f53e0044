// Loads over one Channel: many streams of small messages, one stream of messages of any size, and
// round trips.
#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>

#include "bench/tools/fabric_works.h"
#include "bench/tools/interval.h"
#include "bench/tools/latency_histogram.h"
#include "lwproto/channel/channel.h"

namespace sanproxy::bench {
namespace {

// The server tells its count after as many messages at most; the client keeps at most so many
// unanswered.
constexpr std::uint64_t kMessagesPerReport = 512;
constexpr std::uint64_t kUnansweredMax = 16 * kMessagesPerReport;
constexpr std::uint32_t kMessagesPerRound = 256;
constexpr std::uint64_t kReportStream = 1;
constexpr std::uint64_t kFirstStream = 2;

wire::HelloBody hello_of(const Greeting& greeting) {
  fabric::EndpointOptions options;
  options.receive_depth = greeting.receive_depth;
  return channel::make_hello(1, options, 1u << 30, 1u << 20, "fabric_bench");
}

class StreamSession : public Session, protected channel::Delegate {
 public:
  StreamSession(std::unique_ptr<fabric::Endpoint> endpoint, const Greeting& ours,
                const Greeting& peers)
      : channel_(std::move(endpoint), hello_of(ours), hello_of(peers), *this) {}

  const char* error() const override { return error_; }

 protected:
  void on_message(channel::Channel&, const wire::Message&) override {}
  void on_sent(channel::Channel&, std::uint64_t, bool) override {}
  void on_writable(channel::Channel&) override {}
  void on_closed(channel::Channel&, wire::CloseCode, const Status& status) override {
    ended_ = true;
    error_ = status.text();
  }

  buffer::MemoryRegion region_;  // to send from; before the channel, which it must outlive
  channel::Channel channel_;
  bool ended_ = false;
  const char* error_ = nullptr;
};

class StreamServer final : public StreamSession {
 public:
  StreamServer(std::unique_ptr<fabric::Endpoint> endpoint, const Greeting& ours,
               const Greeting& peers)
      : StreamSession(std::move(endpoint), ours, peers),
        message_bytes_(peers.message_bytes),
        per_report_(std::clamp<std::uint64_t>(peers.report_bytes / peers.message_bytes, 4,
                                              kMessagesPerReport)) {}

  bool run() override {
    channel_.poll();
    if (ended_) return false;
    if (count_ - told_ >= per_report_) {
      const Status sent =
          channel_.send_data_inline(kReportStream, offset_, std::as_bytes(std::span(&count_, 1)));
      if (sent.ok()) {
        offset_ += sizeof(count_);
        told_ = count_;
      }
    }
    channel_.flush();
    return true;
  }

 private:
  // Messages of one stream that leave together arrive as one DATA.
  void on_data(channel::Channel&, std::uint64_t, std::uint64_t,
               const channel::Payload& payload) override {
    bytes_ += payload.length;
    count_ = bytes_ / message_bytes_;
  }

  std::uint32_t message_bytes_;
  std::uint64_t per_report_;
  std::uint64_t bytes_ = 0;
  std::uint64_t count_ = 0;
  std::uint64_t told_ = 0;
  std::uint64_t offset_ = 0;
};

class StreamClient final : public StreamSession {
 public:
  StreamClient(std::unique_ptr<fabric::Endpoint> endpoint, const Greeting& ours,
               const Greeting& peers, const LoadOptions& load)
      : StreamSession(std::move(endpoint), ours, peers),
        load_(load),
        interval_(load.warmup_seconds, load.seconds),
        message_(load.message_bytes, std::byte{0x5a}),
        offsets_(load.work == Work::kStreams ? load.streams : 1, 0) {}

  bool run() override {
    if (!prepare_references()) return false;
    channel_.poll();
    if (ended_) return false;
    std::uint32_t sent = 0;
    for (; sent < kMessagesPerRound && sent_ - answered_ < kUnansweredMax; ++sent) {
      const std::size_t stream = sent_ % offsets_.size();
      if (!send(kFirstStream + stream, offsets_[stream]).ok()) break;
      offsets_[stream] += message_.size();
      ++sent_;
    }
    busy_ = sent == kMessagesPerRound;
    channel_.flush();
    return interval_.see(answered_);
  }
  bool busy() const override { return busy_; }
  std::string report() const override {
    if (error_ != nullptr) return {};
    std::array<char, 256> text;
    std::snprintf(text.data(), text.size(),
                  "\"streams\": %zu, \"messages\": %llu, \"messages_per_s\": %.1f, "
                  "\"mb_per_s\": %.3f, \"messages_per_transfer\": %.1f",
                  offsets_.size(), static_cast<unsigned long long>(interval_.count()),
                  interval_.per_second(),
                  interval_.per_second() * static_cast<double>(message_.size()) / 1e6,
                  static_cast<double>(channel_.counters().messages_out) /
                      static_cast<double>(channel_.counters().transfers_out + 1));
    return text.data();
  }

 private:
  bool by_reference() const { return message_.size() > wire::kInlinePayloadBytesMax; }
  bool prepare_references() {
    if (!by_reference() || region_.valid()) return true;
    auto region = buffer::MemoryRegion::create("fabric-bench", kRegionBytes);
    if (!region.ok()) return false;
    region_ = std::move(*region);
    std::fill(region_.data(), region_.data() + region_.size(), std::byte{0x5a});
    auto key = channel_.endpoint().attach(region_);
    if (!key.ok()) error_ = "no memory to send from";
    if (key.ok()) ref_.region = *key;
    ref_.length = load_.message_bytes;
    return key.ok();
  }
  Status send(std::uint64_t stream, std::uint64_t offset) {
    if (!by_reference()) return channel_.send_data_inline(stream, offset, message_);
    const Status status = channel_.send_data_reference(stream, offset, {&ref_, 1}, sent_, true);
    if (!status.ok()) return status;
    ref_.offset += ref_.length;
    if (ref_.offset + ref_.length > kRegionBytes) ref_.offset = 0;
    return status;
  }
  void on_data(channel::Channel&, std::uint64_t, std::uint64_t,
               const channel::Payload& payload) override {
    if (payload.pieces[0].length >= sizeof(answered_)) {
      std::memcpy(&answered_, payload.pieces[0].data, sizeof(answered_));
    }
  }

  LoadOptions load_;
  Interval interval_;
  std::vector<std::byte> message_;
  std::vector<std::uint64_t> offsets_;
  std::uint64_t sent_ = 0;
  std::uint64_t answered_ = 0;
  bool busy_ = false;
  fabric::GatherRef ref_;
};

// Answers from where the question is handed up, before the channel looks after its credits.
class ChannelEcho : public StreamSession {
 public:
  ChannelEcho(std::unique_ptr<fabric::Endpoint> endpoint, const Greeting& ours,
              const Greeting& peers, std::uint32_t message_bytes)
      : StreamSession(std::move(endpoint), ours, peers), message_(message_bytes, std::byte{0x5a}) {}

  bool run() override {
    if (channel_.poll() != 0) channel_.publish();
    return !ended_;
  }

 protected:
  void on_data(channel::Channel&, std::uint64_t, std::uint64_t, const channel::Payload&) override {
    send();
  }
  void send() {
    const Status status = channel_.send_data_inline(kFirstStream, offset_, message_);
    if (!status.ok()) error_ = status.text();
    offset_ += message_.size();
    channel_.flush();
  }

 private:
  std::vector<std::byte> message_;
  std::uint64_t offset_ = 0;
};

class ChannelTrips final : public ChannelEcho {
 public:
  ChannelTrips(std::unique_ptr<fabric::Endpoint> endpoint, const Greeting& ours,
               const Greeting& peers, const LoadOptions& load)
      : ChannelEcho(std::move(endpoint), ours, peers, load.message_bytes),
        interval_(load.warmup_seconds, load.seconds) {}

  bool run() override {
    if (sent_ns_ == 0) {
      sent_ns_ = monotonic_ns();
      send();
    }
    return ChannelEcho::run() && error_ == nullptr && !answered_last_;
  }
  std::string report() const override {
    return error_ != nullptr ? "" : trips_report(interval_, histogram_);
  }

 private:
  void on_data(channel::Channel&, std::uint64_t, std::uint64_t, const channel::Payload&) override {
    if (over_) {
      answered_last_ = true;
      return;
    }
    send();
    // From one question that has left to the next: the clock is looked at while the peer works.
    const std::uint64_t now = monotonic_ns();
    if (interval_.counting()) histogram_.record(now - sent_ns_);
    over_ = !interval_.see(++trips_, now);
    sent_ns_ = now;
  }

  Interval interval_;
  LatencyHistogram histogram_;
  std::uint64_t trips_ = 0;
  std::uint64_t sent_ns_ = 0;
  bool over_ = false;  // and one more answer is to come
  bool answered_last_ = false;
};

}  // namespace

std::unique_ptr<Session> make_channel_server(std::unique_ptr<fabric::Endpoint> endpoint,
                                             const Greeting& ours, const Greeting& peers) {
  if (peers.work == Work::kChannelTrips) {
    return std::make_unique<ChannelEcho>(std::move(endpoint), ours, peers, peers.message_bytes);
  }
  return std::make_unique<StreamServer>(std::move(endpoint), ours, peers);
}

std::unique_ptr<Session> make_channel_client(std::unique_ptr<fabric::Endpoint> endpoint,
                                             const Greeting& ours, const Greeting& peers,
                                             const LoadOptions& load) {
  if (load.work == Work::kChannelTrips) {
    return std::make_unique<ChannelTrips>(std::move(endpoint), ours, peers, load);
  }
  return std::make_unique<StreamClient>(std::move(endpoint), ours, peers, load);
}

}  // namespace sanproxy::bench
