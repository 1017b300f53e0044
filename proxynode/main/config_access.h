// Who may join: [[key]], [limits], and the allow lists of [[fabric]] and [[service]].
//
// Documents: docs/configuration.md, docs/security.md.
// Role: the part of the configuration that decides about access.
// Thread: start-up only; throws ConfigError.
// Invariants:
//   1. No secret is part of a text.
//   2. An allow list names only keys that are there: a misspelt one is an error, not "nobody".
#pragma once

#include <optional>
#include <string>

#include "lwproto/auth/admission.h"
#include "proxynode/main/config_reader.h"

namespace sanproxy::proxy {

// Declares `allow` in `reader`; `out` is set if the key is there, be it empty.
void allow_list(TableReader& reader, std::optional<service::AllowList>& out);
// Without a list: on shm everybody who may open the socket, on a network nobody.
service::AllowList default_allow(const std::string& listen);

void read_key(const std::string& path, const toml::table& table, ProxyConfig& config);
void read_limits(const std::string& path, const toml::table& table, ProxyConfig& config);
// Once everything is read.
void check_allow_lists(const std::string& path, const ProxyConfig& config);

}  // namespace sanproxy::proxy
