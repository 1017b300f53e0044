// Nodes prove that they have keys, and may then join what asks for them; or not.
#include <algorithm>
#include <cstring>

#include "tests/proxynode/translate/world.h"

namespace sanproxy::translate::testing {
namespace {

using service::AllowEntry;
using service::AllowList;

auth::Key key_of(std::string_view name, std::string_view secret) {
  return auth::Key::create(name, std::as_bytes(std::span(secret.data(), secret.size()))).value();
}

class Authenticate : public World {
 protected:
  Authenticate() {
    options.translator.keys = {web, db};
    options.translator.clock = &clock_;
    options.policies = {policy(kWeb, {"key:web", "uid:33"})};
  }
  static service::Policy policy(const std::string& where,
                                std::initializer_list<const char*> allow) {
    service::Policy out{.address = *SocketAddress::parse(where), .allow = AllowList{}};
    for (const char* text : allow) out.allow->push_back(*AllowEntry::parse(text));
    return out;
  }
  // The answer to the AUTHENTICATE that was just said.
  wire::Message answer(Node& node) {
    const std::size_t before = node.answers.size();
    run();
    EXPECT_EQ(node.answers.size(), before + 1);
    if (node.answers.size() == before) return {};
    EXPECT_EQ(node.answers.back().type, MessageType::kAuthenticate);
    EXPECT_EQ(node.answers.back().flags, wire::kFlagAnswer);
    return node.answers.back();
  }
  CloseCode prove(Node& node, const auth::Key& key) {
    node.authenticate(key);
    return answer(node).code;
  }
  CloseCode join(Node& node, const std::string& where = kWeb) {
    node.join(where);
    run();
    EXPECT_EQ(node.answers.back().type, MessageType::kJoinService);
    return node.answers.back().code;
  }

