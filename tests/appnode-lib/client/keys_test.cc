// A node proves its keys before it joins, and does not join a proxy that cannot prove them back.
#include <sys/stat.h>

#include <cstdlib>
#include <fstream>

#include "tests/appnode-lib/client/fake_proxy.h"

namespace sanproxy::app::test {
namespace {

using AppCode = ::sanproxy::app::CloseCode;
using wire::MessageType;

auth::Key key_of(const std::string& name, const std::string& secret) {
  return auth::Key::create(name, std::as_bytes(std::span(secret))).value();
}

class KeysTest : public Harness {
 protected:
  KeysTest() { unsetenv("SANPROXY_KEY"); }
  ~KeysTest() override { unsetenv("SANPROXY_KEY"); }

  NodeOptions options_with(std::vector<KeyOptions> keys) {
    NodeOptions options;
    options.keys = std::move(keys);
    options.on_key_refused = [this](auto key, auto proxy, AppCode code) {
      EXPECT_EQ(proxy, address_);
      EXPECT_EQ(code, AppCode::kNotPermitted);
      refused_.emplace_back(key);
    };
    options.on_proxy_down = [this](auto, auto why) { downs_.emplace_back(why); };
    return options;
  }
  void join() {
    ASSERT_TRUE(node_->join("10.0.0.1:80", [](Request&) {}).ok());
  }
  std::string file(const std::string& text, mode_t mode = 0600) {
    const std::string path = directory_ + "/web.key";
    std::ofstream(path) << text;
    EXPECT_EQ(::chmod(path.c_str(), mode), 0);
    return path;
  }
  std::vector<MessageType> said() const {
    std::vector<MessageType> out;
    for (const wire::Message& message : proxy_.messages) out.push_back(message.type);
    return out;
  }
  Code create(const NodeOptions& options) {
    NodeOptions with_proxy = options;
    with_proxy.proxies = {address_};
    return Node::create(with_proxy).status().code();
  }

