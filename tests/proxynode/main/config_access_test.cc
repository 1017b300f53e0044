// Who may join, as the configuration says it.
#include <sys/stat.h>

#include <filesystem>

#include "tests/proxynode/main/config_fixture.h"

namespace sanproxy::proxy::testing {
namespace {

using service::AllowEntry;
using service::AllowList;

AllowEntry entry(const std::string& text) { return *AllowEntry::parse(text); }

class AccessConfig : public ::testing::Test {
 protected:
  AccessConfig() {
    std::string name = "/tmp/sanproxy-keys-XXXXXX";
    EXPECT_NE(::mkdtemp(name.data()), nullptr);
    directory_ = name;
  }
  ~AccessConfig() override { std::filesystem::remove_all(directory_); }

  // A [[key]] section for a new file.
  std::string key(const std::string& name, const std::string& secret = "sixteen bytes or more\n",
                  mode_t mode = 0600) {
    const std::string path = directory_ + "/" + name + ".key";
    std::ofstream(path) << secret;
    EXPECT_EQ(::chmod(path.c_str(), mode), 0);
    return "[[key]]\nname = \"" + name + "\"\nfile = \"" + path + "\"\n";
  }

  std::string directory_;
  const std::string base_ = kInterface + kFabric;  // 5 lines
};

TEST_F(AccessConfig, KeysAreReadFromTheirFiles) {
  const ProxyConfig config = load(base_ + key("web") + key("db", std::string(4096, 'x')));
  ASSERT_EQ(config.keys.size(), 2u);
  EXPECT_EQ(config.keys[0].name(), "web");
  EXPECT_EQ(config.keys[0].secret().size(), 21u);
  EXPECT_EQ(config.keys[1].secret().size(), 4096u);
}

TEST_F(AccessConfig, AKeyThatCannotBeUsedIsAnErrorThatNamesItsFile) {
  const struct {
    std::string section, expected;
  } cases[] = {
      {key("short", "fifteen bytes..\n"), "a key needs at least 16 bytes"},
      {key("long", std::string(4097, 'x')), "a key has at most 4096 bytes"},
      {key("open", "sixteen bytes or more\n", 0644), "open to everybody"},
      {"[[key]]\nname = \"web\"\nfile = \"/nonexistent/web.key\"\n", "cannot be opened"},
      {"[[key]]\nname = \"web\"\nfile = \"" + directory_ + "\"\n", "not a regular file"},
  };
  for (const auto& c : cases) {
    const std::string error = error_of(base_ + c.section);
    EXPECT_EQ(error.rfind(":6: [[key]].file \"/", 0), 0u) << error;
    EXPECT_NE(error.find(c.expected), std::string::npos) << error;
    EXPECT_EQ(error.find("fifteen"), std::string::npos) << "a secret in a text: " << error;
  }
}

TEST_F(AccessConfig, AKeyNeedsANameOfItsOwnAndAFile) {
  EXPECT_EQ(error_of(base_ + key("web") + key("web")), ":10: [[key]].name: \"web\" is there twice");
  EXPECT_EQ(error_of(base_ + "[[key]]\nname = \"web\"\n"), ":6: [[key]] needs \"file\"");
  EXPECT_EQ(error_of(base_ + "[[key]]\nfile = \"/x\"\n"), ":6: [[key]] needs \"name\"");
  for (const char* name : {"", "a b", "a/b", "012345678901234567890123456789012"}) {
    const std::string error = error_of(base_ + "[[key]]\nname = \"" + name + "\"\n");
    EXPECT_EQ(error.rfind(":7: [[key]].name: expected 1 to 32 letters", 0), 0u) << error;
  }
}

TEST_F(AccessConfig, AnAllowListTakesUsersKeysCertificatesAndAnybody) {
  const ProxyConfig config =
      load(base_ + key("web") + "[[service]]\naddress = \"10.77.0.10:80\"\n" +
           "allow = [\"uid:33\", \"key:web\", \"cert:app1.example\", \"any\"]\n");
  EXPECT_EQ(config.services[0].allow, (AllowList{entry("uid:33"), entry("key:web"),
                                                 entry("cert:app1.example"), entry("any")}));
}

TEST_F(AccessConfig, AnEmptyAllowListIsNotTheSameAsNone) {
  const std::string service = base_ + "[[service]]\naddress = \"10.77.0.10:80\"\n";
  EXPECT_EQ(load(service).services[0].allow, std::nullopt);
  EXPECT_EQ(load(service + "allow = []\n").services[0].allow, AllowList{});
  EXPECT_EQ(load(kInterface + kFabric).fabrics[0].allow, service::anybody());
  EXPECT_EQ(load(kInterface + kFabric + "allow = []\n").fabrics[0].allow, AllowList{});
  EXPECT_EQ(load(kInterface + kFabric + "allow = [\"uid:33\"]\n").fabrics[0].allow,
            AllowList{entry("uid:33")});
}

TEST_F(AccessConfig, AnAllowedKeyMustExistWhereverItStandsInTheFile) {
  const std::string list = "allow = [\"key:web\"]\n";
  const std::string service = "[[service]]\naddress = \"10.77.0.10:80\"\n" + list;
  EXPECT_EQ(error_of(base_ + service + key("web")), "");
  EXPECT_EQ(error_of(base_ + service + key("wed")),
            ": [[service]] \"10.77.0.10:80\" allows \"key:web\", but no [[key]] has that name");
  EXPECT_EQ(error_of(base_ + list),
            ": [[fabric]] \"shm:/tmp/x.sock\" allows \"key:web\", but no [[key]] has that name");
}

TEST_F(AccessConfig, AFabricAllowsOnlyWhatCanBeShownThroughIt) {
  const auto tcp = [](const std::string& rest) {
    return kInterface + "[[fabric]]\nlisten = \"tcp://10.0.0.1:1\"\n" + rest;
  };
  EXPECT_EQ(error_of(tcp("allow = [\"uid:33\"]\n")),
            ": [[fabric]] \"tcp://10.0.0.1:1\" allows user ids, which only shm knows");
  EXPECT_EQ(error_of(tcp("allow = [\"cert:app1\"]\n")),
            ": [[fabric]] \"tcp://10.0.0.1:1\" allows certificates, but has no TLS");
  const std::string tls = "certificate = \"c\"\nkey = \"k\"\nca = \"a\"\n";
  EXPECT_EQ(error_of(tcp(tls + "allow = [\"cert:app1\"]\n")), "");
}

TEST_F(AccessConfig, LimitsHaveDefaultsAndRanges) {
  const service::RateLimits defaults = load(base_).limits;
  EXPECT_EQ(defaults.joins.per_s, 1000u);
  EXPECT_EQ(defaults.joins.burst, 4000u);
  EXPECT_EQ(defaults.failures.per_s, 5u);
  EXPECT_EQ(defaults.failures.burst, 50u);
  EXPECT_EQ(defaults.penalty_ms, 5000u);
  EXPECT_EQ(defaults.peers_max, 1024u);
  EXPECT_EQ(load(base_).join_grace_ms, 5000u);
  EXPECT_EQ(load(base_ + "[limits]\njoin_grace_ms = 7\n").join_grace_ms, 7u);
  const service::RateLimits set =
      load(base_ +
           "[limits]\njoins_per_s = 1\njoins_burst = 2\nfailures_per_s = 3\n"
           "failures_burst = 4\npenalty_ms = 0\nmax_peers = 6\n")
          .limits;
  EXPECT_EQ(set.joins.per_s, 1u);
  EXPECT_EQ(set.joins.burst, 2u);
  EXPECT_EQ(set.failures.per_s, 3u);
  EXPECT_EQ(set.failures.burst, 4u);
  EXPECT_EQ(set.penalty_ms, 0u);
  EXPECT_EQ(set.peers_max, 6u);
  for (const char* name :
       {"joins_per_s", "joins_burst", "failures_per_s", "failures_burst", "max_peers"}) {
    EXPECT_EQ(error_of(base_ + "[limits]\n" + name + " = 0\n"),
              ":7: [limits]." + std::string(name) + ": expected an integer from 1 to 1000000");
  }
  EXPECT_NE(error_of(base_ + "[limits]\npenalty_ms = 3600001\n"), "");
  EXPECT_NE(error_of(base_ + "[[limits]]\njoins_per_s = 1\n"), "");
}

}  // namespace
}  // namespace sanproxy::proxy::testing
