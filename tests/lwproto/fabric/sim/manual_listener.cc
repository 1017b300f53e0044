#include "tests/lwproto/fabric/sim/manual_listener.h"

namespace sanproxy::fabric::sim {

std::uint64_t ManualListener::dial(std::span<const std::byte> private_data,
                                   const EndpointOptions& theirs, std::int64_t uid,
                                   const std::string& certificate_name) {
  const std::uint64_t token = next_token_++;
  ConnectRequest request;
  request.token = token;
  request.peer.address = "sim";
  request.peer.uid = uid;
  request.peer.certificate_name = certificate_name;
  request.private_data.assign(private_data.begin(), private_data.end());
  waiting_[token] = {std::move(request), theirs};
  to_poll_.push_back(token);
  return token;
}

Result<ConnectRequest> ManualListener::poll() {
  if (to_poll_.empty()) return Status::again();
  const std::uint64_t token = to_poll_.front();
  to_poll_.pop_front();
  return waiting_.at(token).request;
}

Result<std::unique_ptr<Endpoint>> ManualListener::accept(const ConnectRequest& request,
                                                         std::span<const std::byte> private_data) {
  const Waiting waiting = waiting_.at(request.token);
  waiting_.erase(request.token);
  EndpointPair pair = make_pair({.delivery = delivery_}, {ours_, waiting.theirs});
  pair.a->identity = request.peer;
  answers_[request.token] = {std::move(pair.b), {private_data.begin(), private_data.end()}};
  return std::unique_ptr<Endpoint>(std::move(pair.a));
}

void ManualListener::reject(const ConnectRequest& request,
                            std::span<const std::byte> private_data) {
  waiting_.erase(request.token);
  answers_[request.token] = {nullptr, {private_data.begin(), private_data.end()}};
}

std::optional<ManualListener::Dialled> ManualListener::answer(std::uint64_t token) {
  const auto it = answers_.find(token);
  if (it == answers_.end()) return std::nullopt;
  Dialled out = std::move(it->second);
  answers_.erase(it);
  return out;
}

}  // namespace sanproxy::fabric::sim
