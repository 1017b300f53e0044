// Wrong in ways that only shared memory allows: descriptors, rings, counters, tokens, regions.
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <thread>

#include "tests/rogue/cases.h"
#include "tests/rogue/raw_shm_peer.h"

namespace sanproxy::rogue {
namespace {

using shm::CloseMark;
using shm::EntryHeader;
using shm::EntryRef;
using shm::Verdict;

constexpr unsigned kGoodSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE;

using Outcome = sanproxy::rogue::Verdict;

// --- the handshake

// `say` says hello wrongly; it must not be accepted.
Case bad_hello(const char* name, const char* rule, std::function<void(RawShmPeer&)> say) {
  return {name, rule, [say = std::move(say)](const Context& context) -> Outcome {
            RawShmPeer peer(context.proxy);
            if (!peer.connected()) return "the proxy does not listen";
            say(peer);
            const auto verdict = peer.answer();
            return verdict == Verdict::kAccepted ? "the handshake was accepted" : "";
          }};
}

void say_hello(RawShmPeer& peer, const shm::HelloMessage& hello, std::span<const int> fds) {
  const wire::HelloBody body = RogueChannel::correct_hello();
  peer.say(std::as_bytes(std::span(&hello, 1)), std::as_bytes(std::span(&body, 1)), fds);
}

Case bad_field(const char* name, const char* rule, std::function<void(shm::HelloMessage&)> change) {
  return bad_hello(name, rule, [change = std::move(change)](RawShmPeer& peer) {
    shm::HelloMessage hello = peer.good_hello();
    change(hello);
    const int fds[] = {peer.memory_fd(), peer.sleep_fd()};
    say_hello(peer, hello, fds);
  });
}

// A handshake with this descriptor in place of the memory.
Case bad_memory(const char* name, const char* rule, std::function<UniqueFd(std::uint64_t)> make) {
  return bad_hello(name, rule, [make = std::move(make)](RawShmPeer& peer) {
    const UniqueFd fd = make(shm::memory_bytes(peer.own().sizes()));
    const int fds[] = {fd.get(), peer.sleep_fd()};
    say_hello(peer, peer.good_hello(), fds);
  });
}

std::vector<Case> handshake_cases() {
  using shm::HelloMessage;
  return {
      bad_field("shm_magic", "the magic is ours", [](HelloMessage& h) { h.magic ^= 1; }),
      bad_field("shm_version", "the version is known", [](HelloMessage& h) { h.version = 9; }),
      bad_field("shm_private_more", "private_bytes is exact",
                [](HelloMessage& h) { h.private_bytes += 1; }),
      bad_field("shm_private_huge", "private_bytes is exact",
                [](HelloMessage& h) { h.private_bytes = 0xffff'ffff; }),
      bad_field("shm_ring_zero", "a ring has a size",
                [](HelloMessage& h) { h.sizes.ring_bytes = 0; }),
      bad_field("shm_ring_odd", "a ring is a power of two",
                [](HelloMessage& h) { h.sizes.ring_bytes += 4096; }),
      bad_field("shm_ring_huge", "a ring is bounded",
                [](HelloMessage& h) { h.sizes.ring_bytes = 1u << 31; }),
      bad_field("shm_ring_other_than_file", "the file has the size that is said",
                [](HelloMessage& h) { h.sizes.ring_bytes *= 2; }),
      bad_field("shm_returns_zero", "returns are bounded",
                [](HelloMessage& h) { h.sizes.return_entries = 0; }),
      bad_field("shm_returns_huge", "returns are bounded",
                [](HelloMessage& h) { h.sizes.return_entries = 1u << 31; }),
      bad_field("shm_inline_zero", "an inline part has room",
                [](HelloMessage& h) { h.sizes.inline_bytes_max = 0; }),
      bad_field("shm_inline_huge", "an entry fits the ring",
                [](HelloMessage& h) { h.sizes.inline_bytes_max = 0xffff'ffff; }),
      bad_field("shm_sizes_reserved", "reserved is 0",
                [](HelloMessage& h) { h.sizes.reserved = 1; }),
      bad_hello("shm_hello_short", "a hello has its length",
                [](RawShmPeer& p) {
                  const std::byte few[7]{};
                  p.say(few, {}, {});
                }),
      bad_hello("shm_hello_too_long", "a hello has its length",
                [](RawShmPeer& p) {
                  const std::vector<std::byte> much(60'000);
                  p.say(much, {}, {});
                }),
      bad_hello("shm_no_descriptors", "two descriptors",
                [](RawShmPeer& p) { say_hello(p, p.good_hello(), {}); }),
      bad_hello("shm_one_descriptor", "two descriptors",
                [](RawShmPeer& p) {
                  const int fds[] = {p.memory_fd()};
                  say_hello(p, p.good_hello(), fds);
                }),
      bad_hello("shm_four_descriptors", "two descriptors",
                [](RawShmPeer& p) {
                  const int fds[] = {p.memory_fd(), p.sleep_fd(), p.memory_fd(), p.sleep_fd()};
                  say_hello(p, p.good_hello(), fds);
                }),
      bad_hello("shm_descriptors_swapped", "memory first",
                [](RawShmPeer& p) {
                  const int fds[] = {p.sleep_fd(), p.memory_fd()};
                  say_hello(p, p.good_hello(), fds);
                }),
  };
}

std::vector<Case> memory_cases() {
  return {
      bad_memory("shm_memory_unsealed", "sealed against shrinking",
                 [](std::uint64_t bytes) { return make_memory_file(bytes, 0); }),
      bad_memory("shm_memory_sealed_otherwise", "sealed against shrinking",
                 [](std::uint64_t bytes) { return make_memory_file(bytes, F_SEAL_GROW); }),
      bad_memory("shm_memory_small", "the file has the size that is said",
                 [](std::uint64_t) { return make_memory_file(4096, kGoodSeals); }),
      bad_memory("shm_memory_empty", "the file has the size that is said",
                 [](std::uint64_t) { return make_memory_file(0, kGoodSeals); }),
      bad_memory("shm_memory_is_device", "a memory file",
                 [](std::uint64_t) { return UniqueFd(open("/dev/zero", O_RDWR)); }),
      bad_memory("shm_memory_is_folder", "a memory file",
                 [](std::uint64_t) { return UniqueFd(open("/", O_RDONLY | O_DIRECTORY)); }),
      bad_memory("shm_memory_is_file", "a memory file",
                 [](std::uint64_t) { return UniqueFd(open("/proc/self/exe", O_RDONLY)); }),
      bad_memory("shm_memory_is_eventfd", "a memory file",
                 [](std::uint64_t) { return UniqueFd(eventfd(0, 0)); }),
      bad_memory("shm_memory_is_socket", "a memory file",
                 [](std::uint64_t) { return UniqueFd(socket(AF_UNIX, SOCK_STREAM, 0)); }),
      bad_memory("shm_memory_is_epoll", "a memory file",
                 [](std::uint64_t) { return UniqueFd(epoll_create1(0)); }),
  };
}

// --- afterwards: `act` breaks a rule on an accepted channel; it must end with kProtocol.
Case breach(const char* name, const char* rule, std::function<void(RawShmPeer&)> act) {
  return {name, rule, [act = std::move(act)](const Context& context) -> Outcome {
            RawShmPeer peer(context.proxy);
            if (!peer.handshake()) return "the handshake was not accepted";
            act(peer);
            peer.wake();
            if (!peer.ended()) return "the channel stayed open";
            return peer.mark() == CloseMark::kProtocol ? "" : "the channel was closed otherwise";
          }};
}

Case bad_entry(const char* name, const char* rule, EntryHeader header, std::uint64_t head_by = 64) {
  return breach(name, rule, [=](RawShmPeer& peer) {
    std::memcpy(peer.own().ring(), &header, sizeof(header));
    peer.move_head(head_by);
  });
}

std::vector<Case> ring_cases() {
  return {
      breach("shm_head_jumps", "the head stays within the ring",
             [](RawShmPeer& p) { p.move_head(std::uint64_t{1} << 40); }),
      breach("shm_head_wraps", "the head stays within the ring",
             [](RawShmPeer& p) { p.move_head(~std::uint64_t{15}); }),
      breach("shm_head_unaligned", "the head is aligned", [](RawShmPeer& p) { p.move_head(17); }),
      bad_entry("shm_entry_empty", "an entry is not empty", {16, 0, 0, 0}, 16),
      bad_entry("shm_entry_zero_length", "an entry has its length", {0, 32, 0, 0}),
      bad_entry("shm_entry_length", "an entry has its length", {64, 32, 0, 0}),
      bad_entry("shm_entry_behind_head", "an entry is published whole", {1040, 1024, 0, 0}, 32),
      bad_entry("shm_entry_inline_huge", "the inline part is bounded",
                {0xffff'fff0, 0xffff'ffe0, 0, 0}),
      breach("shm_transfer_inline_too_long", "T4: the inline part is bounded",
             [](RawShmPeer& p) {
               RawTransfer transfer;
               for (int i = 0; i < 9; ++i) {
                 transfer.add(wire::MessageType::kData, wire::DataBody{1, 0}, 0,
                              wire::CloseCode::kNone, 1000);
               }
               p.publish_inline(transfer.finish(64));
             }),
      bad_entry("shm_entry_refs_many", "references are bounded", {16 + 8 * 16, 0, 8, 1}, 256),
      bad_entry("shm_entry_refs_huge", "references are bounded", {16, 0, 0xffff'ffff, 1}),
      breach("shm_tail_jumps", "what was not published is not freed",
             [](RawShmPeer& p) {
               p.own().control().room.ring_tail = std::uint64_t{1} << 50;
               // Found when the proxy looks for room: at the latest when it has filled the ring.
               p.return_token(0xffff'ffff);
             }),
      breach("shm_returns_jump", "no more is returned than was lent",
             [](RawShmPeer& p) { p.own().control().published.returns_head = 1'000'000; }),
      breach("shm_return_of_nothing", "no more is returned than was lent",
             [](RawShmPeer& p) { p.return_token(1); }),
  };
}

// A transfer that refers to memory that was (or was not) described before.
void refer(RawShmPeer& peer, EntryRef ref) {
  EntryHeader header;
  header.inline_bytes = 40;
  header.ref_count = 1;
  header.entry_bytes = static_cast<std::uint32_t>(shm::entry_bytes(40, 1));
  header.token = shm::make_token(0, 1);
  RawTransfer transfer;
  transfer.add_data_header(1, 0, 4000);
  const auto bytes = transfer.finish(64);
  peer.publish(header, bytes, {&ref, 1});
}

Case bad_reference(const char* name, const char* rule, EntryRef ref, bool described) {
  return breach(name, rule, [=](RawShmPeer& peer) {
    if (described) {
      const UniqueFd fd = make_memory_file(65536, kGoodSeals);
      peer.send_region(fd.get(), 65536, 1);
    }
    refer(peer, ref);
  });
}

std::vector<Case> reference_cases() {
  return {
      bad_reference("shm_reference_unknown", "a region is described first", {1, 4000, 0}, false),
      bad_reference("shm_reference_zero_key", "keys count from 1", {0, 4000, 0}, true),
      bad_reference("shm_reference_next_key", "a region is described first", {2, 4000, 0}, true),
      bad_reference("shm_reference_offset", "inside the region", {1, 4000, 65536}, true),
      bad_reference("shm_reference_across_end", "inside the region", {1, 4000, 65000}, true),
      bad_reference("shm_reference_offset_wraps", "inside the region",
                    {1, 4000, ~std::uint64_t{0} - 100}, true),
      bad_reference("shm_reference_empty", "a reference is not empty", {1, 0, 0}, true),
      bad_reference("shm_reference_huge", "a transfer is bounded", {1, 0xffff'ffff, 0}, true),
  };
}

Case bad_region(const char* name, const char* rule, std::uint64_t said_bytes,
                std::uint64_t real_bytes, unsigned seals, std::uint32_t key = 1,
                std::uint64_t magic = shm::kRegionMagic) {
  return breach(name, rule, [=](RawShmPeer& peer) {
    const UniqueFd fd = make_memory_file(real_bytes, seals);
    peer.send_region(fd.get(), said_bytes, key, magic);
  });
}

std::vector<Case> region_cases() {
  return {
      bad_region("shm_region_unsealed", "sealed against shrinking", 65536, 65536, 0),
      bad_region("shm_region_smaller", "the file has the size that is said", 65536, 4096,
                 kGoodSeals),
      bad_region("shm_region_empty", "a region is not empty", 0, 4096, kGoodSeals),
      bad_region("shm_region_huge", "regions are bounded", std::uint64_t{1} << 40,
                 std::uint64_t{1} << 40, kGoodSeals),
      bad_region("shm_region_wraps", "regions are bounded", ~std::uint64_t{0}, 65536, kGoodSeals),
      bad_region("shm_region_key", "keys count up", 65536, 65536, kGoodSeals, 7),
      bad_region("shm_region_magic", "the magic is ours", 65536, 65536, kGoodSeals, 1, 42),
      breach("shm_region_without_descriptor", "one descriptor",
             [](RawShmPeer& p) { p.send_region(-1, 65536, 1); }),
      breach("shm_region_is_device", "a memory file",
             [](RawShmPeer& p) {
               const UniqueFd fd(open("/dev/zero", O_RDWR));
               p.send_region(fd.get(), 65536, 1);
             }),
      breach("shm_regions_too_many", "regions are bounded",
             [](RawShmPeer& p) {
               const UniqueFd fd = make_memory_file(4096, kGoodSeals);
               for (std::uint32_t key = 1; key < 5000; ++key) {
                 while (!p.send_region(fd.get(), 4096, key)) {
                   if (p.ended(std::chrono::milliseconds(1))) return;
                 }
               }
             }),
      breach("shm_socket_noise", "nothing but descriptions of regions",
             [](RawShmPeer& p) {
               const std::byte noise[100]{};
               p.say(noise, {}, {});
             }),
      breach("shm_socket_long_noise", "nothing but descriptions of regions",
             [](RawShmPeer& p) {
               const std::vector<std::byte> noise(50'000);
               p.say(noise, {}, {});
             }),
  };
}

// --- and what has no single right answer, but must not hurt

Outcome half_handshakes(const Context& context) {
  std::vector<std::unique_ptr<RawShmPeer>> silent;
  for (int i = 0; i < 300; ++i) {
    silent.push_back(std::make_unique<RawShmPeer>(context.proxy));
    if (!silent.back()->connected()) break;
  }
  RawShmPeer good(context.proxy);
  return good.handshake() ? "" : "silent peers keep others out";
}

Outcome vanish_after_hello(const Context& context) {
  for (int i = 0; i < 200; ++i) {
    RawShmPeer peer(context.proxy);
    const int fds[] = {peer.memory_fd(), peer.sleep_fd()};
    if (peer.connected()) say_hello(peer, peer.good_hello(), fds);
  }
  return "";
}

// Flips bytes of everything that the proxy reads, while it reads.
Outcome scribble(const Context& context, bool control_too) {
  for (int round = 0; round < 20; ++round) {
    RawShmPeer peer(context.proxy);
    if (!peer.handshake()) return "the handshake was not accepted";
    std::atomic<bool> stop = false;
    std::thread scribbler([&] {
      std::uint32_t seed = 77u + static_cast<std::uint32_t>(round);
      const std::size_t ring = peer.own().sizes().ring_bytes;
      while (!stop) {
        seed = seed * 1664525 + 1013904223;
        std::byte* at = peer.own().ring() + (seed >> 8) % std::min<std::size_t>(ring, 8192);
        *reinterpret_cast<volatile unsigned char*>(at) = static_cast<unsigned char>(seed);
        if (control_too && seed % 1024 == 0) {
          peer.own().control().published.ring_head ^= (seed >> 20) & 0xfff0u;
          peer.own().control().room.posted ^= seed;
        }
      }
    });
    wire::JoinServiceBody body{wire::to_wire(context.service), 1, 0, 1, 0};
    for (std::uint32_t i = 0; i < 50; ++i) {
      RawTransfer transfer;
      transfer.add(wire::MessageType::kJoinService, body);
      peer.publish_inline(transfer.finish(64));
      if (peer.ended(std::chrono::milliseconds(0))) break;
    }
    peer.ended(std::chrono::milliseconds(20));
    stop = true;
    scribbler.join();
  }
  return "";
}

Outcome bell_storm(const Context& context) {
  RawShmPeer peer(context.proxy);
  if (!peer.handshake()) return "the handshake was not accepted";
  for (int i = 0; i < 200'000; ++i) peer.wake();
  return peer.ended(std::chrono::milliseconds(0)) ? "the channel was closed" : "";
}

// More transfers at once than the proxy has posted receive buffers for. If it posts them again
// while it reads, it has nothing to object to.
Outcome credit_overrun(const Context& context) {
  RawShmPeer peer(context.proxy);
  if (!peer.handshake()) return "the handshake was not accepted";
  constexpr std::uint32_t kTransfers = 1024;
  std::vector<std::byte> entries;
  for (std::uint32_t i = 0; i < kTransfers; ++i) {
    RawTransfer transfer;
    const auto bytes = transfer.finish(64);
    EntryHeader header;
    header.inline_bytes = static_cast<std::uint32_t>(bytes.size());
    header.entry_bytes = static_cast<std::uint32_t>(shm::entry_bytes(bytes.size(), 0));
    const auto head = std::as_bytes(std::span(&header, 1));
    entries.insert(entries.end(), head.begin(), head.end());
    entries.insert(entries.end(), bytes.begin(), bytes.end());
  }
  std::memcpy(peer.own().ring(), entries.data(), entries.size());
  peer.move_head(entries.size());
  if (!peer.ended(std::chrono::milliseconds(300))) return "";
  return peer.mark() == CloseMark::kProtocol ? "" : "the channel was closed otherwise";
}

Outcome strange_end(const Context& context) {
  for (std::uint32_t mark = 0; mark < 6; ++mark) {
    RawShmPeer peer(context.proxy);
    if (!peer.handshake()) return "the handshake was not accepted";
    peer.own().control().published.close_code = mark * 1'000'003;
    peer.move_head(mark % 2 == 0 ? 0 : 4096 * 16);
    peer.hang_up();
  }
  return "";
}

}  // namespace

std::vector<Case> shm_cases() {
  std::vector<Case> out;
  for (auto make : {handshake_cases, memory_cases, ring_cases, reference_cases, region_cases}) {
    for (Case& one : make()) out.push_back(std::move(one));
  }
  out.push_back({"shm_half_handshakes", "300 peers that say nothing", half_handshakes});
  out.push_back(
      {"shm_vanish_after_hello", "200 peers that leave before the answer", vanish_after_hello});
  out.push_back({"shm_scribble_ring", "the ring changes while it is read",
                 [](const Context& c) { return scribble(c, false); }});
  out.push_back({"shm_scribble_everything", "ring and counters change while they are read",
                 [](const Context& c) { return scribble(c, true); }});
  out.push_back({"shm_credit_overrun", "T8: no transfer without a credit", credit_overrun});
  out.push_back({"shm_bell_storm", "200,000 wake-ups for nothing", bell_storm});
  out.push_back({"shm_strange_end", "unknown close marks and unread entries", strange_end});
  return out;
}

}  // namespace sanproxy::rogue
