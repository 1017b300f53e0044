// Rule 6 of fabric.h at every point of one exchange: whoever ends it, however, nothing is lost of
// what must come back.
#include <set>

#include "tests/lwproto/fabric/conformance_fixture.h"

namespace sanproxy::fabric::test {
namespace {

const Status kEnough = Status::error(Code::kDisconnected, "enough");

enum class Way { kClientDisconnects, kServerDisconnects, kClientDies, kServerDies, kBoth, kBreach };
constexpr Way kWays[] = {Way::kClientDisconnects,
                         Way::kServerDisconnects,
                         Way::kClientDies,
                         Way::kServerDies,
                         Way::kBoth,
                         Way::kBreach};

class Exchange : public Conformance {
 protected:
  using Step = std::function<void()>;

  void prepare() {
    start(one_seed());
    client_cookies_ = server_cookies_ = 0;
    EndpointOptions with = options(16);
    connect_pair(with);
    if (HasFatalFailure()) return;
    while (regions_.size() < 2) {
      regions_.push_back(make_region(128 * 1024));
      fill(regions_.back(), 5);
    }
    client_key_ = attach(client_, regions_[0]);
    server_key_ = attach(server_, regions_[1]);
  }
  void queue_from(Side& side, std::size_t inline_bytes, unsigned refs, std::uint32_t length) {
    const bool client = &side == &client_;
    std::vector<GatherRef> list;
    for (unsigned i = 0; i < refs; ++i) {
      list.push_back({client ? client_key_ : server_key_, length, i * 9000ull});
    }
    std::uint64_t& cookies = client ? client_cookies_ : server_cookies_;
    EXPECT_TRUE(queue(side, pattern(inline_bytes, 1), list, cookies).ok());
    if (refs != 0) ++cookies;
  }
  void wait_received(Side& side, std::size_t count) {
    EXPECT_TRUE(run_until([&] { return side.received.size() >= count; }));
  }
  void wait_sent(Side& side, std::size_t count) {
    EXPECT_TRUE(run_until([&] { return side.sent.size() >= count; }));
  }
  std::vector<Step> script() {
    return {
        [&] { queue_from(client_, 100, 0, 0); },
        [&] { client_.endpoint->flush(); },
        [&] { wait_received(server_, 1); },
        [&] { queue_from(client_, 10, 1, 4000); },
        [&] { queue_from(client_, 10, 3, 2000); },
        [&] { client_.endpoint->publish(); },
        [&] { client_.endpoint->flush(); },
        [&] { wait_received(server_, 3); },
        [&] { queue_from(server_, 0, 7, 9000); },
        [&] { server_.endpoint->flush(); },
        [&] { queue_from(client_, 8192, 7, 9000); },
        [&] { wait_received(client_, 1); },
        [&] { server_.release(server_.received[2]); },
        [&] { server_.endpoint->flush(); },
        [&] { wait_sent(client_, 1); },
        [&] { server_.endpoint->replenish(); },
        [&] { client_.endpoint->flush(); },
        [&] { server_.endpoint->flush(); },
        [&] { wait_received(server_, 4); },
        [&] { (void)client_.endpoint->begin_send(500); },
        [&] { client_.release(client_.received[0]); },
        [&] { client_.endpoint->replenish(); },
        [&] { client_.endpoint->flush(); },
        [&] { wait_sent(server_, 1); },
        [&] { server_.release_all(); },
        [&] { server_.endpoint->flush(); },
        [&] { wait_sent(client_, 3); },
    };
  }
  static void die(Side& side) {
    side.release_all();
    side.endpoint.reset();
  }
  void end(Way way) {
    switch (way) {
      case Way::kClientDisconnects:
        return client_.endpoint->disconnect(kEnough);
      case Way::kServerDisconnects:
        return server_.endpoint->disconnect(kEnough);
      case Way::kClientDies:
        return die(client_);
      case Way::kServerDies:
        return die(server_);
      case Way::kBoth:
        client_.endpoint->disconnect(kEnough);
        return server_.endpoint->disconnect(kEnough);
      case Way::kBreach:  // more than the receives that are posted
        for (int i = 0; i < 17 && !client_.disconnected; ++i) (void)send(client_, pattern(9, 1));
    }
  }
  void expect_ended(Side& side, std::uint64_t cookies, Code code) {
    if (!side.endpoint) return;
    std::set<std::uint64_t> seen;
    for (const auto& [cookie, status] : side.sent) {
      EXPECT_TRUE(seen.insert(cookie).second) << "cookie " << cookie << " came twice";
      EXPECT_LT(cookie, cookies);
    }
    EXPECT_EQ(seen.size(), cookies);
    EXPECT_EQ(side.disconnected->code(), code) << side.disconnected->to_string();
    EXPECT_EQ(side.poll(), 0u);
    EXPECT_EQ(side.completions_after_disconnected, 0);
    EXPECT_EQ(side.endpoint->begin_send(1).status().code(), Code::kDisconnected);
    for (const Received& r : side.received) EXPECT_TRUE(r.loan == kNoLoan || r.intact());
    side.release_all();
    side.endpoint->flush();
  }
  void run(std::size_t steps, Way way) {
    prepare();
    if (HasFatalFailure()) return;
    const std::vector<Step> all = script();
    for (std::size_t i = 0; i < steps; ++i) {
      all[i]();
      if (HasFailure()) return;
    }
    end(way);
    ASSERT_TRUE(run_until([&] {
      return (!client_.endpoint || client_.disconnected) &&
             (!server_.endpoint || server_.disconnected);
    }));
    const Code code = way == Way::kBreach ? Code::kProtocol : Code::kDisconnected;
    expect_ended(client_, client_cookies_, code);
    expect_ended(server_, server_cookies_, code);
  }

  RegionKey client_key_ = 0;
  RegionKey server_key_ = 0;
  std::uint64_t client_cookies_ = 0;
  std::uint64_t server_cookies_ = 0;
};
INSTANTIATE_TEST_SUITE_P(Fabrics, Exchange, testing::ValuesIn(fabrics_under_test()), fabric_name);

TEST_P(Exchange, ThatEndsAfterEachOfItsStepsGivesEverythingBack) {
  const std::size_t steps = script().size();
  // A fabric that is another's twin takes some of the cases, and each step and each way.
  const unsigned stride = GetParam().stride;
  unsigned skipped = 0;
  for (std::size_t k = 0; k <= steps; ++k) {
    for (const Way way : kWays) {
      if (skipped++ % stride != 0) continue;
      SCOPED_TRACE("after step " + std::to_string(k) + ", way " +
                   std::to_string(static_cast<int>(way)));
      run(k, way);
      if (HasFailure()) return;
    }
  }
}

}  // namespace
}  // namespace sanproxy::fabric::test
