// What a reader finds in a file: its tensors, and where its metadata lies.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "core/dtype.h"
#include "core/status.h"

namespace lowrank {

// More tensors or metadata entries than this are refused: no model has a tenth of them, and what a
// hostile file can make us hold stays below 64 MiB.
inline constexpr size_t kMaxTensors = size_t{1} << 18;
inline constexpr size_t kMaxMetadata = size_t{1} << 18;

struct TensorInfo {
  std::string name;
  DType dtype = DType::kOpaque;  // kOpaque: see type_name; its bytes can be had but not its values
  const char* type_name = "";    // as the format calls it: "BF16", "Q4_K", "MXFP4"
  std::vector<size_t> shape;     // row-major, [out, in] for a weight; empty for a scalar
  const unsigned char* data = nullptr;  // in the mapped file; safetensors aligns it to nothing
  size_t bytes = 0;
};

// A value of a GGUF file, checked at opening and decoded when asked for: arrays of a vocabulary's
// size would otherwise take many times their bytes in the file.
struct GgufValueLocation {
  uint32_t type = 0;
  size_t offset = 0;
  size_t bytes = 0;
};

struct MetadataEntry {
  std::string key;
  std::variant<std::string, GgufValueLocation> value;
};

struct FileIndex {
  std::vector<TensorInfo> tensors;  // in the order of their data
  std::vector<size_t> tensors_by_name;
  std::vector<MetadataEntry> metadata;
  std::vector<size_t> metadata_by_name;
};

// Indices that sort `names`, equal ones in their order. Look-ups sort rather than hash: the names
// come from a file that may have been made to collide.
std::vector<size_t> order_of(const std::vector<std::string_view>& names);

// Fill tensors_by_name and metadata_by_name, or fail with `code` naming the file and what is there
// twice.
Status index_tensors(FileIndex* index, Code code, const std::string& path);
Status index_metadata(FileIndex* index, Code code, const std::string& path);

}  // namespace lowrank
