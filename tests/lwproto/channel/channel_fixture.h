// Channels over simulated endpoints in calm weather, and what their delegates have been told.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "lwproto/channel/channel.h"
#include "tests/lwproto/fabric/sim/endpoint.h"

namespace sanproxy::channel::testing {

using fabric::sim::Delivery;
using fabric::sim::SimEndpoint;
using Bytes = std::vector<std::byte>;

inline Bytes pattern(std::size_t length, unsigned seed) {
  Bytes out(length);
  unsigned x = seed * 2654435761u + 1;
  for (std::byte& b : out) {
    x = x * 1664525u + 1013904223u;
    b = static_cast<std::byte>(x >> 24);
  }
  return out;
}

struct Data {
  std::uint64_t connection = 0, offset = 0;
  Bytes bytes;
  fabric::Loan loan = fabric::kNoLoan;
  std::vector<std::span<const std::byte>> pieces;  // worth something while the loan is retained
};

// Writes down what it is told; acts when a test asks for it.
class Recorder final : public Delegate {
 public:
  void on_data(Channel& channel, std::uint64_t connection, std::uint64_t offset,
               const Payload& payload) override {
    enter(channel);
    Data d{connection, offset, {}, payload.loan, {}};
    EXPECT_FALSE(payload.pieces.empty());
    for (const fabric::Segment& piece : payload.pieces) {
      EXPECT_GT(piece.length, 0u);
      d.bytes.insert(d.bytes.end(), piece.data, piece.data + piece.length);
      d.pieces.push_back({piece.data, piece.length});
    }
    EXPECT_EQ(d.bytes.size(), payload.length);
    if (retain && payload.loan != fabric::kNoLoan) channel.retain(payload.loan);
    data.push_back(std::move(d));
    story.push_back("data");
    if (in_data) in_data();
  }
  void on_message(Channel& channel, const wire::Message& message) override {
    enter(channel);
    messages.push_back(message);
    messages.back().payload = {};
    story.push_back(wire::message_type_name(message.type));
    if (in_message) in_message();
  }
  void on_sent(Channel& channel, std::uint64_t cookie, bool ok) override {
    enter(channel);
    sent.emplace_back(cookie, ok);
  }
  void on_writable(Channel& channel) override {
    enter(channel);
    ++writable;
    if (in_writable) in_writable();
  }
  void on_closed(Channel& channel, wire::CloseCode close_code, const Status& why) override {
    enter(channel);
    ++closed;
    code = close_code;
    status = why;
  }
  void enter(const Channel& channel) {
    EXPECT_TRUE(polling) << "the delegate was called outside of poll()";
    EXPECT_EQ(closed, 0) << "something was reported behind on_closed()";
    EXPECT_NE(&channel, nullptr);
  }

  bool retain = false;
  bool polling = false;
  std::function<void()> in_data, in_message, in_writable;
  std::vector<Data> data;
  std::vector<wire::Message> messages;
  std::vector<std::string> story;  // of data and messages
  std::vector<std::pair<std::uint64_t, bool>> sent;
  int writable = 0, closed = 0;
  wire::CloseCode code = wire::CloseCode::kNone;
  Status status;
};

// One end: a channel over a simulated endpoint, with memory to send from.
struct End {
  void make(std::unique_ptr<SimEndpoint> own, const wire::HelloBody& ours,
            const wire::HelloBody& peers) {
    endpoint = own.get();
    region = buffer::MemoryRegion::create("channel-test", 1 << 20).value();
    key = *own->attach(region);
    channel = std::make_unique<Channel>(std::move(own), ours, peers, recorder);
  }
  std::size_t poll(std::size_t budget = 256) {
    recorder.polling = true;
    const std::size_t handled = channel->poll(budget);
    recorder.polling = false;
    return handled;
  }
  Status credit(std::uint64_t connection, std::uint64_t freed = 0) {
    return channel->send_credit({connection, freed, 0});
  }
  Status leave(std::uint32_t service) {
    return channel->send_control(wire::MessageType::kLeaveService, 0, wire::CloseCode::kNone,
                                 wire::ServiceBody{service, 1});
  }
  // Writes into the region at `at` and sends that by reference.
  Status refer(const Bytes& bytes, std::size_t at, std::uint64_t cookie,
               std::uint64_t connection = 1, std::uint64_t offset = 0) {
    std::copy(bytes.begin(), bytes.end(), region.data() + at);
    const fabric::GatherRef ref{key, static_cast<std::uint32_t>(bytes.size()), at};
    return channel->send_data_reference(connection, offset, {&ref, 1}, cookie);
  }

