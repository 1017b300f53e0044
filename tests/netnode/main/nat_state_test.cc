// Translated sessions outlive an orderly restart, and nothing that a file says is believed unseen.
#include "netnode/main/nat_state.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>

#include "tests/netnode/steer/steer_packets.h"

namespace sanproxy::netnode {
namespace {

using steer::testing::at;
using steer::testing::Bytes;
using steer::testing::flow_of;
using steer::testing::packet_of;
using steer::testing::parsed;
using steer::testing::told;

constexpr const char* kBoot = "11111111-2222-3333-4444-555555555555";

class NatStateTest : public ::testing::Test {
 protected:
  NatStateTest() {
    dir_ = "/tmp/sanproxy-natXXXXXX";
    EXPECT_NE(::mkdtemp(dir_.data()), nullptr);
    path_ = dir_ + "/nat";
    before_ = forwarder({"a", "b"});
  }
  ~NatStateTest() override {
    (void)::unlink(path_.c_str());
    EXPECT_EQ(::rmdir(dir_.c_str()), 0) << "something else was left there";
  }
  static std::unique_ptr<steer::Forwarder> forwarder(const std::vector<std::string>& names,
                                                     std::uint32_t sessions_max = 64,
                                                     const char* target = "10.5.0.1:8080") {
    steer::ForwarderOptions options;
    options.maglev_entries = 101;
    options.flows.flows_max = 1024;
    options.nat.sessions_max = sessions_max;
    options.nat.addresses = {*IpAddress::parse("10.9.9.9"), *IpAddress::parse("fd99::9")};
    auto out = std::make_unique<steer::Forwarder>(options);
    steer::ProxySet set;
    for (const std::string& name : names) {
      steer::ProxyConfig proxy;
      proxy.name = name;
      proxy.mode = steer::Mode::kNat;
      proxy.targets = {at(target), at("[fd05::1]:0")};
      set.proxies.push_back(proxy);
    }
    std::vector<std::uint16_t> gone;
    out->apply(set, gone);
    return out;
  }
  // A packet of client `i`, whose session is with proxy `name`, as the proxy sees it.
  Bytes send(steer::Forwarder& through, const std::string& name, int i, std::uint8_t flags,
             std::uint32_t now_s) const {
    const bool v6 = i % 3 == 0;
    const std::uint8_t protocol = i % 4 == 0 ? net::kProtocolUdp : net::kProtocolTcp;
    Bytes packet = packet_of({.from = at((v6 ? "[fd01::7]:" : "10.1.2.3:") + std::to_string(i)),
                              .to = at(v6 ? "[fd00::10]:80" : "10.0.0.10:80"),
                              .flags = flags,
                              .protocol = protocol});
    const net::ParsedPacket p = parsed(packet);
    EXPECT_EQ(through.nat().to_proxy({std::as_writable_bytes(std::span(packet)), p},
                                     flow_of(packet), through.find(name),
                                     v6 ? at("[fd05::1]:0") : at("10.5.0.1:8080"), now_s),
              steer::NatResult::kOk);
    return packet;
  }
  // Of the proxy, which says something first; as the client sees it.
  static steer::NatResult reply(steer::Forwarder& through, const Bytes& sent, std::uint32_t now_s) {
    const net::FlowKey key = flow_of(sent);
    const net::ParsedPacket q = parsed(sent);
    Bytes packet = packet_of({.from = {q.dst_address(), key.dst_port},
                              .to = {q.src_address(), key.src_port},
                              .protocol = key.protocol});
    const net::ParsedPacket p = parsed(packet);
    return through.nat().to_client({std::as_writable_bytes(std::span(packet)), p}, flow_of(packet),
                                   now_s);
  }
  std::string read() const {
    std::ifstream in(path_, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  void write(const std::string& text) const { std::ofstream(path_, std::ios::binary) << text; }

  std::string dir_, path_;
  std::unique_ptr<steer::Forwarder> before_;
};

TEST_F(NatStateTest, SessionsGoOnWhereTheyWereAndTheProxyMaySpeakFirst) {
  std::vector<Bytes> sent;
  for (int i = 1; i <= 20; ++i) {
    sent.push_back(send(*before_, i % 2 == 0 ? "a" : "b", i, net::kTcpAck, 1'000));
  }
  ASSERT_EQ(save_nat(path_, kBoot, *before_, 1'010).sessions, 20U);
  const auto after = forwarder({"c", "b", "a"});
  const NatStateResult got = load_nat(path_, kBoot, *after, 1'020);
  EXPECT_EQ(got.wrong, "");
  EXPECT_EQ(got.sessions, 20U);
  EXPECT_EQ(got.left_out, 0U);
  EXPECT_EQ(after->sessions_of(after->find("a")), 10U);
  for (const Bytes& packet : sent) {
    EXPECT_EQ(reply(*after, packet, 1'020), steer::NatResult::kOk) << told(packet);
  }
  for (int i = 1; i <= 20; ++i) {
    EXPECT_EQ(send(*after, i % 2 == 0 ? "a" : "b", i, net::kTcpAck, 1'020),
              sent[static_cast<std::size_t>(i - 1)]);
  }
  EXPECT_EQ(after->nat().sessions(), 20U);
  EXPECT_EQ(read(), "") << "it is taken once";
  EXPECT_EQ(load_nat(path_, kBoot, *after, 1'030).wrong, "") << "and its absence is no mistake";
}

TEST_F(NatStateTest, TimersGoOn) {
  const Bytes open = send(*before_, "a", 1, net::kTcpAck, 1'000);
  ASSERT_EQ(reply(*before_, open, 1'000), steer::NatResult::kOk);
  (void)send(*before_, "a", 1, net::kTcpAck, 1'000);  // established
  (void)send(*before_, "a", 2, net::kTcpSyn, 1'100);
  (void)send(*before_, "a", 5, net::kTcpSyn, 1'000);
  ASSERT_EQ(save_nat(path_, kBoot, *before_, 1'200).wrong, "");
  const auto after = forwarder({"a"});
  const NatStateResult got = load_nat(path_, kBoot, *after, 1'300);
  EXPECT_EQ(got.sessions, 2U);
  EXPECT_EQ(got.left_out, 1U) << "its time is over";
  after->age(1'341'000);
  EXPECT_EQ(after->nat().sessions(), 1U) << "the SYN of 1,100";
  after->age(8'440'000);
  EXPECT_EQ(after->nat().sessions(), 1U);
  after->age(8'441'000);
  EXPECT_EQ(after->nat().sessions(), 0U);
}

TEST_F(NatStateTest, WhatIsNoMorePossibleIsLeftOut) {
  for (int i = 1; i <= 20; ++i) (void)send(*before_, i % 2 == 0 ? "a" : "b", i, 2, 1'000);
  ASSERT_EQ(save_nat(path_, kBoot, *before_, 1'000).wrong, "");
  const std::string file = read();
  const auto only_a = forwarder({"a"});
  NatStateResult got = load_nat(path_, kBoot, *only_a, 1'000);
  EXPECT_EQ(got.sessions, 10U);
  EXPECT_EQ(got.left_out, 10U);
  write(file);
  const auto elsewhere = forwarder({"a", "b"}, 64, "10.5.0.2:8080");
  got = load_nat(path_, kBoot, *elsewhere, 1'000);
  EXPECT_EQ(got.sessions, 6U) << "those over IPv6";
  write(file);
  const auto smaller = forwarder({"a", "b"}, 16);
  got = load_nat(path_, kBoot, *smaller, 1'000);
  EXPECT_EQ(got.sessions, 16U);
  EXPECT_EQ(got.left_out, 4U);
}

TEST_F(NatStateTest, AFileThatIsNotWholeOrNotOfThisBootIsNotTaken) {
  for (int i = 1; i <= 3; ++i) (void)send(*before_, "a", i, net::kTcpAck, 1'000);
  ASSERT_EQ(save_nat(path_, kBoot, *before_, 1'000).wrong, "");
  const std::string file = read();
  const auto wrong = [&](const std::string& text, const char* boot = kBoot,
                         std::uint32_t now_s = 1'000) {
    write(text);
    const auto after = forwarder({"a", "b"});
    const NatStateResult got = load_nat(path_, boot, *after, now_s);
    EXPECT_EQ(after->nat().sessions(), got.sessions);
    return got.wrong;
  };
  EXPECT_EQ(wrong(file), "");
  EXPECT_NE(wrong(file, "another"), "");
  EXPECT_NE(wrong(file, ""), "");
  EXPECT_NE(wrong(file, kBoot, 999), "") << "the clock of another boot";
  EXPECT_NE(wrong(file + "x"), "");
  for (std::size_t bytes = 0; bytes < file.size(); ++bytes) {
    ASSERT_NE(wrong(file.substr(0, bytes)), "") << bytes;
    std::string spoiled = file;
    spoiled[bytes] = static_cast<char>(spoiled[bytes] ^ 0x40);
    ASSERT_NE(wrong(spoiled), "") << bytes;
  }
}

TEST_F(NatStateTest, WhetherItCouldBeWrittenIsKnownBefore) {
  std::filesystem::remove(path_);
  EXPECT_EQ(why_unwritable(path_), "");
  EXPECT_FALSE(std::filesystem::exists(path_)) << "nothing is left behind";
  EXPECT_FALSE(std::filesystem::exists(path_ + ".new"));
  std::ofstream(path_) << "kept";
  EXPECT_EQ(why_unwritable(path_), "");
  EXPECT_EQ(std::filesystem::file_size(path_), 4u);
  EXPECT_NE(why_unwritable("/nonexistent/state").find("No such file"), std::string::npos);
  EXPECT_NE(why_unwritable("/tmp").find("Is a directory"), std::string::npos);
}

TEST_F(NatStateTest, WhatCannotBeWrittenIsSaid) {
  EXPECT_EQ(save_nat(dir_ + "/no/such/place", kBoot, *before_, 1).wrong,
            "No such file or directory");
}

}  // namespace
}  // namespace sanproxy::netnode
