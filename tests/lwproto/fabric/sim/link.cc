#include "tests/lwproto/fabric/sim/link.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>

namespace sanproxy::fabric::sim {

Mapping::Mapping(const buffer::MemoryRegion& region) {
  void* at = ::mmap(nullptr, region.size(), PROT_READ, MAP_SHARED, region.fd(), 0);
  if (at == MAP_FAILED) {
    ADD_FAILURE() << "a region cannot be mapped again";
    return;
  }
  bytes_ = {static_cast<const std::byte*>(at), region.size()};
}

Mapping::~Mapping() {
  if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

Bytes Transfer::referenced() const {
  Bytes out;
  for (const auto& piece : pieces) out.insert(out.end(), piece.begin(), piece.end());
  return out;
}

Link::Link(std::shared_ptr<World> world, const LinkOptions& options,
           const std::array<EndpointOptions, 2>& endpoints)
    : world_(std::move(world)), options_(options) {
  for (std::size_t i = 0; i < 2; ++i) side[i].options = endpoints[i];
}

Status Link::open(int who) {
  LinkSide& mine = side[who];
  const std::uint32_t depth = mine.options.receive_depth;
  mine.own_free = depth + options_.spare_buffers;
  if (post(who, true) == depth) return {};
  close(who);
  return Status::error(Code::kExhausted, "the receive memory has too few free slots");
}

void Link::close(int who) {
  LinkSide& mine = side[who];
  const ReceiveMemory& memory = mine.options.receive_memory;
  for (const buffer::SlotIndex slot : mine.slots) memory.pool->release(slot);
  mine.slots.clear();
  for (const Arrived& arrived : mine.arrived) {
    if (arrived.slot != buffer::kNoSlot) memory.pool->release(arrived.slot);
  }
  mine.arrived.clear();
  mine.posted = 0;
  mine.wake = nullptr;
  mine.options.receive_memory = {};
}

void Link::later(int who, std::uint64_t delay_ns, std::function<void()> what) {
  world_->after(delay_ns, [self = shared_from_this(), who, what = std::move(what)] {
    what();
    wake(self->side[who]);
  });
}

std::uint32_t Link::post(int who, bool all) {
  LinkSide& mine = side[who];
  const auto held = static_cast<std::uint32_t>(mine.posted + mine.arrived.size());
  std::uint32_t wanted = mine.options.receive_depth - held;
  if (!all && wanted > 1 && world_->chance(world_->weather().partial_per_mille)) {
    wanted = static_cast<std::uint32_t>(world_->below(wanted));
    // The rest can be posted then.
    later(who, world_->delay_ns(), [this, who] { side[who].room_news = true; });
  }
  std::uint32_t count = 0;
  for (; count < wanted; ++count) {
    if (options_.delivery == Delivery::kReceiveBuffers) {
      if (mine.options.receive_memory.pool != nullptr) {
        const buffer::SlotIndex slot = mine.options.receive_memory.acquire();
        if (slot == buffer::kNoSlot) break;
        mine.slots.push_back(slot);
      } else if (mine.own_free == 0) {
        break;
      } else {
        --mine.own_free;
      }
    }
    ++mine.posted;
  }
  return count;
}

void Link::send_committed(int who, std::size_t at_most) {
  LinkSide& mine = side[who];
  for (; !mine.ended && !mine.committed.empty() && at_most > 0; --at_most) {
    TransferPtr transfer = std::move(mine.committed.front());
    mine.committed.pop_front();
    if (world_->weather().break_per_million != 0 &&
        world_->below(1'000'000) < world_->weather().break_per_million) {
      side[0].cut = side[1].cut = true;
      for (int i = 0; i < 2; ++i) {
        later(i, world_->delay_ns(),
              [this, i] { end(i, Status::error(Code::kDisconnected, "the link has broken")); });
      }
    }
    ++mine.under_way;
    mine.last_arrival_ns = world_->after(
        world_->delay_ns(),
        [self = shared_from_this(), who, transfer = std::move(transfer)]() mutable {
          self->arrive(who, std::move(transfer));
        },
        mine.last_arrival_ns);
  }
}

void Link::arrive(int from, TransferPtr transfer) {
  LinkSide& sender = side[from];
  LinkSide& receiver = side[1 - from];
  --sender.under_way;
  if (sender.cut || receiver.ended) return;
  if (receiver.posted == 0) return breach(1 - from, "a transfer met no posted receive");
  --receiver.posted;
  Arrived arrived{transfer, buffer::kNoSlot};
  if (options_.delivery == Delivery::kReceiveBuffers) {
    if (receiver.options.receive_memory.pool != nullptr) {
      arrived.slot = receiver.slots.front();
      receiver.slots.pop_front();
    }
    later(from, world_->delay_ns(), [this, from, transfer] { complete(from, transfer, {}); });
  }
  receiver.arrived.push_back(std::move(arrived));
  wake(receiver);
}

void Link::complete(int who, const TransferPtr& transfer, Status status) {
  LinkSide& sender = side[who];
  if (transfer->completed || transfer->pieces.empty()) return;
  transfer->completed = true;
  EXPECT_TRUE(transfer->referenced() == transfer->snapshot)
      << "referenced memory has changed while it was the fabric's";
  std::erase(sender.outstanding, transfer);
  sender.sends.emplace_back(transfer->cookie, status);
}

void Link::give_back(int who, TransferPtr transfer) {
  later(1 - who, world_->delay_ns(),
        [this, who, transfer = std::move(transfer)] { complete(1 - who, transfer, {}); });
}

void Link::end(int who, Status reason) {
  LinkSide& mine = side[who];
  if (mine.ended) return;
  mine.ended = true;
  mine.reason = reason;
  mine.committed.clear();
  const std::vector<TransferPtr> failing = mine.outstanding;
  for (const TransferPtr& transfer : failing) {
    later(who, world_->delay_ns(), [this, who, transfer] {
      complete(who, transfer, Status::error(Code::kDisconnected, "the channel has ended"));
    });
  }
}

void Link::breach(int who, const char* text) {
  const Status reason = Status::error(Code::kProtocol, text);
  side[who].cut = true;
  end(who, reason);
  wake(side[who]);
  later(1 - who, world_->delay_ns(), [this, who, reason] { end(1 - who, reason); });
}

void Link::disconnect(int who, Status reason) {
  LinkSide& mine = side[who];
  if (mine.ended) return;
  send_committed(who);
  if (mine.ended) return;  // a transfer met no posted receive
  // What had arrived and was not polled is lost.
  for (const Arrived& arrived : mine.arrived) {
    if (arrived.slot != buffer::kNoSlot) mine.options.receive_memory.pool->release(arrived.slot);
  }
  mine.arrived.clear();
  end(who, reason);
  const Status theirs = reason.code() == Code::kProtocol
                            ? reason
                            : Status::error(Code::kDisconnected, "the peer has disconnected");
  mine.last_arrival_ns = world_->after(
      world_->delay_ns(),
      [self = shared_from_this(), who, theirs] {
        self->end(1 - who, theirs);
        wake(self->side[1 - who]);
      },
      mine.last_arrival_ns);
}

void Link::refuse_for_a_while(int who) {
  side[who].refusing = true;
  later(who, world_->delay_ns(), [this, who] {
    side[who].refusing = false;
    side[who].room_news = true;
  });
}

void Link::tell_room(int who) {
  if (!std::exchange(side[who].waiting, false)) return;
  later(who, world_->delay_ns(), [this, who] { side[who].room_news = true; });
}

bool Link::all_reported(int who) const {
  const LinkSide& mine = side[who];
  return mine.arrived.empty() && mine.sends.empty() && mine.outstanding.empty();
}

}  // namespace sanproxy::fabric::sim
