// VerbsHostile: a listener, and a raw peer that may do to it what it likes.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "gtest/gtest.h"
#include "lwproto/fabric/verbs/verbs_fabric.h"
#include "tests/lwproto/fabric/channel_pair.h"
#include "tests/lwproto/fabric/verbs/device_address.h"
#include "tests/lwproto/fabric/verbs/raw_peer.h"

namespace sanproxy::fabric::verbs::test {

using fabric::test::Bytes;
using fabric::test::Side;

class VerbsHostile : public testing::Test {
 protected:
  void start(VerbsOptions options = {}) {
    options.counters = &counters_;
    auto made = make_verbs_fabric(options);
    ASSERT_TRUE(made.ok()) << made.status().to_string();
    fabric_ = std::move(*made);
    address_ = unused_device_address();
    auto listening = fabric_->listen(address_, endpoint_options());
    ASSERT_TRUE(listening.ok()) << listening.status().to_string();
    listener_ = std::move(*listening);
  }
  // Small slots: the guest's memory is small too.
  static EndpointOptions endpoint_options() {
    EndpointOptions options;
    options.receive_depth = 16;
    options.receive_memory = {};
    return options;
  }

  // Polls, and accepts whoever asks, until `work`, done in a thread of its own, is over.
  void while_serving(const std::function<void()>& work) {
    std::atomic<bool> done{false};
    std::thread thread([&] {
      work();
      done = true;
    });
    // Without sleeping: nothing would wake us when the thread is done.
    while (!done) {
      serve();
      fabric_->disarm();
      std::this_thread::yield();
    }
    thread.join();
  }
  void serve() {
    auto request = listener_->poll();
    if (request.ok()) {
      auto accepted = listener_->accept(*request, {});
      if (accepted.ok()) side_.endpoint = std::move(*accepted);
    }
    if (side_.endpoint) side_.poll();
  }
  // Until the endpoint has reported its end.
  Code served_to_the_end() {
    EXPECT_TRUE(fabric::test::eventually({fabric_.get()}, [&] {
      serve();
      return side_.disconnected.has_value();
    }));
    if (!side_.disconnected) return Code::kOk;
    end_ = side_.disconnected->to_string();
    return side_.disconnected->code();
  }
  // What `misdeed` does to an endpoint that was set up as it should be.
  Code after(const std::function<void(RawPeer&)>& misdeed) {
    while_serving([&] {
      EXPECT_TRUE(peer_.connect_honestly(address_));
      EXPECT_TRUE(peer_.say_hello());
      misdeed(peer_);
    });
    const Code code = served_to_the_end();
    expect_honest_peers_are_served();
    return code;
  }
  void expect_honest_peers_are_served() {
    side_ = Side();
    RawPeer honest;
    while_serving([&] {
      EXPECT_TRUE(honest.connect_honestly(address_));
      EXPECT_TRUE(honest.say_hello());
      EXPECT_EQ(honest.send(Kind::kInline, 0, 5), IBV_WC_SUCCESS);
    });
    EXPECT_TRUE(fabric::test::eventually({fabric_.get()}, [&] {
      serve();
      return side_.received.size() == 1;
    }));
    honest.close();
  }
  static CmHeader header_of(std::uint8_t queue_pair, std::uint8_t queue_pairs,
                            const ChannelToken& token) {
    CmHeader header = honest_header();
    header.queue_pairs = queue_pairs;
    header.queue_pair = queue_pair;
    header.token = token;
    return header;
  }
  // The token of the channel that `first` is the first queue pair of; zeros if it was turned away.
  ChannelToken open_channel(RawPeer& first, std::uint8_t queue_pairs) {
    if (!first.connect(address_, encode(header_of(0, queue_pairs, {})), 8)) return {};
    const auto reply = decode_cm_header(first.reply());
    return reply.ok() ? reply->token : ChannelToken();
  }
  void expect_turned_away(const CmHeader& header) {
    RawPeer stranger;
    EXPECT_FALSE(stranger.connect(address_, encode(header), 8));
    const auto reply = decode_cm_header(stranger.reply());
    EXPECT_TRUE(reply.ok() && reply->verdict == Verdict::kQueuePairs);
  }
  static LinkParameters with_queue_pairs(std::uint32_t count) {
    LinkParameters link;
    link.queue_pairs = count;
    return link;
  }
  void expect_dropped(const std::function<void(RawPeer&)>& misdeed) {
    while_serving([&] {
      EXPECT_TRUE(peer_.connect_honestly(address_, 8));
      misdeed(peer_);
      EXPECT_EQ(peer_.receive(), 0u) << "it was answered";
    });
    EXPECT_FALSE(side_.endpoint);
    expect_honest_peers_are_served();
  }

  VerbsCounters counters_;
  std::unique_ptr<Fabric> fabric_;
  std::string address_;
  std::unique_ptr<Listener> listener_;
  Side side_;
  std::string end_;  // for people
  RawPeer peer_;
};

}  // namespace sanproxy::fabric::verbs::test
