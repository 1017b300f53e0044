// The memory and message formats of the shm fabric.
//
// Document: docs/shm_fabric.md.
// Role: shared by the fabric and by test programs that speak it wrongly on purpose.
// Invariants:
//   1. Each side writes only its own memory; the other side maps it read-only.
//   2. Whatever is read from the other side's memory is copied once, then checked, then used.
//   3. All counters are totals since the start (they do not wrap in practice: 64 bits).
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "lwproto/fabric/fabric.h"

namespace sanproxy::fabric::shm {

// --- memory of one side: control page, return ring, message ring

// What the other side looks at in every poll().
struct PublishedLine {
  std::atomic<std::uint64_t> ring_head;     // bytes published in my message ring
  std::atomic<std::uint64_t> returns_head;  // tokens published in my return ring
  std::atomic<std::uint32_t> close_code;    // CloseMark, valid once the socket is at its end
};

// What the other side looks at only when it runs out of room.
struct RoomLine {
  std::atomic<std::uint64_t> ring_tail;  // bytes of your message ring that I am done with
  std::atomic<std::uint64_t> posted;     // receive buffers that I have posted
  std::atomic<std::uint32_t> waiting;    // 1: I wait for room in my message ring
};

struct ControlPage {
  alignas(128) PublishedLine published;  // 128: processors prefetch lines in pairs
  alignas(128) RoomLine room;
};
static_assert(sizeof(ControlPage) <= 4096);
static_assert(std::atomic<std::uint64_t>::is_always_lock_free);

enum class CloseMark : std::uint32_t { kNone = 0, kClosed = 1, kProtocol = 2 };

// One page a fabric, shown to all its peers. Odd: the owner sleeps or is about to.
struct SleepPage {
  std::atomic<std::uint64_t> epoch;
};

inline constexpr std::size_t kPageBytes = 4096;
inline constexpr std::uint32_t kRingBytesMin = 16 * 1024;
inline constexpr std::uint32_t kRingBytesMax = 64 * 1024 * 1024;
inline constexpr std::uint32_t kReturnEntriesMin = 1024;
inline constexpr std::uint32_t kReturnEntriesMax = 65536;

// Entry of the message ring: header, inline bytes, padding to 16, references. The ring is mapped
// twice in a row, so an entry is always contiguous.
struct EntryHeader {
  std::uint32_t entry_bytes = 0;  // of all parts; exactly entry_bytes(inline_bytes, ref_count)
  std::uint32_t inline_bytes = 0;
  std::uint32_t ref_count = 0;
  std::uint32_t token = 0;  // comes back through the return ring; 0 without references
};
struct EntryRef {
  std::uint32_t region = 0;
  std::uint32_t length = 0;
  std::uint64_t offset = 0;
};
static_assert(sizeof(EntryHeader) == 16 && sizeof(EntryRef) == 16);

inline constexpr std::uint64_t kEntryAlign = 16;
constexpr std::uint64_t align_entry(std::uint64_t bytes) {
  return (bytes + kEntryAlign - 1) & ~(kEntryAlign - 1);
}
constexpr std::uint64_t entry_bytes(std::uint64_t inline_bytes, std::uint64_t ref_count) {
  return sizeof(EntryHeader) + align_entry(inline_bytes) + ref_count * sizeof(EntryRef);
}

// A token names a slot in the sender's table of outstanding transfers and the slot's generation.
inline constexpr std::uint32_t kSendDepthMax = 65536;
constexpr std::uint32_t make_token(std::uint32_t index, std::uint32_t generation) {
  return (generation << 16) | index;
}
constexpr std::uint32_t token_index(std::uint32_t token) { return token & 0xffffu; }
constexpr std::uint32_t token_generation(std::uint32_t token) { return token >> 16; }

// --- messages on the Unix socket

inline constexpr std::uint64_t kMagic = 0x31304d4853'4e4153ull;         // "SANSHM01"
inline constexpr std::uint64_t kRegionMagic = 0x4e4f49474552'4153ull;   // "SAREGION"
inline constexpr std::uint64_t kDetachMagic = 0x4843415445'44'4153ull;  // "SADETACH"
inline constexpr std::uint32_t kVersion = 1;
inline constexpr std::size_t kPrivateBytesMax = kPrivateDataBytesMax;

struct Sizes {
  std::uint32_t ring_bytes = 0;      // power of two
  std::uint32_t return_entries = 0;  // power of two; bounds what the other side has outstanding
  std::uint32_t inline_bytes_max = 0;
  std::uint32_t transfer_bytes_max = 0;
  std::uint32_t regions_max = 0;
  std::uint32_t reserved = 0;
  std::uint64_t region_bytes_max = 0;
};

constexpr std::uint64_t returns_offset() { return kPageBytes; }
constexpr std::uint64_t ring_offset(const Sizes& sizes) {
  return kPageBytes + std::uint64_t{sizes.return_entries} * sizeof(std::uint32_t);
}
constexpr std::uint64_t memory_bytes(const Sizes& sizes) {
  return ring_offset(sizes) + sizes.ring_bytes;
}

// Client to server; then private data. Descriptors: memory, sleep page.
struct HelloMessage {
  std::uint64_t magic = kMagic;
  std::uint32_t version = kVersion;
  std::uint32_t private_bytes = 0;
  Sizes sizes;
};
inline constexpr std::size_t kHelloFds = 2;

enum class Verdict : std::uint32_t {
  kAccepted = 0,
  kRejected = 1,  // by the server's owner; private data says why
  kBadVersion = 2,
  kBadHello = 3,  // sizes or descriptors that the server does not take
};

// Server to client; then private data. Descriptors, when accepted: memory, sleep page, the client's
// end of the doorbells (a stream socket pair).
struct AnswerMessage {
  std::uint64_t magic = kMagic;
  std::uint32_t version = kVersion;
  Verdict verdict = Verdict::kAccepted;
  std::uint32_t private_bytes = 0;
  std::uint32_t reserved = 0;
  Sizes sizes;
};
inline constexpr std::size_t kAnswerFds = 3;

// A key names a place in the receiver's table of regions and the place's generation. New places are
// taken in order, beginning with generation 0, so that keys count 1, 2, 3... until one is free
// again.
inline constexpr std::uint32_t kRegionPlacesMax = 0xffff;
constexpr std::uint32_t make_region_key(std::uint32_t place, std::uint32_t generation) {
  return (generation << 16) | (place + 1);
}
constexpr std::uint32_t region_place(std::uint32_t key) { return (key & 0xffffu) - 1; }
constexpr std::uint32_t region_generation(std::uint32_t key) { return key >> 16; }

// Either way, after the handshake. kRegionMagic: a region comes; descriptor: its memfd.
// kDetachMagic: it goes; `bytes` is 0, no descriptor, and nothing of it is on loan any more.
struct RegionMessage {
  std::uint64_t magic = kRegionMagic;
  std::uint32_t key = 0;
  std::uint32_t reserved = 0;
  std::uint64_t bytes = 0;
};
inline constexpr std::size_t kRegionFds = 1;

}  // namespace sanproxy::fabric::shm
