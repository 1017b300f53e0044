// Many streams of small messages over one Channel.
#include <array>
#include <cstdio>
#include <cstring>

#include "bench/tools/fabric_works.h"
#include "bench/tools/interval.h"
#include "lwproto/channel/channel.h"

namespace sanproxy::bench {
namespace {

// The server tells its count after as many messages; the client keeps at most so many unanswered.
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

  channel::Channel channel_;
  bool ended_ = false;
  const char* error_ = nullptr;
};

class StreamServer final : public StreamSession {
 public:
  using StreamSession::StreamSession;

  bool run() override {
    channel_.poll();
    if (ended_) return false;
    if (count_ - told_ >= kMessagesPerReport) {
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
  void on_data(channel::Channel&, std::uint64_t, std::uint64_t, const channel::Payload&) override {
    ++count_;
  }

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
        offsets_(load.streams, 0) {}

  bool run() override {
    channel_.poll();
    if (ended_) return false;
    for (std::uint32_t i = 0; i < kMessagesPerRound && sent_ - answered_ < kUnansweredMax; ++i) {
      const std::size_t stream = sent_ % offsets_.size();
      const Status status =
          channel_.send_data_inline(kFirstStream + stream, offsets_[stream], message_);
      if (!status.ok()) break;
      offsets_[stream] += message_.size();
      ++sent_;
    }
    channel_.flush();
    return interval_.see(answered_);
  }
  std::string report() const override {
    if (error_ != nullptr) return {};
    std::array<char, 256> text;
    std::snprintf(text.data(), text.size(),
                  "\"streams\": %u, \"messages\": %llu, \"messages_per_s\": %.1f, "
                  "\"messages_per_transfer\": %.1f",
                  load_.streams, static_cast<unsigned long long>(interval_.count()),
                  interval_.per_second(),
                  static_cast<double>(channel_.counters().messages_out) /
                      static_cast<double>(channel_.counters().transfers_out + 1));
    return text.data();
  }

 private:
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
};

}  // namespace

std::unique_ptr<Session> make_stream_server(std::unique_ptr<fabric::Endpoint> endpoint,
                                            const Greeting& ours, const Greeting& peers) {
  return std::make_unique<StreamServer>(std::move(endpoint), ours, peers);
}

std::unique_ptr<Session> make_stream_client(std::unique_ptr<fabric::Endpoint> endpoint,
                                            const Greeting& ours, const Greeting& peers,
                                            const LoadOptions& load) {
  return std::make_unique<StreamClient>(std::move(endpoint), ours, peers, load);
}

}  // namespace sanproxy::bench
