// raw_read, raw_write, raw_writev: the system calls without the C library's cancellation points.
//
// Role: for a driver's inner loops. In a process with threads the library's wrappers switch
//   asynchronous cancellation on and off around each call, which costs about 4 % of a proxy's time
//   under small requests; nobody cancels a data-path thread. Results and errno as always.
// Thread: any.
#pragma once

#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cstddef>
#include <span>

namespace sanproxy::packet_io {

inline ssize_t raw_read(int fd, void* into, std::size_t bytes) {
  return ::syscall(SYS_read, fd, into, bytes);
}
inline ssize_t raw_write(int fd, const void* from, std::size_t bytes) {
  return ::syscall(SYS_write, fd, from, bytes);
}
inline ssize_t raw_writev(int fd, std::span<const iovec> pieces) {
  return ::syscall(SYS_writev, fd, pieces.data(), pieces.size());
}

}  // namespace sanproxy::packet_io
