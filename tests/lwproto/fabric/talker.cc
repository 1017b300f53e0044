#include "tests/lwproto/fabric/talker.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace sanproxy::fabric::test {
namespace {

constexpr std::size_t kPlaces = 12;
constexpr std::size_t kHeldMax = 12;
constexpr std::uint32_t kMagic = 0x74616c6b;
constexpr std::uint32_t kReserve = 2;
constexpr std::byte kPoison{0xdb};

std::uint64_t mix(std::uint64_t x) {
  x ^= x >> 31;
  x *= 0x9e3779b97f4a7c15ull;
  return x ^ (x >> 29);
}

}  // namespace

Talker::Talker(const TalkerPlan& plan)
    : plan_(plan),
      random_(plan.seed),
      region_(buffer::MemoryRegion::create("talker", kPlaces * plan.refs_bytes_max).value()),
      ledger_(plan.depth, kReserve, plan.depth),
      places_(kPlaces) {}

Talker::~Talker() { destroy(); }

void Talker::start(std::unique_ptr<Endpoint> endpoint) {
  endpoint_ = std::move(endpoint);
  auto key = endpoint_->attach(region_);
  if (key.ok()) {
    key_ = *key;
  } else if (endpoint_->connected()) {
    fail("attach: " + key.status().to_string());
  }
}

void Talker::destroy() {
  while (!held_.empty()) release_one(held_.size() - 1);
  endpoint_.reset();
}

void Talker::fail(const std::string& what) {
  if (wrong_.empty()) wrong_ = what + " (" + state() + ")";
}

std::string Talker::state() const {
  return "sent " + std::to_string(sent_) + "/" + std::to_string(plan_.target) + ", received " +
         std::to_string(received_) + "/" + std::to_string(plan_.peer_target) + ", cookies out " +
         std::to_string(cookies_out_) + ", held " + std::to_string(held_.size()) + ", credits " +
         std::to_string(ledger_.available()) + ", unannounced " +
         std::to_string(ledger_.unannounced()) +
         (disconnected_ ? ", disconnected: " + disconnected_->to_string() : std::string());
}

bool Talker::done() const {
  return sent_ == plan_.target && received_ == plan_.peer_target && cookies_out_ == 0 &&
         held_.empty();
}

Talker::Shape Talker::shape_of(const TalkerPlan& plan, std::uint64_t seed, std::uint32_t number) {
  std::mt19937_64 random(mix(seed * 1'000'003 + number));
  const auto below = [&](std::uint32_t bound) {
    return static_cast<std::uint32_t>(random() % bound);
  };
  Shape shape;
  const auto most_inline = static_cast<std::uint32_t>(plan.inline_bytes_max - sizeof(Header));
  shape.inline_bytes =
      static_cast<std::uint32_t>(sizeof(Header)) +
      (below(10) == 0 ? below(most_inline + 1) : below(std::min(300u, most_inline)));
  std::uint32_t room = below(20) == 0 ? plan.refs_bytes_max : std::min(plan.refs_bytes_max, 4000u);
  for (std::uint32_t refs = below(3) == 0 ? below(kGatherRefsMax + 1) : below(2); refs > 0;
       --refs) {
    const std::uint32_t length = 1 + below(room - refs);
    shape.refs.push_back(length);
    room -= length;
  }
  return shape;
}

std::byte Talker::byte_of(std::uint64_t seed, std::uint32_t number, std::size_t at) {
  return static_cast<std::byte>(seed * 31 + number * 131 + at * 7 + (at >> 8));
}

bool Talker::round() {
  if (disconnected_ || !wrong_.empty()) return false;
  std::array<Completion, 16> out;
  const std::size_t count = endpoint_->poll({out.data(), 1 + random_() % out.size()});
  for (std::size_t i = 0; i < count; ++i) take(out[i]);
  if (disconnected_) return true;
  const bool held = !held_.empty();
  release_some();
  ledger_.on_posted(endpoint_->replenish());
  bool moved = send_some();
  if (ledger_.grant_due() && ledger_.may_send_control()) moved = send_pure() || moved;
  // Now and then what was committed waits for the next round, or for arm().
  if (random_() % 4 != 0) endpoint_->flush();
  return moved || held || count != 0;
}

void Talker::take(const Completion& c) {
  if (disconnected_) return fail("something came behind kDisconnected");
  switch (c.kind) {
    case Completion::Kind::kReceive:
      return take_transfer(c);
    case Completion::Kind::kSend:
      return take_cookie(c);
    case Completion::Kind::kDisconnected:
      disconnected_ = c.status;
      if (c.status.ok()) fail("disconnected without a reason");
      if (cookies_out_ != 0) fail("disconnected before all cookies were back");
  }
}

void Talker::take_cookie(const Completion& c) {
  const auto place = std::find(places_.begin(), places_.end(), c.cookie);
  if (c.cookie == 0 || place == places_.end()) {
    return fail("a cookie that is not out: " + std::to_string(c.cookie));
  }
  *place = 0;
  --cookies_out_;
  // Ours again: whoever still reads it sends rubbish. After the end a peer may read on (rule 6).
  if (c.status.ok()) {
    const auto index = static_cast<std::size_t>(place - places_.begin());
    std::fill_n(region_.data() + index * plan_.refs_bytes_max, plan_.refs_bytes_max, kPoison);
  }
}

