// JSON from others: parsed only if its depth is bounded.
//
// Role: the parser itself takes any depth, but what is built is copied and written recursively.
// Thread: any.
#pragma once

#include <nlohmann/json.hpp>
#include <string_view>

#include "lwproto/cluster/bounds.h"

namespace sanproxy::cluster {

// Whether brackets outside of strings are nested deeper than that; of any bytes.
bool nested_deeper(std::string_view text, std::size_t depth_max);

// A discarded value (is_discarded()) for what is no JSON, or nested too deeply. Never throws.
nlohmann::json parse_bounded(std::string_view text, std::size_t depth_max = kJsonDepthMax);

}  // namespace sanproxy::cluster
