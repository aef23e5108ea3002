#include "addon/op_timer.h"

#include "addon/arguments.h"
#include "addon/bridge.h"
#include "addon/module.h"
#include "addon/timed_ops.h"
#include "addon/timing.h"

namespace lowrank::addon {
namespace {

// Best of several runs of the op, all threads.
Status time_case(const OpCase& op_case, ComputeType compute, double* seconds) {
  const std::lock_guard lock(addon_mutex());
  Context context{addon_context().pool, addon_context().kernels, compute};
  Operands operands;
  const Result<TimedOp> op = timed_op(op_case, &operands);
  if (!op.ok()) return op.status();
  Status status;
  *seconds = best_seconds([&] {
    if (status.ok()) status = op.value()(context);
  });
  return status;
}

// A size of the object that may be left out.
bool get_optional(const Napi::Object& from, const char* name, size_t* out) {
  const Napi::Value value = from.Get(name);
  return value.IsUndefined() || get_size(value, name, out);
}

bool get_case(const Napi::CallbackInfo& info, OpCase* out) {
  if (!info[0].IsObject()) {
    throw_status(info.Env(), error(Code::kInvalidOption, "the op to time is not an object"));
    return false;
  }
  const Napi::Object from = info[0].As<Napi::Object>();
  if (!get_string(from.Get("op"), "op", &out->op)) return false;
  const Napi::Value weight = from.Get("weight");
  if (!weight.IsUndefined()) {
    std::string name;
    if (!get_string(weight, "weight", &name)) return false;
    const Result<DType> type = weight_type(name);
    if (!type.ok()) return throw_status(info.Env(), type.status()), false;
    out->weight = type.value();
  }
  return get_optional(from, "tokens", &out->tokens) && get_optional(from, "in", &out->in) && get_optional(from, "out", &out->out) &&
         get_optional(from, "group", &out->group) && get_optional(from, "rank", &out->rank) &&
         get_optional(from, "sequences", &out->sequences) && get_optional(from, "heads", &out->heads) &&
         get_optional(from, "kvHeads", &out->kv_heads) && get_optional(from, "headDim", &out->head_dim);
}

Napi::Value time_op(const Napi::CallbackInfo& info) {
  OpCase op_case;
  bool bf16 = false;
  if (!get_case(info, &op_case) || !get_bool(info[1], "bf16", &bf16)) return info.Env().Undefined();
  if (bf16) op_case.rows = DType::kBF16;
  return promise_seconds(info.Env(), [=](double* seconds) {
    return time_case(op_case, bf16 ? ComputeType::kBf16 : ComputeType::kF32, seconds);
  });
}

}  // namespace

void register_op_timer(Napi::Env env, Napi::Object exports) { exports.Set("timeOp", Napi::Function::New(env, time_op)); }

}  // namespace lowrank::addon
