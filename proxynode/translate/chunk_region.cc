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

void ChunkRegion::on_returned(ChunkIndex chunk) {
  SANPROXY_CHECK(chunks_[chunk].outstanding > 0);
  --chunks_[chunk].outstanding;
  maybe_free(chunk);
}

void ChunkRegion::disown(ChunkIndex chunk) {
  SANPROXY_CHECK(chunks_[chunk].owned);
  chunks_[chunk].owned = false;
  maybe_free(chunk);
}

void ChunkRegion::maybe_free(ChunkIndex chunk) {
  if (!chunks_[chunk].owned && chunks_[chunk].outstanding == 0) pool_.release(chunk);
}

}  // namespace sanproxy::translate
