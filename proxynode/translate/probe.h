// Probe: a request that the proxy itself makes to a member of a service, over the member's channel,
// to see whether it is well.
//
// Documents: docs/operating.md "Health of application nodes", docs/wire_format.md.
// Role: what the translator knows of one probe. To the application node it is a connection like
//   any other; there is no TCP behind it.
// Owner: Translator's table of probes, bounded by probes_max. Thread: the worker's.
// Invariants:
//   1. Ids of probes have indexes behind those of all connections, and never repeat either.
//   2. A probe takes kAnswerBytesMax bytes of an answer at most: that is its window, which is never
//      opened again.
#pragma once

#include <cstdint>
#include <string>

#include "lwproto/flow/stream_window.h"
#include "proxynode/service/service_table.h"
#include "proxynode/translate/stream.h"

namespace sanproxy::translate {

struct Probe {
  static constexpr std::uint32_t kAnswerBytesMax = 4096;
  std::uint64_t id = 0;
  std::uint64_t deadline_ns = 0;
  flow::SendWindow to_app;
  flow::ReceiveWindow from_app;
  std::uint32_t generation = 0;  // survives reuse
  service::ServiceId service = 0;
  std::uint32_t membership = 0;
  NodeIndex node = kNone;
  bool in_use = false;
  bool announced = false;  // CONNECTION_REQUEST has left
  bool asked = false;      // and the request
  bool accepted = false;
  std::string answer;  // its beginning
};

// Whether the beginning of an answer holds a whole first line, which is all that counts.
bool first_line_complete(const std::string& answer);
bool answer_is_as_expected(const std::string& answer, const std::string& expect);

}  // namespace sanproxy::translate
