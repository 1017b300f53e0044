// VerbsDevice: two fabrics over the device of the machine, and a channel between them.
#pragma once

#include <algorithm>
#include <functional>
#include <memory>
#include <string>

#include "gtest/gtest.h"
#include "lwproto/buffer/memory_region.h"
#include "lwproto/fabric/verbs/verbs_fabric.h"
#include "tests/lwproto/fabric/channel_pair.h"
#include "tests/lwproto/fabric/verbs/device_address.h"

namespace sanproxy::fabric::verbs::test {

using fabric::test::Bytes;
using fabric::test::pattern;
using fabric::test::Side;

class VerbsDevice : public testing::Test {
 protected:
  static EndpointOptions options() {
    EndpointOptions out;
    out.receive_depth = 64;
    out.send_depth = 64;
    return out;
  }
  void connect(const LinkParameters& link = {}, const VerbsOptions& at_client = {}) {
    auto server_fabric = make_verbs_fabric();
    auto client_fabric = make_verbs_fabric(at_client);
    ASSERT_TRUE(server_fabric.ok() && client_fabric.ok());
    server_fabric_ = std::move(*server_fabric);
    client_fabric_ = std::move(*client_fabric);
    auto listening = server_fabric_->listen(address_, options());
    ASSERT_TRUE(listening.ok()) << listening.status().to_string();
    listener_ = std::move(*listening);
    EndpointOptions asking = options();
    asking.link = link;
    ASSERT_TRUE(fabric::test::connect_sides(*server_fabric_, *listener_, *client_fabric_, asking,
                                            server_, client_));
    auto region = buffer::MemoryRegion::create("device-test", 1 << 20);
    ASSERT_TRUE(region.ok());
    region_ = std::move(*region);
    const Bytes content = pattern(region_.size(), 1);
    std::copy(content.begin(), content.end(), region_.data());
    auto key = client_.endpoint->attach(region_);
    ASSERT_TRUE(key.ok()) << key.status().to_string();
    key_ = *key;
  }
  bool run_until(const std::function<bool()>& done) {
    return fabric::test::eventually({server_fabric_.get(), client_fabric_.get()}, [&] {
      server_.poll();
      client_.poll();
      return done();
    });
  }

  std::string address_ = unused_device_address();
  buffer::MemoryRegion region_;
  std::unique_ptr<Fabric> server_fabric_;
  std::unique_ptr<Fabric> client_fabric_;
  std::unique_ptr<Listener> listener_;
  Side server_;
  Side client_;
  RegionKey key_ = 0;
};

}  // namespace sanproxy::fabric::verbs::test
