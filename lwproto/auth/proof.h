// Proof: showing that one has a key without showing the key.
//
// Document: docs/wire_format.md "AUTHENTICATE"; HMAC: RFC 2104, SHA-256: FIPS 180-4.
// Role: HMAC-SHA-256 under the key over a label that says who proves, both HELLOs of the channel
//   as they travelled (nonces, epochs and names among them), and the key's name.
// Owner: whoever makes or checks proofs. Thread: one.
// Invariants:
//   1. A proof holds for one channel only: each side's HELLO has a nonce that it never uses twice.
//   2. An application's proof is no proof of a proxy, and the other way round: the labels differ.
//   3. Proofs are compared in constant time.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "lwproto/auth/key.h"
#include "lwproto/base/status.h"
#include "lwproto/wire/format.h"

namespace sanproxy::auth {

enum class Prover : std::uint8_t { kApplication, kProxy };

using Proof = std::array<std::uint8_t, wire::kProofBytes>;

// Both HELLOs of one channel.
struct Hellos {
  const wire::HelloBody& application;
  const wire::HelloBody& proxy;
};

class Mac {
 public:
  // kSystem when the cryptographic library has no HMAC-SHA-256 for us.
  static Result<Mac> create();
  ~Mac();
  Mac(Mac&&) noexcept;
  Mac& operator=(Mac&&) noexcept;

  // kSystem when the library fails; nothing is proven then.
  Result<Proof> prove(Prover who, const Key& key, const Hellos& hellos) const;

 private:
  struct State;
  explicit Mac(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;  // the algorithm, fetched once
};

bool equal(const Proof& a, const Proof& b);  // in constant time

// The AUTHENTICATE with which `proof` travels.
wire::AuthenticateBody authenticate_body(std::uint32_t request, const Key& key, const Proof& proof);
Proof proof_of(const wire::AuthenticateBody& body);

}  // namespace sanproxy::auth
