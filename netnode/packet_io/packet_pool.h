// PacketPool: where a network node's packets lie: slots of its SlotPool, and frames of drivers that
// lend their own (AF_XDP), all numbered in one row.
//
// Document: docs/packet_io.md "AF_XDP".
// Role: whoever takes a packet over gives it back here, by its number, wherever it lies.
// Owner: a network node. Thread: its data path. No allocation while packets flow.
// Invariants:
//   1. Numbers below slot_count() are slots, and as in SlotPool; those of frames follow.
//   2. A frame is taken for the loan that its driver gave, and released to the driver once;
//      anything else is our bug: SANPROXY_CHECK.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "lwproto/base/check.h"
#include "lwproto/buffer/slot_pool.h"
#include "netnode/packet_io/packet_io.h"

namespace sanproxy::packet_io {

class PacketPool {
 public:
  using Slot = buffer::SlotIndex;

  // `slots` outlives it.
  explicit PacketPool(buffer::SlotPool& slots) : slots_(slots), slot_count_(slots.slot_count()) {}
  PacketPool(const PacketPool&) = delete;
  PacketPool& operator=(const PacketPool&) = delete;

  // Start-up: numbers for the frames of `io`, which outlives the pool's use. Returns the first.
  Slot add_frames(PacketIo& io) {
    const FrameMemory memory = io.frames();
    SANPROXY_CHECK(memory.frame_bytes != 0);
    Frames added{&io, memory.memory.data(), memory.frame_bytes, static_cast<Slot>(places()), {}};
    added.taken.assign(memory.memory.size() / memory.frame_bytes, 0);
    frames_.push_back(std::move(added));
    return frames_.back().first;
  }
  // A packet that `io` has lent; `first` is what add_frames() said.
  Slot take(Slot first, PacketLoan loan) {
    const Slot slot = first + loan - 1;
    Frames& frames = frames_of(slot);
    std::uint8_t& taken = frames.taken[slot - frames.first];
    SANPROXY_CHECK(loan != kNoPacketLoan && frames.first == first && taken == 0);
    taken = 1;
    return slot;
  }

  Slot acquire() { return slots_.acquire(); }  // a slot: free -> posted, or kNoSlot
  void mark_received(Slot slot) { slots_.mark_received(slot); }  // a slot: posted -> received
  void release(Slot slot) {
    if (slot < slot_count_) return slots_.release(slot);
    Frames& frames = frames_of(slot);
    std::uint8_t& taken = frames.taken[slot - frames.first];
    SANPROXY_CHECK(taken == 1);
    taken = 0;
    frames.io->release(slot - frames.first + 1);
  }

  std::byte* data(Slot slot) const {
    if (slot < slot_count_) return slots_.data(slot);
    const Frames& frames = frames_of(slot);
    return frames.memory + (slot - frames.first) * frames.frame_bytes;
  }
  // Bytes there, from data() on.
  std::size_t capacity(Slot slot) const {
    return slot < slot_count_ ? slots_.slot_bytes() : frames_of(slot).frame_bytes;
  }
  std::size_t slot_count() const { return slot_count_; }
  std::size_t slot_bytes() const { return slots_.slot_bytes(); }
  // All numbers are below this.
  std::size_t places() const {
    return frames_.empty() ? slot_count_ : frames_.back().first + frames_.back().taken.size();
  }

 private:
  struct Frames {
    PacketIo* io;
    std::byte* memory;
    std::size_t frame_bytes;
    Slot first;
    std::vector<std::uint8_t> taken;
  };
  // A node has one or two such interfaces.
  const Frames& frames_of(Slot slot) const {
    for (const Frames& frames : frames_) {
      if (slot >= frames.first && slot - frames.first < frames.taken.size()) return frames;
    }
    SANPROXY_CHECK(!"no such packet");
    return frames_.front();
  }
  Frames& frames_of(Slot slot) {
    return const_cast<Frames&>(static_cast<const PacketPool*>(this)->frames_of(slot));
  }

  buffer::SlotPool& slots_;
  std::size_t slot_count_;
  std::vector<Frames> frames_;
};

}  // namespace sanproxy::packet_io
