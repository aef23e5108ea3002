#include "addon/op_profile.h"

#include "addon/bridge.h"
#include "addon/module.h"
#include "core/op_profile.h"

namespace lowrank::addon {
namespace {

// profileOps(on): what was gathered since the last call, and whether to gather from now on. Waits for what computes.
Napi::Value profile_ops(const Napi::CallbackInfo& info) {
  bool on = false;
  if (!get_bool(info[0], "on", &on)) return info.Env().Undefined();
  const std::lock_guard lock(addon_mutex());
  OpProfile& profile = *addon_context().profile;
  Napi::Object seconds = Napi::Object::New(info.Env());
  for (size_t kind = 0; kind < static_cast<size_t>(OpKind::kCount); ++kind) {
    seconds.Set(op_kind_name(static_cast<OpKind>(kind)), profile.seconds[kind]);
  }
  profile = {.on = on};
  return seconds;
}

}  // namespace

void register_op_profile(Napi::Env env, Napi::Object exports) {
  exports.Set("profileOps", Napi::Function::New(env, profile_ops));
}

}  // namespace lowrank::addon
