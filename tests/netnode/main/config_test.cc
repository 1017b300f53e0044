#include "netnode/main/config.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <fstream>
#include <vector>

namespace sanproxy::netnode {
namespace {

// What load_config() makes of a file: its error, or nothing.
std::string error_of(const std::string& text, NetnodeConfig* out = nullptr) {
  std::string name = "/tmp/sanproxy-netnode-XXXXXX";
  const int fd = ::mkstemp(name.data());
  EXPECT_GE(fd, 0);
  ::close(fd);
  std::ofstream(name) << text;
  std::string error;
  try {
    NetnodeConfig config = load_config(name);
    if (out != nullptr) *out = config;
  } catch (const daemon::ConfigError& e) {
    error = e.what();
  }
  std::remove(name.c_str());
  return error;
}

constexpr const char* kInterface = "[[interface]]\ndriver = \"tun\"\nname = \"nn0\"\n";

TEST(NetnodeConfig, TheSampleIsRight) {
  const NetnodeConfig config = load_config(SANPROXY_SOURCE_DIR "/deploy/netnode.toml");
  EXPECT_EQ(config.set.proxies.size(), 2U);
  EXPECT_EQ(config.set.proxies[0].mode, steer::Mode::kChannel);
  EXPECT_EQ(config.set.proxies[1].mode, steer::Mode::kNat);
  EXPECT_EQ(config.set.proxies[1].targets[0].to_string(), "10.66.1.2:80");
  EXPECT_EQ(config.set.services.size(), 2U);
  EXPECT_EQ(config.forwarder.nat.addresses.size(), 2U);
}

TEST(NetnodeConfig, DefaultsAreThoseOfTheDocument) {
  NetnodeConfig config;
  ASSERT_EQ(error_of(kInterface, &config), "");
  EXPECT_EQ(config.forwarder.maglev_entries, 65'537U);
  EXPECT_EQ(config.forwarder.flows.flows_max, 1'000'000U);
  EXPECT_EQ(config.forwarder.nat.established_s, 7'440U);
  EXPECT_EQ(config.forwarder.nat.transitory_s, 240U);
  EXPECT_EQ(config.buffers, 1024U);
  EXPECT_EQ(config.admin_listen, "127.0.0.1:9478");
}

TEST(NetnodeConfig, AProxyTakesAllItsKeys) {
  NetnodeConfig config;
  const std::string text = std::string(kInterface) + R"(
[nat]
addresses = ["10.9.9.9", "fd99::9"]
[[proxy]]
name = "a"
id = 7
weight = 30
mode = "nat"
addresses = ["10.5.0.1", "[fd05::1]:81"]
probe = "http"
probe_address = "10.5.0.1:80"
probe_path = "/up"
probe_rise = 4
clamp_mss = 1300
)";
  ASSERT_EQ(error_of(text, &config), "");
  const steer::ProxyConfig& proxy = config.set.proxies[0];
  EXPECT_EQ(proxy.id, 7);
  EXPECT_EQ(proxy.targets[0].port, 0);
  EXPECT_EQ(proxy.targets[1].port, 81);
  EXPECT_EQ(proxy.probe.kind, steer::ProbeKind::kHttp);
  EXPECT_EQ(proxy.probe.rise, 4U);
  EXPECT_EQ(proxy.clamp_mss, 1300);
}

TEST(NetnodeConfig, WhetherAWeightIsSaidIsKnown) {
  NetnodeConfig config;
  ASSERT_EQ(error_of(std::string(kInterface) + R"(
[[proxy]]
name = "a"
mode = "channel"
address = "shm:/run/a"
weight = 1
[[proxy]]
name = "b"
mode = "channel"
address = "tcp://10.0.0.1:7471"
)",
                     &config),
            "");
  EXPECT_TRUE(config.set.proxies[0].weight_said);
  EXPECT_FALSE(config.set.proxies[1].weight_said);
}

TEST(NetnodeConfig, AKeyThatMeansNothingForItsProxyIsRefused) {
  constexpr const char* kChannel = "mode = \"channel\"\naddress = \"shm:/run/a\"\n";
  constexpr const char* kNat = "mode = \"nat\"\naddress = \"10.0.0.1:80\"\n";
  constexpr const char* kTunnel = "mode = \"tunnel\"\naddress = \"10.0.0.1\"\n";
  for (const auto& [proxy, key, says] : std::vector<std::array<std::string, 3>>{
           {kChannel, "tunnel = \"gue\"", "tunnel is for mode \"tunnel\" alone"},
           {kNat, "gue_port = 6081", "gue_port is for tunnel \"gue\" alone"},
           {kTunnel, "gue_port = 6081", "gue_port is for tunnel \"gue\" alone"},
           {kNat, "probe_interval_ms = 50", "probe_interval_ms is for a proxy with a probe"},
           {kNat, "probe = \"none\"\nprobe_fall = 2", "probe_fall is for a proxy with a probe"},
           {kNat, "probe = \"tcp\"\nprobe_path = \"/\"", "probe_path is for probe \"http\""}}) {
    const std::string error =
        error_of(kInterface + ("[[proxy]]\nname = \"a\"\n" + proxy + key + "\n"));
    EXPECT_NE(error.find(":4: [[proxy]]: " + says), std::string::npos) << key << " said " << error;
  }
}

TEST(NetnodeConfig, AServiceThatNobodyCanServeIsRefusedAndOneThatSomeCannotServeIsWarnedOf) {
  const std::string nat = std::string(kInterface) +
                          "[nat]\naddresses = [\"10.9.9.9\"]\n[[proxy]]\nname = \"server\"\n"
                          "mode = \"nat\"\naddress = \"10.0.0.1:80\"\n";
  const std::string channel =
      "[[proxy]]\nname = \"proxy\"\nmode = \"channel\"\naddress = \"shm:/run/a\"\n";
  const std::string v6 = "[[service]]\naddress = \"[fd00::10]:80\"\n";
  const std::string udp = "[[service]]\naddress = \"10.0.0.10:53\"\nprotocol = \"udp\"\n";
  EXPECT_NE(error_of(nat + v6).find("service [fd00::10]:80: 1 of its proxies cannot serve it"),
            std::string::npos);
  EXPECT_NE(error_of(kInterface + channel + udp).find("a channel carries TCP alone"),
            std::string::npos);
  EXPECT_NE(error_of(nat + channel + udp + "proxies = [\"proxy\"]\n").find("TCP alone"),
            std::string::npos);
  NetnodeConfig config;
  ASSERT_EQ(error_of(nat + channel + udp + v6, &config), "");
  const auto told = warnings(config);
  ASSERT_EQ(told.size(), 2U);
  EXPECT_EQ(told[0],
            "service 10.0.0.10:53 (udp): 1 of its proxies cannot serve it, such as \"proxy\": a "
            "channel carries TCP alone");
  EXPECT_NE(told[1].find("such as \"server\": it has no address of that family"),
            std::string::npos);
  // A cluster may tell of others.
  ASSERT_EQ(error_of(nat + v6 + "[cluster]\netcd = [\"http://127.0.0.1:2379\"]\n", &config), "");
  EXPECT_EQ(warnings(config).size(), 1U);
}

TEST(NetnodeConfig, AServerMayHaveTheAddressThatATunDeviceGivesItsHost) {
  const std::string interface =
      "[[interface]]\ndriver = \"tun\"\nname = \"nn1\"\naddresses = [\"10.8.0.1/24\"]\n";
  const std::string proxy =
      "[nat]\naddresses = [\"10.8.0.100\"]\n[[proxy]]\nname = \"a\"\nmode = \"nat\"\n"
      "address = \"10.8.0.1:80\"\n";
  EXPECT_EQ(error_of(interface + proxy), "");
}

TEST(NetnodeConfig, WhatTheKernelCannotCarryIsAnErrorOnlyWhereItMust) {
  const std::string nat = "[nat]\naddresses = [\"10.9.9.9\"]\n";
  const std::string tap = "[[interface]]\ndriver = \"tap\"\nname = \"nn0\"\n";
  NetnodeConfig config;
  ASSERT_EQ(error_of(kInterface + nat, &config), "");
  EXPECT_EQ(config.nat_in_kernel, InKernel::kAuto);
  EXPECT_EQ(not_in_kernel(config), "");
  EXPECT_EQ(error_of(kInterface + nat + "established_s = 40\nin_kernel = \"yes\"\n"), "");
  for (const std::string& text : {tap + nat, kInterface + nat + "established_s = 39\n",
                                  std::string(kInterface) + "[nat]\n"}) {
    ASSERT_EQ(error_of(text, &config), "") << text;
    EXPECT_NE(not_in_kernel(config), "") << text;
    EXPECT_EQ(error_of(text + "in_kernel = \"no\"\n"), "") << text;
    EXPECT_NE(error_of(text + "in_kernel = \"yes\"\n").find(not_in_kernel(config)),
              std::string::npos)
        << text;
  }
  EXPECT_NE(error_of(kInterface + nat + "in_kernel = true\n").find("in_kernel"), std::string::npos);
  EXPECT_NE(error_of(kInterface + nat + "in_kernel = \"perhaps\"\n").find("in_kernel"),
            std::string::npos);
}

TEST(NetnodeConfig, EveryMistakeIsAnErrorThatSaysWhatWasExpected) {
  struct Case {
    const char* text;
    const char* says;
  };
  for (const Case& c : {
           Case{"[wrong]\n", "unknown section \"wrong\""},
           Case{"[node]\nnam = \"x\"\n", "unknown key \"nam\""},
           Case{"[node]\nmaglev_entries = 65536\n", "prime"},
           Case{"[node]\nmax_flows = 0\n", "from 1024"},
           Case{"[node]\nmax_flows = \"many\"\n", "an integer"},
           Case{"[[interface]]\nname = \"x\"\n", "needs \"driver\""},
           Case{"[[interface]]\ndriver = \"token-ring\"\n", "expected one of"},
           Case{"[[interface]]\ndriver = \"tun\"\nname = \"nn0\"\n", "\"nn0\" is there twice"},
           Case{"[[interface]]\ndriver = \"tun\"\nname = \"twenty_characters_of_\"\n",
                "expected 1 to 15 characters"},
           Case{"[[service]]\n", "needs \"address\""},
           Case{"[[service]]\naddress = \"10.0.0.1:80\"\nprotocol = \"sctp\"\n", "expected one of"},
           Case{"[[service]]\naddress = \"10.0.0.1:80\"\nproxies = [\"x\"]\n", "no proxy \"x\""},
           Case{"[[proxy]]\nname = \"a\"\n", "needs \"mode\""},
           Case{"[[proxy]]\nname = \"a\"\nmode = \"nat\"\n", "needs \"address\""},
           Case{"[[proxy]]\nname = \"a\"\nmode = \"nat\"\naddress = \"here\"\n", "IP or IP:PORT"},
           Case{"[[proxy]]\nname = \"a\"\nmode = \"nat\"\naddress = \"10.0.0.1\"\n",
                "[nat] needs an address"},
           Case{"[[proxy]]\nname = \"a\"\nmode = \"tunnel\"\naddress = \"fd00::1\"\n",
                "[tunnel] needs an address"},
           Case{"[[proxy]]\nname = \"a\"\nmode = \"channel\"\naddresses = [\"shm:/a\", "
                "\"shm:/b\"]\n",
                "one address"},
           Case{"[[proxy]]\nname = \"a\"\nid = 1024\n", "from 0 to 1023"},
           Case{"[[proxy]]\nname = \"a\"\nprobe_path = \"x\"\n", "expected a path"},
           Case{"[[proxy]]\nname = \"a\"\nmode = \"channel\"\naddress = \"10.0.0.1:7\"\n",
                "channel \"10.0.0.1:7\": the fabric is one of"},
           Case{"[[proxy]]\nname = \"a\"\nmode = \"channel\"\naddress = \"shm:run/a\"\n",
                "ABSOLUTE"},
           Case{"[[proxy]]\nname = \"a\"\nmode = \"channel\"\naddress = \"tcp://0.0.0.0:7\"\n",
                "nobody can connect"},
           Case{"[[proxy]]\nname = \"a\"\nmode = \"channel\"\naddress = \"tcp://10.0.0.1:0\"\n",
                "needs a port"},
           Case{"[tunnel]\naddresses = [\"10.0.0.1\", \"10.0.0.2\"]\n", "one address a family"},
           Case{"[tunnel]\naddresses = [\"::\"]\n", "nobody's address"},
           Case{"[tunnel]\naddresses = [\"10.0.0.1\"]\n[[proxy]]\nname = \"a\"\nmode = "
                "\"tunnel\"\naddress = \"10.0.0.9:80\"\n",
                "without a port"},
           Case{"[tunnel]\naddresses = [\"10.0.0.1\"]\n[[proxy]]\nname = \"a\"\nmode = "
                "\"tunnel\"\naddress = \"fd00::9\"\n",
                "[tunnel] needs an address of the family of fd00::9"},
           Case{"[node]\nmax_icmp_errors_per_s = 0\n", "from 1"},
           Case{"[[service]]\naddress = \"0.0.0.0:80\"\n", "every address"},
           Case{"[[service]]\naddress = \"224.0.0.1:80\"\n", "a group's address"},
           Case{"[[service]]\naddress = \"[ff02::1]:80\"\n", "a group's address"},
           Case{"[nat]\naddresses = [\"10.9.9.9\"]\n[[service]]\naddress = \"10.9.9.9:80\"\n",
                "[nat] has its address"},
           Case{"[nat]\naddresses = [\"10.9.9.9\"]\n[[proxy]]\nname = \"a\"\nmode = "
                "\"nat\"\naddress = \"10.9.9.9:80\"\n",
                "10.9.9.9 is our own address"},
           Case{"addresses = [\"10.0.0.1/24\"]\n[tunnel]\naddresses = [\"10.0.0.2\"]\n"
                "[[proxy]]\nname = \"a\"\nmode = \"tunnel\"\naddress = \"10.0.0.1\"\n",
                "10.0.0.1 is our own address"},
           Case{"[[interface]]\ndriver = \"packet\"\nname = \"eth9\"\naddresses = "
                "[\"10.7.0.1/24\"]\n[nat]\naddresses = [\"10.9.9.9\"]\n[[proxy]]\nname = "
                "\"a\"\nmode = \"nat\"\naddress = \"10.7.0.1:80\"\n",
                "10.7.0.1 is our own address"},
           Case{"[[interface]]\ndriver = \"tap\"\nname = \"nn9\"\naddresses = "
                "[\"10.7.0.1/24\"]\n[nat]\n"
                "addresses = [\"10.7.0.1\"]\n",
                "10.7.0.1 is the host's own"},
           Case{"[nat]\naddresses = [\"10.9.9.9\"]\n[[service]]\naddress = \"10.0.0.10:80\"\n"
                "[[proxy]]\nname = \"a\"\nmode = \"nat\"\naddress = \"10.0.0.10:81\"\n",
                "it is the address of proxy \"a\""},
           Case{"[node]\nmaglev_entries = 3\n[nat]\naddresses = [\"10.9.9.9\"]\n"
                "[[proxy]]\nname = \"a\"\nmode = \"nat\"\naddress = \"10.0.0.1\"\n"
                "[[proxy]]\nname = \"b\"\nmode = \"nat\"\naddress = \"10.0.0.2\"\n"
                "[[proxy]]\nname = \"c\"\nmode = \"nat\"\naddress = \"10.0.0.3\"\n"
                "[[proxy]]\nname = \"d\"\nmode = \"nat\"\naddress = \"10.0.0.4\"\n",
                "more proxies than entries"},
           Case{"[nat]\nport_min = 5\nport_max = 4\n", "port_min"},
           Case{"[channel]\nkey = \"k\"\n", "all three"},
           Case{"[channel]\nproxy_name = \"p\"\n", "needs TLS"},
           Case{"[admin]\nlisten = \"everywhere\"\n", "IP:PORT"},
           Case{"[admin]\nlisten = \"127.0.0.1:0\"\n", "needs a port"},
           Case{"[node]\nname = \"a\\u001bb\"\n", "printable UTF-8"},
       }) {
    const std::string error = error_of(std::string(kInterface) + c.text);
    EXPECT_NE(error.find(c.says), std::string::npos) << c.text << "said: " << error;
  }
  EXPECT_NE(error_of("").find("at least one [[interface]]"), std::string::npos);
}

}  // namespace
}  // namespace sanproxy::netnode
