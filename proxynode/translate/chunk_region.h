// ChunkRegion: the memory of one channel into which received payload is copied under isolated
// trust, so that an application node sees only its own bytes (docs/buffer_ownership.md).
//
// Role: hands out chunks; a stream packs its payload into its tail chunk, so memory follows bytes
//   and not packets, and gives the chunk back when all of it has come back from the peer.
// Owner: an AppNode; thread: the worker's. No allocation after construction; pages are touched
//   on first use and reused last-in first-out.
// Invariants:
//   1. A chunk is free, or owned by a stream (may grow), or only lent (outstanding > 0).
//   2. sent <= written <= chunk_bytes; a chunk is freed when it is not owned and nothing of it is
//      outstanding.
#pragma once

#include <cstdint>
#include <vector>

#include "lwproto/base/status.h"
#include "lwproto/buffer/memory_region.h"
#include "lwproto/buffer/slot_pool.h"

namespace sanproxy::translate {

using ChunkIndex = buffer::SlotIndex;
inline constexpr ChunkIndex kNoChunk = buffer::kNoSlot;

class ChunkRegion {
 public:
  // Any payload piece fits one chunk (a super-packet's payload is below 64 KB).
  static constexpr std::size_t kChunkBytes = 65536;

  struct Chunk {
    std::uint32_t written = 0;
    std::uint32_t sent = 0;
    std::uint32_t outstanding = 0;  // DATA messages that refer to it
    ChunkIndex next = kNoChunk;     // of the same stream
    std::uint64_t stream = 0;       // the stream's identifier; for whoever set it
    bool owned = false;
  };

  // Streams for which there was no chunk, in their order; kept by whoever owns the streams.
  struct Waiting {
    std::uint32_t head = buffer::kNoSlot, tail = buffer::kNoSlot;
    bool empty() const { return head == buffer::kNoSlot; }
  };

  explicit ChunkRegion(buffer::MemoryRegion region);

  ChunkIndex acquire();  // owned and empty; kNoChunk when the region is used up
  void on_referenced(ChunkIndex chunk) { ++chunks_[chunk].outstanding; }
  // One reference came back; the stream will not touch it again. True: the chunk is free now.
  bool on_returned(ChunkIndex chunk);
  bool disown(ChunkIndex chunk);

  Chunk& operator[](ChunkIndex chunk) { return chunks_[chunk]; }
  const Chunk& operator[](ChunkIndex chunk) const { return chunks_[chunk]; }
  std::byte* data(ChunkIndex chunk) { return pool_.data(chunk); }
  std::size_t offset(ChunkIndex chunk) const { return pool_.offset(chunk); }
  const buffer::MemoryRegion& region() const { return region_; }
  std::size_t free_count() const { return pool_.free_count(); }
  std::size_t count() const { return pool_.slot_count(); }
  Waiting& waiting() { return waiting_; }
  // Owned, and all that was put into it has been sent and has come back.
  bool idle(ChunkIndex chunk) const {
    const Chunk& c = chunks_[chunk];
    return c.owned && c.outstanding == 0 && c.sent == c.written;
  }

 private:
  bool maybe_free(ChunkIndex chunk);

  buffer::MemoryRegion region_;
  buffer::SlotPool pool_;
  std::vector<Chunk> chunks_;
  Waiting waiting_;
};

}  // namespace sanproxy::translate
