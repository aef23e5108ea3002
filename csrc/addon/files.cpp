#include "addon/files.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "addon/bridge.h"
#include "addon/metadata_values.h"
#include "addon/module.h"
#include "formats/safetensors_writer.h"
#include "formats/scalars.h"
#include "formats/text.h"
#include "ops/dequantize.h"

namespace lowrank::addon {
namespace {

constexpr napi_type_tag kFileTag = {0x6c6f7772616e6b02, 0x4d2c81f6a95e7b30};

Status closed() { return error(Code::kInvalidOption, "the tensor file is closed"); }

// JavaScript's typed arrays hold at most this many elements in the oldest Node that is supported.
constexpr size_t kMaxElements = size_t{1} << 32;

class FileObject final : public Napi::ObjectWrap<FileObject> {
 public:
  explicit FileObject(const Napi::CallbackInfo& info) : Napi::ObjectWrap<FileObject>(info) {}

  static Napi::Function define(Napi::Env env) {
    return DefineClass(env, "NativeTensorFile",
                       {InstanceAccessor<&FileObject::path>("path"),
                        InstanceAccessor<&FileObject::format>("format"),
                        InstanceMethod("tensors", &FileObject::tensors),
                        InstanceMethod("metadata", &FileObject::metadata),
                        InstanceMethod("read", &FileObject::read),
                        InstanceMethod("readAsync", &FileObject::read_async),
                        InstanceMethod("readRaw", &FileObject::read_raw),
                        InstanceMethod("close", &FileObject::close)});
  }

  void set(std::shared_ptr<TensorFile> file) { file_ = std::move(file); }
  const std::shared_ptr<TensorFile>& file() const { return file_; }

 private:
  // False after throwing.
  bool is_open(Napi::Env env) const {
    if (file_ == nullptr) throw_status(env, closed());
    return file_ != nullptr;
  }

  // The tensor that the first argument names; null after throwing.
  const TensorInfo* argument(const Napi::CallbackInfo& info) const {
    std::string name;
    if (!is_open(info.Env()) || !get_string(info[0], "the tensor's name", &name)) return nullptr;
    const Result<const TensorInfo*> tensor = file_->tensor(name);
    if (!tensor.ok()) throw_status(info.Env(), tensor.status());
    return tensor.ok() ? tensor.value() : nullptr;
  }

  Napi::Value path(const Napi::CallbackInfo& info) {
    return is_open(info.Env()) ? Napi::String::New(info.Env(), file_->path())
                               : info.Env().Undefined();
  }
  Napi::Value format(const Napi::CallbackInfo& info) {
    if (!is_open(info.Env())) return info.Env().Undefined();
    return Napi::String::New(info.Env(),
                             file_->format() == FileFormat::kGguf ? "gguf" : "safetensors");
  }
  Napi::Value tensors(const Napi::CallbackInfo& info);
  Napi::Value metadata(const Napi::CallbackInfo& info);
  Napi::Value read(const Napi::CallbackInfo& info);
  Napi::Value read_async(const Napi::CallbackInfo& info);
  Napi::Value read_raw(const Napi::CallbackInfo& info);
  Napi::Value close(const Napi::CallbackInfo& info) {
    file_.reset();
    return info.Env().Undefined();
  }

