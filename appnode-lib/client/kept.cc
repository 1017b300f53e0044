#include "appnode-lib/client/kept.h"

#include <algorithm>
#include <cstring>

#include "appnode-lib/client/connection_impl.h"
#include "appnode-lib/client/link.h"
#include "appnode-lib/client/node_impl.h"

namespace sanproxy::app {
namespace internal {

Kept* KeptPool::take(std::vector<Kept*>& free) {
  if (free.empty()) {
    all_.push_back(std::make_unique<Kept>());
    all_.back()->pool = this;
    // So that release() never allocates.
    free_copies_.reserve(all_.capacity());
    free_loans_.reserve(all_.capacity());
    ++in_use_;
    return all_.back().get();
  }
  Kept* kept = free.back();
  free.pop_back();
  ++in_use_;
  return kept;
}

Kept* KeptPool::acquire_loan() { return take(free_loans_); }

Kept* KeptPool::acquire_copy(std::size_t bytes, bool must) {
  const std::size_t wanted = std::max(bytes, kBufferBytes);
  const std::size_t reserve = must ? 0 : bytes_max_ / kReserveShare;
  if (wanted + reserve > bytes_max_ - bytes_used_) return nullptr;
  // One that gives its buffer back when it is released comes from where it goes then.
  Kept* kept = take(wanted > kBufferBytes ? free_loans_ : free_copies_);
  if (kept->buffer_bytes < wanted) {
    kept->buffer = std::make_unique<std::byte[]>(wanted);
    kept->buffer_bytes = wanted;
  }
  bytes_used_ += kept->buffer_bytes;
  return kept;
}

void KeptPool::release(Kept& kept) {
  if (kept.loan != fabric::kNoLoan) {
    kept.hold->channel->release(kept.loan);
    buffers_freed_ = buffers_freed_ || kept.hold->receives_into_pool;
    --kept.hold->loans;
    kept.loan = fabric::kNoLoan;
  }
  bytes_used_ -= kept.buffer_bytes;
  if (kept.buffer_bytes > kBufferBytes) {  // only fabrics with large transient payloads get here
    kept.buffer.reset();
    kept.buffer_bytes = 0;
  }
  --in_use_;
  (kept.buffer_bytes != 0 ? free_copies_ : free_loans_).push_back(&kept);
  if (kept.connection->serial == kept.serial) kept.connection->freed(kept.size);
}

}  // namespace internal

Borrowed Received::keep() {
  if (kept_) return {};
  internal::Link& link = *connection_->link;
  internal::KeptPool& pool = link.node().kept();
  internal::Kept* kept = nullptr;
  const bool lent = loan_ != fabric::kNoLoan;
  if (!lent || link.receive_memory_is_short()) kept = pool.acquire_copy(size_, !lent);
  if (kept == nullptr && lent) {
    kept = pool.acquire_loan();
    kept->loan = loan_;
    kept->hold = link.hold();
    ++kept->hold->loans;
    kept->hold->channel->retain(loan_);
    kept->pieces = pieces_;
    kept->piece_count = piece_count_;
  } else {
    if (kept == nullptr) return {};
    std::byte* to = kept->buffer.get();
    for (const Bytes& piece : pieces()) {
      std::memcpy(to, piece.data(), piece.size());
      to += piece.size();
    }
    kept->pieces[0] = {kept->buffer.get(), size_};
    kept->piece_count = 1;
  }
  kept->size = size_;
  kept->connection = connection_;
  kept->serial = connection_->serial;
  kept_ = true;
  return Borrowed(kept);
}

Borrowed& Borrowed::operator=(Borrowed&& other) noexcept {
  if (this != &other) {
    release();
    kept_ = std::exchange(other.kept_, nullptr);
  }
  return *this;
}

std::size_t Borrowed::size() const { return kept_ == nullptr ? 0 : kept_->size; }

std::span<const Bytes> Borrowed::pieces() const {
  if (kept_ == nullptr) return {};
  return {kept_->pieces.data(), kept_->piece_count};
}

void Borrowed::release() {
  if (kept_ == nullptr) return;
  internal::Kept* kept = std::exchange(kept_, nullptr);
  kept->pool->release(*kept);
}

}  // namespace sanproxy::app
