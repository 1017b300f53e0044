#include "lwproto/flow/stream_window.h"

namespace sanproxy::flow {

// Off the hot path: finds the words for what on_credit() refused.
Status SendWindow::credit_refused(std::uint64_t freed_offset, std::uint64_t acked_offset) const {
  if (freed_offset < freed_ || acked_offset < acked_) {
    return Status::error(Code::kProtocol, "an offset of a CREDIT goes back");
  }
  if (freed_offset > sent_) {
    return Status::error(Code::kProtocol, "a CREDIT frees more than was sent");
  }
  return Status::error(Code::kProtocol, "a CREDIT acknowledges more than it frees");
}

Status ReceiveWindow::data_refused(std::uint64_t offset) const {
  if (offset > received_) return Status::error(Code::kProtocol, "a DATA leaves a gap");
  if (offset < received_) return Status::error(Code::kProtocol, "a DATA overlaps the last one");
  return Status::error(Code::kProtocol, "a DATA overruns the window");
}

}  // namespace sanproxy::flow