  std::shared_ptr<TensorFile> file_;
};

Napi::Value FileObject::tensors(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  if (!is_open(env)) return env.Undefined();
  Napi::Array list = Napi::Array::New(env, file_->tensors().size());
  uint32_t place = 0;
  for (const TensorInfo& tensor : file_->tensors()) {
    const Napi::HandleScope scope(env);
    Napi::Array shape = Napi::Array::New(env, tensor.shape.size());
    for (size_t i = 0; i < tensor.shape.size(); ++i)
      shape.Set(static_cast<uint32_t>(i), static_cast<double>(tensor.shape[i]));
    Napi::Object item = Napi::Object::New(env);
    item.Set("name", tensor.name);
    item.Set("dtype", tensor.type_name);
    item.Set("shape", shape);
    item.Set("bytes", static_cast<double>(tensor.bytes));
    list.Set(place++, item);
  }
  return list;
}

Napi::Value FileObject::metadata(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  size_t most_bytes = SIZE_MAX;
  if (!is_open(env)) return env.Undefined();
  if (!info[0].IsUndefined() && !get_size(info[0], "mostBytes", &most_bytes)) return env.Undefined();
  const Napi::Object object = Napi::Object::New(env);
  for (const std::string_view key : file_->metadata_keys(most_bytes)) {
    const Napi::HandleScope scope(env);
    const Result<MetadataValue> value = file_->metadata(key);
    if (!value.ok()) return throw_status(env, value.status()), env.Undefined();
    define_value(object, key, to_javascript(env, value.value()));
  }
  if (const Status status = file_->check_unchanged(); !status.ok()) throw_status(env, status);
  return object;
}

// A float tensor's values: the matrix to unpack, and the array that they go to. False after throwing.
struct Reading {
  Matrix rows;
  Napi::Float32Array values;
};
bool prepare(Napi::Env env, const TensorFile& file, const TensorInfo& tensor, Reading* out) {
  const Result<Matrix> rows = file.rows(tensor);
  if (!rows.ok()) return throw_status(env, rows.status()), false;
  out->rows = rows.value();
  const size_t elements = out->rows.rows * out->rows.cols;
  if (elements > kMaxElements) {
    throw_status(env, error(Code::kOutOfMemory,
                            "%s: tensor %s has %zu elements; an array holds at most 2^32",
                            file.path().c_str(), quoted(tensor.name).c_str(), elements));
    return false;
  }
  out->values = Napi::Float32Array::New(env, elements);
  return !env.IsExceptionPending();
}

Status unpack(const TensorFile& file, const TensorInfo& tensor, const Matrix& rows, float* out) {
  if (is_scalar_float(tensor.dtype)) {
    scalars_to_f32(tensor.dtype, tensor.data, rows.rows * rows.cols, out);
  } else {
    ThreadPool pool(1);  // our own: the addon's may be in the middle of a training step
    Context context = {pool, addon_context().kernels};
    LR_RETURN_IF_ERROR(dequantize(context, rows, out));
  }
  return file.check_unchanged();
}

Napi::Value FileObject::read(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const TensorInfo* const tensor = argument(info);
  Reading reading;
  if (tensor == nullptr || !prepare(env, *file_, *tensor, &reading)) return env.Undefined();
  const Status status = unpack(*file_, *tensor, reading.rows, reading.values.Data());
  if (!status.ok()) throw_status(env, status);
  return reading.values;
}

Napi::Value FileObject::read_async(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const TensorInfo* const tensor = argument(info);
  Reading reading;
  if (tensor == nullptr || !prepare(env, *file_, *tensor, &reading)) return env.Undefined();
  return run_async(
      env,
      [file = file_, tensor, rows = reading.rows, out = reading.values.Data()] {
        return unpack(*file, *tensor, rows, out);
      },
      reading.values);
}

Napi::Value FileObject::read_raw(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const TensorInfo* const tensor = argument(info);
  if (tensor == nullptr) return env.Undefined();
  size_t begin = 0, end = tensor->bytes;
  if (!info[1].IsUndefined() && !get_size(info[1], "begin", &begin)) return env.Undefined();
  if (!info[2].IsUndefined() && !get_size(info[2], "end", &end)) return env.Undefined();
  end = std::min(end, tensor->bytes);
  begin = std::min(begin, end);
  if (end - begin > kMaxElements) {
    throw_status(
        env, error(Code::kOutOfMemory, "%s: tensor %s has %zu bytes; an array holds at most 2^32",
                   file_->path().c_str(), quoted(tensor->name).c_str(), end - begin));
    return env.Undefined();
  }
  Napi::Uint8Array bytes = Napi::Uint8Array::New(env, end - begin);
  if (env.IsExceptionPending()) return env.Undefined();
  if (end > begin) std::memcpy(bytes.Data(), tensor->data + begin, end - begin);
  if (const Status status = file_->check_unchanged(); !status.ok()) throw_status(env, status);
  return bytes;
}

// The bytes that a typed array, Buffer or DataView shows, without a copy. False where `value` is
// none of them.
bool get_bytes(const Napi::Value& value, const void** data, size_t* bytes) {
  void* pointer = nullptr;
  if (value.IsTypedArray()) {
    const Napi::TypedArray array = value.As<Napi::TypedArray>();
    if (napi_get_typedarray_info(value.Env(), value, nullptr, nullptr, &pointer, nullptr,
                                 nullptr) != napi_ok)
      return false;
    *bytes = array.ByteLength();
  } else if (value.IsDataView()) {
    if (napi_get_dataview_info(value.Env(), value, bytes, &pointer, nullptr, nullptr) != napi_ok)
      return false;
  } else {
    return false;
  }
  *data = pointer;
  return true;
}

bool get_dtype(const Napi::Value& value, const std::string& tensor, DType* out) {
  std::string name;
  if (!get_string(value, "a tensor's dtype", &name)) return false;
  for (size_t i = 0; i < static_cast<size_t>(DType::kOpaque); ++i) {
    *out = static_cast<DType>(i);
    if (name == dtype_info(*out).name) return true;
  }
  throw_status(value.Env(),
               error(Code::kInvalidOption,
                     "tensor %s has the dtype %s; expected a type such as F32, BF16 or I64",
                     quoted(tensor).c_str(), quoted(name).c_str()));
  return false;
}

// Throws and is false. A getter or proxy of the caller's may have thrown already: that stays.
bool refuse(Napi::Env env, const Status& status) {
  if (!env.IsExceptionPending()) throw_status(env, status);
  return false;
}

bool get_shape(Napi::Env env, const Napi::Value& value, TensorToWrite* out) {
  if (!value.IsArray()) {
    return refuse(env, error(Code::kInvalidOption, "the shape of tensor %s is not an array",
                             quoted(out->name).c_str()));
  }
  const Napi::Array dimensions = value.As<Napi::Array>();
  for (uint32_t i = 0; i < dimensions.Length(); ++i) {
    size_t dimension = 0;
    if (!get_size(dimensions.Get(i), "a tensor's dimension", &dimension)) return false;
    out->shape.push_back(dimension);
  }
  return true;
}

// writeSafetensors(path, tensors, metadata): checks on this thread, writes on another. The arrays
// are kept alive and read in place until the promise settles: changing or transferring one
// meanwhile changes what is written.
Napi::Value write_safetensors_async(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  struct Job {
    std::string path;
    std::vector<TensorToWrite> tensors;
    MetadataStrings metadata;
  };
  const auto job = std::make_shared<Job>();
  if (!get_string(info[0], "path", &job->path)) return env.Undefined();
  if (!info[1].IsArray())
    return throw_status(env, error(Code::kInvalidOption, "tensors is not an array")),
           env.Undefined();
  const Napi::Array tensors = info[1].As<Napi::Array>();
  const Napi::Array keep = Napi::Array::New(env);
  for (uint32_t i = 0; i < tensors.Length(); ++i) {
    const Napi::HandleScope scope(env);
    TensorToWrite tensor;
    if (!get_tensor(env, tensors.Get(i), &tensor, keep)) return env.Undefined();
    job->tensors.push_back(std::move(tensor));
  }
  if (!get_metadata(env, info[2], &job->metadata)) return env.Undefined();
  return run_async(
      env,
      [job] {
        return write_safetensors(job->path, std::move(job->tensors), std::move(job->metadata));
      },
      [](Napi::Env done) { return done.Undefined(); }, keep);
}

}  // namespace

bool get_tensor(Napi::Env env, const Napi::Value& value, TensorToWrite* out, Napi::Array keep) {
  if (!value.IsObject()) {
    return refuse(env, error(Code::kInvalidOption, "a tensor to write is not an object"));
  }
  const Napi::Object object = value.As<Napi::Object>();
  if (!get_string(object.Get("name"), "a tensor's name", &out->name)) return false;
  if (!get_dtype(object.Get("dtype"), out->name, &out->dtype)) return false;
  if (!get_shape(env, object.Get("shape"), out)) return false;
  const Napi::Value data = object.Get("data");
  if (!get_bytes(data, &out->data, &out->bytes)) {
    return refuse(env, error(Code::kInvalidOption, "the data of tensor %s is no typed array",
                             quoted(out->name).c_str()));
  }
  keep.Set(keep.Length(), data);
  return true;
}

bool get_metadata(Napi::Env env, const Napi::Value& value, MetadataStrings* out) {
  if (value.IsUndefined() || value.IsNull()) return true;
  if (!value.IsObject()) {
    return refuse(env, error(Code::kInvalidOption, "metadata is not an object"));
  }
  const Napi::Object object = value.As<Napi::Object>();
  const Napi::Array keys = object.GetPropertyNames();
  if (keys.IsEmpty()) return false;
  for (uint32_t i = 0; i < keys.Length(); ++i) {
    const Napi::Value key = keys.Get(i);
    std::string text;
    if (!get_string(object.Get(key), "a value of metadata", &text)) return false;
    out->emplace_back(key.ToString().Utf8Value(), std::move(text));
  }
  return true;
}

std::shared_ptr<TensorFile> unwrap_file(const Napi::Value& value) {
  if (!value.IsObject() || !value.As<Napi::Object>().CheckTypeTag(&kFileTag)) {
    throw_status(value.Env(), error(Code::kInvalidOption, "the value is not a tensor file"));
    return nullptr;
  }
  std::shared_ptr<TensorFile> file = FileObject::Unwrap(value.As<Napi::Object>())->file();
  if (file == nullptr) throw_status(value.Env(), closed());
  return file;
}

void register_files(Napi::Env env, Napi::Object exports) {
  const auto file_class =
      std::make_shared<Napi::FunctionReference>(Napi::Persistent(FileObject::define(env)));
  const auto wrap = [file_class](std::shared_ptr<TensorFile> file) {
    Napi::Object object = file_class->New({});
    object.TypeTag(&kFileTag);
    FileObject::Unwrap(object)->set(std::move(file));
    return object;
  };
  const auto open = [wrap](const Napi::CallbackInfo& info) -> Napi::Value {
    std::string path;
    if (!get_string(info[0], "path", &path)) return info.Env().Undefined();
    Result<std::shared_ptr<TensorFile>> file = TensorFile::open(path);
    if (!file.ok()) return throw_status(info.Env(), file.status()), info.Env().Undefined();
    return wrap(std::move(file.value()));
  };
  const auto open_async = [wrap](const Napi::CallbackInfo& info) -> Napi::Value {
    std::string path;
    if (!get_string(info[0], "path", &path)) return info.Env().Undefined();
    auto opened = std::make_shared<std::shared_ptr<TensorFile>>();
    return run_async(
        info.Env(),
        [path, opened]() -> Status {
          Result<std::shared_ptr<TensorFile>> file = TensorFile::open(path);
          if (file.ok()) *opened = std::move(file.value());
          return file.status();
        },
        [opened, wrap](Napi::Env) { return wrap(std::move(*opened)); }, Napi::Object::New(info.Env()));
  };
  exports.Set("openTensorFile", Napi::Function::New(env, open));
  exports.Set("openTensorFileAsync", Napi::Function::New(env, open_async));
  exports.Set("writeSafetensors", Napi::Function::New(env, write_safetensors_async));
}

}  // namespace lowrank::addon
