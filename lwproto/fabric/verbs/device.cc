#include "lwproto/fabric/verbs/device.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>

#include "lwproto/base/unique_fd.h"

namespace sanproxy::fabric::verbs {
namespace {

bool make_non_blocking(int fd) {
  const int flags = ::fcntl(fd, F_GETFL);
  return flags >= 0 && ::fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0;
}

// By the mode of the file, or by the control group that the process is in.
bool forbidden(const std::string& path) {
  const UniqueFd fd(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  return !fd.valid() && (errno == EACCES || errno == EPERM);
}

bool any_device_forbidden() {
  ibv_device** const devices = ::ibv_get_device_list(nullptr);
  if (devices == nullptr) return false;
  bool any = false;
  for (ibv_device** one = devices; *one != nullptr && !any; ++one) {
    any = forbidden("/dev/infiniband/" + std::string((*one)->dev_name));
  }
  ::ibv_free_device_list(devices);
  return any;
}

}  // namespace

Status without_device(const char* otherwise, int error) {
  if (forbidden("/dev/infiniband/rdma_cm")) {
    return Status::error(Code::kUnsupported, "/dev/infiniband/rdma_cm may not be opened");
  }
  if (any_device_forbidden()) {
    return Status::error(Code::kUnsupported,
                         "an RDMA device may not be opened: /dev/infiniband/uverbs*");
  }
  return Status::error(Code::kUnsupported, otherwise, error);
}

bool no_memory(int error) { return error == ENOMEM || error == EAGAIN || error == EPERM; }

MemoryKey::~MemoryKey() { ::ibv_dereg_mr(mr_); }

Result<std::shared_ptr<Device>> Device::open(ibv_device* device) {
  auto out = std::make_shared<Device>();
  out->name_ = ::ibv_get_device_name(device);
  out->context_ = ::ibv_open_device(device);
  if (out->context_ == nullptr) return Status::error(Code::kSystem, "open an RDMA device", errno);
  if (const int error = ::ibv_query_device(out->context_, &out->limits_); error != 0) {
    return Status::error(Code::kSystem, "ask an RDMA device for its limits", error);
  }
  out->domain_ = ::ibv_alloc_pd(out->context_);
  if (out->domain_ == nullptr) {
    return Status::error(Code::kSystem, "allocate a protection domain", errno);
  }
  out->channel_ = ::ibv_create_comp_channel(out->context_);
  if (out->channel_ == nullptr) {
    return Status::error(Code::kSystem, "create a completion channel", errno);
  }
  if (!make_non_blocking(out->channel_->fd) || !make_non_blocking(out->context_->async_fd)) {
    return Status::error(Code::kSystem, "make a descriptor non-blocking", errno);
  }
  return out;
}

Device::~Device() {
  if (channel_ != nullptr) ::ibv_destroy_comp_channel(channel_);
  if (domain_ != nullptr) ::ibv_dealloc_pd(domain_);
  if (context_ != nullptr) ::ibv_close_device(context_);
}

Result<std::shared_ptr<MemoryKey>> Device::register_region(const buffer::MemoryRegion& region) {
  std::erase_if(keys_, [](const auto& key) { return key.expired(); });
  for (const auto& weak : keys_) {
    auto key = weak.lock();
    if (key && key->data() == region.data() && key->size() == region.size()) return key;
  }
  // Advice: fewer translation entries in the device where the system grants huge pages.
  (void)::madvise(region.data(), region.size(), MADV_HUGEPAGE);
  ibv_mr* mr = ::ibv_reg_mr(domain_, region.data(), region.size(), IBV_ACCESS_LOCAL_WRITE);
  if (mr == nullptr) {
    const int error = errno;
    if (no_memory(error)) {
      return Status::error(Code::kExhausted,
                           "no more memory can be pinned for RDMA: raise the memlock limit", error);
    }
    return Status::error(Code::kSystem, "register memory with an RDMA device", error);
  }
  auto key = std::make_shared<MemoryKey>(shared_from_this(), mr);
  keys_.push_back(key);
  return key;
}

}  // namespace sanproxy::fabric::verbs
