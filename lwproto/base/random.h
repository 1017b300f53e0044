// Random bytes from the kernel, for what nobody may guess.
//
// Thread: any.
#pragma once

#include <cstddef>
#include <span>

namespace sanproxy {

// At most 256 bytes a call. Waits for the kernel's generator once after boot, otherwise never.
void fill_random(std::span<std::byte> out);

}  // namespace sanproxy
