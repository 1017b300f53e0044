// The line between the supervisor and one worker.
//
// Document: docs/workers.md.
// Role: questions (a page of the admin endpoint) one way, "ready" and answers the other, over a
//   Unix sequence-packet socket; the body of an answer is a memory file, so that a large page costs
//   the worker one message and never a wait.
// Owner: the supervisor has one end, the worker the other. Thread: each end its own.
// Invariants:
//   1. Nothing here blocks. A worker whose answer finds no room loses it, and the supervisor asks
//      again or does without.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "lwproto/base/unique_fd.h"
#include "proxynode/admin/pages.h"

namespace sanproxy::proxy {

struct ControlNews {
  enum class Kind : std::uint8_t { kNothing, kReady, kAnswer, kEnd };
  Kind kind = Kind::kNothing;
  std::uint32_t question = 0;
  admin::Page page;
};

class ControlSocket {
 public:
  static Result<std::pair<UniqueFd, UniqueFd>> make_pair();

  explicit ControlSocket(UniqueFd fd) : fd_(std::move(fd)) {}
  int fd() const { return fd_.get(); }

  // --- the supervisor's end
  bool ask(std::uint32_t question, const admin::PageRequest& request);
  ControlNews receive();

  // --- the worker's end
  void say_ready();
  // Answers what was asked; false when the supervisor is gone.
  bool serve(const std::function<admin::Page(const admin::PageRequest&)>& render);

 private:
  void answer(std::uint32_t question, const admin::Page& page);

  UniqueFd fd_;
};

}  // namespace sanproxy::proxy
