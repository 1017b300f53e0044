#include "lwproto/fabric/shm/memory.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>

namespace sanproxy::fabric::shm {
namespace {

constexpr int kOwnSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL;
constexpr std::uint32_t kEntriesPerRingMin = 4;

Result<UniqueFd> make_memfd(const char* name, std::uint64_t bytes) {
  UniqueFd fd(::memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd.valid()) return Status::error(Code::kSystem, "create shared memory", errno);
  if (::ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) {
    return Status::error(Code::kSystem, "size shared memory", errno);
  }
  return fd;
}

// Maps `bytes` of the file, and its last `repeated` bytes once more right behind.
Result<Mapping> map_file(int fd, std::uint64_t bytes, std::uint64_t repeated, int protection) {
  const std::size_t total = static_cast<std::size_t>(bytes + repeated);
  void* area = ::mmap(nullptr, total, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (area == MAP_FAILED) return Status::error(Code::kSystem, "reserve addresses", errno);
  Mapping mapping(static_cast<std::byte*>(area), total);
  if (::mmap(area, bytes, protection, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED) {
    return Status::error(Code::kSystem, "map shared memory", errno);
  }
  if (repeated != 0 && ::mmap(mapping.data() + bytes, repeated, protection, MAP_SHARED | MAP_FIXED,
                              fd, static_cast<off_t>(bytes - repeated)) == MAP_FAILED) {
    return Status::error(Code::kSystem, "map the ring again", errno);
  }
  return mapping;
}

Status check_peer_file(int fd, std::uint64_t bytes) {
  const int seals = ::fcntl(fd, F_GET_SEALS);
  if (seals < 0) return Status::error(Code::kProtocol, "not a memory file");
  if ((seals & F_SEAL_SHRINK) == 0) {
    return Status::error(Code::kProtocol, "the memory is not sealed against shrinking");
  }
  // Huge pages can run out while we read, which would be SIGBUS.
  struct statfs filesystem {};
  if (::fstatfs(fd, &filesystem) != 0 || filesystem.f_type != TMPFS_MAGIC) {
    return Status::error(Code::kProtocol, "not ordinary shared memory");
  }
  struct stat info {};
  if (::fstat(fd, &info) != 0 || static_cast<std::uint64_t>(info.st_size) != bytes) {
    return Status::error(Code::kProtocol, "the memory is not of the size declared");
  }
  return {};
}

}  // namespace

Mapping::~Mapping() {
  if (data_ != nullptr) ::munmap(data_, size_);
}

Result<Mapping> map_peer_region(int fd, std::uint64_t bytes) {
  if (bytes == 0) return Status::error(Code::kProtocol, "an empty region");
  if (Status checked = check_peer_file(fd, bytes); !checked.ok()) return checked;
  return map_file(fd, bytes, 0, PROT_READ);
}

bool sealed_against_writing(int fd) {
  const int seals = ::fcntl(fd, F_GET_SEALS);
  return seals >= 0 && (seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)) != 0;
}

Result<OwnSleepPage> OwnSleepPage::create() {
  auto fd = make_memfd("sanproxy-sleep", kPageBytes);
  if (!fd.ok()) return fd.status();
  auto mapping = map_file(fd->get(), kPageBytes, 0, PROT_READ | PROT_WRITE);
  if (!mapping.ok()) return mapping.status();
  if (::fcntl(fd->get(), F_ADD_SEALS, kOwnSeals) != 0) {
    return Status::error(Code::kSystem, "seal shared memory", errno);
  }
  OwnSleepPage out;
  out.fd_ = std::move(*fd);
  out.mapping_ = std::move(*mapping);
  return out;
}

Result<OwnMemory> OwnMemory::create(const Sizes& sizes) {
  if (!sizes_valid(sizes)) {
    return Status::error(Code::kInvalidArgument, "endpoint options out of range for shm");
  }
  auto fd = make_memfd("sanproxy-channel", memory_bytes(sizes));
  if (!fd.ok()) return fd.status();
  auto mapping = map_file(fd->get(), memory_bytes(sizes), sizes.ring_bytes, PROT_READ | PROT_WRITE);
  if (!mapping.ok()) return mapping.status();
  if (::fcntl(fd->get(), F_ADD_SEALS, kOwnSeals) != 0) {
    return Status::error(Code::kSystem, "seal shared memory", errno);
  }
  OwnMemory out;
  out.sizes_ = sizes;
  out.fd_ = std::move(*fd);
  out.mapping_ = std::move(*mapping);
  return out;
}

Result<PeerMemory> PeerMemory::map(const Sizes& sizes, int memory_fd, int sleep_fd) {
  if (!sizes_valid(sizes)) return Status::error(Code::kProtocol, "sizes out of range");
  if (Status checked = check_peer_file(memory_fd, memory_bytes(sizes)); !checked.ok()) {
    return checked;
  }
  if (Status checked = check_peer_file(sleep_fd, kPageBytes); !checked.ok()) return checked;
  auto mapping = map_file(memory_fd, memory_bytes(sizes), sizes.ring_bytes, PROT_READ);
  if (!mapping.ok()) return mapping.status();
  auto sleep = map_file(sleep_fd, kPageBytes, 0, PROT_READ);
  if (!sleep.ok()) return sleep.status();
  PeerMemory out;
  out.sizes_ = sizes;
  out.mapping_ = std::move(*mapping);
  out.sleep_ = std::move(*sleep);
  return out;
}

Sizes make_sizes(const EndpointOptions& options, std::uint32_t ring_bytes) {
  // Clamped before the arithmetic so that nonsense options fail sizes_valid() and do not overflow.
  const std::uint32_t inline_max = std::min(options.inline_bytes_max, kRingBytesMax);
  const std::uint64_t largest = entry_bytes(inline_max, kGatherRefsMax) * kEntriesPerRingMin;
  const std::uint64_t wanted =
      std::bit_ceil(std::max<std::uint64_t>({ring_bytes, largest, kRingBytesMin}));
  Sizes sizes;
  sizes.ring_bytes = static_cast<std::uint32_t>(std::min<std::uint64_t>(wanted, 1u << 31));
  sizes.return_entries =
      std::bit_ceil(std::clamp(options.send_depth, kReturnEntriesMin, kReturnEntriesMax));
  sizes.inline_bytes_max = inline_max;
  sizes.transfer_bytes_max = options.transfer_bytes_max;
  sizes.regions_max = options.regions_max;
  sizes.region_bytes_max = options.peer_region_bytes_max;
  return sizes;
}

bool sizes_valid(const Sizes& sizes) {
  return std::has_single_bit(sizes.ring_bytes) && sizes.ring_bytes >= kRingBytesMin &&
         sizes.ring_bytes <= kRingBytesMax && std::has_single_bit(sizes.return_entries) &&
         sizes.return_entries >= kReturnEntriesMin && sizes.return_entries <= kReturnEntriesMax &&
         sizes.inline_bytes_max > 0 &&
         entry_bytes(sizes.inline_bytes_max, kGatherRefsMax) * 2 <= sizes.ring_bytes &&
         sizes.transfer_bytes_max >= sizes.inline_bytes_max && sizes.reserved == 0;
}

}  // namespace sanproxy::fabric::shm
