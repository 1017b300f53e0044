#include "tests/lwproto/channel/memory_fabric.h"

#include <algorithm>
#include <cstring>

namespace sanproxy::fabric::testing {
namespace {

using Bytes = std::vector<std::byte>;

struct Transfer {
  Bytes inline_part;
  std::vector<std::span<const std::byte>> pieces;
  Bytes snapshot;  // of the pieces, when they became the fabric's
  std::uint64_t cookie = 0;
  bool completed = false;  // the sender has its memory back

  Bytes referenced() const {
    Bytes out;
    for (const auto& piece : pieces) out.insert(out.end(), piece.begin(), piece.end());
    return out;
  }
};
using TransferPtr = std::shared_ptr<Transfer>;

}  // namespace

struct LoanOut {
  TransferPtr transfer;
  Bytes buffer;                              // kReceiveBuffers
  buffer::SlotIndex slot = buffer::kNoSlot;  // or a slot of the pool
};

struct MemorySide {
  std::deque<TransferPtr> committed;    // sent, not flushed
  std::deque<TransferPtr> outstanding;  // with references, not completed
  std::deque<TransferPtr> arrived;      // at this side
  std::deque<std::pair<std::uint64_t, Status>> sends;
  std::map<Loan, LoanOut> loans;
  std::uint32_t posted = 0;
  std::uint32_t unposted = 0;           // free buffers
  std::deque<buffer::SlotIndex> slots;  // those posted, and those of transfers not yet polled
  bool reported = false;
  Status reason;
};

class MemoryLink {
 public:
  explicit MemoryLink(const MemoryOptions& options) : options_(options) {
    for (int i = 0; i < 2; ++i) {
      side[i].posted = options.endpoint[i].receive_depth;
      const ReceiveMemory& memory = options.endpoint[i].receive_memory;
      if (memory.pool == nullptr) continue;
      for (std::uint32_t n = 0; n < side[i].posted; ++n) {
        side[i].slots.push_back(memory.acquire());
        EXPECT_NE(side[i].slots.back(), buffer::kNoSlot) << "the pool cannot post what it must";
      }
    }
  }
  const MemoryOptions& options() const { return options_; }

  void complete(MemorySide& sender, TransferPtr transfer, Status status) {
    if (transfer->completed || transfer->pieces.empty()) return;
    transfer->completed = true;
    EXPECT_TRUE(transfer->referenced() == transfer->snapshot)
        << "referenced memory has changed while it was the fabric's";
    std::erase(sender.outstanding, transfer);
    sender.sends.emplace_back(transfer->cookie, status);
  }
  void end(int who, Status mine, Status theirs) {
    if (down) return;
    down = true;
    side[who].reason = mine;
    side[1 - who].reason = theirs;
    side[who].arrived.clear();
    for (MemorySide& each : side) {
      each.committed.clear();
      while (!each.outstanding.empty()) {
        complete(each, each.outstanding.front(), Status::error(Code::kDisconnected, "gone"));
      }
    }
  }

  MemorySide side[2];
  bool down = false;
  Loan next_loan = 1;