  const auth::Key web = key_of("web", "the key of the web servers");
  const auth::Key db = key_of("db", "the key of the data bases");
  const auth::Key guessed = key_of("web", "guessed by somebody else");
  const auth::Key unknown = key_of("mail", "the key of the web servers");
  WorldOptions options;
};

TEST_F(Authenticate, WhoHasTheKeyMayJoin) {
  make(options);
  Node& node = add_node();
  EXPECT_EQ(join(node), CloseCode::kNotPermitted);
  EXPECT_EQ(prove(node, web), CloseCode::kNone);
  EXPECT_EQ(join(node), CloseCode::kNone);
  EXPECT_TRUE(add_client().connected);
  EXPECT_EQ(counters().proofs, 1u);
  EXPECT_EQ(counters().joins, 1u);
  EXPECT_EQ(counters().joins_refused, 1u);
  EXPECT_EQ(counters().joins_not_permitted, 1u);
}

TEST_F(Authenticate, TheProxyProvesThatItHasTheKeyToo) {
  make(options);
  Node& node = add_node();
  const std::uint32_t request = node.authenticate(web);
  const wire::AuthenticateBody body = answer(node).authenticate;
  EXPECT_EQ(body.request, request);
  EXPECT_EQ(wire::key_name_of(body), "web");
  EXPECT_EQ(auth::proof_of(body), node.proof(web, auth::Prover::kProxy));
}

TEST_F(Authenticate, AWrongProofIsRefusedAndTellsNothing) {
  make(options);
  Node& node = add_node();
  node.authenticate(guessed);
  const wire::Message wrong = answer(node);
  EXPECT_EQ(wrong.code, CloseCode::kNotPermitted);
  EXPECT_EQ(auth::proof_of(wrong.authenticate), auth::Proof{});
  node.authenticate(unknown);
  EXPECT_EQ(answer(node).code, wrong.code) << "an unknown key looks like a wrong one";
  EXPECT_EQ(prove(node, db), CloseCode::kNone);
  EXPECT_EQ(join(node), CloseCode::kNotPermitted) << "another key than the one asked for";
  EXPECT_EQ(counters().proofs_not_permitted, 2u);
  EXPECT_TRUE(node.alive()) << "the channel goes on";
}

TEST_F(Authenticate, EveryBitOfAProofCounts) {
  options.translator.limits.failures = {1'000'000, 1'000'000};
  make(options);
  Node& node = add_node();
  for (std::size_t bit = 0; bit < 8 * wire::kProofBytes; ++bit) {
    auth::Proof proof = node.proof(web);
    proof[bit / 8] = static_cast<std::uint8_t>(proof[bit / 8] ^ 1u << bit % 8);
    node.authenticate(auth::authenticate_body(1, web, proof));
    ASSERT_EQ(answer(node).code, CloseCode::kNotPermitted) << bit;
  }
  EXPECT_EQ(join(node), CloseCode::kNotPermitted);
  EXPECT_EQ(prove(node, web), CloseCode::kNone);
}

TEST_F(Authenticate, AProofOfAnotherChannelIsRefused) {
  make(options);
  Node& honest = add_node({.name = "honest"});
  const wire::AuthenticateBody recorded = auth::authenticate_body(1, web, honest.proof(web));
  honest.authenticate(recorded);
  EXPECT_EQ(answer(honest).code, CloseCode::kNone);
  // The thief says the honest node's HELLO word for word, nonce and all; the proxy's is fresh.
  NodeOptions same{.name = "honest"};
  same.hello = honest.hello();
  Node& thief = add_node(same);
  EXPECT_EQ(std::memcmp(&thief.hello(), &honest.hello(), sizeof(wire::HelloBody)), 0);
  thief.authenticate(recorded);
  EXPECT_EQ(answer(thief).code, CloseCode::kNotPermitted);
  EXPECT_EQ(join(thief), CloseCode::kNotPermitted);
}

TEST_F(Authenticate, TheProxysOwnProofIsNoneOfTheApplications) {
  make(options);
  Node& node = add_node();
  node.authenticate(auth::authenticate_body(1, web, node.proof(web, auth::Prover::kProxy)));
  EXPECT_EQ(answer(node).code, CloseCode::kNotPermitted);
}

TEST_F(Authenticate, WhatOneChannelHasProvenHoldsForNoOther) {
  make(options);
  Node& first = add_node({.name = "first"});
  EXPECT_EQ(prove(first, web), CloseCode::kNone);
  Node& second = add_node({.name = "second"});
  EXPECT_EQ(join(second), CloseCode::kNotPermitted);
}

TEST_F(Authenticate, WithoutKeysEveryProofIsRefused) {
  options.translator.keys.clear();
  options.policies.clear();
  make(options);
  Node& node = add_node();
  EXPECT_EQ(prove(node, web), CloseCode::kNotPermitted);
  EXPECT_EQ(join(node), CloseCode::kNone) << "which nothing asks for";
}

TEST_F(Authenticate, ANodeMayProveEightKeysAndEachAgain) {
  options.translator.keys.clear();
  for (int i = 0; i < 9; ++i) {
    options.translator.keys.push_back(key_of("k" + std::to_string(i), std::string(16, 'k')));
  }
  make(options);
  Node& node = add_node();
  const auto& keys = options.translator.keys;
  for (int i = 0; i < 8; ++i) EXPECT_EQ(prove(node, keys[i]), CloseCode::kNone) << i;
  EXPECT_EQ(prove(node, keys[8]), CloseCode::kLimitReached);
  EXPECT_EQ(prove(node, keys[0]), CloseCode::kNone);
  EXPECT_EQ(node_in_proxy("node")->who.keys.size(), 8u);
  EXPECT_EQ(counters().proofs_limited, 1u);
}

TEST_F(Authenticate, UserAndCertificateCountWithoutAnyKey) {
  options.policies.push_back(policy("10.77.0.10:81", {"cert:app1.example"}));
  make(options);
  EXPECT_EQ(join(add_node({.name = "www", .uid = 33})), CloseCode::kNone);
  Node& certified = add_node({.name = "tls", .certificate_name = "app1.example"});
  EXPECT_EQ(join(certified, "10.77.0.10:81"), CloseCode::kNone);
  EXPECT_EQ(join(certified), CloseCode::kNotPermitted);
  Node& other = add_node({.name = "other", .certificate_name = "app2.example"});
  EXPECT_EQ(join(other, "10.77.0.10:81"), CloseCode::kNotPermitted);
}

TEST_F(Authenticate, AFabricsListDecidesWhereAServiceHasNone) {
  options.allow = {*AllowEntry::parse("key:db")};
  make(options);
  Node& node = add_node();
  EXPECT_EQ(join(node, "10.77.0.10:81"), CloseCode::kNotPermitted);
  EXPECT_EQ(prove(node, db), CloseCode::kNone);
  EXPECT_EQ(join(node, "10.77.0.10:81"), CloseCode::kNone);
  EXPECT_EQ(join(node), CloseCode::kNotPermitted) << "a list of its own";
}

TEST_F(Authenticate, WhoMayJoinNothingMayNotConnectOutwardsEither) {
  options.allow = {};
  make(options);
  Node& node = add_node();
  const std::uint32_t request = node.connect("10.77.0.1:25", "10.77.0.10:0");
  run();
  ASSERT_EQ(node.answers.size(), 1u);
  EXPECT_EQ(node.answers[0].type, MessageType::kRejectConnection);
  EXPECT_EQ(node.answers[0].reject.request, request);
  EXPECT_EQ(node.answers[0].code, CloseCode::kNotPermitted);
  EXPECT_TRUE(strays_.empty()) << "nothing was sent";
  EXPECT_EQ(prove(node, web), CloseCode::kNone);
  EXPECT_EQ(join(node), CloseCode::kNone);
  node.connect("10.77.0.1:25");
  run();
  EXPECT_FALSE(strays_.empty()) << "a member may";
  node.die();  // nobody answers at the remote end
  run();
}

TEST_F(Authenticate, AnAnswerThatFindsNoCreditComesLater) {
  make(options);
  Node& node = add_node({.credits = 4, .reserve = 2});
  node.stopped = true;
  for (int i = 0; i < 20; ++i) {
    node.authenticate(i % 2 == 0 ? web : guessed);
    node.channel().flush();
    run();
  }
  node.stopped = false;
  run();
  ASSERT_EQ(node.answers.size(), 20u);
  for (std::size_t i = 0; i < 20; ++i) {
    EXPECT_EQ(node.answers[i].code, i % 2 == 0 ? CloseCode::kNone : CloseCode::kNotPermitted);
    EXPECT_EQ(node.answers[i].authenticate.request, i + 1);
  }
}

// --- limits

TEST_F(Authenticate, JoinsOfOneUserAreLimitedAndOthersAreNot) {
  options.translator.limits.joins = {10, 3};
  options.policies.clear();
  make(options);
  Node& busy = add_node({.name = "busy"});
  Node& same_user = add_node({.name = "same"});
  Node& other = add_node({.name = "other", .uid = 34});
  for (int port = 1; port <= 2; ++port) {
    EXPECT_EQ(join(busy, "10.77.0.10:" + std::to_string(port)), CloseCode::kNone);
  }
  EXPECT_EQ(join(same_user, "10.77.0.10:3"), CloseCode::kNone);
  EXPECT_EQ(join(busy, "10.77.0.10:4"), CloseCode::kLimitReached);
  EXPECT_EQ(join(same_user, "10.77.0.10:4"), CloseCode::kLimitReached);
  EXPECT_EQ(join(other, "10.77.0.10:4"), CloseCode::kNone);
  EXPECT_EQ(prove(busy, guessed), CloseCode::kLimitReached) << "wrong proofs count as well";
  EXPECT_EQ(counters().joins_limited, 2u);
  EXPECT_EQ(counters().joins_not_permitted, 0u);
  run_ms(100);
  EXPECT_EQ(join(busy, "10.77.0.10:5"), CloseCode::kNone);
}

TEST_F(Authenticate, WhoFailsTooOftenIsNotHeardForAWhile) {
  options.translator.limits.failures = {1, 4};
  options.translator.limits.penalty_ms = 2000;
  make(options);
  Node& guesser = add_node({.name = "guesser"});
  for (int i = 0; i < 3; ++i) EXPECT_EQ(prove(guesser, guessed), CloseCode::kNotPermitted) << i;
  EXPECT_EQ(join(guesser), CloseCode::kNotPermitted);
  EXPECT_EQ(prove(guesser, guessed), CloseCode::kNotPermitted) << "the one too many";
  EXPECT_EQ(join(guesser, "10.77.0.10:81"), CloseCode::kLimitReached);
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(prove(guesser, guessed), CloseCode::kLimitReached) << "it learns nothing";
  }
  EXPECT_EQ(prove(guesser, web), CloseCode::kLimitReached) << "not even looked at";
  Node& anew = add_node({.name = "anew"});
  EXPECT_EQ(join(anew), CloseCode::kLimitReached) << "a new channel does not help";
  Node& other = add_node({.name = "other", .uid = 34});
  EXPECT_EQ(prove(other, web), CloseCode::kNone);
  run_ms(2000);
  EXPECT_EQ(prove(anew, web), CloseCode::kNone);
  EXPECT_EQ(join(anew), CloseCode::kNone);
}

TEST_F(Authenticate, WhoHasTheKeyIsNotLockedOutByWhoHasNotBehindTheSameAddress) {
  options.translator.limits.failures = {1, 1};
  options.translator.limits.penalty_ms = 2000;
  make(options);
  Node& stranger = add_node({.name = "stranger"});
  for (int i = 0; i < 3; ++i) (void)join(stranger);
  EXPECT_EQ(join(stranger), CloseCode::kLimitReached);
  Node& holder = add_node({.name = "holder"});
  EXPECT_EQ(prove(holder, web), CloseCode::kNone);
  EXPECT_EQ(join(holder), CloseCode::kNone);
}

}  // namespace
}  // namespace sanproxy::translate::testing
