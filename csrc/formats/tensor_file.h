// A model file of either format, mapped: its tensors and what it says about itself.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/status.h"
#include "formats/file_index.h"
#include "formats/mapped_file.h"
#include "formats/metadata.h"
#include "ops/matrix.h"

namespace lowrank {

enum class FileFormat { kSafetensors, kGguf };

// Immutable after open(); may be used from several threads. Tensors point into the mapping: whoever
// uses them holds the shared_ptr. They may lie at any address: safetensors aligns nothing.
class TensorFile {
 public:
  // Decides by the first bytes. FILE_NOT_FOUND, IO_ERROR, INVALID_SAFETENSORS, INVALID_GGUF.
  static Result<std::shared_ptr<TensorFile>> open(const std::string& path);

  const std::string& path() const { return mapping_->path(); }
  FileFormat format() const { return format_; }

  // In the order of their data.
  const std::vector<TensorInfo>& tensors() const { return index_.tensors; }
  // Null where there is none of that name.
  const TensorInfo* find(std::string_view name) const;
  // INVALID_OPTION where there is none of that name.
  Result<const TensorInfo*> tensor(std::string_view name) const;

  // A tensor of two dimensions, or of one as a single row. SHAPE_MISMATCH for others;
  // UNSUPPORTED_QUANTIZATION naming tensor and type where the type is none that a GEMM can read.
  Result<Matrix> matrix(std::string_view name) const;

  // A float tensor of any number of dimensions as a matrix of its innermost rows, for reading it
  // whole; a scalar is [1, 1]. UNSUPPORTED_QUANTIZATION where the type is neither a scalar float
  // nor a block type that is unpacked here.
  Result<Matrix> rows(const TensorInfo& tensor) const;

  // Gives back the memory that a tensor's data takes while it is mapped, until it is read again.
  void release(const TensorInfo& tensor) const { release(tensor.data, tensor.bytes); }
  // The same of a part of one.
  void release(const void* data, size_t bytes) const {
    const auto begin = static_cast<size_t>(static_cast<const unsigned char*>(data) - mapping_->data());
    mapping_->release(begin, begin + bytes);
  }

  // Those whose values take at most `most_bytes` in the file, in its order.
  std::vector<std::string_view> metadata_keys(size_t most_bytes = SIZE_MAX) const;
  // safetensors: strings. INVALID_OPTION where there is no such key.
  Result<MetadataValue> metadata(std::string_view key) const;

  // IO_ERROR where the file was written to or truncated since: what was read from it may be wrong.
  // Ask after reading.
  Status check_unchanged() const { return mapping_->check_unchanged(); }

 private:
  TensorFile(std::shared_ptr<const MappedFile> mapping, FileFormat format, FileIndex index)
      : mapping_(std::move(mapping)), format_(format), index_(std::move(index)) {}

  FileBytes bytes() const { return {mapping_->data(), mapping_->size(), mapping_.get()}; }

  std::shared_ptr<const MappedFile> mapping_;
  FileFormat format_;
  FileIndex index_;
};

}  // namespace lowrank
