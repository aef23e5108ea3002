#include "formats/tensor_file.h"

#include <algorithm>
#include <cstring>

#include "formats/gguf_reader.h"
#include "formats/safetensors_reader.h"
#include "formats/scalars.h"
#include "formats/text.h"

namespace lowrank {
namespace {

bool begins_with(const MappedFile& file, std::string_view prefix) {
  return file.size() >= prefix.size() &&
         std::memcmp(file.data(), prefix.data(), prefix.size()) == 0;
}

bool has_suffix(std::string_view text, std::string_view suffix) {
  return text.size() >= suffix.size() && text.substr(text.size() - suffix.size()) == suffix;
}

// PyTorch's .bin and .pt: a zip archive, or a bare pickle of protocol 2 or later.
bool is_pickle(const MappedFile& file) {
  if (begins_with(file, "PK\x03\x04")) return true;
  return file.size() > 2 && file.data()[0] == 0x80 && file.data()[1] >= 2 && file.data()[1] <= 5 &&
         file.data()[2] != 0;
}

template <class Item, class Name>
const Item* find_by_name(const std::vector<Item>& items, const std::vector<size_t>& order,
                         std::string_view name, Name name_of) {
  const auto place = std::lower_bound(
      order.begin(), order.end(), name,
      [&](size_t index, std::string_view wanted) { return name_of(items[index]) < wanted; });
  return place != order.end() && name_of(items[*place]) == name ? &items[*place] : nullptr;
}

}  // namespace

Result<std::shared_ptr<TensorFile>> TensorFile::open(const std::string& path) {
  Result<std::shared_ptr<const MappedFile>> mapped = MappedFile::open(path);
  if (!mapped.ok()) return mapped.status();
  const std::shared_ptr<const MappedFile>& mapping = mapped.value();
  const bool gguf =
      begins_with(*mapping, {reinterpret_cast<const char*>(kGgufMagic), sizeof kGgufMagic}) ||
      has_suffix(path, ".gguf");
  if (!gguf && is_pickle(*mapping)) {
    return error(Code::kInvalidSafetensors,
                 "%s is a pickle, which may run code when it is read; expected safetensors or GGUF "
                 "(convert it: in Python, safetensors.torch.save_file(torch.load(path, "
                 "weights_only=True), 'model.safetensors'))",
                 path.c_str());
  }
  const FileBytes bytes = {mapping->data(), mapping->size(), mapping.get()};
  Result<FileIndex> index =
      gguf ? read_gguf_index(bytes, path) : read_safetensors_index(bytes, path);
  // First, since a header that was truncated while it was read is not to blame for being invalid.
  LR_RETURN_IF_ERROR(mapping->check_unchanged());
  if (!index.ok()) return index.status();
  return std::shared_ptr<TensorFile>(new TensorFile(
      mapping, gguf ? FileFormat::kGguf : FileFormat::kSafetensors, std::move(index.value())));
}

const TensorInfo* TensorFile::find(std::string_view name) const {
  return find_by_name(index_.tensors, index_.tensors_by_name, name,
                      [](const TensorInfo& tensor) { return std::string_view(tensor.name); });
}

Result<const TensorInfo*> TensorFile::tensor(std::string_view name) const {
  const TensorInfo* const found = find(name);
  if (found != nullptr) return found;
  return error(Code::kInvalidOption, "%s has no tensor %s; expected one of its %zu", path().c_str(),
               quoted(name).c_str(), index_.tensors.size());
}

Result<Matrix> TensorFile::matrix(std::string_view name) const {
  const Result<const TensorInfo*> found = tensor(name);
  if (!found.ok()) return found.status();
  const TensorInfo& info = *found.value();
  if (info.shape.empty() || info.shape.size() > 2) {
    return error(Code::kShapeMismatch,
                 "%s: tensor %s has the shape %s; expected one or two dimensions", path().c_str(),
                 quoted(name).c_str(), shape_text(info.shape).c_str());
  }
  if (!dtype_info(info.dtype).is_weight) {
    return error(Code::kUnsupportedQuantization,
                 "%s: tensor %s is of type %s, which cannot be computed with; expected one such as "
                 "F32, BF16, F16, Q8_0 or Q4_K",
                 path().c_str(), quoted(name).c_str(), info.type_name);
  }
  const size_t rows = info.shape.size() == 2 ? info.shape[0] : 1;
  return lowrank::matrix(info.data, info.dtype, rows, info.shape.back());
}

Result<Matrix> TensorFile::rows(const TensorInfo& tensor) const {
  if (!is_scalar_float(tensor.dtype) && !dtype_info(tensor.dtype).is_weight) {
    return error(
        Code::kUnsupportedQuantization,
        "%s: tensor %s is of type %s; expected a float type or a block type from Q2_K to Q8_0, "
        "IQ4_NL or IQ4_XS",
        path().c_str(), quoted(tensor.name).c_str(), tensor.type_name);
  }
  const size_t cols = tensor.shape.empty() ? 1 : tensor.shape.back();
  const size_t bytes_per_row = row_bytes(tensor.dtype, cols);
  const size_t rows = bytes_per_row == 0 ? 0 : tensor.bytes / bytes_per_row;
  return lowrank::matrix(tensor.data, tensor.dtype, rows, cols);
}

std::vector<std::string_view> TensorFile::metadata_keys(size_t most_bytes) const {
  std::vector<std::string_view> keys;
  keys.reserve(index_.metadata.size());
  for (const MetadataEntry& entry : index_.metadata) {
    const std::string* const text = std::get_if<std::string>(&entry.value);
    const size_t bytes = text != nullptr ? text->size() : std::get_if<GgufValueLocation>(&entry.value)->bytes;
    if (bytes <= most_bytes) keys.push_back(entry.key);
  }
  return keys;
}

Result<MetadataValue> TensorFile::metadata(std::string_view key) const {
  const MetadataEntry* const entry =
      find_by_name(index_.metadata, index_.metadata_by_name, key,
                   [](const MetadataEntry& one) { return std::string_view(one.key); });
  if (entry == nullptr) {
    return error(Code::kInvalidOption, "%s has no metadata %s", path().c_str(),
                 quoted(key).c_str());
  }
  if (const std::string* const text = std::get_if<std::string>(&entry->value))
    return MetadataValue{*text};
  return read_gguf_value(bytes(), path() + ": metadata " + quoted(key),
                         *std::get_if<GgufValueLocation>(&entry->value));
}

}  // namespace lowrank
