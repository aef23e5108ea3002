// What all bindings share: the thread pool with its kernels, and the lock that lets one native call run at a time.
#pragma once

#include <mutex>

#include "core/context.h"

namespace lowrank::addon {

Context& addon_context();
std::mutex& addon_mutex();

}  // namespace lowrank::addon
