// A forwarder with four proxies, all up, and packets of clients for it.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "netnode/steer/forwarder.h"
#include "tests/netnode/steer/steer_packets.h"

namespace sanproxy::steer::testing {

inline constexpr const char* kService = "10.0.0.10:80";

class ForwarderTest : public ::testing::Test {
 protected:
  ForwarderTest() {
    set_.services = {{at(kService)}, {at("[fd00::10]:80")}, {at("10.0.0.10:53"), 17}};
    for (int i = 0; i < 4; ++i) add("p" + std::to_string(i), static_cast<std::uint16_t>(i + 1));
    apply();
    for (std::uint16_t i = 0; i < 4; ++i) steering_.set_state(i, ProxyState::kUp);
  }
  static ForwarderOptions options() {
    ForwarderOptions out;
    out.maglev_entries = 5003;
    out.flows.flows_max = 4096;
    out.nat.sessions_max = 1024;
    out.nat.addresses = {*IpAddress::parse("10.9.9.9")};
    return out;
  }
  void add(const std::string& name, std::uint16_t id) {
    ProxyConfig proxy;
    proxy.name = name;
    proxy.id = id;
    proxy.mode = Mode::kTunnel;  // carries all that there is
    proxy.targets = {{*IpAddress::parse("10.5.0.1"), 0}};
    set_.proxies.push_back(proxy);
  }
  std::vector<std::uint16_t> apply() {
    std::vector<std::uint16_t> gone;
    EXPECT_EQ(check(set_), "");
    steering_.apply(set_, gone);
    return gone;
  }
  Verdict steer(const Bytes& packet, Fragments::Token token = 0) {
    return steer(steering_, packet, token);
  }
  Verdict steer(Forwarder& forwarder, const Bytes& packet, Fragments::Token token = 0) {
    const Forwarder::Arrival arrival{as_span(packet), token};
    Verdict out;
    forwarder.steer({&arrival, 1}, {&out, 1}, now_ms_);
    return out;
  }
  static Bytes packet(int client, std::uint8_t flags = net::kTcpAck, std::uint16_t tag = 0) {
    return packet_of({.from = at("10.1." + std::to_string(client / 250) + "." +
                                 std::to_string(client % 250 + 1) + ":4000"),
                      .to = at(kService),
                      .flags = flags,
                      .tag = tag});
  }

  ProxySet set_;
  Forwarder steering_{options()};
  std::uint64_t now_ms_ = 1'000'000;
};

}  // namespace sanproxy::steer::testing