 private:
  MemoryOptions options_;
};

MemoryEndpoint::MemoryEndpoint(std::shared_ptr<MemoryLink> link, int side)
    : link_(std::move(link)), side_(side) {}

MemoryEndpoint::~MemoryEndpoint() {
  EXPECT_EQ(loans_out(), 0u) << "an endpoint was destroyed with loans outside";
  disconnect(Status::error(Code::kDisconnected, "destroyed"));
  for (const buffer::SlotIndex slot : link_->side[side_].slots) {
    link_->options().endpoint[side_].receive_memory.pool->release(slot);
  }
}

Result<RegionKey> MemoryEndpoint::attach(const buffer::MemoryRegion& region) {
  regions_.push_back(region.bytes());
  return static_cast<RegionKey>(regions_.size() * 7);  // no index that a user could guess
}

Result<std::span<std::byte>> MemoryEndpoint::begin_send(std::size_t inline_bytes) {
  MemorySide& mine = link_->side[side_];
  const EndpointOptions& options = link_->options().endpoint[side_];
  EXPECT_LE(inline_bytes, options.inline_bytes_max);
  if (link_->down) return Status::error(Code::kDisconnected, "disconnected");
  space_.reset();
  if (refuse_sends > 0) {
    --refuse_sends;
    return Status::again();
  }
  const std::size_t under_way = mine.committed.size() + link_->side[1 - side_].arrived.size();
  if (mine.outstanding.size() >= options.send_depth ||
      under_way >= link_->options().transfers_max) {
    return Status::again();
  }
  space_ = Bytes(inline_bytes, std::byte{0xcc});
  return std::span<std::byte>(*space_);
}

Status MemoryEndpoint::commit_send(std::size_t inline_bytes, std::span<const GatherRef> refs,
                                   std::uint64_t cookie) {
  if (link_->down) return Status::error(Code::kDisconnected, "disconnected");
  if (!space_ || inline_bytes > space_->size() || refs.size() > kGatherRefsMax) {
    ADD_FAILURE() << "commit_send() without space or with too many references";
    return Status::error(Code::kInvalidArgument, "misuse");
  }
  auto transfer = std::make_shared<Transfer>();
  space_->resize(inline_bytes);
  transfer->inline_part = std::move(*space_);
  space_.reset();
  transfer->cookie = cookie;
  for (const GatherRef& ref : refs) {
    const std::size_t place = ref.region / 7;
    if (ref.region % 7 != 0 || place == 0 || place > regions_.size() || ref.length == 0 ||
        ref.offset + ref.length > regions_[place - 1].size()) {
      ADD_FAILURE() << "a reference outside of an attached region";
      return Status::error(Code::kInvalidArgument, "misuse");
    }
    transfer->pieces.push_back(regions_[place - 1].subspan(ref.offset, ref.length));
  }
  transfer->snapshot = transfer->referenced();
  EXPECT_LE(inline_bytes + transfer->snapshot.size(),
            link_->options().endpoint[side_].transfer_bytes_max);
  MemorySide& mine = link_->side[side_];
  if (!refs.empty()) mine.outstanding.push_back(transfer);
  mine.committed.push_back(std::move(transfer));
  return {};
}

void MemoryEndpoint::flush() {
  ++flushes;
  send_committed();
}

// Visible to whoever looks; only a sleeper would not be woken.
void MemoryEndpoint::publish() {
  ++publishes;
  send_committed();
}

void MemoryEndpoint::send_committed() {
  MemorySide& mine = link_->side[side_];
  MemorySide& theirs = link_->side[1 - side_];
  while (!link_->down && !mine.committed.empty()) {
    if (theirs.posted == 0) {
      const Status broken = Status::error(Code::kProtocol, "a transfer met no receive buffer");
      return link_->end(side_, broken, broken);
    }
    --theirs.posted;
    TransferPtr transfer = std::move(mine.committed.front());
    mine.committed.pop_front();
    if (link_->options().delivery == Delivery::kReceiveBuffers) {
      transfer->inline_part.insert(transfer->inline_part.end(), transfer->snapshot.begin(),
                                   transfer->snapshot.end());
      link_->complete(mine, transfer, {});
    }
    theirs.arrived.push_back(std::move(transfer));
  }
}

std::size_t MemoryEndpoint::poll(std::span<Completion> out) {
  MemorySide& mine = link_->side[side_];
  for (Bytes& bytes : transient_) std::fill(bytes.begin(), bytes.end(), std::byte{0xdd});
  transient_.clear();
  std::size_t count = 0;
  while (count < out.size() && !mine.arrived.empty()) {
    const TransferPtr transfer = std::move(mine.arrived.front());
    mine.arrived.pop_front();
    Completion& c = out[count++] = Completion{};
    c.kind = Completion::Kind::kReceive;
    const bool buffers = link_->options().delivery == Delivery::kReceiveBuffers;
    LoanOut loan{transfer, {}};
    if (buffers) {
      loan.buffer = transfer->inline_part;
      const auto length = static_cast<std::uint32_t>(loan.buffer.size());
      const std::byte* data =
          mine.slots.empty() ? loan.buffer.data() : receive_into_slot(loan.buffer, loan.slot);
      c.segments[c.segment_count++] = {data, length, false};
    } else {
      transient_.push_back(transfer->inline_part);
      c.segments[c.segment_count++] = {transient_.back().data(),
                                       static_cast<std::uint32_t>(transient_.back().size()), true};
      for (const auto& piece : transfer->pieces) {
        c.segments[c.segment_count++] = {piece.data(), static_cast<std::uint32_t>(piece.size()),
                                         false};
      }
      ++mine.unposted;
      if (transfer->pieces.empty()) continue;
    }
    c.loan = link_->next_loan++;
    mine.loans.emplace(c.loan, std::move(loan));
  }
  while (count < out.size() && !mine.sends.empty()) {
    Completion& c = out[count++] = Completion{};
    c.kind = Completion::Kind::kSend;
    std::tie(c.cookie, c.status) = mine.sends.front();
    mine.sends.pop_front();
  }
  if (count < out.size() && link_->down && !mine.reported) {
    mine.reported = true;
    Completion& c = out[count++] = Completion{};
    c.kind = Completion::Kind::kDisconnected;
    c.status = mine.reason;
  }
  return count;
}

const std::byte* MemoryEndpoint::receive_into_slot(std::span<const std::byte> bytes,
                                                   buffer::SlotIndex& slot) {
  MemorySide& mine = link_->side[side_];
  buffer::SlotPool& pool = *link_->options().endpoint[side_].receive_memory.pool;
  slot = mine.slots.front();
  mine.slots.pop_front();
  EXPECT_LE(bytes.size(), pool.slot_bytes());
  std::memcpy(pool.data(slot), bytes.data(), bytes.size());
  pool.mark_received(slot);
  return pool.data(slot);
}

void MemoryEndpoint::release(Loan loan) {
  MemorySide& mine = link_->side[side_];
  const auto it = mine.loans.find(loan);
  if (it == mine.loans.end()) {
    ADD_FAILURE() << "a loan was released twice, or never given: " << loan;
    return;
  }
  if (it->second.slot != buffer::kNoSlot) {
    link_->options().endpoint[side_].receive_memory.pool->release(it->second.slot);
  } else if (link_->options().delivery == Delivery::kReceiveBuffers) {
    ++mine.unposted;
  } else if (!link_->down) {
    link_->complete(link_->side[1 - side_], it->second.transfer, {});
  }
  mine.loans.erase(it);
}

std::uint32_t MemoryEndpoint::replenish() {
  MemorySide& mine = link_->side[side_];
  if (link_->down || keep_buffers) return 0;
  const EndpointOptions& options = link_->options().endpoint[side_];
  if (options.receive_memory.pool != nullptr) {
    std::uint32_t fresh = 0;
    for (; mine.slots.size() < options.receive_depth; ++fresh) {
      const buffer::SlotIndex slot = options.receive_memory.acquire();
      if (slot == buffer::kNoSlot) break;
      mine.slots.push_back(slot);
    }
    mine.posted += fresh;
    return fresh;
  }
  mine.posted += mine.unposted;
  return std::exchange(mine.unposted, 0);
}

void MemoryEndpoint::disconnect(Status reason) {
  link_->end(side_, reason, Status::error(Code::kDisconnected, "the peer has disconnected"));
}

bool MemoryEndpoint::connected() const { return !link_->down; }
std::uint32_t MemoryEndpoint::posted() const { return link_->side[side_].posted; }
std::size_t MemoryEndpoint::loans_out() const { return link_->side[side_].loans.size(); }
std::size_t MemoryEndpoint::cookies_outstanding() const {
  return link_->side[side_].outstanding.size();
}
std::size_t MemoryEndpoint::to_poll() const { return link_->side[side_].arrived.size(); }

MemoryPair make_memory_pair(const MemoryOptions& options) {
  const auto link = std::make_shared<MemoryLink>(options);
  return {std::make_unique<MemoryEndpoint>(link, 0), std::make_unique<MemoryEndpoint>(link, 1)};
}

// --- the listener

std::uint64_t MemoryListener::dial(std::span<const std::byte> private_data,
                                   const EndpointOptions& theirs, std::int64_t uid,
                                   const std::string& certificate_name) {
  const std::uint64_t token = next_token_++;
  ConnectRequest request;
  request.token = token;
  request.peer.address = "memory";
  request.peer.uid = uid;
  request.peer.certificate_name = certificate_name;
  request.private_data.assign(private_data.begin(), private_data.end());
  waiting_[token] = {std::move(request), theirs};
  to_poll_.push_back(token);
  return token;
}

Result<ConnectRequest> MemoryListener::poll() {
  if (to_poll_.empty()) return Status::again();
  const std::uint64_t token = to_poll_.front();
  to_poll_.pop_front();
  return waiting_.at(token).request;
}

Result<std::unique_ptr<Endpoint>> MemoryListener::accept(const ConnectRequest& request,
                                                         std::span<const std::byte> private_data) {
  const Waiting waiting = waiting_.at(request.token);
  waiting_.erase(request.token);
  MemoryPair pair = make_memory_pair({.delivery = delivery_, .endpoint = {ours_, waiting.theirs}});
  pair.a->identity = request.peer;
  answers_[request.token] = {std::move(pair.b), {private_data.begin(), private_data.end()}};
  return std::unique_ptr<Endpoint>(std::move(pair.a));
}

void MemoryListener::reject(const ConnectRequest& request,
                            std::span<const std::byte> private_data) {
  waiting_.erase(request.token);
  answers_[request.token] = {nullptr, {private_data.begin(), private_data.end()}};
}

std::optional<MemoryListener::Dialled> MemoryListener::answer(std::uint64_t token) {
  const auto it = answers_.find(token);
  if (it == answers_.end()) return std::nullopt;
  Dialled out = std::move(it->second);
  answers_.erase(it);
  return out;
}

}  // namespace sanproxy::fabric::testing
