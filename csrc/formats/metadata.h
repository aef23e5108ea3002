// What a file says about itself, as a tree: safetensors' strings and GGUF's typed values.
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

namespace lowrank {

struct MetadataValue {
  using Array = std::vector<MetadataValue>;
  // float32 is widened to double; integers keep their sign and all 64 bits. Strings need not be
  // UTF-8 in GGUF.
  std::variant<bool, uint64_t, int64_t, double, std::string, Array> value;
};

}  // namespace lowrank
