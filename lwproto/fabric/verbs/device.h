// Device: one RDMA device as one fabric uses it; MemoryKey: a region registered with it.
//
// Document: docs/verbs_fabric.md "Devices and memory".
// Role: owns a context of our own (so that its asynchronous events are ours alone), a protection
//   domain, a completion channel and the cache of registrations.
// Owner: shared by the queue pairs and keys made from it. Thread: the fabric's.
// Invariants:
//   1. A region is registered once, however many endpoints attach it, and deregistered when the
//      last of them has let go.
//   2. Both descriptors are non-blocking.
#pragma once

#include <infiniband/verbs.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "lwproto/base/status.h"
#include "lwproto/buffer/memory_region.h"

namespace sanproxy::fabric::verbs {

class Device;

class MemoryKey {
 public:
  MemoryKey(std::shared_ptr<Device> device, ibv_mr* mr) : device_(std::move(device)), mr_(mr) {}
  ~MemoryKey();
  MemoryKey(const MemoryKey&) = delete;
  MemoryKey& operator=(const MemoryKey&) = delete;

  std::uint32_t local() const { return mr_->lkey; }
  const std::byte* data() const { return static_cast<const std::byte*>(mr_->addr); }
  std::size_t size() const { return mr_->length; }

 private:
  std::shared_ptr<Device> device_;
  ibv_mr* mr_;
};

// kUnsupported with `otherwise`, unless there is what is missing and we may not open it: librdmacm
// then says no more than that there is nothing.
Status without_device(const char* otherwise, int error);
// Whether this errno of a verb says that no more memory may be pinned; EPERM is Linux's for a limit
// of 0.
bool no_memory(int error);

class Device : public std::enable_shared_from_this<Device> {
 public:
  static Result<std::shared_ptr<Device>> open(ibv_device* device);
  Device() = default;
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  const std::string& name() const { return name_; }
  ibv_context* context() const { return context_; }
  ibv_pd* domain() const { return domain_; }
  ibv_comp_channel* channel() const { return channel_; }
  const ibv_device_attr& limits() const { return limits_; }

  // kExhausted when the system lets us pin no more memory.
  Result<std::shared_ptr<MemoryKey>> register_region(const buffer::MemoryRegion& region);

 private:
  std::string name_;
  ibv_context* context_ = nullptr;
  ibv_pd* domain_ = nullptr;
  ibv_comp_channel* channel_ = nullptr;
  ibv_device_attr limits_{};
  std::vector<std::weak_ptr<MemoryKey>> keys_;  // bounded by the regions in use
};

}  // namespace sanproxy::fabric::verbs
