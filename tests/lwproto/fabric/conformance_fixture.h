// Conformance: the fixture of the suite that every fabric passes (rules in fabric.h).
//
// Tests are written so that they hold whatever the contract allows: kAgain at any begin_send(), a
// replenish() that posts less than all, completions in any order and in any portion.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "gtest/gtest.h"
#include "lwproto/buffer/memory_region.h"
#include "tests/lwproto/base/sanitized.h"
#include "tests/lwproto/fabric/channel_pair.h"
#include "tests/lwproto/fabric/fabrics_under_test.h"
#include "tests/lwproto/fabric/seed.h"

namespace sanproxy::fabric::test {

inline std::string fabric_name(const testing::TestParamInfo<FabricUnderTest>& info) {
  return info.param.name;
}

class Conformance : public testing::TestWithParam<FabricUnderTest> {
 protected:
  void SetUp() override { start(one_seed()); }

  // Fabrics as new; what was made with the old ones is gone.
  void start(std::uint64_t seed) {
    TearDown();
    client_ = Side();
    server_ = Side();
    listener_.reset();
    client_fabric_.reset();
    server_fabric_.reset();
    replay_.reset();
    replay_.emplace(__FILE__, __LINE__, replay_text(seed));
    GetParam().start(seed);
    server_fabric_ = make(GetParam().make);
    client_fabric_ = make(GetParam().make);
    ASSERT_TRUE(server_fabric_ && client_fabric_);
    address_ = GetParam().unused_address();
  }
  void TearDown() override {
    client_.release_all();
    server_.release_all();
  }

  // Large enough for every kind of transfer, small enough to be registered memory many times over.
  static EndpointOptions options(std::uint32_t depth = 64) {
    EndpointOptions out;
    out.receive_depth = depth;
    out.send_depth = 256;
    return out;
  }
  // How often two threads that sleep wake one another; on a device of the guest it is the emulator
  // that takes the time.
  static unsigned ping_pongs() {
    return GetParam().scaled(GetParam().needs_device ? 20'000 : 100'000) /
           sanproxy::test::kSanitizedShare;
  }
  static EndpointOptions small_options(std::uint32_t depth = 8) {
    EndpointOptions out = options(depth);
    out.inline_bytes_max = 1024;
    out.transfer_bytes_max = 16 * 1024;
    out.send_depth = 64;
    return out;
  }
  void listen(const EndpointOptions& with = options()) {
    auto listening = server_fabric_->listen(address_, with);
    ASSERT_TRUE(listening.ok()) << listening.status().to_string();
    listener_ = std::move(*listening);
    EXPECT_EQ(listener_->address(), address_);
  }
  void connect_pair(const EndpointOptions& with = options()) {
    listen(with);
    ASSERT_TRUE(connect_more(with, server_, client_));
  }
  bool connect_more(const EndpointOptions& with, Side& server, Side& client) {
    return connect_sides(*server_fabric_, *listener_, *client_fabric_, with, server, client);
  }
  std::vector<Fabric*> both() { return {server_fabric_.get(), client_fabric_.get()}; }
  bool eventually(const std::function<bool()>& done) { return test::eventually(both(), done); }
  void poll_both() {
    if (server_.endpoint) server_.poll();
    if (client_.endpoint) client_.poll();
  }
  // Polls both sides until `done`.
  bool run_until(const std::function<bool()>& done) {
    return eventually([&] {
      poll_both();
      return done();
    });
  }
  // Each step runs, and sleeps on its own fabric, until it is true; in two threads if they may be.
  void run_apart(const std::function<bool()>& server, const std::function<bool()>& client) {
    if (GetParam().threads) {
      bool served = false;
      std::thread thread([&] { served = test::eventually({server_fabric_.get()}, server); });
      EXPECT_TRUE(test::eventually({client_fabric_.get()}, client));
      thread.join();
      EXPECT_TRUE(served);
      return;
    }
    bool server_done = false;
    bool client_done = false;
    EXPECT_TRUE(eventually([&] {
      server_done = server_done || server();
      client_done = client_done || client();
      if (client_done) server_done = server_done || server();  // it may have waited for that alone
      return server_done && client_done;
    }));
  }
  // Commits without flushing; meets back-pressure by polling both sides.
  Status queue(Side& from, std::span<const std::byte> inline_part,
               std::span<const GatherRef> refs = {}, std::uint64_t cookie = 0) {
    Status status = Status::again();
    eventually([&] {
      status = from.queue(inline_part, refs, cookie);
      if (!status.is_again()) return true;
      from.endpoint->flush();
      poll_both();
      return false;
    });
    return status;
  }
  Status send(Side& from, std::span<const std::byte> inline_part,
              std::span<const GatherRef> refs = {}, std::uint64_t cookie = 0) {
    const Status status = queue(from, inline_part, refs, cookie);
    from.endpoint->flush();
    return status;
  }
  // Posts receives until `count` have been posted; true if so.
  bool replenish(Side& side, std::uint32_t count) {
    std::uint32_t posted = 0;
    return run_until([&] {
      posted += side.endpoint->replenish();
      side.endpoint->flush();
      EXPECT_LE(posted, count);
      return posted >= count;
    });
  }
  RegionKey attach(Side& side, const buffer::MemoryRegion& region) {
    auto key = side.endpoint->attach(region);
    EXPECT_TRUE(key.ok()) << key.status().to_string();
    return key.ok() ? *key : 0;
  }
  static buffer::MemoryRegion make_region(std::size_t bytes) {
    auto region = buffer::MemoryRegion::create("fabric-test", bytes);
    EXPECT_TRUE(region.ok()) << region.status().to_string();
    return std::move(*region);
  }
  static void fill(const buffer::MemoryRegion& region, unsigned seed) {
    const Bytes content = pattern(region.size(), seed);
    std::copy(content.begin(), content.end(), region.data());
  }

  std::optional<testing::ScopedTrace> replay_;
  std::string address_;
  // Declared before the sides: a region outlives the endpoints that it is attached to.
  std::vector<buffer::MemoryRegion> regions_;
  std::unique_ptr<Fabric> server_fabric_;
  std::unique_ptr<Fabric> client_fabric_;
  std::unique_ptr<Listener> listener_;
  Side server_;
  Side client_;
};

// For what needs two threads.
class ThreadedConformance : public Conformance {};

}  // namespace sanproxy::fabric::test
