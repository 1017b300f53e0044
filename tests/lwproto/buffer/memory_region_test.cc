#include "lwproto/buffer/memory_region.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <string>
#include <utility>

namespace sanproxy::buffer {
namespace {

TEST(MemoryRegion, RoundsItsSizeUpToWholePagesOfZeros) {
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const struct {
    std::size_t asked, given;
  } rows[] = {{1, page}, {page, page}, {page + 1, 2 * page}, {10 * page - 1, 10 * page}};
  for (const auto& row : rows) {
    const auto region = MemoryRegion::create("test", row.asked);
    ASSERT_TRUE(region.ok()) << region.status().to_string();
    EXPECT_TRUE(region->valid());
    EXPECT_EQ(region->size(), row.given);
    EXPECT_EQ(region->data()[row.given - 1], std::byte{0});
    EXPECT_TRUE(region->contains(region->data() + row.given - 1));
    EXPECT_FALSE(region->contains(region->data() + row.given));
    EXPECT_FALSE(region->contains(region->data() - 1));
  }
}

TEST(MemoryRegion, RefusesImpossibleSizes) {
  EXPECT_EQ(MemoryRegion::create("test", 0).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(MemoryRegion::create("test", SIZE_MAX).status().code(), Code::kInvalidArgument);
  EXPECT_FALSE(MemoryRegion::create("test", std::size_t{1} << 62).ok());
  EXPECT_EQ(MemoryRegion::create(std::string(300, 'n').c_str(), 4096).status().code(),
            Code::kSystem);
}

TEST(MemoryRegion, CannotChangeItsSizeOrItsSeals) {
  const auto region = MemoryRegion::create("test", 8192);
  ASSERT_TRUE(region.ok());
  EXPECT_EQ(fcntl(region->fd(), F_GET_SEALS),
            F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL);
  EXPECT_NE(ftruncate(region->fd(), 4096), 0);
  EXPECT_EQ(errno, EPERM);
  EXPECT_NE(ftruncate(region->fd(), 1 << 20), 0);
  EXPECT_EQ(errno, EPERM);
  EXPECT_NE(fcntl(region->fd(), F_ADD_SEALS, F_SEAL_WRITE), 0);
}

TEST(MemoryRegion, IsReadOnlyForWhoeverGetsItsDescriptor) {
  const auto region = MemoryRegion::create("test", 4096);
  ASSERT_TRUE(region.ok());
  EXPECT_EQ(mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, region->fd(), 0), MAP_FAILED);
  EXPECT_EQ(errno, EPERM);
  const char byte = 'x';
  EXPECT_EQ(pwrite(region->fd(), &byte, 1, 0), -1);
  EXPECT_EQ(errno, EPERM);

  void* view = mmap(nullptr, 4096, PROT_READ, MAP_SHARED, region->fd(), 0);
  ASSERT_NE(view, MAP_FAILED);
  EXPECT_NE(mprotect(view, 4096, PROT_READ | PROT_WRITE), 0);
  std::memcpy(region->data(), "our bytes", 9);  // the owner still writes, the other sees it
  EXPECT_EQ(std::memcmp(view, "our bytes", 9), 0);
  munmap(view, 4096);
}

TEST(MemoryRegion, ShowsItsNameInTheMaps) {
  const auto region = MemoryRegion::create("sanproxy-name-test", 4096);
  ASSERT_TRUE(region.ok());
  std::ifstream maps("/proc/self/maps");
  const std::string text((std::istreambuf_iterator<char>(maps)), {});
  EXPECT_NE(text.find("sanproxy-name-test"), std::string::npos);
}

TEST(MemoryRegion, HasOneOwnerAndTakesTheDescriptorAlongWhenItDies) {
  int fd = -1;
  {
    MemoryRegion first = MemoryRegion::create("test", 4096).value();
    fd = first.fd();
    std::byte* data = first.data();
    MemoryRegion second = std::move(first);
    EXPECT_FALSE(first.valid());  // NOLINT: what is left is what is tested
    EXPECT_EQ(first.fd(), -1);
    EXPECT_EQ(second.data(), data);
    MemoryRegion third = MemoryRegion::create("test", 8192).value();
    const int old_fd = third.fd();
    third = std::move(second);
    EXPECT_EQ(third.fd(), fd);
    EXPECT_EQ(third.size(), 4096u);
    EXPECT_EQ(fcntl(old_fd, F_GETFD), -1);
    MemoryRegion& same = third;
    third = std::move(same);
    EXPECT_TRUE(third.valid());
    EXPECT_NE(fcntl(fd, F_GETFD), -1);
    EXPECT_NE(fcntl(fd, F_GETFD) & FD_CLOEXEC, 0);
  }
  EXPECT_EQ(fcntl(fd, F_GETFD), -1);
}

}  // namespace
}  // namespace sanproxy::buffer
