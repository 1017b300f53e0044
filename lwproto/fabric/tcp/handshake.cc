#include "lwproto/fabric/tcp/handshake.h"

namespace sanproxy::fabric::tcp {

Sizes make_sizes(const EndpointOptions& options) {
  Sizes sizes;
  sizes.inline_bytes_max = options.inline_bytes_max;
  sizes.transfer_bytes_max = options.transfer_bytes_max;
  sizes.regions_max = options.regions_max;
  sizes.region_bytes_max = options.peer_region_bytes_max;
  return sizes;
}

Status check_options(const EndpointOptions& options) {
  const bool good = options.inline_bytes_max > 0 && options.inline_bytes_max <= kInlineBytesMax &&
                    options.transfer_bytes_max >= options.inline_bytes_max &&
                    options.transfer_bytes_max <= kTransferBytesMax && options.receive_depth > 0 &&
                    options.receive_depth <= kReceiveDepthMax && options.send_depth > 0;
  if (!good) return Status::error(Code::kInvalidArgument, "endpoint options out of range for tcp");
  const ReceiveMemory& memory = options.receive_memory;
  if (memory.pool != nullptr && memory.pool->slot_bytes() < options.transfer_bytes_max) {
    return Status::error(Code::kInvalidArgument, "a receive slot holds less than a transfer");
  }
  return {};
}

bool sizes_fit(const Sizes& ours, const Sizes& theirs) {
  // Each sends as much as it takes itself.
  return ours.inline_bytes_max == theirs.inline_bytes_max &&
         ours.transfer_bytes_max == theirs.transfer_bytes_max && theirs.reserved == 0;
}

LinkBody to_wire(const LinkParameters& link, std::uint32_t streams) {
  LinkBody body;
  body.window_bytes = link.window_bytes;
  body.rate_bytes_per_s = link.rate_bytes_per_s;
  body.peak_bytes_per_s = link.peak_bytes_per_s;
  body.burst_bytes = link.burst_bytes;
  body.congestion = link.congestion;
  body.skip_slow_start = link.skip_slow_start ? 1 : 0;
  body.quality = link.quality;
  body.dscp = link.dscp;
  body.priority = link.priority;
  body.streams = streams;
  return body;
}

LinkParameters from_wire(const LinkBody& body) {
  LinkParameters link;
  link.window_bytes = body.window_bytes;
  link.rate_bytes_per_s = body.rate_bytes_per_s;
  link.peak_bytes_per_s = body.peak_bytes_per_s;
  link.burst_bytes = body.burst_bytes;
  link.congestion = body.congestion;
  link.skip_slow_start = body.skip_slow_start != 0;
  link.quality = body.quality;
  link.dscp = body.dscp;
  link.priority = body.priority;
  link.parallel_streams = body.streams;
  return link;
}

}  // namespace sanproxy::fabric::tcp