  const auth::Key web_ = key_of("web", "the key of the web servers");
  const auth::Key db_ = key_of("db", "the key of the data bases");
  std::vector<std::string> refused_, downs_;
};

TEST_F(KeysTest, KeysAreProvenBeforeAnythingIsJoined) {
  proxy_.options.keys = {web_, db_};
  proxy_.start();
  make_node(options_with({{.name = "web", .secret = "the key of the web servers"},
                          {.name = "db", .secret = "the key of the data bases"}}));
  join();
  ASSERT_TRUE(pump_until([&] { return proxy_.joins == 1; }));
  EXPECT_EQ(proxy_.proven, (std::vector<std::string>{"web", "db"}));
  EXPECT_EQ(said(), (std::vector{MessageType::kAuthenticate, MessageType::kAuthenticate,
                                 MessageType::kJoinService}));
  EXPECT_TRUE(refused_.empty());
}

TEST_F(KeysTest, NothingIsJoinedNorConnectedWhileAnAnswerIsMissing) {
  proxy_.options.answer_keys = false;
  proxy_.start();
  make_node(options_with({{.name = "web", .secret = "the key of the web servers"}}));
  join();
  ASSERT_TRUE(pump_until([&] { return !proxy_.messages.empty(); }));
  pump_some();
  EXPECT_EQ(said(), std::vector{MessageType::kAuthenticate});
  Recorder& handler = recorder();
  EXPECT_EQ(node_->connect("192.0.2.1:80", handler).status().code(), Code::kDisconnected);
}

TEST_F(KeysTest, ARefusedKeyIsReportedAndTheServiceIsAskedForAllTheSame) {
  proxy_.options.keys = {db_};
  proxy_.start();
  make_node(options_with({{.name = "web", .secret = "the key of the web servers"},
                          {.name = "db", .secret = "the key of the data bases"}}));
  join();
  ASSERT_TRUE(pump_until([&] { return proxy_.joins == 1; }));
  EXPECT_EQ(refused_, std::vector<std::string>{"web"});
  EXPECT_EQ(proxy_.proven, std::vector<std::string>{"db"});
}

TEST_F(KeysTest, AProxyWithAWrongProofIsNotJoined) {
  const auth::Key other = key_of("web", "what the impostor has instead");
  proxy_.options.impostor_key = &other;
  proxy_.start();
  make_node(options_with({{.name = "web", .secret = "the key of the web servers"}}));
  join();
  ASSERT_TRUE(pump_until([&] { return !downs_.empty(); }));
  EXPECT_EQ(downs_[0], "the proxy does not have our key: its proof is wrong");
  EXPECT_EQ(proxy_.joins, 0u);
  EXPECT_TRUE(refused_.empty());
}

TEST_F(KeysTest, AnAnswerForAnotherKeyOrToNothingEndsTheChannel) {
  proxy_.options.impostor_key = &db_;  // with its own name
  proxy_.start();
  make_node(options_with({{.name = "web", .secret = "the key of the web servers"}}));
  join();
  ASSERT_TRUE(pump_until([&] { return !downs_.empty(); }));
  EXPECT_EQ(downs_[0], "the proxy answered for another key than it was asked for");
  ASSERT_TRUE(pump_until([&] { return proxy_.closed_code == wire::CloseCode::kNotPermitted; }));
  proxy_.options = {};
  proxy_.options.keys = {web_};
  clock_.advance_ns(internal::Link::kRetryMaxNs);
  ASSERT_TRUE(pump_until([&] { return proxy_.joins == 1; }));
  wire::AuthenticateBody again{};
  again.request = 2;
  again.key_name[0] = 'x';
  ASSERT_TRUE(proxy_.channel()
                  .send_control(MessageType::kAuthenticate, wire::kFlagAnswer,
                                wire::CloseCode::kNone, again)
                  .ok());
  ASSERT_TRUE(pump_until([&] { return downs_.size() == 2; }));
  EXPECT_EQ(downs_[1], "protocol_error");
}

TEST_F(KeysTest, AfterALostProxyTheKeysAreProvenAnewWithAFreshNonce) {
  proxy_.options.keys = {web_};
  proxy_.start();
  make_node(options_with({{.name = "web", .secret = "the key of the web servers"}}));
  join();
  ASSERT_TRUE(pump_until([&] { return proxy_.joins == 1; }));
  const wire::HelloBody first = proxy_.channel().peer_hello();
  proxy_.stop();
  ASSERT_TRUE(pump_until([&] { return !downs_.empty(); }));
  proxy_.start();
  clock_.advance_ns(internal::Link::kRetryMaxNs);
  ASSERT_TRUE(pump_until([&] { return proxy_.joins == 2; }));
  EXPECT_EQ(proxy_.proven.size(), 2u);
  const wire::HelloBody second = proxy_.channel().peer_hello();
  EXPECT_EQ(first.epoch, second.epoch) << "the same node";
  EXPECT_NE(std::memcmp(first.nonce, second.nonce, sizeof(first.nonce)), 0);
}

TEST_F(KeysTest, AKeyThatMetALimitIsProvenAgainBeforeAnythingIsJoined) {
  proxy_.options.keys = {web_, db_};
  proxy_.options.key_limit = 1;  // the first is refused
  proxy_.start();
  NodeOptions options = options_with({{.name = "web", .secret = "the key of the web servers"},
                                      {.name = "db", .secret = "the key of the data bases"}});
  options.on_key_refused = [this](auto key, auto, AppCode code) {
    EXPECT_EQ(code, AppCode::kLimitReached);
    refused_.emplace_back(key);
  };
  make_node(options);
  join();
  ASSERT_TRUE(pump_until([&] { return !refused_.empty() && proxy_.proven.size() == 1; }));
  pump_some();
  EXPECT_EQ(proxy_.joins, 0u);
  clock_.advance_ns(internal::Link::kAskAgainFirstNs);
  ASSERT_TRUE(pump_until([&] { return proxy_.joins == 1; }));
  EXPECT_EQ(proxy_.proven, (std::vector<std::string>{"db", "web", "db"}));
  EXPECT_EQ(refused_, std::vector<std::string>{"web"});
}

TEST_F(KeysTest, KeysComeFromFilesOrFromTheEnvironment) {
  proxy_.options.keys = {web_};
  proxy_.start();
  const std::string path = file("the key of the web servers\n");
  setenv("SANPROXY_KEY", ("web:" + path).c_str(), 1);
  make_node(options_with({}));
  join();
  ASSERT_TRUE(pump_until([&] { return proxy_.joins == 1; }));
  EXPECT_EQ(proxy_.proven, std::vector<std::string>{"web"});
  impl_.reset();
  proxy_.stop();
  setenv("SANPROXY_KEY", "nonsense", 1);  // options stand before the environment
  proxy_.start();
  make_node(options_with({{.name = "web", .file = path}}));
  join();
  ASSERT_TRUE(pump_until([&] { return proxy_.proven.size() == 2; }));
}

TEST_F(KeysTest, ImpossibleKeysAreRefusedWithAReason) {
  NodeOptions options;
  const std::string good(16, 'k');
  EXPECT_EQ(create(options_with({{.name = "web", .secret = good}})), Code::kOk);
  EXPECT_EQ(create(options_with({{.name = "web", .secret = "short"}})), Code::kInvalidArgument);
  EXPECT_EQ(create(options_with({{.name = "a b", .secret = good}})), Code::kInvalidArgument);
  EXPECT_EQ(create(options_with({{.name = "web"}})), Code::kInvalidArgument);
  EXPECT_EQ(create(options_with({{.name = "web", .file = "/x", .secret = good}})),
            Code::kInvalidArgument);
  EXPECT_EQ(create(options_with({{.name = "web", .file = "/nonexistent/key"}})), Code::kSystem);
  EXPECT_EQ(create(options_with({{.name = "web", .file = file(good, 0644)}})), Code::kPermission);
  EXPECT_EQ(
      create(options_with({{.name = "web", .secret = good}, {.name = "web", .secret = good}})),
      Code::kExists);
  std::vector<KeyOptions> many;
  for (int i = 0; i < 9; ++i) many.push_back({.name = "k" + std::to_string(i), .secret = good});
  EXPECT_EQ(create(options_with(many)), Code::kInvalidArgument);
  for (const char* text : {"web", "web:", ":/x", "web:/nonexistent/key"}) {
    setenv("SANPROXY_KEY", text, 1);
    EXPECT_NE(create({}), Code::kOk) << text;
  }
}

}  // namespace
}  // namespace sanproxy::app::test
