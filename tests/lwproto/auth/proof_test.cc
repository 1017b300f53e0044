#include "lwproto/auth/proof.h"

#include <gtest/gtest.h>

#include <cstring>
#include <string>

namespace sanproxy::auth {
namespace {

Key key_of(std::string_view name, std::string_view secret) {
  return Key::create(name, std::as_bytes(std::span(secret.data(), secret.size()))).value();
}

// 128 bytes that count up from `first`; the proof does not look at what they mean.
wire::HelloBody pattern(unsigned first) {
  wire::HelloBody hello;
  auto* bytes = reinterpret_cast<unsigned char*>(&hello);
  for (unsigned i = 0; i < sizeof(hello); ++i) bytes[i] = static_cast<unsigned char>(first + i);
  return hello;
}

std::string hex(const Proof& proof) {
  std::string out;
  for (const std::uint8_t byte : proof) {
    out += "0123456789abcdef"[byte >> 4];
    out += "0123456789abcdef"[byte & 15];
  }
  return out;
}

class Proofs : public ::testing::Test {
 protected:
  Proof prove(Prover who, const Key& key) { return mac_.prove(who, key, {ours_, theirs_}).value(); }
  Mac mac_ = Mac::create().value();
  wire::HelloBody ours_ = pattern(1);
  wire::HelloBody theirs_ = pattern(101);
  Key key_ = key_of("web", "0123456789abcdef");
};

// Computed with Python's hmac from the table of docs/wire_format.md, "AUTHENTICATE".
TEST_F(Proofs, AreWhatTheWireFormatSays) {
  EXPECT_EQ(hex(prove(Prover::kApplication, key_)),
            "ebe56e1fbfdb5962e1007d7c4d1b43bb49ac86d2afd35171e9d437c7097afe4f");
  EXPECT_EQ(hex(prove(Prover::kProxy, key_)),
            "a558f86085f8b52becceb7b27c8c0570a5cf2187360d78babf67a0cc6a14c192");
}

TEST_F(Proofs, AreTheSameEachTimeAndWithWhateverCameBetween) {
  const Proof first = prove(Prover::kApplication, key_);
  (void)prove(Prover::kProxy, key_of("other", std::string(100, 'k')));
  EXPECT_TRUE(equal(prove(Prover::kApplication, key_), first));
  Mac moved = std::move(mac_);
  EXPECT_TRUE(equal(*moved.prove(Prover::kApplication, key_, {ours_, theirs_}), first));
}

TEST_F(Proofs, DifferByKeyAndByTheKeysName) {
  const Proof first = prove(Prover::kApplication, key_);
  EXPECT_FALSE(equal(prove(Prover::kApplication, key_of("web", "0123456789abcdeF")), first));
  EXPECT_FALSE(equal(prove(Prover::kApplication, key_of("wed", "0123456789abcdef")), first));
}

TEST_F(Proofs, DifferWithEveryByteOfEitherHello) {
  const Proof first = prove(Prover::kApplication, key_);
  for (wire::HelloBody* hello : {&ours_, &theirs_}) {
    for (std::size_t i = 0; i < sizeof(*hello); ++i) {
      auto* byte = reinterpret_cast<unsigned char*>(hello) + i;
      *byte ^= 1;
      EXPECT_FALSE(equal(prove(Prover::kApplication, key_), first)) << i;
      *byte ^= 1;
    }
  }
  std::swap(ours_, theirs_);
  EXPECT_FALSE(equal(prove(Prover::kApplication, key_), first));
}

TEST_F(Proofs, TravelInAnAuthenticateWithTheKeysName) {
  const Proof proof = prove(Prover::kApplication, key_);
  const wire::AuthenticateBody body = authenticate_body(7, key_, proof);
  EXPECT_EQ(body.request, 7u);
  EXPECT_EQ(body.reserved, 0u);
  EXPECT_STREQ(reinterpret_cast<const char*>(body.key_name), "web");
  EXPECT_EQ(proof_of(body), proof);
}

}  // namespace
}  // namespace sanproxy::auth
