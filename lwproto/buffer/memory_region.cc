#include "lwproto/buffer/memory_region.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <limits>
#include <utility>

namespace sanproxy::buffer {

Result<MemoryRegion> MemoryRegion::create(const char* name, std::size_t bytes) {
  const auto page_bytes = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  constexpr auto kFileBytesMax = static_cast<std::size_t>(std::numeric_limits<off_t>::max());
  if (bytes == 0 || bytes > kFileBytesMax - page_bytes) {
    return Status::error(Code::kInvalidArgument, "the size of a memory region is out of range");
  }
  MemoryRegion out;  // closes and unmaps what exists if a step fails
  const std::size_t size = (bytes + page_bytes - 1) / page_bytes * page_bytes;
  out.fd_ = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (out.fd_ < 0) return Status::error(Code::kSystem, "memfd_create", errno);
  if (ftruncate(out.fd_, static_cast<off_t>(size)) != 0) {
    return Status::error(Code::kSystem, "ftruncate of a memory region", errno);
  }
  // Before the seals: F_SEAL_FUTURE_WRITE spares the mappings that exist, and this is the only
  // writable one there will ever be.
  void* mapping = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, out.fd_, 0);
  if (mapping == MAP_FAILED) return Status::error(Code::kSystem, "mmap of a memory region", errno);
  out.data_ = static_cast<std::byte*>(mapping);
  out.size_ = size;
  if (fcntl(out.fd_, F_ADD_SEALS,
            F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL) != 0) {
    return Status::error(Code::kSystem, "sealing of a memory region", errno);
  }
  return out;
}

MemoryRegion::~MemoryRegion() {
  if (data_ != nullptr) munmap(data_, size_);
  if (fd_ >= 0) close(fd_);
}

MemoryRegion::MemoryRegion(MemoryRegion&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      fd_(std::exchange(other.fd_, -1)) {}

MemoryRegion& MemoryRegion::operator=(MemoryRegion&& other) noexcept {
  if (this != &other) {
    MemoryRegion old(std::move(*this));
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(fd_, other.fd_);
  }
  return *this;
}

}  // namespace sanproxy::buffer
