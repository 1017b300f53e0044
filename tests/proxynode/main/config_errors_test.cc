// A bad file is answered with its line and what was expected there.
#include <cctype>

#include "tests/proxynode/main/config_fixture.h"

namespace sanproxy::proxy::testing {
namespace {

struct BadFile {
  const char* name;
  std::string text;
  int line;  // 0: none
  std::string expected;
};

const std::string kGood = kInterface + kFabric;           // 5 lines
const std::string kProxy = kGood + "[proxy]\n";           // the next line is 7
const std::string kMoreInterface = kFabric + kInterface;  // likewise 6
const std::string kMoreFabric = kInterface + kFabric;     // likewise 6
const std::string kService = kGood + "[[service]]\naddress = \"10.0.0.1:80\"\n";  // likewise 8
const std::string kChannel = "[[interface]]\ndriver = \"channel\"\nlisten = \"shm:/tmp/";
const std::string kAdmin = kGood + "[admin]\n";  // likewise 7

std::string many_members(int count) {
  std::string out = "\"http://h:1\"";
  for (int i = 1; i < count; ++i) out += ", \"http://h:1\"";
  return out;
}

const BadFile kBadFiles[] = {
    {"an_unknown_section", kGood + "[proxi]\n", 6, "unknown section \"proxi\""},
    {"a_key_outside_of_sections", "name = \"x\"\n" + kGood, 1, "unknown section \"name\""},
    {"an_unknown_proxy_key", kProxy + "max_conections = 5\n", 7,
     "unknown key \"max_conections\" in [proxy]; known: at_max_connections, channel_region_bytes"},
    {"an_unknown_interface_key", kMoreInterface + "mtuu = 1500\n", 6,
     "unknown key \"mtuu\" in [[interface]]; known: addresses, advertise, allow, ca, certificate, "
     "credits, decapsulate_from, driver, gateways, gue_port, key, listen, "
     "max_further_queue_pairs, max_handshakes, max_joined, max_nodes, max_queue_pairs, "
     "max_queue_pairs_per_s, max_streams, "
     "max_tls_handshakes_per_s, max_total_window_bytes, max_window_bytes, mtu, name, "
     "segmentation_offload"},
    {"an_unknown_fabric_key", kMoreFabric + "depth = 5\n", 6,
     "unknown key \"depth\" in [[fabric]]; known: advertise, allow, ca, certificate, "
     "channel_region_bytes, "
     "credits, dead_after_ms, "
     "key, listen, "
     "max_further_queue_pairs, max_handshakes, "
     "max_nodes, max_queue_pairs, max_queue_pairs_per_s, max_references, max_streams, "
     "max_tls_handshakes_per_s, "
     "max_total_window_bytes, max_window_bytes, trust"},
    {"an_unknown_service_key", kService + "name = \"x\"\n", 8,
     "unknown key \"name\" in [[service]]; known: address, allow, balance, binding"},
    {"an_unknown_health_key", kService + "health = { request = \"x\", path = 5 }\n", 8,
     "unknown key \"path\" in [[service]].health; known: expect, fall, interval_ms, request, rise, "
     "timeout_ms"},
    {"a_health_check_that_asks_nothing", kService + "health = { expect = \"200\" }\n", 8,
     "[[service]].health needs \"request\""},
    {"an_empty_health_request", kService + "health = { request = \"\" }\n", 8,
     "[[service]].health.request: expected 1 to 1024 bytes"},
    {"a_health_answer_of_two_lines",
     kService + "health = { request = \"x\", expect = \"a\\nb\" }\n", 8,
     "[[service]].health.expect: expected at most 256 bytes of one line"},
    {"a_health_check_that_is_no_table", kService + "health = \"GET /\"\n", 8,
     "[[service]].health: expected a table"},
    {"an_impossible_heartbeat", kGood + "[heartbeat]\nfall = 0\n", 7,
     "[heartbeat].fall: expected an integer from 1 to 100"},
    {"an_unknown_admin_key", kAdmin + "port = 1\n", 7,
     "unknown key \"port\" in [admin]; known: changes_from, listen"},
    {"a_wrong_weight", kService + "weights = { web = 0 }\n", 8,
     "[[service]].weights: expected a table of integers from 1 to 65535"},
    {"an_impossible_prefix_of_changes", kAdmin + "changes_from = [\"here\"]\n", 7,
     "[admin].changes_from: expected ADDRESS/BITS, not \"here\""},
    {"a_cluster_without_etcd", kGood + "[cluster]\nname = \"x\"\n", 6, "[cluster] needs \"etcd\""},
    {"an_impossible_etcd", kGood + "[cluster]\netcd = [\"127.0.0.1:2379\"]\n", 7,
     "[cluster].etcd: expected http://HOST:PORT or https://HOST:PORT, not \"127.0.0.1:2379\""},
    {"an_impossible_port_of_etcd", kGood + "[cluster]\netcd = [\"http://h:99999\"]\n", 7,
     "[cluster].etcd: expected http://HOST:PORT or https://HOST:PORT, not \"http://h:99999\""},
    {"too_many_members_of_etcd", kGood + "[cluster]\netcd = [" + many_members(17) + "]\n", 7,
     "[cluster].etcd: more than 16 members"},
    {"an_impossible_cluster_name", kGood + "[cluster]\nname = \"a b\"\n", 7,
     "[cluster].name: expected 1 to 64 letters"},
    {"a_cluster_password_that_is_not_there", kGood + "[cluster]\npassword_file = \"/nowhere/x\"\n",
     7, "[cluster].password_file: \"/nowhere/x\" cannot be read"},
    {"a_proxy_name_that_is_no_key",
     kGood + "[proxy]\nname = \"a b\"\n[cluster]\netcd = [\"http://h:1\"]\n", 0,
     "[proxy].name: in a cluster"},
    {"a_name_in_a_cluster_that_is_a_workers",
     kGood + "[proxy]\nname = \"p1.w1\"\n[cluster]\netcd = [\"http://h:1\"]\n", 0,
     "[proxy].name: in a cluster, 1 to 60 letters"},
    {"a_table_where_a_list_is_wanted", kFabric + "[interface]\ndriver = \"tun\"\n", 3,
     "expected [[interface]], a list of tables"},
    {"a_list_where_a_table_is_wanted", kGood + "[[proxy]]\n", 6, "expected a table [proxy]"},
    {"a_list_of_numbers_as_fabrics", "fabric = [1]\n" + kInterface, 1,
     "expected [[fabric]], a list of tables"},
    {"no_interface", kFabric, 0, "needs at least one [[interface]]"},
    {"no_fabric", kInterface, 0, "needs at least one [[fabric]]"},
    {"an_empty_file", "", 0, "needs at least one [[interface]]"},
    {"an_interface_without_driver", kFabric + "[[interface]]\nname = \"x\"\n", 3,
     "[[interface]] needs \"driver\""},
    {"an_interface_without_name", kFabric + "[[interface]]\ndriver = \"tun\"\n", 3,
     "[[interface]] needs \"name\""},
    {"a_fabric_without_listen", kInterface + "[[fabric]]\ncredits = 64\n", 4,
     "[[fabric]] needs \"listen\""},
    {"a_service_without_address", kGood + "[[service]]\nbalance = \"weighted\"\n", 6,
     "[[service]] needs \"address\""},
    {"a_text_for_a_number", kProxy + "max_nodes = \"many\"\n", 7,
     "[proxy].max_nodes: expected an integer from 1 to 65536"},
    {"a_fraction_for_a_number", kProxy + "max_nodes = 1.5\n", 7,
     "[proxy].max_nodes: expected an integer from 1 to 65536"},
    {"a_number_for_a_text", kProxy + "name = 5\n", 7, "[proxy].name: expected a string"},
    {"a_number_for_a_flag", kProxy + "spin = 1\n", 7, "[proxy].spin: expected true or false"},
    {"a_text_for_a_list", kMoreInterface + "addresses = \"10.0.0.1/24\"\n", 6,
     "[[interface]].addresses: expected a list of strings"},
    {"a_number_in_a_list_of_texts", kMoreInterface + "addresses = [\n\"10.0.0.1/24\",\n5]\n", 8,
     "[[interface]].addresses: expected a list of strings"},
    {"a_negative_number", kProxy + "drain_ms = -1\n", 7,
     "[proxy].drain_ms: expected an integer from 0 to 86400000"},
    {"a_number_too_large", kProxy + "max_connections = 16_777_217\n", 7,
     "[proxy].max_connections: expected an integer from 1 to 16773120"},
    {"a_number_that_would_wrap", kProxy + "keepalive_idle_ms = 4_294_967_296\n", 7,
     "[proxy].keepalive_idle_ms: expected an integer from 0 to 4294967295"},
    {"an_empty_name", kProxy + "name = \"\"\n", 7,
     "[proxy].name: expected 1 to 64 bytes of printable UTF-8"},
    {"a_long_name", kProxy + "name = \"" + std::string(65, 'x') + "\"\n", 7,
     "[proxy].name: expected 1 to 64 bytes of printable UTF-8"},
    {"an_unknown_log_level", kProxy + "log_level = \"loud\"\n", 7,
     "[proxy].log_level: expected one of \"debug\", \"info\", \"warning\", \"error\", not "
     "\"loud\""},
    {"an_unknown_refusal", kProxy + "at_max_connections = \"wait\"\n", 7,
     "[proxy].at_max_connections: expected one of \"reset\", \"drop\", not \"wait\""},
    {"an_unknown_driver", kFabric + "[[interface]]\nname = \"x\"\ndriver = \"dpdk\"\n", 5,
     "[[interface]].driver: expected one of \"tun\", \"tap\", \"packet\", "
     "\"xdp\", \"channel\", not \"dpdk\""},
    {"a_channel_without_a_listener", kFabric + "[[interface]]\ndriver = \"channel\"\n", 3,
     "[[interface]] needs \"listen\""},
    {"a_listener_without_a_channel", kMoreInterface + "listen = \"shm:/tmp/x\"\n", 3,
     "[[interface]]: listen is for driver \"channel\" alone"},
    {"a_channel_with_addresses",
     kFabric + "[[interface]]\ndriver = \"channel\"\nlisten = \"shm:/tmp/x\"\naddresses = []\n", 3,
     "[[interface]]: addresses is not for driver \"channel\""},
    {"a_tun_with_gateways", kMoreInterface + "gateways = [\"10.0.0.1\"]\n", 3,
     "[[interface]]: gateways is not for driver \"tun\""},
    {"an_xdp_with_offload",
     kFabric + "[[interface]]\ndriver = \"xdp\"\nname = \"x\"\nsegmentation_offload = true\n", 3,
     "[[interface]]: segmentation_offload is not for driver \"xdp\""},
    {"an_xdp_where_tunnels_end",
     kFabric + "[[interface]]\ndriver = \"xdp\"\nname = \"x\"\ndecapsulate_from = [\"10.0.0.1\"]\n",
     3, "[[interface]]: decapsulate_from is not for driver \"xdp\""},
    {"a_channel_that_allows_a_key",
     kFabric +
         "[[interface]]\ndriver = \"channel\"\nlisten = \"shm:/tmp/x\"\nallow = [\"key:web\"]\n",
     3, "[[interface]]: allow: network nodes prove no keys"},
    {"a_channel_over_shm_with_streams",
     kFabric + "[[interface]]\ndriver = \"channel\"\nlisten = \"shm:/tmp/x\"\nmax_streams = 2\n", 3,
     "[[interface]]: max_streams is for tcp, not for shm"},
    {"a_fabric_over_tcp_with_queue_pairs",
     kInterface + "[[fabric]]\nlisten = \"tcp://10.0.0.1:1\"\nmax_queue_pairs = 2\n", 4,
     "[[fabric]]: max_queue_pairs is for verbs, not for tcp"},
    {"more_queue_pairs_than_a_channel_has",
     kInterface + "[[fabric]]\nlisten = \"verbs://10.0.0.1:1\"\nmax_queue_pairs = 65\n", 6,
     "[[fabric]].max_queue_pairs: expected an integer from 1 to 64"},
    {"queue_pairs_that_no_handshake_has_room_for",
     kInterface + "[[fabric]]\nlisten = \"verbs://10.0.0.1:1\"\nmax_further_queue_pairs = 62\n", 4,
     "[[fabric]]: max_further_queue_pairs is too small for the handshake of one channel"},
    {"a_proxy_id_too_large", kProxy + "id = 1024\n", 7,
     "[proxy].id: expected an integer from 1 to 1023"},
    {"a_device_name_too_long",
     kFabric + "[[interface]]\ndriver = \"tun\"\nname = \"sixteen_letters_\"\n", 5,
     "[[interface]].name: expected 1 to 15 characters"},
    {"a_device_name_with_a_slash", kFabric + "[[interface]]\ndriver = \"tun\"\nname = \"a/b\"\n", 5,
     "[[interface]].name: expected 1 to 15 characters without '/', ':', '%' and spaces, not "
     "\"a/b\""},
    {"a_device_name_that_the_kernel_would_fill_in",
     kFabric + "[[interface]]\ndriver = \"tun\"\nname = \"san%d\"\n", 5,
     "[[interface]].name: expected 1 to 15 characters without '/', ':', '%' and spaces, not "
     "\"san%d\""},
    {"a_device_name_that_is_another_to_the_kernel",
     kFabric + "[[interface]]\ndriver = \"tun\"\nname = \"\\u0000\"\n", 5,
     "[[interface]].name: expected 1 to 15 characters without '/', ':', '%' and spaces"},
    {"a_device_name_that_nobody_can_type",
     kFabric + "[[interface]]\ndriver = \"tun\"\nname = \"a\\u001b\"\n", 5,
     "[[interface]].name: expected 1 to 15 characters without '/', ':', '%' and spaces"},
    {"a_device_twice", kGood + kInterface, 6, "[[interface]].name: \"san0\" is there twice"},
    {"two_channels_without_names", kFabric + kChannel + "a\"\n" + kChannel + "b\"\n", 6,
     "[[interface]].name: \"channel\" is there twice"},
    {"two_fabrics_at_one_place", kGood + kFabric, 0,
     "[[fabric]].listen: \"shm:/tmp/x.sock\" is there twice"},
    {"a_channel_where_a_fabric_is", kFabric + kChannel + "x.sock\"\n", 0,
     "[[interface]].listen: \"shm:/tmp/x.sock\" is there twice"},
    {"an_mtu_too_small_for_ipv6", kMoreInterface + "mtu = 1279\n", 6,
     "[[interface]].mtu: expected an integer from 1280 to 65521"},
    {"an_address_without_length", kMoreInterface + "addresses = [\"10.0.0.1\"]\n", 6,
     "[[interface]].addresses: expected ADDRESS/BITS, not \"10.0.0.1\""},
    {"an_address_in_the_third_line",
     kMoreInterface + "addresses = [\"10.0.0.1/24\",\n\n\"x/24\"]\n", 8,
     "[[interface]].addresses: expected ADDRESS/BITS, not \"x/24\""},
    {"a_gateway_with_length", kMoreInterface + "gateways = [\"10.0.0.1/24\"]\n", 6,
     "[[interface]].gateways: expected an IP address, not \"10.0.0.1/24\""},
    {"a_fabric_of_another_kind", kInterface + "[[fabric]]\nlisten = \"udp:1\"\n", 5,
     "[[fabric]].listen: expected shm:/PATH, verbs://IP:PORT or tcp://IP:PORT, not \"udp:1\""},
    {"a_fabric_with_a_relative_path", kInterface + "[[fabric]]\nlisten = \"shm:x.sock\"\n", 5,
     "[[fabric]].listen: expected shm:/PATH, verbs://IP:PORT or tcp://IP:PORT, not "
     "\"shm:x.sock\""},
    {"a_fabric_without_port", kInterface + "[[fabric]]\nlisten = \"tcp://10.0.0.1\"\n", 5,
     "[[fabric]].listen: expected shm:/PATH, verbs://IP:PORT or tcp://IP:PORT"},
    {"trust_where_nobody_sees_others",
     kInterface + "[[fabric]]\nlisten = \"tcp://10.0.0.1:1\"\ntrust = \"shared\"\n", 4,
     "[[fabric]]: trust is for shm, not for tcp"},
    {"a_node_limit_of_shm", kMoreFabric + "max_nodes = 5\n", 4,
     "[[fabric]]: max_nodes is for verbs and tcp, not for shm"},
    {"tls_over_verbs", kInterface + "[[fabric]]\nlisten = \"verbs://10.0.0.1:1\"\nkey = \"k\"\n", 4,
     "[[fabric]]: key is for tcp, not for verbs"},
    {"half_of_tls",
     kInterface + "[[fabric]]\nlisten = \"tcp://10.0.0.1:1\"\ncertificate = \"c\"\nca = \"a\"\n", 4,
     "[[fabric]]: TLS needs certificate, key and ca, all three"},
    {"an_unknown_trust", kMoreFabric + "trust = \"full\"\n", 6,
     "[[fabric]].trust: expected one of \"isolated\", \"shared\", not \"full\""},
    {"too_few_credits", kMoreFabric + "credits = 31\n", 6,
     "[[fabric]].credits: expected an integer from 32 to 65536"},
    {"too_many_references", kMoreFabric + "max_references = 16385\n", 6,
     "[[fabric]].max_references: expected an integer from 1024 to 16384"},
    {"references_over_tcp",
     kInterface + "[[fabric]]\nlisten = \"tcp://10.0.0.1:1\"\nmax_references = 2000\n", 4,
     "[[fabric]]: max_references is for shm, not for tcp"},
    {"a_service_without_port", kGood + "[[service]]\naddress = \"10.0.0.1\"\n", 7,
     "[[service]].address: expected IP:PORT, not \"10.0.0.1\""},
    {"a_service_at_port_0", kGood + "[[service]]\naddress = \"10.0.0.1:0\"\n", 7,
     "[[service]].address: \"10.0.0.1:0\" needs a port from 1 on"},
    {"a_service_that_nobody_may_join", kGood + "[[service]]\naddress = \"224.0.0.1:80\"\n", 7,
     "[[service]].address: \"224.0.0.1:80\" is the address of no host: nobody may join it"},
    {"a_service_twice",
     kService + "[[service]]\nbalance = \"weighted\"\naddress = "
                "\"10.0.0.1:80\"\n",
     10, "[[service]].address: \"10.0.0.1:80\" is there twice"},
    {"an_unknown_balance", kService + "balance = \"random\"\n", 8,
     "[[service]].balance: expected one of \"round-robin\", \"weighted\", \"least-connections\", "
     "not \"random\""},
    {"an_unknown_binding", kService + "binding = \"lazy\"\n", 8,
     "[[service]].binding: expected one of \"immediate\", \"delayed\", not \"lazy\""},
    {"an_allowed_user_by_name", kService + "allow = [\"uid:www\"]\n", 8,
     "[[service]].allow: expected \"any\", \"uid:NUMBER\", \"key:NAME\" or \"cert:NAME\", not "
     "\"uid:www\""},
    {"an_allowed_user_too_large", kService + "allow = [\"uid:4294967296\"]\n", 8,
     "[[service]].allow: expected \"any\", \"uid:NUMBER\""},
    {"an_allowed_user_beyond_all_bounds",
     kService + "allow = [\"uid:99999999999999999999999999\"]\n", 8,
     "[[service]].allow: expected \"any\", \"uid:NUMBER\""},
    {"an_allowed_user_with_a_tail", kService + "allow = [\"uid:33 \"]\n", 8,
     "[[service]].allow: expected \"any\", \"uid:NUMBER\""},
    {"an_allowed_user_without_number", kService + "allow = [\"uid:\"]\n", 8,
     "[[service]].allow: expected \"any\", \"uid:NUMBER\""},
    {"an_allowed_user_below_zero", kService + "allow = [\"uid:-1\"]\n", 8,
     "[[service]].allow: expected \"any\", \"uid:NUMBER\""},
    {"an_admin_address_without_port", kAdmin + "listen = \"localhost\"\n", 7,
     "[admin].listen: expected IP:PORT or nothing, not \"localhost\""},
    {"an_admin_address_whose_port_nobody_could_know", kAdmin + "listen = \"127.0.0.1:0\"\n", 7,
     "[admin].listen: \"127.0.0.1:0\" needs a port from 1 on"},
    {"a_fabric_whose_port_nobody_could_know",
     kInterface + "[[fabric]]\nlisten = \"tcp://127.0.0.1:0\"\n", 5,
     "[[fabric]].listen: \"tcp://127.0.0.1:0\" needs a port from 1 on"},
    {"a_name_that_would_forge_lines_of_the_log", kProxy + "name = \"a\\nb\"\n", 7,
     "[proxy].name: expected 1 to 64 bytes of printable UTF-8"},
};

class BadConfig : public ::testing::TestWithParam<BadFile> {};

TEST_P(BadConfig, IsAnsweredWithLineAndExpectation) {
  const std::string where =
      GetParam().line == 0 ? ": " : ":" + std::to_string(GetParam().line) + ": ";
  const std::string error = error_of(GetParam().text);
  EXPECT_EQ(error.rfind(where + GetParam().expected, 0), 0u)
      << "got      " << error << "\nexpected " << where << GetParam().expected;
}

INSTANTIATE_TEST_SUITE_P(ConfigError, BadConfig, ::testing::ValuesIn(kBadFiles),
                         [](const auto& param) { return std::string(param.param.name); });

TEST(ConfigError, BadTomlIsAnsweredWithItsLine) {
  EXPECT_EQ(error_of(kGood + "[proxy]\nname = \n").rfind(":7: ", 0), 0u);
  EXPECT_EQ(error_of(kGood + "[proxy\n").rfind(":6: ", 0), 0u);
  EXPECT_EQ(error_of("[proxy]\nspin = true\nspin = false\n" + kGood).rfind(":3: ", 0), 0u);
}

// A part for each dot or bracket on the stack of whoever frees it.
TEST(ConfigError, WhatIsNestedTooDeeplyIsAnsweredWithItsLine) {
  const auto repeated = [](const std::string& what) {
    std::string text;
    for (int i = 0; i < 50'000; ++i) text += what;
    return text;
  };
  const std::string why = "a key of more than 32 parts";
  for (const std::string& parts :
       {repeated("a."), repeated("\"a.#\\\"\" . "), repeated("'a\"' .")}) {
    EXPECT_EQ(error_of(kGood + "[proxy]\n" + parts + "a = 1\n"), ":7: " + why);
    EXPECT_EQ(error_of(kGood + "[" + parts + "a]\n"), ":6: " + why);
    EXPECT_EQ(error_of(kGood + "[proxy]\nname = { " + parts + "a = 1 }\n"), ":7: " + why);
    EXPECT_EQ(error_of(kGood + "[proxy]\n# 'it' \"\nname = '''\n'' '''''\n[" + parts + "a]\n"),
              ":10: " + why);
  }
  for (const char* value : {"[", "{ a = "}) {
    EXPECT_EQ(error_of(kGood + "[proxy]\nname = " + repeated(value)).rfind(":7: ", 0), 0u);
  }
}

TEST(ConfigError, DotsThatAreNoPartsOfAKeyAreNotCounted) {
  const std::string dots(1000, '.');
  std::string prefixes;
  for (int i = 0; i < 40; ++i) prefixes += i % 2 == 0 ? "'10.0.0.0/8', " : "\"10.0.0.0/8\", ";
  EXPECT_EQ(error_of(kGood + "# " + dots + "\n[admin] # " + dots + "\nchanges_from = [" + prefixes +
                     "]\n"),
            "");
  for (const char* quote : {"'", "\"", "'''", "\"\"\""}) {
    EXPECT_EQ(error_of(kGood + "[proxy]\nname = " + quote + dots + quote + "\n"),
              ":7: [proxy].name: expected 1 to 64 bytes of printable UTF-8");
  }
}

TEST(ConfigError, AFileThatNeverEndsIsNotReadToTheEnd) {
  try {
    (void)load_config("/dev/zero");
    FAIL() << "it loaded";
  } catch (const ConfigError& e) {
    EXPECT_EQ(std::string(e.what()), "/dev/zero: is longer than 16 MB");
  }
}

TEST(ConfigError, AFileThatIsNotThereIsNamed) {
  try {
    (void)load_config("/nonexistent/proxynode.toml");
    FAIL() << "it loaded";
  } catch (const ConfigError& e) {
    EXPECT_EQ(std::string(e.what()).rfind("/nonexistent/proxynode.toml: ", 0), 0u) << e.what();
  }
}

TEST(ConfigError, AFolderIsNoFile) {
  try {
    (void)load_config("/tmp");
    FAIL() << "it loaded";
  } catch (const ConfigError& e) {
    EXPECT_EQ(std::string(e.what()), "/tmp: is a directory");
  }
}

TEST(ConfigError, AUserIdIsNothingButDigits) {
  for (const char* uid : {"uid: 33", "uid:+33", "uid:-18446744073709551583"}) {
    EXPECT_NE(error_of(kService + "allow = [\"" + uid + "\"]\n"), "") << uid;
  }
}

TEST(ConfigError, EveryNumberIsRefusedJustOutsideItsRangeAndTakenAtItsEnds) {
  struct Range {
    const char* key;
    std::uint64_t min, max;
  };
  constexpr std::uint64_t kTiB = std::uint64_t{1} << 40;
  constexpr std::uint64_t kU32 = 0xffff'ffffu;
  for (const Range& range : {Range{"max_connections", 1, (1u << 24) - 4096},
                             {"max_half_open", 1, 1u << 24},
                             {"max_time_wait", 0, 1u << 24},
                             {"max_fragmented_datagrams", 0, 65'536},
                             {"fragment_timeout_ms", 1000, 120'000},
                             {"max_nodes", 1, 65'536},
                             {"max_services", 1, 1'000'000},
                             {"max_tx_records", 1024, 1u << 28},
                             {"receive_window_bytes", 65'536, 4u << 20},
                             {"send_window_bytes", 65'536, 4u << 20},
                             {"tcp_memory_bytes", 1u << 20, kTiB},
                             {"ingress_pool_bytes", 8u << 20, kTiB},
                             {"egress_pool_bytes", 65'536, kTiB},
                             {"channel_region_bytes", 1u << 20, kTiB},
                             {"max_lent_regions", 0, 16'384},
                             {"max_lent_ms", 500, 60'000},
                             {"time_wait_ms", 0, 600'000},
                             {"keepalive_idle_ms", 0, kU32},
                             {"keepalive_interval_ms", 1000, kU32},
                             {"keepalive_probes", 1, 100},
                             {"fin_wait_2_ms", 1000, kU32},
                             {"orphan_ms", 1000, kU32},
                             {"initial_rto_ms", 100, 60'000},
                             {"min_rto_ms", 40, 10'000},
                             {"drain_ms", 0, 86'400'000}}) {
    const auto with = [&](std::int64_t value) {
      return kProxy + range.key + " = " + std::to_string(value) + "\n";
    };
    const std::string expected = ":7: [proxy]." + std::string(range.key) +
                                 ": expected an integer from " + std::to_string(range.min) +
                                 " to " + std::to_string(range.max);
    const auto min = static_cast<std::int64_t>(range.min);
    const auto max = static_cast<std::int64_t>(range.max);
    EXPECT_EQ(error_of(with(min)), "");
    EXPECT_EQ(error_of(with(max)), "");
    EXPECT_EQ(error_of(with(min - 1)), expected);
    EXPECT_EQ(error_of(with(max + 1)), expected);
    EXPECT_EQ(error_of(with(INT64_MIN)), expected);
    EXPECT_EQ(error_of(with(INT64_MAX)), expected);
  }
}

}  // namespace
}  // namespace sanproxy::proxy::testing
