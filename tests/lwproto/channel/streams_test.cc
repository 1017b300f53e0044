// Ten thousand streams on one channel, over every fabric: every byte of each arrives in its place,
// and the channel is as it was before.
#include <array>
#include <deque>
#include <random>
#include <span>

#include "lwproto/channel/channel.h"
#include "tests/lwproto/fabric/conformance_fixture.h"

namespace sanproxy::channel::testing {
namespace {

using fabric::test::FabricUnderTest;
using fabric::test::Side;

constexpr std::uint32_t kStreams = 10'000;
constexpr std::uint32_t kDepth = 64;
constexpr std::uint64_t kFirstId = 0x0003'0000'7fff'f000;  // ids are 64 bits wide
constexpr std::size_t kPlaces = 48;
constexpr std::size_t kPlaceBytes = 8192;
constexpr std::size_t kHeldMax = 8;

std::byte byte_of(std::uint64_t id, std::uint64_t offset, bool from_server) {
  const std::uint64_t x =
      (id * 0x9e37'79b9'7f4a'7c15 + offset) * (from_server ? 0x2545'f491 : 0x1001);
  return static_cast<std::byte>(x >> 13);
}

// One side: sends `messages` of random length on every stream, the streams in random order.
class End final : public Delegate {
 public:
  End(bool server, unsigned messages, std::uint64_t seed)
      : server_(server), random_(seed), next_out_(kStreams), next_in_(kStreams) {
    region_ = buffer::MemoryRegion::create("streams", kPlaces * kPlaceBytes).value();
    for (std::uint64_t place = 0; place < kPlaces; ++place) places_.push_back(place);
    for (unsigned i = 0; i < messages; ++i) {
      for (std::uint32_t stream = 0; stream < kStreams; ++stream) order_.push_back(stream);
    }
    std::shuffle(order_.begin(), order_.end(), random_);
  }
  ~End() override {
    for (const fabric::Loan loan : held_) channel_->release(loan);
  }
  End(const End&) = delete;
  End& operator=(const End&) = delete;

  void start(std::unique_ptr<fabric::Endpoint> endpoint, const wire::HelloBody& hello) {
    key_ = endpoint->attach(region_).value();
    channel_ = std::make_unique<Channel>(std::move(endpoint), hello, hello, *this);
  }
  // One round of a loop; true when something moved.
  bool round() {
    const std::uint64_t before = channel_->counters().transfers_out;
    const std::size_t handled = channel_->poll();
    const bool held = !held_.empty();
    for (; held_.size() > kHeldMax || (random_() % 2 == 0 && !held_.empty()); held_.pop_front()) {
      channel_->release(held_.front());
    }
    for (int budget = 64; budget > 0 && !waiting_ && send_one(); --budget) {
    }
    channel_->flush();
    return handled != 0 || held || channel_->counters().transfers_out != before;
  }
  bool done(const End& other) const {
    return sent_ == order_.size() && received_bytes_ == other.sent_bytes_ && held_.empty() &&
           places_.size() == kPlaces;
  }
  std::uint32_t available() const { return channel_->ledger().available(); }
  std::uint32_t unannounced() const { return channel_->ledger().unannounced(); }
  const std::vector<std::uint64_t>& sent_lengths() const { return next_out_; }
  const std::vector<std::uint64_t>& received_lengths() const { return next_in_; }
  bool closed() const { return closed_; }
  std::string state() const {
    return "sent " + std::to_string(sent_) + "/" + std::to_string(order_.size()) + ", received " +
           std::to_string(received_bytes_) + " bytes, credits " + std::to_string(available());
  }

  void on_data(Channel& channel, std::uint64_t connection, std::uint64_t offset,
               const Payload& payload) override {
    ASSERT_GE(connection, kFirstId);
    ASSERT_LT(connection, kFirstId + kStreams);
    std::uint64_t& next = next_in_[connection - kFirstId];
    ASSERT_EQ(offset, next) << "stream " << connection - kFirstId;
    for (const fabric::Segment& piece : payload.pieces) {
      for (const std::byte b : std::span(piece.data, piece.length)) {
        ASSERT_EQ(b, byte_of(connection, next, !server_)) << connection << " at " << next;
        ++next;
      }
    }
    ASSERT_EQ(next, offset + payload.length);
    received_bytes_ += payload.length;
    if (payload.loan != fabric::kNoLoan && random_() % 2 == 0) {
      channel.retain(payload.loan);
      held_.push_back(payload.loan);
    }
  }
  void on_message(Channel&, const wire::Message& message) override {
    ADD_FAILURE() << "nobody sends " << wire::message_type_name(message.type);
  }
  void on_sent(Channel&, std::uint64_t place, bool ok) override {
    EXPECT_TRUE(ok);
    places_.push_back(place);
  }
  void on_writable(Channel&) override { waiting_ = false; }
  void on_closed(Channel&, wire::CloseCode, const Status& status) override {
    ADD_FAILURE() << "closed: " << status.to_string();
    closed_ = true;
  }

