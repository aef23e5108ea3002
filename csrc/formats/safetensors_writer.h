// Writes a safetensors file, atomically. The bytes are those of the reference implementation:
// tensors sorted by type, widest first, then by name, so that each is aligned to its element; a
// header without spaces, padded with spaces to 8 bytes.
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "core/dtype.h"
#include "core/status.h"

namespace lowrank {

struct TensorToWrite {
  std::string name;
  DType dtype = DType::kF32;  // a scalar type
  std::vector<size_t> shape;
  const void* data = nullptr;  // must live until the call returns
  size_t bytes = 0;
  // Where the data does not lie as it is to be written: makes it when it is the tensor's turn.
  std::function<Status(void* to)> make = nullptr;
};

using MetadataStrings = std::vector<std::pair<std::string, std::string>>;

// Streams the tensors without a copy of them, but of one at a time that has to be made. INVALID_OPTION for a name that is there twice,
// reserved or not UTF-8, or a type that safetensors does not have; SHAPE_MISMATCH where shape and
// bytes disagree; IO_ERROR, after which no trace is left and an earlier file at `path` is
// untouched. `metadata` is written in the order of its keys, and left out where empty.
Status write_safetensors(const std::string& path, std::vector<TensorToWrite> tensors,
                         MetadataStrings metadata);

}  // namespace lowrank
