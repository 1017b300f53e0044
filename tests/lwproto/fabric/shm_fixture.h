// ShmServer: a listening shm fabric, a healthy channel on it that must survive everything, and a
// raw peer that misbehaves.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "gtest/gtest.h"
#include "lwproto/buffer/memory_region.h"
#include "lwproto/fabric/shm/shm_fabric.h"
#include "tests/lwproto/fabric/channel_pair.h"
#include "tests/lwproto/fabric/raw_shm_peer.h"
#include "tests/lwproto/fabric/temporary_path.h"

namespace sanproxy::fabric::test {

class ShmServer : public testing::Test {
 protected:
  void start(const ShmOptions& options = {}, const EndpointOptions& endpoint_options = {}) {
    fabric_ = make([&] { return make_shm_fabric(options); });
    client_fabric_ = make([] { return make_shm_fabric(); });
    path_ = unused_path();
    auto listening = fabric_->listen("shm:" + path_, endpoint_options);
    ASSERT_TRUE(listening.ok()) << listening.status().to_string();
    listener_ = std::move(*listening);
    ASSERT_TRUE(
        connect_sides(*fabric_, *listener_, *client_fabric_, {}, good_server_, good_client_));
    good_server_.replenish = good_client_.replenish = true;
  }
  bool eventually(const std::function<bool()>& done) {
    return test::eventually({fabric_.get(), client_fabric_.get()}, done);
  }

  // The raw peer connects properly, as the other end of `victim_`.
  void join(RawShmPeer& raw) {
    ASSERT_TRUE(raw.make_memory());
    ASSERT_TRUE(raw.dial(path_));
    ASSERT_TRUE(raw.send_hello());
    auto request = next_request(*listener_, {fabric_.get()});
    ASSERT_TRUE(request);
    auto accepted = listener_->accept(*request, {});
    ASSERT_TRUE(accepted.ok()) << accepted.status().to_string();
    victim_ = Side();
    victim_.endpoint = std::move(*accepted);
    auto answer = raw.read_answer();
    ASSERT_TRUE(answer && answer->verdict == shm::Verdict::kAccepted);
    ASSERT_TRUE(raw.peer_memory != nullptr);
  }
  void expect_breach(const RawShmPeer& raw, const char* what) {
    EXPECT_TRUE(eventually([&] {
      victim_.poll();
      return victim_.disconnected.has_value();
    })) << what;
    if (!victim_.disconnected) return;
    EXPECT_EQ(victim_.disconnected->code(), Code::kProtocol)
        << what << ": " << victim_.disconnected->to_string();
    EXPECT_TRUE(raw.wait_readable() && raw.closed()) << what;
    EXPECT_EQ(raw.peer_control().published.close_code.load(),
              static_cast<std::uint32_t>(shm::CloseMark::kProtocol));
    EXPECT_EQ(victim_.poll(), 0u);
  }
  // Bytes still go round on the healthy channel.
  void expect_the_others_work() {
    const Bytes question = pattern(1000, ++round_);
    ASSERT_TRUE(good_client_.send(question).ok());
    ASSERT_TRUE(eventually([&] {
      good_server_.poll();
      return !good_server_.received.empty();
    }));
    EXPECT_EQ(good_server_.received.front().content, question);
    good_server_.received.clear();
    ASSERT_TRUE(good_server_.send(bytes_of("answer")).ok());
    ASSERT_TRUE(eventually([&] {
      good_client_.poll();
      return !good_client_.received.empty();
    }));
    good_client_.received.clear();
  }
  void TearDown() override {
    if (good_client_.endpoint) expect_the_others_work();
  }

  std::string path_;
  buffer::MemoryRegion region_;
  std::unique_ptr<Fabric> fabric_;
  std::unique_ptr<Fabric> client_fabric_;
  std::unique_ptr<Listener> listener_;
  Side good_server_;
  Side good_client_;
  Side victim_;
  unsigned round_ = 0;
};

}  // namespace sanproxy::fabric::test
