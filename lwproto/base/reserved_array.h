// ReservedArray: a table of a fixed capacity whose memory is taken from the system only when an
// element is first touched.
//
// Role: tables sized for the configured maximum (connections, records) that cost nothing while
//   they are empty, and never allocate or move once they exist.
// Owner: one; thread: that one's. Elements start as zero bytes, so T must be trivial.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <new>
#include <type_traits>

namespace sanproxy {

template <typename T>
class ReservedArray {
  static_assert(std::is_trivially_copyable_v<T> && std::is_trivially_destructible_v<T>);

 public:
  // Throws std::bad_alloc (start-up only) when the address space cannot be had.
  explicit ReservedArray(std::size_t capacity) : capacity_(capacity) {
    void* p = mmap(nullptr, bytes(), PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    data_ = static_cast<T*>(p);
  }
  ~ReservedArray() { munmap(data_, bytes()); }
  ReservedArray(const ReservedArray&) = delete;
  ReservedArray& operator=(const ReservedArray&) = delete;

  T& operator[](std::size_t i) { return data_[i]; }
  const T& operator[](std::size_t i) const { return data_[i]; }
  std::size_t capacity() const { return capacity_; }

 private:
  std::size_t bytes() const { return (capacity_ ? capacity_ : 1) * sizeof(T); }
  T* data_ = nullptr;
  std::size_t capacity_ = 0;
};

}  // namespace sanproxy