  buffer::MemoryRegion region;  // outlives the endpoint
  fabric::RegionKey key = 0;
  Recorder recorder;
  std::unique_ptr<Channel> channel;
  SimEndpoint* endpoint = nullptr;  // the channel's
};

struct Settings {
  Delivery delivery = Delivery::kLoans;
  std::uint32_t depth[2] = {64, 64};
  std::uint32_t reserve[2] = {4, 4};
  std::size_t transfers_max = SIZE_MAX;
};

inline wire::HelloBody hello_of(const Settings& settings, int side) {
  fabric::EndpointOptions options;
  options.receive_depth = settings.depth[side];
  wire::HelloBody hello = make_hello(7, options, 1 << 20, 1000, side == 0 ? "a" : "b");
  hello.credits_reserved = settings.reserve[side];
  return hello;
}

inline fabric::sim::EndpointPair endpoints_of(const Settings& settings) {
  std::array<fabric::EndpointOptions, 2> options;
  for (std::size_t i = 0; i < 2; ++i) options[i].receive_depth = settings.depth[i];
  return fabric::sim::make_pair(
      {.delivery = settings.delivery, .transfers_max = settings.transfers_max}, options);
}

// Two channels that talk to each other.
class PairTest : public ::testing::Test {
 protected:
  void make(const Settings& settings = {}) {
    auto pair = endpoints_of(settings);
    a_.make(std::move(pair.a), hello_of(settings, 0), hello_of(settings, 1));
    b_.make(std::move(pair.b), hello_of(settings, 1), hello_of(settings, 0));
  }
  // Rounds of both loops, until nothing moves any more; fails when that never happens.
  void settle() {
    for (int round = 0; round < 10'000; ++round) {
      const auto before = transfers();
      const std::size_t work = a_.poll() + b_.poll();
      a_.channel->flush();
      b_.channel->flush();
      const bool idle = a_.endpoint->idle() && b_.endpoint->idle();
      if (work == 0 && transfers() == before && idle) return;
    }
    FAIL() << "the channels never come to rest";
  }
  std::pair<std::uint64_t, std::uint64_t> transfers() const {
    return {a_.channel->counters().transfers_out, b_.channel->counters().transfers_out};
  }

  End a_, b_;
};

// A channel, and a peer that writes its transfers by hand.
class RawTest : public ::testing::Test {
 protected:
  void make(const Settings& settings = {}) {
    auto pair = endpoints_of(settings);
    ours_ = hello_of(settings, 0);
    theirs_ = hello_of(settings, 1);
    raw_ = std::move(pair.b);
    a_.make(std::move(pair.a), ours_, theirs_);
    granted_ = theirs_.credits_initial;
  }
  using Fill = std::function<void(wire::TransferWriter&)>;
  void send(const Fill& fill) { send(fill, granted_); }
  void send(const Fill& fill, std::uint32_t granted) {
    auto space = raw_->begin_send(wire::kTransferInlineBytesMax);
    ASSERT_TRUE(space.ok());
    wire::TransferWriter writer(*space);
    if (fill) fill(writer);
    ASSERT_TRUE(raw_->commit_send(writer.finish(granted), {}, 0).ok());
    raw_->flush();
  }
  static void add_credit(wire::TransferWriter& writer) {
    ASSERT_TRUE(writer.append(wire::MessageType::kCredit, 0, wire::CloseCode::kNone,
                              wire::CreditBody{1, 0, 0}));
  }
  // Everything that the channel has sent: headers, and the types of the messages in them.
  struct Got {
    std::vector<wire::TransferHeader> headers;
    std::vector<wire::MessageType> types;
    wire::CloseCode error = wire::CloseCode::kNone;
    std::string text;
    bool disconnected = false;
  };
  Got take() {
    Got got;
    std::array<fabric::Completion, 8> out;
    while (const std::size_t count = raw_->poll(out)) {
      for (std::size_t i = 0; i < count; ++i) {
        got.disconnected |= out[i].kind == fabric::Completion::Kind::kDisconnected;
        if (out[i].kind == fabric::Completion::Kind::kReceive) read(out[i], got);
        if (out[i].loan != fabric::kNoLoan) raw_->release(out[i].loan);
      }
    }
    granted_ += raw_->replenish();
    return got;
  }
  static void read(const fabric::Completion& c, Got& got) {
    std::size_t rest = 0;
    for (std::size_t i = 1; i < c.segment_count; ++i) rest += c.segments[i].length;
    wire::TransferReader reader({c.segments[0].data, c.segments[0].length}, rest);
    const auto header = reader.begin();
    ASSERT_TRUE(header.ok()) << header.status().to_string();
    got.headers.push_back(*header);
    wire::Message message;
    while (true) {
      const Status status = reader.next(message);
      if (status.code() == Code::kNotFound) return;
      ASSERT_TRUE(status.ok()) << status.to_string();
      got.types.push_back(message.type);
      if (message.type != wire::MessageType::kError) continue;
      got.error = message.code;
      got.text = wire::error_text(message);
    }
  }
  void expect_breach(const std::string& why) {
    while (a_.poll() != 0) {
    }
    EXPECT_TRUE(a_.channel->closed());
    EXPECT_EQ(a_.recorder.closed, 1);
    EXPECT_EQ(a_.recorder.code, wire::CloseCode::kProtocolError);
    EXPECT_EQ(a_.recorder.status.code(), Code::kProtocol);
    EXPECT_NE(a_.recorder.status.to_string().find(why), std::string::npos)
        << a_.recorder.status.to_string();
    const Got got = take();
    EXPECT_TRUE(got.disconnected);
    EXPECT_EQ(got.error, wire::CloseCode::kProtocolError);
    EXPECT_NE(got.text.find(why), std::string::npos) << got.text;
    EXPECT_EQ(a_.poll(), 0u);
  }

  End a_;
  std::unique_ptr<SimEndpoint> raw_;
  wire::HelloBody ours_{}, theirs_{};
  std::uint32_t granted_ = 0;
};

}  // namespace sanproxy::channel::testing
