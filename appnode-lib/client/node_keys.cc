// NodeImpl: the keys that it was given, by its options or by SANPROXY_KEY.
#include <algorithm>
#include <cstdlib>

#include "appnode-lib/client/convert.h"
#include "appnode-lib/client/node_impl.h"

namespace sanproxy::app::internal {
namespace {

// "NAME:FILE,NAME:FILE"
std::vector<KeyOptions> keys_from_environment() {
  std::vector<KeyOptions> out;
  const char* text = std::getenv("SANPROXY_KEY");
  std::string_view rest = text == nullptr ? "" : text;
  while (!rest.empty()) {
    const std::size_t comma = std::min(rest.find(','), rest.size());
    if (comma != 0) {
      const std::string_view one = rest.substr(0, comma);
      const std::size_t colon = std::min(one.find(':'), one.size());
      KeyOptions key;
      key.name = one.substr(0, colon);
      key.file = one.substr(std::min(colon + 1, one.size()));
      out.push_back(std::move(key));
    }
    rest.remove_prefix(std::min(comma + 1, rest.size()));
  }
  return out;
}

}  // namespace

Status NodeImpl::set_up_keys() {
  if (options_.keys.empty()) options_.keys = keys_from_environment();
  if (options_.keys.size() > kKeysMax) return {Code::kInvalidArgument, "there may be 8 keys"};
  for (const KeyOptions& one : options_.keys) {
    if (one.file.empty() == one.secret.empty()) {
      return {Code::kInvalidArgument, "a key needs a file or a secret (SANPROXY_KEY: NAME:FILE)"};
    }
    auto key = one.file.empty() ? auth::Key::create(one.name, std::as_bytes(std::span(one.secret)))
                                : auth::Key::from_file(one.name, one.file);
    if (!key.ok()) return to_public(key.status());
    const bool twice = std::any_of(keys_.begin(), keys_.end(), [&](const auth::Key& other) {
      return other.name() == key->name();
    });
    if (twice) return {Code::kExists, "two keys have one name"};
    keys_.push_back(std::move(*key));
  }
  options_.keys.clear();  // the Keys hold the secrets now
  if (keys_.empty()) return {};
  auto mac = auth::Mac::create();
  if (!mac.ok()) return to_public(mac.status());
  mac_.emplace(std::move(*mac));
  return {};
}

}  // namespace sanproxy::app::internal
