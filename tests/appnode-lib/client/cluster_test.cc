// A Node that is given a cluster instead of proxies.
#include "lwproto/cluster/host.h"
#include "lwproto/cluster/model.h"
#include "tests/appnode-lib/client/fake_proxy.h"
#include "tests/lwproto/cluster/fake_etcd.h"

namespace sanproxy::app::test {
namespace {

struct ClusterTest : Harness {
  cluster::testing::FakeEtcd etcd;
  std::map<std::string, FakeProxy> others;
  std::vector<std::string> news;

  void make_node_of_cluster(std::size_t proxies_max = 0) {
    NodeOptions options;
    options.proxies = {"etcd://" + etcd.url().substr(std::string("http://").size()) + "/c"};
    options.cluster.proxies_max = proxies_max;
    options.on_cluster_news = [this](auto, auto text) { news.emplace_back(text); };
    make_node(options);
    auto joined =
        node_->join("10.77.0.10:80", [this](Request& request) { request.accept(recorder()); });
    ASSERT_TRUE(joined.ok());
    service_ = *joined;
  }
  std::string path(const std::string& name) const { return "shm:" + directory_ + "/" + name; }
  FakeProxy& start(const std::string& name) {
    FakeProxy& proxy = others.try_emplace(name, path(name)).first->second;
    proxy.start();
    return proxy;
  }
  void put(const std::string& name, const std::string& address) {
    cluster::NodeRecord record;
    record.name = name;
    record.host = cluster::host_id();
    record.fabrics = {address};
    etcd.put("/sanproxy/c/node/proxy/" + name, cluster::to_json(record).dump());
  }
  void erase(const std::string& name) { etcd.erase("/sanproxy/c/node/proxy/" + name); }
  [[nodiscard]] bool until(const std::function<bool()>& condition) {
    return pump_until([&] {
      for (auto& [name, proxy] : others) proxy.pump();
      return condition();
    });
  }
  [[nodiscard]] bool joined(std::size_t count) {
    return until([&] { return service_.joined_count() == count; });
  }
};

TEST_F(ClusterTest, ProxiesAreFoundFollowedAndForgotten) {
  proxy_.start();
  put("p1", address_);
  make_node_of_cluster();
  ASSERT_TRUE(joined(1));
  FakeProxy& second = start("second");
  put("p2", path("second"));
  ASSERT_TRUE(joined(2));

  // Gone from etcd: it keeps the channel that it has. (What comes later is seen later.)
  erase("p2");
  start("third");
  put("p3", path("third"));
  ASSERT_TRUE(joined(3));
  EXPECT_TRUE(second.connected());

  // Once that has ended, nobody looks for it any more, and its place serves another.
  second.stop();
  ASSERT_TRUE(joined(2));
  second.start();
  clock_.advance_ns(10 * internal::Link::kRetryMaxNs);
  start("fourth");
  put("p4", path("fourth"));
  ASSERT_TRUE(joined(3));
  EXPECT_FALSE(second.connected());
  EXPECT_EQ(impl_->link_count(), 3u);

  // It comes back.
  put("p2", path("second"));
  ASSERT_TRUE(joined(4));
  EXPECT_TRUE(second.connected());
}

TEST_F(ClusterTest, WithoutEtcdItGoesOnAndCatchesUpLater) {
  proxy_.start();
  put("p1", address_);
  make_node_of_cluster();
  ASSERT_TRUE(joined(1));
  etcd.stop();
  ASSERT_TRUE(
      until([&] { return !news.empty() && news.back().find("going on") != std::string::npos; }));
  // A proxy that starts again meanwhile is found where it was.
  proxy_.stop();
  ASSERT_TRUE(joined(0));
  proxy_.start();
  clock_.advance_ns(10 * internal::Link::kRetryMaxNs);
  ASSERT_TRUE(joined(1));
  const std::uint64_t id = open();
  proxy_.send(id, "hello");
  EXPECT_TRUE(pump_until([&] { return recorders_.back().data == "hello"; }));
  start("second");
  put("p2", path("second"));
  etcd.start();
  ASSERT_TRUE(joined(2));
}

TEST_F(ClusterTest, NoMoreProxiesThanTheBoundAreFollowed) {
  proxy_.start();
  start("second");
  put("p1", address_);
  put("p2", path("second"));
  make_node_of_cluster(1);
  ASSERT_TRUE(joined(1));
  EXPECT_EQ(node_->proxies_left_out(), 1u);
  EXPECT_TRUE(proxy_.connected());
  erase("p1");
  ASSERT_TRUE(joined(2)) << "p1 keeps its channel";
  EXPECT_EQ(node_->proxies_left_out(), 0u);
}

TEST_F(ClusterTest, RecordsThatMakeNoSenseAreToldOf) {
  proxy_.start();
  put("p1", address_);
  put("p2", "pigeon://10.9.0.1:1");
  put("p3", "tcp://0.0.0.0:7471");
  etcd.put("/sanproxy/c/node/proxy/p4", "no JSON");
  make_node_of_cluster();
  ASSERT_TRUE(joined(1));
  ASSERT_TRUE(until([&] { return news.size() >= 3; }));
  std::string all;
  for (const std::string& text : news) all += text + "\n";
  for (const char* part : {"\"p2\"", "\"p3\"", "node/proxy/p4 is refused"}) {
    EXPECT_NE(all.find(part), std::string::npos) << part << " in\n" << all;
  }
  EXPECT_EQ(node_->proxies_left_out(), 2u);
}

}  // namespace
}  // namespace sanproxy::app::test
