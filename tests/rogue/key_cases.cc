// Proofs that do not hold, and those who try without end. The key of --key is the proxy's too.
#include "lwproto/auth/proof.h"
#include "tests/rogue/cases.h"

namespace sanproxy::rogue {
namespace {

using wire::CloseCode;
using wire::MessageType;

auth::Key made_up(std::string_view name) {
  constexpr std::string_view kSecret = "what a stranger makes up";
  return auth::Key::create(name, std::as_bytes(std::span(kSecret))).value();
}

auth::Proof prove(const RogueChannel& channel, const auth::Key& key,
                  auth::Prover who = auth::Prover::kApplication) {
  return *auth::Mac::create()->prove(who, key, {channel.our_hello(), channel.proxy_hello()});
}

// The code of the answer; the answer's proof, if it is wanted.
std::optional<CloseCode> say(RogueChannel& channel, const auth::Key& key, const auth::Proof& proof,
                             auth::Proof* answered = nullptr) {
  static std::uint32_t next_request = 1;
  const wire::AuthenticateBody body = auth::authenticate_body(next_request++, key, proof);
  if (!channel.send_one(MessageType::kAuthenticate, body)) return std::nullopt;
  const auto answer = channel.take([&](const wire::Message& m) {
    return m.type == MessageType::kAuthenticate && m.authenticate.request == body.request;
  });
  if (!answer) return std::nullopt;
  if (answered != nullptr) *answered = auth::proof_of(answer->message.authenticate);
  return answer->message.code;
}

Verdict expect(std::optional<CloseCode> got, CloseCode expected) {
  if (got == expected) return "";
  return std::string("answered with ") + (got ? wire::close_code_name(*got) : "nothing") +
         " instead of " + wire::close_code_name(expected);
}

// A channel, and the key that --key names.
struct Scene {
  explicit Scene(const Context& context) : channel(context.proxy) {
    const std::size_t colon = std::min(context.key.find(':'), context.key.size() - 1);
    auto read = auth::Key::from_file(context.key.substr(0, colon), context.key.substr(colon + 1));
    if (read.ok()) key = std::make_unique<auth::Key>(std::move(*read));
  }
  Verdict trouble() const {
    if (!channel.connected()) return "not connected: " + channel.refusal().to_string();
    return key ? "" : "this case needs --key NAME:FILE";
  }
  RogueChannel channel;
  std::unique_ptr<auth::Key> key;
};

Case refused(const char* name, const char* rule,
             std::function<Verdict(const Context&, Scene&)> attempt) {
  return {name, rule, [attempt = std::move(attempt)](const Context& context) -> Verdict {
            Scene scene(context);
            if (const Verdict trouble = scene.trouble(); !trouble.empty()) return trouble;
            Verdict verdict = attempt(context, scene);
            return verdict.empty() ? channel_lives(scene.channel, context) : verdict;
          }};
}

Verdict replayed(const Context& context, Scene& scene) {
  // Recorded where it was good ...
  const auth::Proof recorded = prove(scene.channel, *scene.key);
  Verdict verdict = expect(say(scene.channel, *scene.key, recorded), CloseCode::kNone);
  if (!verdict.empty()) return "the honest proof was " + verdict;
  // ... and played to a channel that begins with the same HELLO, byte for byte.
  RogueChannel thief(context.proxy, std::as_bytes(std::span(&scene.channel.our_hello(), 1)));
  if (!thief.connected()) return "not connected: " + thief.refusal().to_string();
  return expect(say(thief, *scene.key, recorded), CloseCode::kNotPermitted);
}

Verdict reflected(const Context& context, Scene& scene) {
  auth::Proof proxys{};
  (void)say(scene.channel, *scene.key, prove(scene.channel, *scene.key), &proxys);
  if (proxys != prove(scene.channel, *scene.key, auth::Prover::kProxy)) {
    return "the proxy's proof is wrong";
  }
  RogueChannel other(context.proxy);
  if (!other.connected()) return "not connected: " + other.refusal().to_string();
  Verdict verdict = expect(say(other, *scene.key, proxys), CloseCode::kNotPermitted);
  if (!verdict.empty()) return verdict;
  return expect(say(scene.channel, *scene.key, proxys), CloseCode::kNotPermitted);
}

// Guesses until the proxy listens no more, then waits until it does again.
Verdict guess_without_end(const Context&, Scene& scene) {
  constexpr int kGuesses = 500;
  RawTransfer transfer;
  const auth::Key wrong = made_up(scene.key->name());
  for (int i = 0; i < kGuesses; ++i) {
    transfer.add(MessageType::kAuthenticate,
                 auth::authenticate_body(0, wrong, prove(scene.channel, wrong)));
    if ((i + 1) % 50 != 0) continue;
    if (!scene.channel.send(transfer)) return "the channel ended";
    transfer = RawTransfer();
  }
  int limited = 0;
  for (int i = 0; i < kGuesses; ++i) {
    const auto answer = scene.channel.take(
        [](const wire::Message& m) { return m.type == MessageType::kAuthenticate; });
    if (!answer) return "not every guess was answered";
    if (answer->message.code == CloseCode::kNone) return "a guess was taken for a proof";
    limited += answer->message.code == CloseCode::kLimitReached ? 1 : 0;
  }
  if (limited == 0) return "500 guesses at once were all listened to";
  const auto again = [&] {
    return say(scene.channel, *scene.key, prove(scene.channel, *scene.key)) == CloseCode::kNone;
  };
  return scene.channel.wait(again) ? "" : "the penalty did not end";
}

}  // namespace

std::vector<Case> key_cases() {
  return {
      refused("key_guessed", "S20: a proof is made with the key",
              [](const Context&, Scene& scene) {
                const auth::Key wrong = made_up(scene.key->name());
                return expect(say(scene.channel, wrong, prove(scene.channel, wrong)),
                              CloseCode::kNotPermitted);
              }),
      refused("key_unknown", "S20: the proxy has the key",
              [](const Context&, Scene& scene) {
                const auth::Key unknown = made_up("nobody-has-this");
                return expect(say(scene.channel, unknown, prove(scene.channel, unknown)),
                              CloseCode::kNotPermitted);
              }),
      refused("key_of_zeros", "S20: a proof is made with the key",
              [](const Context&, Scene& scene) {
                return expect(say(scene.channel, *scene.key, {}), CloseCode::kNotPermitted);
              }),
      refused("key_replayed", "S20: a proof is for one channel", replayed),
      refused("key_reflected", "S20: a proof is the application's own", reflected),
      refused("key_guessed_without_end", "S21: attempts are limited", guess_without_end),
  };
}

}  // namespace sanproxy::rogue
