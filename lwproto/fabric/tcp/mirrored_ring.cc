#include "lwproto/fabric/tcp/mirrored_ring.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>

#include "lwproto/base/check.h"
#include "lwproto/base/unique_fd.h"

namespace sanproxy::fabric::tcp {

Result<MirroredRing> MirroredRing::create(std::size_t bytes) {
  SANPROXY_CHECK(bytes != 0 && (bytes & (bytes - 1)) == 0 && bytes % 4096 == 0);
  const UniqueFd fd(::memfd_create("sanproxy-send-queue", MFD_CLOEXEC));
  if (!fd.valid() || ::ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) {
    return Status::error(Code::kSystem, "memory for a send queue", errno);
  }
  void* area = ::mmap(nullptr, 2 * bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (area == MAP_FAILED) return Status::error(Code::kSystem, "reserve addresses", errno);
  MirroredRing ring;
  ring.data_ = static_cast<std::byte*>(area);
  ring.size_ = bytes;
  for (const std::size_t offset : {std::size_t{0}, bytes}) {
    if (::mmap(ring.data_ + offset, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd.get(),
               0) == MAP_FAILED) {
      return Status::error(Code::kSystem, "map a send queue", errno);
    }
  }
  return ring;
}

MirroredRing::~MirroredRing() {
  if (data_ != nullptr) ::munmap(data_, 2 * size_);
}

}  // namespace sanproxy::fabric::tcp
