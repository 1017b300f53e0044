// AUTHENTICATE: application nodes prove that they have a key (docs/security.md).

#include <algorithm>

#include "lwproto/daemon/log.h"
#include "proxynode/translate/translator.h"

namespace sanproxy::translate {
namespace {

constexpr std::size_t kKeysPerNodeMax = 8;  // rule S21
// Of a channel, looked at whatever else its peer does: who has the key must not be locked out by
// who has not and shares the address.
constexpr std::uint32_t kProofsAlwaysSeen = kKeysPerNodeMax;

}  // namespace

void Translator::on_authenticate(AppNode& node, const wire::Message& message) {
  wire::AuthenticateBody answer = message.authenticate;
  const std::string name(wire::key_name_of(answer));
  const auth::Proof claimed = auth::proof_of(answer);
  std::fill(std::begin(answer.proof), std::end(answer.proof), std::uint8_t{0});
  const auto refuse = [&](wire::CloseCode code, const char* why) {
    ++(code == wire::CloseCode::kNotPermitted ? counters_.proofs_not_permitted
                                              : counters_.proofs_limited);
    if (may_log()) {
      spdlog::warn("node {} \"{}\" ({}) has not proven key \"{}\": {} ({})", node.index, node.name,
                   node.peer.address, name, why, wire::close_code_name(code));
    }
    send_or_owe(node, wire::MessageType::kAuthenticate, wire::kFlagAnswer, code, answer, true);
  };
  const std::uint64_t now_ns = clock_.now_ns();
  const bool may_try = limiter_.may_try(node.peer_key, now_ns);
  if (!may_try && node.proofs_seen >= kProofsAlwaysSeen) {
    return refuse(wire::CloseCode::kLimitReached, "too many attempts");
  }
  if (node.proofs_seen < kProofsAlwaysSeen) ++node.proofs_seen;
  auto& proven = node.who.keys;
  const bool again = std::find(proven.begin(), proven.end(), name) != proven.end();
  if (!again && proven.size() >= kKeysPerNodeMax) {
    return refuse(wire::CloseCode::kLimitReached, "it has proven 8 others");
  }
  const auto key = std::find_if(options_.keys.begin(), options_.keys.end(),
                                [&](const auth::Key& one) { return one.name() == name; });
  if (!prove(node, key == options_.keys.end() ? nullptr : &*key, answer, claimed)) {
    if (!may_try) return refuse(wire::CloseCode::kLimitReached, "too many attempts");
    limiter_.on_failure(node.peer_key, now_ns);
    return refuse(wire::CloseCode::kNotPermitted, "unknown key or wrong proof");
  }
  if (!again) {
    // From now on apart from others of its address.
    if (proven.empty()) node.peer_key += " key:" + name;
    proven.push_back(name);
    if (may_log_member()) {
      spdlog::info("node {} \"{}\" has proven key \"{}\"", node.index, node.name, name);
    }
  }
  ++counters_.proofs;
  send_or_owe(node, wire::MessageType::kAuthenticate, wire::kFlagAnswer, wire::CloseCode::kNone,
              answer, true);
}

// Whether `claimed` holds; if so, our own proof is put into `answer`. A key that we do not have
// takes as long as one whose proof is wrong.
bool Translator::prove(AppNode& node, const auth::Key* key, wire::AuthenticateBody& answer,
                       const auth::Proof& claimed) {
  if (!mac_) return false;
  const auth::Hellos hellos{node.channel->peer_hello(), node.channel->our_hello()};
  const auth::Key& used = key != nullptr ? *key : options_.keys.front();
  const auto expected = mac_->prove(auth::Prover::kApplication, used, hellos);
  const bool holds = expected.ok() && auth::equal(*expected, claimed);
  if (!holds || key == nullptr) return false;
  const auto ours = mac_->prove(auth::Prover::kProxy, *key, hellos);
  if (!ours.ok()) return false;
  answer = auth::authenticate_body(answer.request, *key, *ours);
  return true;
}

// Whoever may join nothing may not use the proxy in other ways either.
bool Translator::allowed_anything(const AppNode& node) const {
  return service::allows(node.from->allow, node.who) || !services_.services_of(node.index).empty();
}

bool Translator::may_log() {
  if (!refusals_log_.open(clock_.now_ns())) return false;
  if (const std::uint64_t held = refusals_log_.take_held(); held != 0) {
    spdlog::warn("{} refusals and breaches before this one were not logged", held);
  }
  return true;
}

}  // namespace sanproxy::translate
