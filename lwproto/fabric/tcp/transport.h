// Transport: bytes in and out of one TCP connection, in the clear or through TLS.
//
// Document: docs/tcp_fabric.md "TLS".
// Role: what handshakes and endpoints read from and write to. Owner: those. Thread: the fabric's.
// Invariants:
//   1. Nothing here blocks, and a connection that the peer has closed raises no signal.
//   2. kAgain from read() or write() means that an edge-triggered event will come.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "lwproto/base/status.h"
#include "lwproto/base/unique_fd.h"

namespace sanproxy::fabric::tcp {

enum class IoState : std::uint8_t {
  kMore,   // all of the pieces were used; there may be more
  kAgain,  // nothing more at this moment
  kEnd,    // the peer sends no more
  kFailed,
};

struct Io {
  std::size_t bytes = 0;
  IoState state = IoState::kMore;
};

class Transport {
 public:
  explicit Transport(UniqueFd fd) : fd_(std::move(fd)) {}
  virtual ~Transport() = default;
  Transport(const Transport&) = delete;
  Transport& operator=(const Transport&) = delete;

  int fd() const { return fd_.get(); }
  // ok once data may flow, kAgain meanwhile; otherwise why there will be none.
  virtual Status establish() = 0;
  virtual Io read(std::span<iovec> pieces) = 0;
  virtual Io write(std::span<iovec> pieces) = 0;
  // Has read more than it was asked for, so that no event will come for it.
  virtual bool holds_unread() const { return false; }
  // More about a kFailed, where there is more to say; ok otherwise.
  virtual Status failure() const { return {}; }
  // Of a verified certificate; empty without TLS.
  virtual std::string peer_certificate_name() const { return {}; }
  virtual bool secure() const { return false; }

 private:
  UniqueFd fd_;
};

std::unique_ptr<Transport> make_plain_transport(UniqueFd fd);

}  // namespace sanproxy::fabric::tcp
