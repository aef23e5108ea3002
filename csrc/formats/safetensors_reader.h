// safetensors: 8 bytes of header length (little-endian), a JSON header, the tensors' bytes.
// Format: https://huggingface.co/docs/safetensors, reference reader: huggingface/safetensors
// (Rust).
//
// Accepted is what the reference accepts, refused what it refuses, but for three things that it
// lets pass and the format does not: a key that is there twice, and a tensor written as an array or
// a dtype written as an object.
#pragma once

#include "formats/file_index.h"
#include "formats/mapped_file.h"

namespace lowrank {

// INVALID_SAFETENSORS names the file, the tensor, what was found and what was expected. Touches the
// header only.
Result<FileIndex> read_safetensors_index(const FileBytes& file, const std::string& path);

}  // namespace lowrank