 private:
  bool send_one() {
    if (sent_ == order_.size()) return false;
    const std::uint32_t stream = order_[sent_];
    const bool large = random_() % 6 == 0;
    if (large && places_.empty()) return false;
    const std::size_t length =
        large ? wire::kInlinePayloadBytesMax + 1 + random_() % (kPlaceBytes - 1100)
              : 1 + random_() % (random_() % 8 == 0 ? wire::kInlinePayloadBytesMax : 64);
    const std::uint64_t id = kFirstId + stream;
    const std::uint64_t offset = next_out_[stream];
    std::byte* at = large ? region_.data() + places_.front() * kPlaceBytes : inline_.data();
    for (std::size_t i = 0; i < length; ++i) at[i] = byte_of(id, offset + i, server_);
    Status status;
    if (large) {
      const fabric::GatherRef ref{key_, static_cast<std::uint32_t>(length),
                                  places_.front() * kPlaceBytes};
      status = channel_->send_data_reference(id, offset, {&ref, 1}, places_.front());
      if (status.ok()) places_.pop_front();
    } else {
      status = channel_->send_data_inline(id, offset, {at, length});
    }
    waiting_ = status.is_again();
    EXPECT_TRUE(waiting_ || status.ok()) << status.to_string();
    if (!status.ok()) return false;
    next_out_[stream] += length;
    sent_bytes_ += length;
    ++sent_;
    return true;
  }

  const bool server_;
  std::mt19937_64 random_;
  buffer::MemoryRegion region_;  // outlives the channel
  fabric::RegionKey key_ = 0;
  std::unique_ptr<Channel> channel_;
  std::array<std::byte, wire::kInlinePayloadBytesMax> inline_{};
  std::vector<std::uint32_t> order_;               // the stream of each message
  std::vector<std::uint64_t> next_out_, next_in_;  // offsets, by stream
  std::deque<std::uint64_t> places_;               // of the region, not on their way
  std::deque<fabric::Loan> held_;
  std::size_t sent_ = 0;
  std::uint64_t sent_bytes_ = 0, received_bytes_ = 0;
  bool waiting_ = false, closed_ = false;
};

class Streams : public fabric::test::Conformance {};
INSTANTIATE_TEST_SUITE_P(Fabrics, Streams, ::testing::ValuesIn(fabric::test::fabrics_under_test()),
                         fabric::test::fabric_name);

TEST_P(Streams, TenThousandOnOneChannelArriveWholeAndLeaveFullCredits) {
  const auto with = options(kDepth);
  connect_pair(with);
  ASSERT_TRUE(server_.endpoint && client_.endpoint);
  const wire::HelloBody hello = make_hello(3, with, 1 << 20, kStreams, "streams");
  const unsigned messages = GetParam().scaled(4);
  End a(true, messages, fabric::test::one_seed());
  End b(false, messages, fabric::test::one_seed() + 1);
  a.start(std::move(server_.endpoint), hello);
  b.start(std::move(client_.endpoint), hello);
  const auto settled = [&] {
    return a.done(b) && b.done(a) && a.available() + b.unannounced() == kDepth &&
           b.available() + a.unannounced() == kDepth;
  };
  EXPECT_TRUE(eventually([&] {
    for (bool moved = true; moved && !HasFailure();) {
      moved = a.round();
      moved = b.round() || moved;
    }
    return settled() || HasFailure();
  })) << "a: "
      << a.state() << "\nb: " << b.state();
  EXPECT_TRUE(settled()) << "a: " << a.state() << "\nb: " << b.state();
  EXPECT_EQ(a.sent_lengths(), b.received_lengths());
  EXPECT_EQ(b.sent_lengths(), a.received_lengths());
}

}  // namespace
}  // namespace sanproxy::channel::testing
