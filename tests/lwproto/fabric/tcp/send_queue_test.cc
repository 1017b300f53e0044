// SendQueue against a plain model: whatever is gathered and however much of it is written, the
// bytes come out in order, and each cookie once, behind its last byte.
#include "lwproto/fabric/tcp/send_queue.h"

#include <cstring>
#include <deque>
#include <random>

#include "gtest/gtest.h"

namespace sanproxy::fabric::tcp {
namespace {

std::vector<std::uint64_t> all_of(CookieRing& ring) {
  std::vector<std::uint64_t> out;
  while (!ring.empty()) out.push_back(ring.pop());
  return out;
}

class Model {
 public:
  Model(SendQueue& queue, unsigned seed) : queue_(queue), random_(seed), payload_(1 << 16) {
    for (std::byte& b : payload_) b = static_cast<std::byte>(random_());
  }

  bool commit() {
    const std::size_t inline_bytes = random_() % 500;
    if (!queue_.has_room(inline_bytes)) return false;
    std::byte* space = queue_.begin();
    const std::size_t used = random_() % (inline_bytes + 1);
    std::vector<iovec> pieces(random_() % (kGatherRefsMax + 1));
    std::uint32_t total = static_cast<std::uint32_t>(used);
    for (iovec& piece : pieces) {
      piece = {payload_.data() + random_() % 1000, 1 + random_() % 5000};
      total += static_cast<std::uint32_t>(piece.iov_len);
    }
    const FrameHeader header =
        FrameHeader::make(FrameKind::kTransfer, next_, total, static_cast<std::uint32_t>(used));
    const auto* bytes = reinterpret_cast<const std::byte*>(&header);
    expected_.insert(expected_.end(), bytes, bytes + sizeof(header));
    for (std::size_t i = 0; i < used; ++i) space[i] = static_cast<std::byte>(next_ + i);
    expected_.insert(expected_.end(), space, space + used);
    for (const iovec& piece : pieces) {
      const auto* from = static_cast<const std::byte*>(piece.iov_base);
      expected_.insert(expected_.end(), from, from + piece.iov_len);
    }
    queue_.commit(header, pieces, next_);
    committed_ += sizeof(header) + total;
    if (!pieces.empty()) cookies_.emplace_back(committed_, next_);
    ++next_;
    return true;
  }
  void write(CookieRing& done) {
    std::array<iovec, 16> pieces;
    const std::size_t most = 1 + random_() % 20'000;
    const std::size_t count = queue_.gather(std::span(pieces).first(1 + random_() % 16), most);
    std::size_t offered = 0;
    for (std::size_t i = 0; i < count; ++i) offered += pieces[i].iov_len;
    ASSERT_LE(offered, most);
    ASSERT_EQ(offered == 0, queue_.empty());
    if (offered == 0) return;
    const std::size_t taken = random_() % 3 == 0 ? offered : random_() % (offered + 1);
    std::size_t left = taken;
    for (std::size_t i = 0; i < count && left != 0; ++i) {
      const std::size_t step = std::min(left, pieces[i].iov_len);
      const auto* from = static_cast<const std::byte*>(pieces[i].iov_base);
      for (std::size_t k = 0; k < step; ++k) {
        ASSERT_EQ(from[k], expected_.front()) << "byte " << written_ + k;
        expected_.pop_front();
      }
      written_ += step;
      left -= step;
    }
    queue_.advance(taken, done);
    for (const std::uint64_t cookie : all_of(done)) {
      ASSERT_FALSE(cookies_.empty());
      EXPECT_EQ(cookie, cookies_.front().second);
      EXPECT_LE(cookies_.front().first, written_) << "before its last byte";
      cookies_.pop_front();
    }
    EXPECT_TRUE(cookies_.empty() || cookies_.front().first > written_);
    EXPECT_EQ(queue_.pending_bytes(), expected_.size());
  }
  void begin_in_vain() {
    if (queue_.has_room(400)) (void)queue_.begin();
  }
  const auto& cookies() const { return cookies_; }

 private:
  SendQueue& queue_;
  std::mt19937 random_;
  std::vector<std::byte> payload_;
  std::deque<std::byte> expected_;
  std::deque<std::pair<std::uint64_t, std::uint64_t>> cookies_;  // the last byte, the cookie
  std::uint64_t next_ = 0;
  std::uint64_t committed_ = 0;
  std::uint64_t written_ = 0;
};

TEST(SendQueue, ComesOutInOrderHoweverItIsWritten) {
  for (unsigned seed = 0; seed < 20; ++seed) {
    auto queue = SendQueue::create(4096);
    ASSERT_TRUE(queue.ok());
    CookieRing done(SendQueue::kReferencesMax);
    Model model(*queue, seed);
    std::mt19937 random(seed);
    for (int step = 0; step < 3000; ++step) {
      switch (random() % 4) {
        case 0:
          while (random() % 4 != 0 && model.commit()) {
          }
          break;
        case 1:
          model.begin_in_vain();
          break;
        default:
          model.write(done);
      }
      if (HasFatalFailure()) return;
    }
    std::vector<std::uint64_t> left;
    for (const auto& [end, cookie] : model.cookies()) left.push_back(cookie);
    queue->abandon(done);
    EXPECT_EQ(all_of(done), left) << "what was not written comes back too";
    EXPECT_TRUE(queue->empty());
  }
}

TEST(SendQueue, SpaceThatWasGivenOutStaysWhileOthersAreWritten) {
  auto queue = SendQueue::create(4096);
  ASSERT_TRUE(queue.ok());
  CookieRing done(8);
  const FrameHeader header = FrameHeader::make(FrameKind::kTransfer, 0, 100, 100);
  (void)queue->begin();
  queue->commit(header, {}, 0);
  std::byte* space = queue->begin();
  std::fill(space, space + 100, std::byte{0x77});
  queue->advance(116, done);
  ASSERT_TRUE(queue->empty());
  queue->commit(header, {}, 0);
  std::array<iovec, 4> pieces;
  ASSERT_EQ(queue->gather(pieces, 4096), 1u);
  EXPECT_EQ(static_cast<std::byte*>(pieces[0].iov_base)[16], std::byte{0x77});
}

TEST(SendQueue, AnEndAlwaysFits) {
  auto queue = SendQueue::create(4096);
  ASSERT_TRUE(queue.ok());
  std::uint64_t sequence = 0;
  while (queue->has_room(0)) {
    (void)queue->begin();
    queue->commit(FrameHeader::make(FrameKind::kTransfer, sequence++, 0, 0), {}, 0);
  }
  queue->commit_end(CloseMark::kProtocol);
  std::array<iovec, 4> pieces;
  ASSERT_EQ(queue->gather(pieces, 8192), 1u);
  EXPECT_LE(pieces[0].iov_len, 4096u);
  FrameHeader last;
  std::memcpy(&last, static_cast<std::byte*>(pieces[0].iov_base) + pieces[0].iov_len - 16, 16);
  EXPECT_EQ(last.kind(), FrameKind::kEnd);
}

}  // namespace
}  // namespace sanproxy::fabric::tcp
