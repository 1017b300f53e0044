// Short words for tests of the service table.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "proxynode/service/service_table.h"

namespace sanproxy::service::testing {

inline SocketAddress address(const std::string& text) { return *SocketAddress::parse(text); }
inline const SocketAddress kWeb = address("10.77.0.10:80");

inline JoinRequest request(NodeId node, const SocketAddress& where = kWeb, std::uint32_t weight = 1,
                           std::uint32_t connections_max = 0) {
  JoinRequest out;
  out.address = where;
  out.node = node;
  out.who.uid = 1000;
  out.weight = weight;
  out.connections_max = connections_max;
  return out;
}

inline AllowEntry uid(std::uint32_t number) {
  return *AllowEntry::parse("uid:" + std::to_string(number));
}

inline bool everyone(NodeId) { return true; }

// A table with one service at kWeb and members 0, 1, ... of the given weights.
struct OneService {
  OneService(Balance balance, const std::vector<std::uint32_t>& weights,
             std::uint32_t connections_max = 0)
      : table({Policy{.address = kWeb, .balance = balance}}, 10) {
    for (NodeId node = 0; node < weights.size(); ++node) {
      auto joined = table.join(request(node, kWeb, weights[node], connections_max));
      EXPECT_TRUE(joined.ok()) << joined.status().to_string();
      service = joined->service;
    }
  }
  int pick(const std::function<bool(NodeId)>& eligible = everyone) {
    const Member* member = service->pick(eligible);
    return member == nullptr ? -1 : static_cast<int>(member->node);
  }
  // A connection of the node's present membership ends.
  void unbind(NodeId node) { service->unbind(node, service->find(node)->membership); }
  std::vector<int> picks(int count) {
    std::vector<int> out;
    for (int i = 0; i < count; ++i) out.push_back(pick());
    return out;
  }

  ServiceTable table;
  Service* service = nullptr;
};

}  // namespace sanproxy::service::testing
