// Link: proving our keys to one proxy, and asking it to prove them to us (docs/security.md).
//
// The AUTHENTICATEs leave together when the channel comes up; services are joined when all are
// answered, so that a proxy with a wrong proof never gets as far as a JOIN.
#include "appnode-lib/client/convert.h"
#include "appnode-lib/client/link.h"
#include "appnode-lib/client/node_impl.h"
#include "lwproto/auth/proof.h"
#include "lwproto/wire/codec.h"

namespace sanproxy::app::internal {

bool Link::ready() const { return up() && keys_answered_ == node_.keys().size(); }

bool Link::prove_keys() {
  if (keys_limited_ && keys_sent_ == 0) return false;  // until ask_again()
  const auto& keys = node_.keys();
  const channel::Channel& channel = *hold_->channel;
  while (keys_sent_ < keys.size()) {
    const auth::Key& key = keys[keys_sent_];
    const auto proof = node_.mac().prove(auth::Prover::kApplication, key,
                                         {channel.our_hello(), channel.peer_hello()});
    if (!proof.ok()) {
      our_reason_ = proof.status().text();
      hold_->channel->close(wire::CloseCode::kNotPermitted, our_reason_);
      return false;
    }
    const auto request = static_cast<std::uint32_t>(keys_sent_ + 1);
    const BaseStatus status =
        hold_->channel->send_control(wire::MessageType::kAuthenticate, 0, wire::CloseCode::kNone,
                                     auth::authenticate_body(request, key, *proof));
    if (status.is_again()) services_blocked_ = true;  // on_writable() comes back
    if (!status.ok()) return false;
    ++keys_sent_;
  }
  return keys_answered_ == keys.size();
}

void Link::on_key_answer(const wire::AuthenticateBody& body, wire::CloseCode code) {
  if (keys_answered_ == keys_sent_ || body.request != keys_answered_ + 1) {
    return breach("authenticate answer to no request");
  }
  const auth::Key& key = node_.keys()[keys_answered_];
  if (wire::key_name_of(body) != key.name()) {
    our_reason_ = "the proxy answered for another key than it was asked for";
    hold_->channel->close(wire::CloseCode::kNotPermitted, our_reason_);
    return;
  }
  if (code == wire::CloseCode::kNone) {
    const channel::Channel& channel = *hold_->channel;
    const auto expected =
        node_.mac().prove(auth::Prover::kProxy, key, {channel.our_hello(), channel.peer_hello()});
    if (!expected.ok() || !auth::equal(*expected, auth::proof_of(body))) {
      our_reason_ = "the proxy does not have our key: its proof is wrong";
      hold_->channel->close(wire::CloseCode::kNotPermitted, our_reason_);
      return;
    }
  } else {
    keys_limited_ = keys_limited_ || code == wire::CloseCode::kLimitReached;
    node_.key_refused(keys_answered_, *this, to_public(code));
  }
  if (++keys_answered_ < node_.keys().size()) return;
  if (!keys_limited_) return sync_services();
  keys_sent_ = keys_answered_ = 0;
  ask_again_later();
}

}  // namespace sanproxy::app::internal
