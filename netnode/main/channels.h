// Channels: the links to proxies that are reached over a fabric.
//
// Document: docs/netnode.md "Channels".
// Role: one ChannelLink a proxy; moves packets between the data path and the links, and says how
// the
//   proxies are. Names the concrete fabrics.
// Owner: a Node. Thread: its.
// Invariants:
//   1. What a link yields is on its way out, and flushed, before it is released to the link.
//   2. What a channel does not take waits: at most queued_max packets a link, at most half of the
//      pool in all. Beyond, and when the link goes down, packets are lost and counted.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "lwproto/fabric/fabric.h"
#include "netnode/main/data_path.h"
#include "netnode/packet_io/channel_link.h"

namespace sanproxy::netnode {

class Channels final : public ChannelWay {
 public:
  Channels(const NetnodeConfig& config, const Clock& clock, packet_io::PacketPool& pool,
           const buffer::MemoryRegion& region, DataPath& path, int epoll_fd);
  ~Channels() override;

  // Makes, keeps and ends links so that they are those of `proxies`. A text for the operator when a
  // link cannot be made.
  std::string apply(std::span<const steer::Forwarder::Proxy> proxies);
  bool send(std::uint16_t proxy, buffer::SlotIndex slot, std::uint32_t offset, std::uint32_t length,
            const packet_io::Offload& offload, bool final) override;
  // Sends what was gathered, receives and hands on; returns the packets received.
  std::size_t round();
  bool arm();
  void disarm();
  std::uint64_t next_timer_ns() const;
  // The link of a proxy; null for one that is not reached by channel.
  const packet_io::ChannelLink* link(std::uint16_t proxy) const;

 private:
  struct Link;
  void flush(Link& link);
  void flush_all();
  void lose_all(Link& link);
  void receive_one(Link& link, const packet_io::LinkReceived& packet);
  fabric::Fabric& fabric_for(const std::string& address);

  const ChannelConfig config_;
  std::string node_name_;
  std::uint64_t epoch_;
  const Clock& clock_;
  packet_io::PacketPool& pool_;
  const buffer::MemoryRegion& region_;
  DataPath& path_;
  int epoll_fd_;
  std::map<std::string, std::unique_ptr<fabric::Fabric>> fabrics_;  // by scheme
  std::vector<std::unique_ptr<Link>> links_;                        // by place
  std::vector<std::unique_ptr<Link>> leaving_;                      // slots are still out
  std::size_t queued_ = 0;                                          // of all links
};

}  // namespace sanproxy::netnode