void Talker::take_transfer(const Completion& c) {
  Held held{c.loan, {}, {}};
  for (std::size_t i = 0; i < c.segment_count; ++i) {
    const Segment& s = c.segments[i];
    held.content.insert(held.content.end(), s.data, s.data + s.length);
    if (!s.transient) held.segments.push_back(s);
  }
  if (held.segments.empty() != (c.loan == kNoLoan)) fail("a loan of nothing, or nothing lent");
  Header header{};
  if (c.segment_count == 0 || c.segments[0].length < sizeof(header)) {
    return fail("the inline part is not in the first segment");
  }
  std::memcpy(&header, held.content.data(), sizeof(header));
  if (header.magic != kMagic) return fail("not the header of a transfer");
  if (!ledger_.on_received().ok()) return fail("more than the posted receives arrived");
  if (!ledger_.on_granted(header.granted).ok()) return fail("an impossible grant");
  if (header.pure == 0) {
    if (header.number != received_) {
      return fail("out of order: got " + std::to_string(header.number));
    }
    check_content(held.content, received_, {c.segments.data(), c.segment_count});
    ++received_;
  }
  if (c.loan != kNoLoan) held_.push_back(std::move(held));
}

void Talker::check_content(const std::vector<std::byte>& content, std::uint32_t number,
                           std::span<const Segment> segments) {
  const Shape shape = shape_of(plan_, plan_.peer_seed, number);
  std::size_t length = shape.inline_bytes;
  for (const std::uint32_t ref : shape.refs) length += ref;
  if (segments.size() != 1 && segments[0].length != shape.inline_bytes) {
    return fail("the inline part is neither alone in its segment nor with all the rest");
  }
  if (content.size() != length) {
    return fail("transfer " + std::to_string(number) + " has " + std::to_string(content.size()) +
                " bytes instead of " + std::to_string(length));
  }
  for (std::size_t i = sizeof(Header); i < length; ++i) {
    if (content[i] == byte_of(plan_.peer_seed, number, i)) continue;
    return fail("transfer " + std::to_string(number) + " is wrong at byte " + std::to_string(i) +
                " of " + std::to_string(length) + ", inline " + std::to_string(shape.inline_bytes));
  }
}

bool Talker::intact(const Held& held) {
  std::size_t at = held.content.size();
  for (auto s = held.segments.rbegin(); s != held.segments.rend(); ++s) {  // the lent ones are last
    at -= s->length;
    if (std::memcmp(s->data, held.content.data() + at, s->length) != 0) return false;
  }
  return true;
}

bool Talker::held_is_intact() const { return std::all_of(held_.begin(), held_.end(), intact); }

void Talker::release_one(std::size_t i) {
  const Held held = std::move(held_[i]);
  held_.erase(held_.begin() + static_cast<std::ptrdiff_t>(i));
  // After the end the peer may have its memory back (rule 6), and we may not know of it yet.
  if (!intact(held) && endpoint_->connected() && !disconnected_) fail("what was lent has changed");
  endpoint_->release(held.loan);
}

void Talker::release_some() {
  while (!held_.empty() && (held_.size() > kHeldMax || random_() % 3 == 0)) {
    release_one(random_() % held_.size());
  }
}

Talker::Header Talker::header(std::uint32_t number, bool pure) const {
  return {number, ledger_.granted_total(), pure ? 1u : 0u, kMagic};
}

bool Talker::send_some() {
  bool moved = false;
  for (auto budget = 1 + random_() % 5; budget > 0 && send_one(); --budget) moved = true;
  return moved;
}

bool Talker::send_one() {
  if (sent_ == plan_.target || !ledger_.may_send_data()) return false;
  const Shape shape = shape_of(plan_, plan_.seed, sent_);
  const auto place = std::find(places_.begin(), places_.end(), 0u);
  if (!shape.refs.empty() && place == places_.end()) return false;
  auto space = endpoint_->begin_send(shape.inline_bytes);
  if (!space.ok()) {
    if (!space.status().is_again() && space.status().code() != Code::kDisconnected) {
      fail("begin_send: " + space.status().to_string());
    }
    return false;
  }
  const Header head = header(sent_, false);
  std::memcpy(space->data(), &head, sizeof(head));
  for (std::size_t i = sizeof(head); i < shape.inline_bytes; ++i) {
    (*space)[i] = byte_of(plan_.seed, sent_, i);
  }
  // The pieces lie in the region back to front, so that they are pieces.
  std::vector<GatherRef> refs;
  std::size_t at = shape.inline_bytes;
  const auto base = static_cast<std::size_t>(place - places_.begin()) * plan_.refs_bytes_max;
  std::size_t end = plan_.refs_bytes_max;
  for (const std::uint32_t length : shape.refs) {
    end -= length;
    for (std::uint32_t i = 0; i < length; ++i) {
      region_.data()[base + end + i] = byte_of(plan_.seed, sent_, at++);
    }
    refs.push_back({key_, length, base + end});
  }
  const Status committed = endpoint_->commit_send(shape.inline_bytes, refs, next_cookie_);
  if (!committed.ok()) {
    if (committed.code() != Code::kDisconnected) fail("commit_send: " + committed.to_string());
    return false;
  }
  if (!refs.empty()) {
    *place = next_cookie_++;
    ++cookies_out_;
  }
  ++sent_;
  ledger_.on_sent();
  ledger_.on_grant_sent();
  return true;
}

bool Talker::send_pure() {
  auto space = endpoint_->begin_send(sizeof(Header));
  if (!space.ok()) return false;
  const Header head = header(0, true);
  std::memcpy(space->data(), &head, sizeof(head));
  if (!endpoint_->commit_send(sizeof(head), {}, 0).ok()) return false;
  ledger_.on_sent();
  ledger_.on_grant_sent();
  return true;
}

}  // namespace sanproxy::fabric::test
