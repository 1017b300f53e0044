// Asking nodes: one, or all of a cluster at a time.
//
// Document: docs/sanctl.md "A cluster".
// Role: makes sure that who answers is who was meant; nobody waits for those that are dead one
// after
//   the other.
// Thread: ask_all() asks from several of its own, and is over when it returns.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "netnode/sanctl/admin_client.h"
#include "netnode/sanctl/options.h"

namespace sanproxy::sanctl {

// A node's admin endpoint. Without a name: whoever is there, for the operator has said where.
struct Endpoint {
  std::string name, address;
};

// The one given, or those that the cluster's proxies have registered.
std::vector<Endpoint> proxy_endpoints(const Options& options);
// /status; a Failure where somebody else answers: loopback of another host leads to ourselves.
nlohmann::json status_of(const Endpoint& endpoint);
// A Failure where no proxy is there that could tell of `what`.
void need_proxy(const Endpoint& endpoint, const std::string& what);
// Network nodes answer too; of much that a proxy tells they know nothing.
bool is_proxy(const nlohmann::json& status);

template <typename T>
struct Answer {
  std::optional<T> value;
  std::string why;  // there is none
  int exit_status = 0;
  bool silent = false;  // who was meant is not there, as far as can be seen
};

// `ask(endpoint)` of each, in their order: what it returned, or what it threw.
template <typename Ask>
auto ask_all(const std::vector<Endpoint>& endpoints, const Ask& ask) {
  constexpr std::size_t kThreadsMax = 32;
  std::vector<Answer<decltype(ask(endpoints[0]))>> out(endpoints.size());
  std::atomic<std::size_t> next{0};
  const auto work = [&] {
    for (std::size_t i = next++; i < out.size(); i = next++) {
      try {
        out[i].value = ask(endpoints[i]);
      } catch (const NoAnswer& failure) {
        out[i].why = failure.what();
        out[i].exit_status = failure.exit_status();
        out[i].silent = true;
      } catch (const Failure& failure) {
        out[i].why = failure.what();
        out[i].exit_status = failure.exit_status();
      } catch (const std::exception& error) {
        out[i].why = error.what();
        out[i].exit_status = 1;
      }
    }
  };
  std::vector<std::jthread> others;
  while (others.size() + 1 < std::min(endpoints.size(), kThreadsMax)) others.emplace_back(work);
  work();
  others.clear();
  return out;
}

// Where nobody has answered: a Failure with what each has said. It is the command line's fault
// where one of them says so.
template <typename T>
void need_any(const std::vector<Endpoint>& endpoints, const std::vector<Answer<T>>& answers) {
  std::string text;
  int exit_status = 1;
  for (std::size_t i = 0; i < answers.size(); ++i) {
    if (answers[i].value) return;
    if (!text.empty()) text += "\n";
    if (!endpoints[i].name.empty()) text += endpoints[i].name + ": ";
    text += answers[i].why;
    exit_status = std::max(exit_status, answers[i].exit_status);
  }
  if (!text.empty()) throw Failure(text, exit_status);
}

}  // namespace sanproxy::sanctl
