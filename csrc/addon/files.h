// The JavaScript object over TensorFile, and the safetensors writer: openTensorFile and
// writeSafetensors of lib/native.ts.
#pragma once

#include <napi.h>

#include <memory>

#include "formats/safetensors_writer.h"
#include "formats/tensor_file.h"

namespace lowrank::addon {

// The strings of an object; false after throwing.
bool get_metadata(Napi::Env env, const Napi::Value& value, MetadataStrings* out);

// A NativeTensorData; the object that holds its bytes is added to `keep`. False after throwing.
bool get_tensor(Napi::Env env, const Napi::Value& value, TensorToWrite* out, Napi::Array keep);

void register_files(Napi::Env env, Napi::Object exports);

// The file behind a NativeTensorFile, which outlives its close() in whoever holds this. Null after
// throwing INVALID_OPTION where `value` is none, or is closed.
std::shared_ptr<TensorFile> unwrap_file(const Napi::Value& value);

}  // namespace lowrank::addon
