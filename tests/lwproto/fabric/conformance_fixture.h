// Conformance: the fixture of the suite that every fabric passes (rules in fabric.h).
#pragma once

#include <memory>
#include <string>

#include "gtest/gtest.h"
#include "lwproto/buffer/memory_region.h"
#include "tests/lwproto/fabric/channel_pair.h"
#include "tests/lwproto/fabric/fabrics_under_test.h"

namespace sanproxy::fabric::test {

class Conformance : public testing::TestWithParam<FabricUnderTest> {
 protected:
  void SetUp() override {
    server_fabric_ = make(GetParam().make);
    client_fabric_ = make(GetParam().make);
    ASSERT_TRUE(server_fabric_ && client_fabric_);
    address_ = GetParam().unused_address();
  }

  void listen(const EndpointOptions& options = {}) {
    auto listening = server_fabric_->listen(address_, options);
    ASSERT_TRUE(listening.ok()) << listening.status().to_string();
    listener_ = std::move(*listening);
    EXPECT_EQ(listener_->address(), address_);
  }
  void connect_pair(const EndpointOptions& options = {}) {
    listen(options);
    ASSERT_TRUE(
        connect_sides(*server_fabric_, *listener_, *client_fabric_, options, server_, client_));
  }
  bool eventually(const std::function<bool()>& done) {
    return test::eventually({server_fabric_.get(), client_fabric_.get()}, done);
  }
  // Polls both sides until `done`.
  bool run_until(const std::function<bool()>& done) {
    return eventually([&] {
      if (server_.endpoint) server_.poll();
      if (client_.endpoint) client_.poll();
      return done();
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

  std::string address_;
  // Declared before the sides: a region outlives the endpoints that it is attached to.
  std::vector<buffer::MemoryRegion> regions_;
  std::unique_ptr<Fabric> server_fabric_;
  std::unique_ptr<Fabric> client_fabric_;
  std::unique_ptr<Listener> listener_;
  Side server_;
  Side client_;
};

}  // namespace sanproxy::fabric::test
