// FlowRedirect: flows that the kernel carries from one interface to another, translated.
//
// Documents: docs/netnode.md "In the kernel"; bpf(2), Linux Documentation/bpf.
// Role: a table of flows, and a program at each interface that looks packets up in it: one of a
//   flow gets its new addresses and ports and leaves by the other interface at once; all others go
//   the way that they always went. What the table says is its owner's.
// Owner: a network node. Thread: its; the programs read the table on any processor.
// Invariants:
//   1. `flows_max` flows, a bound of the kernel's table; its memory, but for 16 to 32 bytes for
//   each,
//      is taken when a flow is put in.
//   2. Only whole TCP segments of plain headers, with ACK and none of SYN, FIN, RST and URG, that
//      have a hop left and fit the way out are carried. Every check comes before the first change;
//      what fails later is dropped and counted.
//   3. An entry holds until invalidate(), but kHoldsForS at most: then its flow's next packet comes
//      to the owner again, who puts it in anew if it is still right.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "lwproto/base/status.h"
#include "lwproto/base/unique_fd.h"
#include "netnode/net/ethernet.h"
#include "netnode/net/flow_key.h"
#include "netnode/packet_io/bpf_code.h"
#include "netnode/packet_io/interface_hook.h"

namespace sanproxy::packet_io {

// A way out of an interface that needs nobody's help.
struct KernelWay {
  std::uint32_t interface_index = 0;
  std::uint32_t mtu_bytes = 0;
  bool into_host = false;  // the kernel gets it from the device, as if we had written it there
  bool ethernet = false;   // with `frame` in front
  std::array<std::uint8_t, net::kEthernetHeaderBytes> frame{};
};

// What becomes of a flow's packets.
struct FlowTranslation {
  net::FlowKey to;  // as they leave
  // What that adds to a one's complement sum, as it lies in memory (RFC 1624).
  std::uint16_t addresses_delta = 0, ports_delta = 0;
  bool to_client = false;  // for the counters
};

struct FlowRedirectCounters {
  std::uint64_t to_proxy = 0, to_client = 0;  // packets carried; a super-packet is one
  std::uint64_t dropped = 0;                  // half changed, when memory ran out
  std::uint64_t put = 0, refused = 0;         // entries; that the kernel did not take
};

class FlowRedirect {
 public:
  static constexpr std::uint32_t kHoldsForS = 10;
  // For how long after the last set_time() programs that outlive a process carry anything.
  static constexpr std::uint32_t kLeaseS = 60;
  // What an Ethernet interface receives; what the kernel sends to a TUN device, which is for us.
  using Hook = InterfaceHook::Side;
  using Way = InterfaceHook::Way;

  // kPermission without CAP_BPF and CAP_NET_ADMIN, kUnsupported where the kernel cannot.
  static Result<std::unique_ptr<FlowRedirect>> create(std::uint32_t flows_max);
  // In that way alone.
  static Result<std::unique_ptr<FlowRedirect>> create(std::uint32_t flows_max, Way way);
  ~FlowRedirect();
  FlowRedirect(const FlowRedirect&) = delete;
  FlowRedirect& operator=(const FlowRedirect&) = delete;

  // For as long as this lives.
  Status attach(int interface_index, Hook hook);
  // What attach() loads.
  std::vector<bpf_insn> make_program(Hook hook) const;
  // The filter of a packet socket at an interface of kIngress, which hears what the program there
  // takes away, too: untagged IP and ARP frames for this station or a group, but for those.
  std::vector<bpf_insn> make_filter() const;
  Result<UniqueFd> load_filter() const;

  // A flow with IP addresses and TCP ports. False: not taken, and counted; for the rest of the
  // second none is then.
  bool put(const net::FlowKey& from, const FlowTranslation& what, const KernelWay& way);
  void erase(const net::FlowKey& from);
  void invalidate();               // all of them
  void set_time(std::uint32_t s);  // of CLOCK_MONOTONIC; some times a second
  Way way() const { return way_; }
  // Changes with invalidate().
  std::uint32_t generation() const { return now_->generation; }
  // System calls: for pages.
  FlowRedirectCounters counters() const;

  // What kind of program it is: at an interface with socket buffers, with frames (XDP), or the
  // filter of a packet socket.
  enum class Context : std::uint8_t { kSocketBuffer, kFrame, kSocketFilter };
  // The part of a program that finds a packet's flow. With r6 the context: goes on behind with r7
  // its entry, r8 the bytes from its IP header (at `l3`) on, r9 those of its headers; to `none`
  // when there is none, it holds no more, or the packet is not to be carried. All kinds say the
  // same of a packet.
  void match(BpfCode& code, Context context, int l3, BpfCode::Label none) const;

 private:
  struct Now {
    std::uint32_t generation, s, lease_s;
  };
  explicit FlowRedirect(Way way) : way_(way) {}
  Result<UniqueFd> load(Hook hook) const;
  Status try_frames() const;
  void find(BpfCode& code, BpfCode::Label none) const;
  void rewrite(BpfCode& code, int l3) const;
  void count(BpfCode& code) const;
  void leave(BpfCode& code, int l3) const;

  const Way way_;
  UniqueFd flows_, now_map_, counters_map_;
  Now* now_ = nullptr;  // shared with the programs
  std::vector<InterfaceHook> hooks_;
  std::uint64_t put_ = 0, refused_ = 0;
  std::uint32_t next_try_s_ = 0;  // after the kernel has taken none
};

}  // namespace sanproxy::packet_io
