#include "tests/lwproto/fabric/sim/endpoint.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

namespace sanproxy::fabric::sim {
namespace {

constexpr std::uint32_t kKeyStep = 7;  // keys are no indices that a user could guess

Segment segment_of(std::span<const std::byte> bytes, bool transient) {
  return {bytes.data(), static_cast<std::uint32_t>(bytes.size()), transient};
}

}  // namespace

SimEndpoint::SimEndpoint(std::shared_ptr<Link> link, int side)
    : link_(std::move(link)), side_(side) {
  identity.address = "sim";
}

SimEndpoint::~SimEndpoint() {
  EXPECT_EQ(loans_out(), 0u) << "an endpoint was destroyed with loans outside";
  if (!mine().reported && link_->world().chance(link_->world().weather().cut_per_mille)) {
    mine().cut = true;
  }
  disconnect(Status::error(Code::kDisconnected, "the endpoint was destroyed"));
  end_transients();
  link_->close(side_);
}

Status SimEndpoint::misuse(const char* text) const {
  if (misuse_is_failure) ADD_FAILURE() << text;
  return Status::error(Code::kInvalidArgument, text);
}

void SimEndpoint::set_wake(std::function<void()> wake) { mine().wake = std::move(wake); }

Result<RegionKey> SimEndpoint::attach(const buffer::MemoryRegion& region) {
  if (mine().ended) return Status::error(Code::kDisconnected, "disconnected");
  if (!region.valid()) return misuse("an empty region");
  std::uint64_t total = region.size();
  for (const auto& mapping : mine().regions) total += mapping->bytes().size();
  if (link_->options().delivery == Delivery::kLoans &&
      (mine().regions.size() >= theirs().options.regions_max ||
       total > theirs().options.peer_region_bytes_max)) {
    return Status::error(Code::kExhausted, "the peer takes no more regions");
  }
  mine().regions.push_back(std::make_shared<Mapping>(region));
  return static_cast<RegionKey>(mine().regions.size() * kKeyStep);
}

bool SimEndpoint::refused() {
  if (refuse_sends > 0) {
    --refuse_sends;
    return true;
  }
  World& world = link_->world();
  if (!mine().refusing && world.weather().delay_ns_max != 0 &&
      world.chance(world.weather().refuse_per_mille)) {
    link_->refuse_for_a_while(side_);
  }
  return mine().refusing;
}

Result<std::span<std::byte>> SimEndpoint::begin_send(std::size_t inline_bytes) {
  const EndpointOptions& options = mine().options;
  if (mine().ended) return Status::error(Code::kDisconnected, "disconnected");
  if (inline_bytes > options.inline_bytes_max) return misuse("inline part too large");
  space_.reset();
  if (refused()) return Status::again();
  const std::size_t under_way =
      mine().committed.size() + mine().under_way + theirs().arrived.size();
  if (mine().outstanding.size() + mine().sends.size() >= options.send_depth) {
    return Status::again();
  }
  if (under_way >= link_->options().transfers_max) {
    mine().waiting = true;
    return Status::again();
  }
  space_ = Bytes(inline_bytes, std::byte{0xcc});
  return std::span<std::byte>(*space_);
}

Status SimEndpoint::take_refs(std::span<const GatherRef> refs, Transfer& transfer) const {
  if (refs.size() > kGatherRefsMax) return misuse("too many references");
  std::uint64_t total = transfer.inline_part.size();
  for (const GatherRef& ref : refs) {
    const std::size_t place = ref.region / kKeyStep;
    if (ref.region % kKeyStep != 0 || place == 0 || place > mine().regions.size()) {
      return misuse("a reference to a region not attached");
    }
    const auto bytes = mine().regions[place - 1]->bytes();
    if (ref.length == 0 || ref.offset > bytes.size() || ref.length > bytes.size() - ref.offset) {
      return misuse("a reference outside its region");
    }
    transfer.pieces.push_back(bytes.subspan(ref.offset, ref.length));
    total += ref.length;
  }
  if (total == 0 || total > mine().options.transfer_bytes_max) {
    return misuse("transfer empty or too large");
  }
  transfer.snapshot = transfer.referenced();
  return {};
}

Status SimEndpoint::commit_send(std::size_t inline_bytes, std::span<const GatherRef> refs,
                                std::uint64_t cookie) {
  if (mine().ended) return Status::error(Code::kDisconnected, "disconnected");
  if (!space_ || inline_bytes > space_->size()) return misuse("commit without space");
  auto transfer = std::make_shared<Transfer>();
  space_->resize(inline_bytes);
  transfer->inline_part = std::move(*space_);
  space_.reset();
  transfer->cookie = cookie;
  if (const Status taken = take_refs(refs, *transfer); !taken.ok()) return taken;
  if (!refs.empty()) mine().outstanding.push_back(transfer);
  mine().committed.push_back(std::move(transfer));
  World& world = link_->world();
  if (world.chance(world.weather().early_per_mille)) {
    link_->send_committed(side_, 1 + world.below(mine().committed.size()));
  }
  return {};
}

void SimEndpoint::flush() {
  ++flushes;
  push();
}

// Visible to whoever looks; only a sleeper would not be woken.
void SimEndpoint::publish() {
  ++publishes;
  push();
}

void SimEndpoint::push() {
  for (const TransferPtr& transfer : std::exchange(mine().returned, {})) {
    link_->give_back(side_, transfer);
  }
  link_->send_committed(side_);
}

void SimEndpoint::end_transients() {
  for (Bytes& bytes : transient_) std::fill(bytes.begin(), bytes.end(), std::byte{0xdd});
  transient_.clear();
  const ReceiveMemory& memory = mine().options.receive_memory;
  for (const buffer::SlotIndex slot : transient_slots_) {
    std::fill_n(memory.pool->data(slot), memory.pool->slot_bytes(), std::byte{0xdd});
    memory.pool->release(slot);
  }
  transient_slots_.clear();
  mine().own_free += std::exchange(transient_own_, 0);
}

std::size_t SimEndpoint::poll(std::span<Completion> out) {
  end_transients();
  LinkSide& side = mine();
  World& world = link_->world();
  // Time passes also for those who never sleep.
  if (side.arrived.empty() && side.sends.empty()) world.step();
  std::size_t most = out.size();
  if (most > 1 && world.chance(world.weather().partial_per_mille)) {
    most = 1 + world.below(std::min(most, side.arrived.size() + side.sends.size() + 1));
  }
  std::size_t count = 0;
  while (count < most && !(side.arrived.empty() && side.sends.empty())) {
    const bool receive =
        side.sends.empty() ||
        (!side.arrived.empty() && (world.weather().delay_ns_max == 0 || world.below(2) == 0));
    Completion& c = out[count++] = Completion{};
    if (receive) {
      take_arrived(c);
    } else {
      c.kind = Completion::Kind::kSend;
      std::tie(c.cookie, c.status) = side.sends.front();
      side.sends.pop_front();
    }
  }
  if (count < most && side.ended && !side.reported && link_->all_reported(side_)) {
    side.reported = true;
    for (const buffer::SlotIndex slot : side.slots) side.options.receive_memory.pool->release(slot);
    side.slots.clear();
    Completion& c = out[count++] = Completion{};
    c.kind = Completion::Kind::kDisconnected;
    c.status = side.reason;
  }
  return count;
}

void SimEndpoint::take_arrived(Completion& c) {
  Arrived arrived = std::move(mine().arrived.front());
  mine().arrived.pop_front();
  link_->tell_room(1 - side_);
  c.kind = Completion::Kind::kReceive;
  if (link_->options().delivery == Delivery::kReceiveBuffers) {
    return take_into_buffer(std::move(arrived), c);
  }
  const TransferPtr& transfer = arrived.transfer;
  transient_.push_back(transfer->inline_part);
  c.segments[c.segment_count++] = segment_of(transient_.back(), true);
  for (const auto& piece : transfer->pieces) {
    c.segments[c.segment_count++] = segment_of(piece, false);
  }
  if (transfer->pieces.empty()) return;
  c.loan = link_->next_loan++;
  mine().loans.emplace(c.loan, LoanOut{transfer, {}, buffer::kNoSlot});
}

void SimEndpoint::take_into_buffer(Arrived arrived, Completion& c) {
  World& world = link_->world();
  const ReceiveMemory& memory = mine().options.receive_memory;
  const std::size_t head = arrived.transfer->inline_part.size();
  Bytes content = std::move(arrived.transfer->inline_part);
  content.insert(content.end(), arrived.transfer->snapshot.begin(),
                 arrived.transfer->snapshot.end());
  std::span<const std::byte> bytes;
  if (arrived.slot != buffer::kNoSlot) {
    std::copy(content.begin(), content.end(), memory.pool->data(arrived.slot));
    bytes = {memory.pool->data(arrived.slot), content.size()};
    memory.pool->mark_received(arrived.slot);
  } else {
    bytes = content;  // the vector moves, its bytes stay where they are
  }
  const bool transient = world.chance(world.weather().transient_per_mille);
  // One segment, or the inline part alone and the rest in pieces.
  if (head != 0 && head != bytes.size() && world.chance(world.weather().partial_per_mille)) {
    c.segments[c.segment_count++] = segment_of(bytes.first(head), transient);
    std::span<const std::byte> rest = bytes.subspan(head);
    while (rest.size() > 1 && c.segment_count < kSegmentsMax - 1 && world.below(2) == 0) {
      const std::size_t piece = 1 + world.below(rest.size() - 1);
      c.segments[c.segment_count++] = segment_of(rest.first(piece), transient);
      rest = rest.subspan(piece);
    }
    c.segments[c.segment_count++] = segment_of(rest, transient);
  } else {
    c.segments[c.segment_count++] = segment_of(bytes, transient);
  }
  if (!transient) {
    c.loan = link_->next_loan++;
    mine().loans.emplace(c.loan, LoanOut{nullptr, std::move(content), arrived.slot});
  } else if (arrived.slot != buffer::kNoSlot) {
    transient_slots_.push_back(arrived.slot);
  } else {
    transient_.push_back(std::move(content));
    ++transient_own_;
  }
}

void SimEndpoint::release(Loan loan) {
  const auto it = mine().loans.find(loan);
  if (it == mine().loans.end()) {
    ADD_FAILURE() << "a loan was released twice, or never given: " << loan;
    return;
  }
  if (it->second.transfer != nullptr) {
    if (!mine().ended) mine().returned.push_back(it->second.transfer);
  } else if (it->second.slot != buffer::kNoSlot) {
    mine().options.receive_memory.pool->release(it->second.slot);
  } else {
    ++mine().own_free;
  }
  mine().loans.erase(it);
}

std::uint32_t SimEndpoint::replenish() {
  if (mine().ended || keep_buffers) return 0;
  return link_->post(side_);
}

void SimEndpoint::disconnect(Status reason) { link_->disconnect(side_, reason); }

bool SimEndpoint::take_work() {
  LinkSide& side = mine();
  if (std::exchange(side.room_news, false)) return true;
  return !side.arrived.empty() || !side.sends.empty() ||
         (side.ended && !side.reported && link_->all_reported(side_));
}

EndpointPair make_pair(const LinkOptions& options, const std::array<EndpointOptions, 2>& endpoints,
                       std::shared_ptr<World> world) {
  const auto link = std::make_shared<Link>(std::move(world), options, endpoints);
  for (int i = 0; i < 2; ++i) EXPECT_TRUE(link->open(i).ok());
  return {std::make_unique<SimEndpoint>(link, 0), std::make_unique<SimEndpoint>(link, 1)};
}

}  // namespace sanproxy::fabric::sim
