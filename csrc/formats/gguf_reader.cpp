#include "formats/gguf_reader.h"

#include <algorithm>

#include "core/checked.h"
#include "formats/gguf_cursor.h"
#include "formats/text.h"

namespace lowrank {
namespace {

constexpr size_t kMaxDims = 4;
constexpr size_t kMaxNameBytes = 65535;  // the specification's limit for keys
constexpr size_t kDefaultAlignment = 32;
constexpr size_t kMinEntryBytes = 8 + 4 + 1;  // an empty key, a type, a byte
constexpr size_t kMinTensorBytes =
    8 + 4 + 4 + 8;                         // an empty name, no dimensions, a type, an offset
constexpr size_t kReleaseEvery = 8 << 20;  // bytes of the head

class GgufReader {
 public:
  GgufReader(const FileBytes& file, const std::string& path)
      : file_(file), path_(path), cursor_(file, path) {}

  Status run(FileIndex* index) {
    size_t tensors = 0, entries = 0;
    LR_RETURN_IF_ERROR(read_version());
    LR_RETURN_IF_ERROR(cursor_.read_count(kMinTensorBytes, &tensors, "the tensor count"));
    LR_RETURN_IF_ERROR(cursor_.read_count(kMinEntryBytes, &entries, "the metadata count"));
    if (tensors > kMaxTensors)
      return cursor_.fail("the tensor count is %zu; expected at most %zu", tensors, kMaxTensors);
    if (entries > kMaxMetadata)
      return cursor_.fail("the metadata count is %zu; expected at most %zu", entries, kMaxMetadata);
    for (size_t i = 0; i < entries; ++i) LR_RETURN_IF_ERROR(read_entry(index));
    LR_RETURN_IF_ERROR(index_metadata(index, Code::kInvalidGguf, path_));
    // The metadata may have taken most of what the count was checked against.
    if (tensors > cursor_.left() / kMinTensorBytes) {
      return cursor_.fail(
          "the tensor count is %zu; expected at most %zu, for which there are bytes after the "
          "metadata",
          tensors, cursor_.left() / kMinTensorBytes);
    }
    for (size_t i = 0; i < tensors; ++i) LR_RETURN_IF_ERROR(read_tensor(index));
    LR_RETURN_IF_ERROR(place_tensors(index));
    return index_tensors(index, Code::kInvalidGguf, path_);
  }

 private:
  Status read_version() {
    uint32_t magic = 0, version = 0;
    LR_RETURN_IF_ERROR(cursor_.read(&magic, "the magic number"));
    if (file_.size < 4 || std::memcmp(file_.data, kGgufMagic, sizeof kGgufMagic) != 0) {
      return cursor_.fail(
          "begins with %s; expected 'GGUF'",
          quoted({reinterpret_cast<const char*>(file_.data), sizeof kGgufMagic}).c_str());
    }
    LR_RETURN_IF_ERROR(cursor_.read(&version, "the version"));
    if ((version & 0xffff) == 0 && version != 0) {
      return cursor_.fail(
          "is a big-endian GGUF file; expected a little-endian one (convert it with "
          "gguf_convert_endian.py)");
    }
    if (version != 2 && version != 3)
      return cursor_.fail("is GGUF version %u; expected version 2 or 3", version);
    return Status();
  }

  Status read_name(std::string_view* name, const char* what) {
    LR_RETURN_IF_ERROR(cursor_.read_string(name, what));
    if (name->size() > kMaxNameBytes)
      return cursor_.fail("%s has %zu bytes; expected at most 65535", what, name->size());
    if (!is_utf8(*name))
      return cursor_.fail("%s is %s; expected UTF-8", what, quoted(*name).c_str());
    return Status();
  }

  Status read_entry(FileIndex* index) {
    std::string_view key;
    uint32_t type = 0;
    LR_RETURN_IF_ERROR(read_name(&key, "a metadata key"));
    LR_RETURN_IF_ERROR(cursor_.read(&type, "a metadata type"));
    const std::string where = path_ + ": metadata " + quoted(key);
    GgufCursor value(file_, where, cursor_.at());
    GgufValueLocation location = {type, value.at(), 0};
    LR_RETURN_IF_ERROR(value.skip_value(type));
    location.bytes = value.at() - location.offset;
    if (key == "general.alignment") LR_RETURN_IF_ERROR(read_alignment(location));
    index->metadata.push_back({std::string(key), location});
    cursor_.seek(value.at());
    release_behind();
    return Status();
  }

  Status read_alignment(const GgufValueLocation& location) {
    if (location.type != static_cast<uint32_t>(GgufValueType::kUint32)) {
      return cursor_.fail("'general.alignment' has the value type %u; expected 4 (uint32)",
                          location.type);
    }
    uint32_t alignment = 0;
    LR_RETURN_IF_ERROR(GgufCursor(file_, path_, location.offset).read(&alignment, "the alignment"));
    if (alignment == 0 || (alignment & (alignment - 1)) != 0) {
      return cursor_.fail("'general.alignment' is %u; expected a power of two", alignment);
    }
    alignment_ = alignment;
    return Status();
  }

