#include "lwproto/flow/credit_ledger.h"

namespace sanproxy::flow {

CreditLedger::CreditLedger(std::uint32_t initial_from_peer, std::uint32_t reserve_from_peer,
                           std::uint32_t initial_to_peer, std::uint32_t start)
    : peer_granted_(start + initial_from_peer),
      peer_window_(initial_from_peer),
      // At least the credit that wakes the peer (invariant 1) stays out of reach of data.
      reserve_(std::max(reserve_from_peer, 1u)),
      sent_(start),
      granted_(start + initial_to_peer),
      granted_sent_(start + initial_to_peer),  // HELLO announced it
      window_(initial_to_peer),
      received_(start) {}

Status CreditLedger::grant_refused() {
  return Status::error(Code::kProtocol, "a credit grant goes back or is more than can be posted");
}

Status CreditLedger::overrun() {
  return Status::error(Code::kProtocol, "a transfer was sent without a credit");
}

}  // namespace sanproxy::flow
