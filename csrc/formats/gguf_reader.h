// GGUF versions 2 and 3, little-endian: counts, typed key-value pairs, tensor descriptions, then
// aligned tensor data. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
//
// More than the specification allows is accepted where both reference readers (ggml's and gguf-py)
// cope with it: tensor names of more than 64 bytes, tensors in any order and with holes between
// them, no padding after the last one.
#pragma once

#include "formats/file_index.h"
#include "formats/mapped_file.h"
#include "formats/metadata.h"

namespace lowrank {

inline constexpr unsigned char kGgufMagic[4] = {'G', 'G', 'U', 'F'};

// INVALID_GGUF names the file, the tensor or key, what was found and what was expected. Touches the
// head of the file only. Shapes are reversed to row-major. Tensors of types that are not unpacked
// here are listed as kOpaque.
Result<FileIndex> read_gguf_index(const FileBytes& file, const std::string& path);

// The value at a place that read_gguf_index found. Checks everything again: the file may have
// changed since.
Result<MetadataValue> read_gguf_value(const FileBytes& file, const std::string& path,
                                      const GgufValueLocation& location);

}  // namespace lowrank