  // Leaves the offset within the data part in `offsets_`, since where that begins is known after
  // the last description.
  Status read_tensor(FileIndex* index) {
    TensorInfo tensor;
    std::string_view name;
    uint32_t dims = 0, type = 0;
    uint64_t offset = 0;
    LR_RETURN_IF_ERROR(read_name(&name, "a tensor's name"));
    tensor.name = name;
    const std::string shown = quoted(name);
    LR_RETURN_IF_ERROR(cursor_.read(&dims, "a tensor's number of dimensions"));
    if (dims > kMaxDims)
      return cursor_.fail("tensor %s has %u dimensions; expected at most 4", shown.c_str(), dims);
    tensor.shape.resize(dims);
    for (size_t i = dims; i-- > 0;) {
      uint64_t dimension = 0;
      LR_RETURN_IF_ERROR(cursor_.read(&dimension, "a tensor's dimension"));
      if (dimension > INT64_MAX) {
        return cursor_.fail("tensor %s has a dimension of %llu; expected less than 2^63",
                            shown.c_str(), static_cast<unsigned long long>(dimension));
      }
      tensor.shape[i] = dimension;
    }
    LR_RETURN_IF_ERROR(cursor_.read(&type, "a tensor's type"));
    LR_RETURN_IF_ERROR(cursor_.read(&offset, "a tensor's offset"));
    const GgmlType* const known = find_ggml_type(type);
    if (known == nullptr)
      return cursor_.fail("tensor %s has the type %u; expected one of ggml's", shown.c_str(), type);
    tensor.dtype = known->dtype;
    tensor.type_name = known->name;
    LR_RETURN_IF_ERROR(measure(*known, shown, &tensor));
    index->tensors.push_back(std::move(tensor));
    offsets_.push_back(offset);
    release_behind();
    return Status();
  }

  Status measure(const GgmlType& type, const std::string& shown, TensorInfo* tensor) const {
    const size_t columns = tensor->shape.empty() ? 1 : tensor->shape.back();
    if (columns % type.block_elements != 0) {
      return cursor_.fail(
          "tensor %s of type %s has rows of %zu elements; expected a multiple of %zu",
          shown.c_str(), type.name, columns, type.block_elements);
    }
    size_t bytes = columns / type.block_elements;
    bool fits = checked_mul(bytes, type.block_bytes, &bytes);
    size_t elements = columns;  // ggml counts them in 63 bits
    for (size_t i = 0; i + 1 < tensor->shape.size(); ++i) {
      fits = fits && checked_mul(bytes, tensor->shape[i], &bytes) &&
             checked_mul(elements, tensor->shape[i], &elements);
    }
    if (!fits || elements > SIZE_MAX / 2) {
      return cursor_.fail(
          "tensor %s has the shape %s; expected fewer than 2^63 elements and 2^64 bytes",
          shown.c_str(), shape_text(tensor->shape).c_str());
    }
    tensor->bytes = bytes;
    return Status();
  }

  // Sorts the tensors by their data, and checks that each lies in the file and none in another.
  Status place_tensors(FileIndex* index) {
    size_t data_begin;
    if (!checked_align(cursor_.at(), alignment_, &data_begin)) {
      return cursor_.fail("'general.alignment' is %zu; expected less", alignment_);
    }
    data_begin = std::min(data_begin, file_.size);  // without data there need be no padding either
    const size_t data_bytes = file_.size - data_begin;
    for (size_t i = 0; i < index->tensors.size(); ++i) {
      TensorInfo& tensor = index->tensors[i];
      const size_t offset = offsets_[i];
      if (offset % alignment_ != 0) {
        return cursor_.fail(
            "tensor %s has the offset %zu; expected a multiple of the alignment, %zu",
            quoted(tensor.name).c_str(), offset, alignment_);
      }
      if (offset > data_bytes || tensor.bytes > data_bytes - offset) {
        return cursor_.fail(
            "tensor %s has %zu bytes at %zu; expected it within the file's %zu bytes of data",
            quoted(tensor.name).c_str(), tensor.bytes, offset, data_bytes);
      }
      tensor.data = file_.data + data_begin + offset;
    }
    std::stable_sort(index->tensors.begin(), index->tensors.end(),
                     [](const TensorInfo& a, const TensorInfo& b) { return a.data < b.data; });
    const TensorInfo* before = nullptr;
    for (const TensorInfo& tensor : index->tensors) {
      if (tensor.bytes == 0) continue;
      if (before != nullptr && before->data + before->bytes > tensor.data) {
        return cursor_.fail("tensor %s begins inside tensor %s; expected bytes of its own",
                            quoted(tensor.name).c_str(), quoted(before->name).c_str());
      }
      before = &tensor;
    }
    return Status();
  }

  void release_behind() {
    if (cursor_.at() - released_ < kReleaseEvery) return;
    file_.release(released_, cursor_.at());
    released_ = cursor_.at();
  }

  const FileBytes& file_;
  const std::string& path_;
  GgufCursor cursor_;
  size_t alignment_ = kDefaultAlignment;
  std::vector<size_t> offsets_;
  size_t released_ = 0;
};

}  // namespace

Result<FileIndex> read_gguf_index(const FileBytes& file, const std::string& path) {
  FileIndex index;
  LR_RETURN_IF_ERROR(GgufReader(file, path).run(&index));
  return index;
}

Result<MetadataValue> read_gguf_value(const FileBytes& file, const std::string& path,
                                      const GgufValueLocation& location) {
  MetadataValue value;
  if (location.offset > file.size)
    return error(Code::kInvalidGguf, "%s: it is shorter than it was", path.c_str());
  LR_RETURN_IF_ERROR(GgufCursor(file, path, location.offset).read_value(location.type, &value));
  return value;
}

}  // namespace lowrank
