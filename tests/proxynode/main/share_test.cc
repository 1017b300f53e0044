// How the bounds of a host are divided between workers.
#include "proxynode/main/share.h"

#include "tests/proxynode/main/config_fixture.h"

namespace sanproxy::proxy {
namespace {

using testing::kFabric;
using testing::kInterface;
using testing::load;

std::string error_of(const ProxyConfig& config) {
  try {
    (void)count_workers(config, 4);
  } catch (const ConfigError& e) {
    return e.what();
  }
  return {};
}

TEST(Workers, AreAsManyAsCoresUnlessSaidOtherwise) {
  ProxyConfig config = load(kInterface + kFabric);
  EXPECT_EQ(count_workers(config, 1), 1u);
  EXPECT_EQ(count_workers(config, 4), 4u);
  EXPECT_EQ(count_workers(config, 96), 8u);
  config.workers = 3;
  EXPECT_EQ(count_workers(config, 4), 3u);
  config.workers = 1;
  EXPECT_EQ(count_workers(config, 4), 1u);
}

TEST(Workers, AreOneByDefaultWhereTheDriverHasOneQueueAndAnErrorWhereMoreWereAskedFor) {
  ProxyConfig config = load("[[interface]]\ndriver = \"tap\"\nname = \"san0\"\n" + kFabric);
  EXPECT_EQ(count_workers(config, 4), 1u);
  config.workers = 2;
  EXPECT_NE(error_of(config).find("tap"), std::string::npos) << error_of(config);
}

TEST(Workers, AreFewerByDefaultAndAnErrorWhereTheBoundsOfTheHostDoNotDo) {
  ProxyConfig config = load("[proxy]\ningress_pool_bytes = 20000000\n" + kInterface + kFabric);
  EXPECT_EQ(count_workers(config, 4), 2u);
  config.workers = 4;
  EXPECT_NE(error_of(config).find("ingress_pool_bytes"), std::string::npos) << error_of(config);
}

TEST(Workers, OfAMemberOfAClusterAreManyToo) {
  ProxyConfig config =
      load("[proxy]\nname = \"p1\"\n[cluster]\netcd = [\"http://h:1\"]\n" + kInterface + kFabric);
  config.workers = 3;
  EXPECT_EQ(count_workers(config, 4), 3u);
  EXPECT_EQ(share_of(config, 2, 3).worker, 2u);
  EXPECT_EQ(share_of(config, 2, 3).workers, 3u);
}

TEST(Workers, NeedAnAddressEach) {
  ProxyConfig config =
      load(kInterface + "[[fabric]]\nlisten = \"tcp://127.0.0.1:65535\"\nallow = [\"any\"]\n");
  config.workers = 2;
  EXPECT_NE(error_of(config).find("65535"), std::string::npos) << error_of(config);
}

TEST(Workers, OfTwoFabricsMayNotMeetAtOneAddress) {
  const std::string here = "[[fabric]]\nallow = [\"any\"]\nlisten = \"tcp://127.0.0.1:";
  ProxyConfig config = load(kInterface + here + "7471\"\n" + here + "7473\"\n");
  config.workers = 2;
  EXPECT_EQ(error_of(config), "");
  config.workers = 3;
  EXPECT_NE(error_of(config).find("would share tcp://127.0.0.1:7473"), std::string::npos)
      << error_of(config);
}

TEST(Workers, AndTheAdminEndpointMayNotMeetAtOneAddress) {
  const auto error = [](const std::string& fabric, const std::string& admin, std::uint32_t workers,
                        const std::string& interface = kInterface) {
    ProxyConfig config = load(interface + "[[fabric]]\nallow = [\"any\"]\nlisten = \"" + fabric +
                              "\"\n[admin]\nlisten = \"" + admin + "\"\n");
    config.workers = workers;
    return error_of(config);
  };
  EXPECT_EQ(error("tcp://127.0.0.1:9476", "127.0.0.1:9477", 1), "");
  EXPECT_EQ(error("tcp://127.0.0.1:9476", "127.0.0.1:9477", 2),
            "[admin].listen: \"127.0.0.1:9477\" is where worker 1 of tcp://127.0.0.1:9476 listens");
  EXPECT_NE(error("tcp://0.0.0.0:9477", "127.0.0.1:9477", 1), "");
  EXPECT_NE(error("tcp://[::1]:9477", "[::]:9477", 1), "");
  EXPECT_EQ(error("tcp://127.0.0.2:9477", "127.0.0.1:9477", 1), "");
  EXPECT_EQ(error("tcp://[::1]:9477", "127.0.0.1:9477", 1), "");
  EXPECT_EQ(error("verbs://10.9.0.1:9477", "10.9.0.1:9477", 1), "") << "ports of its own";
  EXPECT_NE(error("shm:/tmp/x.sock", "10.9.0.1:7472", 1,
                  "[[interface]]\ndriver = \"channel\"\nlisten = \"tcp://10.9.0.1:7472\"\n"),
            "");
}

TEST(Workers, ShareTheBoundsAndListenBehindTheConfiguredAddress) {
  const ProxyConfig all = load(
      kInterface + kFabric + "[[fabric]]\nlisten = \"tcp://127.0.0.1:7000\"\nallow = [\"any\"]\n");
  const ProxyConfig first = share_of(all, 0, 4);
  const ProxyConfig last = share_of(all, 3, 4);
  EXPECT_EQ(first.fabrics[0].listen, "shm:/tmp/x.sock");
  EXPECT_EQ(last.fabrics[0].listen, "shm:/tmp/x.sock.3");
  EXPECT_EQ(last.fabrics[1].listen, "tcp://127.0.0.1:7003");
  EXPECT_EQ(last.stack.connections_max, all.stack.connections_max / 4);
  EXPECT_EQ(last.stack.heap_bytes_max, all.stack.heap_bytes_max / 4);
  EXPECT_EQ(last.ingress_pool_bytes, all.ingress_pool_bytes / 4);
  EXPECT_EQ(last.egress_pool_bytes, all.egress_pool_bytes / 4);
  EXPECT_EQ(last.tx_records_max, all.tx_records_max / 4);
  EXPECT_EQ(last.stack.fragments.datagrams_max, all.stack.fragments.datagrams_max / 4);
  EXPECT_EQ(last.fabrics[0].credits, all.fabrics[0].credits);
  EXPECT_EQ(last.fabrics[1].credits, 32u);
  EXPECT_EQ(last.nodes_max, all.nodes_max);
  EXPECT_EQ(last.workers, 4u);
  const ProxyConfig only = share_of(all, 0, 1);
  EXPECT_EQ(only.stack.connections_max, all.stack.connections_max);
}

}  // namespace
}  // namespace sanproxy::proxy
