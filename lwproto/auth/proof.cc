#include "lwproto/auth/proof.h"

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/params.h>

#include <cstring>
#include <string_view>
#include <utility>

namespace sanproxy::auth {
namespace {

constexpr std::size_t kLabelBytes = 24;

// What the HMAC runs over. Every field has its place, so that no two statements have one image.
struct Statement {
  char label[kLabelBytes];
  wire::HelloBody application;
  wire::HelloBody proxy;
  std::uint8_t key_name[wire::kKeyNameBytesMax];
};
static_assert(sizeof(Statement) == kLabelBytes + 2 * sizeof(wire::HelloBody) + 32);

std::string_view label_of(Prover who) {
  return who == Prover::kApplication ? "sanproxy-v1 application" : "sanproxy-v1 proxy";
}

constexpr Status failed() {
  return Status::error(Code::kSystem, "the cryptographic library failed");
}

}  // namespace

struct Mac::State {
  EVP_MAC* mac = nullptr;
  EVP_MAC_CTX* context = nullptr;
  State() = default;
  State(const State&) = delete;
  State& operator=(const State&) = delete;
  ~State() {
    EVP_MAC_CTX_free(context);
    EVP_MAC_free(mac);
  }
};

Mac::Mac(std::unique_ptr<State> state) : state_(std::move(state)) {}
Mac::~Mac() = default;
Mac::Mac(Mac&&) noexcept = default;
Mac& Mac::operator=(Mac&&) noexcept = default;

Result<Mac> Mac::create() {
  auto state = std::make_unique<State>();
  state->mac = EVP_MAC_fetch(nullptr, OSSL_MAC_NAME_HMAC, nullptr);
  if (state->mac == nullptr) return failed();
  state->context = EVP_MAC_CTX_new(state->mac);
  char digest[] = "SHA256";
  const OSSL_PARAM parameters[] = {
      OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, digest, 0),
      OSSL_PARAM_construct_end()};
  if (state->context == nullptr || EVP_MAC_CTX_set_params(state->context, parameters) != 1) {
    return failed();
  }
  return Mac(std::move(state));
}

Result<Proof> Mac::prove(Prover who, const Key& key, const Hellos& hellos) const {
  Statement statement{};
  const std::string_view label = label_of(who);
  std::memcpy(statement.label, label.data(), label.size());
  statement.application = hellos.application;
  statement.proxy = hellos.proxy;
  std::memcpy(statement.key_name, key.name().data(), key.name().size());
  const auto* secret = reinterpret_cast<const unsigned char*>(key.secret().data());
  const auto* bytes = reinterpret_cast<const unsigned char*>(&statement);
  Proof proof{};
  std::size_t size = 0;
  // With a key, init starts anew whatever an earlier call has left in the context.
  if (EVP_MAC_init(state_->context, secret, key.secret().size(), nullptr) != 1 ||
      EVP_MAC_update(state_->context, bytes, sizeof(statement)) != 1 ||
      EVP_MAC_final(state_->context, proof.data(), &size, proof.size()) != 1 ||
      size != proof.size()) {
    return failed();
  }
  return proof;
}

bool equal(const Proof& a, const Proof& b) {
  return CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

wire::AuthenticateBody authenticate_body(std::uint32_t request, const Key& key,
                                         const Proof& proof) {
  wire::AuthenticateBody body{};
  body.request = request;
  std::memcpy(body.key_name, key.name().data(), key.name().size());
  std::memcpy(body.proof, proof.data(), proof.size());
  return body;
}

Proof proof_of(const wire::AuthenticateBody& body) {
  Proof proof{};
  std::memcpy(proof.data(), body.proof, proof.size());
  return proof;
}

}  // namespace sanproxy::auth
