#include "formats/safetensors_writer.h"

#include <algorithm>
#include <cstdio>
#include <memory>
#include <new>

#include "core/checked.h"
#include "formats/atomic_file.h"
#include "formats/safetensors_types.h"
#include "formats/text.h"

namespace lowrank {
namespace {

constexpr size_t kHeaderAlignment = 8;

// Null for types that safetensors does not have.
const SafetensorsType* type_of(DType dtype) {
  if (dtype == DType::kOpaque) return nullptr;
  for (const SafetensorsType& type : kSafetensorsTypes) {
    if (type.dtype == dtype) return &type;
  }
  return nullptr;
}

Status check_text(const std::string& text, const char* what) {
  if (is_utf8(text)) return Status();
  return error(Code::kInvalidOption, "%s %s is not UTF-8", what, quoted(text).c_str());
}

Status check_tensor(const TensorToWrite& tensor) {
  const std::string name = quoted(tensor.name);
  LR_RETURN_IF_ERROR(check_text(tensor.name, "tensor name"));
  if (tensor.name == "__metadata__")
    return error(Code::kInvalidOption, "tensor name '__metadata__' is reserved by safetensors");
  const SafetensorsType* const type = type_of(tensor.dtype);
  if (type == nullptr) {
    return error(Code::kInvalidOption,
                 "tensor %s is of type %s; expected a type that safetensors has", name.c_str(),
                 dtype_info(tensor.dtype).name);
  }
  size_t bytes = type->bits / 8;
  bool fits = true;
  for (const size_t dimension : tensor.shape) fits = fits && checked_mul(bytes, dimension, &bytes);
  if (fits && bytes == tensor.bytes) return Status();
  return error(Code::kShapeMismatch, "tensor %s has %zu bytes; expected %s for %s %s", name.c_str(),
               tensor.bytes, fits ? std::to_string(bytes).c_str() : "more than there can be",
               type->name, shape_text(tensor.shape).c_str());
}

template <class Items, class Key>
Status check_distinct(const Items& sorted, const char* what, Key key) {
  for (size_t i = 1; i < sorted.size(); ++i) {
    if (key(sorted[i]) != key(sorted[i - 1])) continue;
    return error(Code::kInvalidOption, "%s %s is there twice; expected every one once", what,
                 quoted(key(sorted[i])).c_str());
  }
  return Status();
}

// As serde_json writes it: only what must be escaped is.
void append_json(const std::string& text, std::string* out) {
  *out += '"';
  for (const char c : text) {
    switch (c) {
      case '"': *out += "\\\""; break;
      case '\\': *out += "\\\\"; break;
      case '\b': *out += "\\b"; break;
      case '\f': *out += "\\f"; break;
      case '\n': *out += "\\n"; break;
      case '\r': *out += "\\r"; break;
      case '\t': *out += "\\t"; break;
      default:
        if (static_cast<unsigned char>(c) >= 0x20) {
          *out += c;
        } else {
          char escaped[8];
          std::snprintf(escaped, sizeof escaped, "\\u%04x", static_cast<unsigned char>(c));
          *out += escaped;
        }
    }
  }
  *out += '"';
}

void append_metadata(const MetadataStrings& metadata, std::string* out) {
  *out += "\"__metadata__\":{";
  for (size_t i = 0; i < metadata.size(); ++i) {
    if (i > 0) *out += ',';
    append_json(metadata[i].first, out);
    *out += ':';
    append_json(metadata[i].second, out);
  }
  *out += '}';
}

void append_tensor(const TensorToWrite& tensor, size_t begin, std::string* out) {
  append_json(tensor.name, out);
  *out += std::string(":{\"dtype\":\"") + type_of(tensor.dtype)->name + "\",\"shape\":[";
  for (size_t i = 0; i < tensor.shape.size(); ++i) {
    if (i > 0) *out += ',';
    *out += std::to_string(tensor.shape[i]);
  }
  *out += "],\"data_offsets\":[" + std::to_string(begin) + "," +
          std::to_string(begin + tensor.bytes) + "]}";
}

std::string header_of(const std::vector<TensorToWrite>& tensors, const MetadataStrings& metadata) {
  std::string header = "{";
  if (!metadata.empty()) append_metadata(metadata, &header);
  size_t begin = 0;
  for (const TensorToWrite& tensor : tensors) {
    if (header.size() > 1) header += ',';
    append_tensor(tensor, begin, &header);
    begin += tensor.bytes;
  }
  header += '}';
  header.resize(round_up(header.size(), kHeaderAlignment), ' ');
  return header;
}

Status check_all(std::vector<TensorToWrite>* tensors, MetadataStrings* metadata) {
  for (const TensorToWrite& tensor : *tensors) LR_RETURN_IF_ERROR(check_tensor(tensor));
  std::sort(tensors->begin(), tensors->end(),
            [](const auto& a, const auto& b) { return a.name < b.name; });
  LR_RETURN_IF_ERROR(check_distinct(
      *tensors, "tensor", [](const auto& tensor) -> const std::string& { return tensor.name; }));
  std::stable_sort(tensors->begin(), tensors->end(), [](const auto& a, const auto& b) {
    return type_of(a.dtype) > type_of(b.dtype);
  });
  for (const auto& [key, text] : *metadata) {
    LR_RETURN_IF_ERROR(check_text(key, "metadata key"));
    LR_RETURN_IF_ERROR(check_text(text, "metadata"));
  }
  std::sort(metadata->begin(), metadata->end());
  return check_distinct(*metadata, "metadata key",
                        [](const auto& entry) -> const std::string& { return entry.first; });
}

Status write_tensor(const TensorToWrite& tensor, AtomicFile* file) {
  if (!tensor.make) return file->write(tensor.data, tensor.bytes);
  const std::unique_ptr<unsigned char[]> made(new (std::nothrow) unsigned char[tensor.bytes]);
  if (made == nullptr) {
    return error(Code::kOutOfMemory, "%zu bytes to write tensor %s could not be had", tensor.bytes,
                 quoted(tensor.name).c_str());
  }
  LR_RETURN_IF_ERROR(tensor.make(made.get()));
  return file->write(made.get(), tensor.bytes);
}

}  // namespace

Status write_safetensors(const std::string& path, std::vector<TensorToWrite> tensors,
                         MetadataStrings metadata) {
  LR_RETURN_IF_ERROR(check_all(&tensors, &metadata));
  const std::string header = header_of(tensors, metadata);
  if (header.size() > kMaxSafetensorsHeader) {
    return error(Code::kInvalidOption,
                 "%s: the header would have %zu bytes; expected at most 100000000", path.c_str(),
                 header.size());
  }
  unsigned char length[8];
  for (size_t i = 0; i < sizeof length; ++i)
    length[i] = static_cast<unsigned char>(uint64_t{header.size()} >> (8 * i));

  AtomicFile file(path);
  LR_RETURN_IF_ERROR(file.open());
  LR_RETURN_IF_ERROR(file.write(length, sizeof length));
  LR_RETURN_IF_ERROR(file.write(header.data(), header.size()));
  for (const TensorToWrite& tensor : tensors) LR_RETURN_IF_ERROR(write_tensor(tensor, &file));
  return file.commit();
}

}  // namespace lowrank
