#include "proxynode/translate/chunk_region.h"

#include "lwproto/base/check.h"

namespace sanproxy::translate {

ChunkRegion::ChunkRegion(buffer::MemoryRegion region)
    : region_(std::move(region)), pool_(region_.bytes(), kChunkBytes) {
  chunks_.resize(pool_.slot_count());
}

ChunkIndex ChunkRegion::acquire() {
  const ChunkIndex chunk = pool_.acquire();
  if (chunk == kNoChunk) return kNoChunk;
  pool_.mark_received(chunk);
  chunks_[chunk] = Chunk{};
  chunks_[chunk].owned = true;
  return chunk;
}

bool ChunkRegion::on_returned(ChunkIndex chunk) {
  SANPROXY_CHECK(chunks_[chunk].outstanding > 0);
  --chunks_[chunk].outstanding;
  return maybe_free(chunk);
}

bool ChunkRegion::disown(ChunkIndex chunk) {
  SANPROXY_CHECK(chunks_[chunk].owned);
  chunks_[chunk].owned = false;
  return maybe_free(chunk);
}

bool ChunkRegion::maybe_free(ChunkIndex chunk) {
  if (chunks_[chunk].owned || chunks_[chunk].outstanding != 0) return false;
  pool_.release(chunk);
  return true;
}

}  // namespace sanproxy::translate
