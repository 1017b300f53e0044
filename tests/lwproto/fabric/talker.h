// Talker: one end of a random conversation that keeps the rules, and checks that the other end
// and the fabric keep them.
//
// Role: sends `target` transfers of random shape as its credits allow, holds and releases what it
//   gets at random, and knows from the peer's seed what must come. Each transfer begins with a
//   header that carries its number and the credits granted (flow/credit_ledger.h).
// Owner: a test, or the peer program. Thread: that of the endpoint's fabric.
// Checked: order, bytes, receive depth, each cookie once, lent memory unchanged until released,
//   sent memory untouched until its cookie (it is overwritten at once then, so that a fabric that
//   still reads it sends wrong bytes).
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "lwproto/buffer/memory_region.h"
#include "lwproto/fabric/fabric.h"
#include "lwproto/flow/credit_ledger.h"

namespace sanproxy::fabric::test {

struct TalkerPlan {
  std::uint64_t seed = 1;  // of what we send; the peer's is in `peer_seed`
  std::uint64_t peer_seed = 2;
  std::uint32_t depth = 32;  // receive_depth of both sides
  std::uint32_t target = 0;  // transfers with payload that we send
  std::uint32_t peer_target = 0;
  std::uint32_t refs_bytes_max = 65536;
  std::uint32_t inline_bytes_max = 8192;
};

class Talker {
 public:
  explicit Talker(const TalkerPlan& plan);
  ~Talker();
  Talker(const Talker&) = delete;
  Talker& operator=(const Talker&) = delete;

  void start(std::unique_ptr<Endpoint> endpoint);
  // One round of a loop; true when something moved, or would in another round.
  bool round();
  // All is sent, received, given back, and every receive is posted again.
  bool done() const;
  void disconnect() { endpoint_->disconnect(Status::error(Code::kDisconnected, "enough said")); }
  void destroy();  // the endpoint, with what it holds

  // What is wrong, "" if nothing: looked at after every round.
  const std::string& wrong() const { return wrong_; }
  const std::optional<Status>& disconnected() const { return disconnected_; }
  std::uint32_t sent() const { return sent_; }
  std::uint32_t received() const { return received_; }
  std::size_t cookies_out() const { return cookies_out_; }
  const flow::CreditLedger& ledger() const { return ledger_; }
  std::string state() const;
  // What it holds has not changed, also after the end.
  bool held_is_intact() const;

 private:
  struct Header {
    std::uint32_t number;
    std::uint32_t granted;
    std::uint32_t pure;  // 1: nothing but credits
    std::uint32_t magic;
  };
  struct Shape {
    std::uint32_t inline_bytes;  // with the header
    std::vector<std::uint32_t> refs;
  };
  struct Held {
    Loan loan;
    std::vector<Segment> segments;
    std::vector<std::byte> content;
  };
  static Shape shape_of(const TalkerPlan& plan, std::uint64_t seed, std::uint32_t number);
  static std::byte byte_of(std::uint64_t seed, std::uint32_t number, std::size_t at);
  void fail(const std::string& what);
  void take(const Completion& c);
  void take_transfer(const Completion& c);
  void take_cookie(const Completion& c);
  void check_content(const std::vector<std::byte>& content, std::uint32_t number,
                     std::span<const Segment> segments);
  bool send_some();
  bool send_one();
  bool send_pure();
  Header header(std::uint32_t number, bool pure) const;
  static bool intact(const Held& held);
  void release_some();
  void release_one(std::size_t i);

  TalkerPlan plan_;
  std::mt19937_64 random_;
  buffer::MemoryRegion region_;  // outlives the endpoint
  std::unique_ptr<Endpoint> endpoint_;
  RegionKey key_ = 0;
  flow::CreditLedger ledger_;
  std::vector<std::uint64_t> places_;  // of the region: the cookie that is out, or 0
  std::uint64_t next_cookie_ = 1;
  std::size_t cookies_out_ = 0;
  std::vector<Held> held_;
  std::uint32_t sent_ = 0, received_ = 0;
  std::optional<Status> disconnected_;
  std::string wrong_;
};

}  // namespace sanproxy::fabric::test
