// A listener without a fabric: the test dials, in calm weather, and gets the other end at once.
//
// Role: for tests that drive one side by hand (proxynode/translate).
// Owner: the code under test. Thread: one.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tests/lwproto/fabric/sim/endpoint.h"

namespace sanproxy::fabric::sim {

class ManualListener final : public Listener {
 public:
  struct Dialled {
    std::unique_ptr<SimEndpoint> endpoint;  // null: rejected
    std::vector<std::byte> private_data;    // the answer
  };

  explicit ManualListener(Delivery delivery, EndpointOptions ours)
      : delivery_(delivery), ours_(ours) {}
  const std::string& address() const override { return address_; }
  Result<ConnectRequest> poll() override;
  Result<std::unique_ptr<Endpoint>> accept(const ConnectRequest& request,
                                           std::span<const std::byte> private_data) override;
  void reject(const ConnectRequest& request, std::span<const std::byte> private_data) override;

  std::uint64_t dial(std::span<const std::byte> private_data, const EndpointOptions& theirs,
                     std::int64_t uid = 1000, const std::string& certificate_name = "");
  std::optional<Dialled> answer(std::uint64_t token);

 private:
  struct Waiting {
    ConnectRequest request;
    EndpointOptions theirs;
  };
  std::string address_ = "sim:";
  Delivery delivery_;
  EndpointOptions ours_;
  std::uint64_t next_token_ = 1;
  std::deque<std::uint64_t> to_poll_;
  std::map<std::uint64_t, Waiting> waiting_;
  std::map<std::uint64_t, Dialled> answers_;
};

}  // namespace sanproxy::fabric::sim
