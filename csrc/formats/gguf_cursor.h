// Reads little-endian values out of a GGUF file, each checked against the bytes that are left.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>

#include "core/status.h"
#include "formats/gguf_types.h"
#include "formats/mapped_file.h"
#include "formats/metadata.h"

namespace lowrank {

class GgufCursor {
 public:
  // Errors are INVALID_GGUF and begin with `where`. Both must outlive the cursor.
  GgufCursor(const FileBytes& file, const std::string& where, size_t at = 0)
      : file_(file), where_(where), at_(at) {}

  size_t at() const { return at_; }
  void seek(size_t at) { at_ = at; }
  size_t left() const { return file_.size - at_; }

  template <class T>
  Status read(T* out, const char* what) {
    if (left() < sizeof(T)) return ends_early(what, sizeof(T));
    unsigned char bytes[sizeof(T)];
    std::memcpy(bytes, file_.data + at_, sizeof(T));
    if constexpr (std::endian::native == std::endian::big) {
      for (size_t i = 0; i < sizeof(T) / 2; ++i) std::swap(bytes[i], bytes[sizeof(T) - 1 - i]);
    }
    std::memcpy(out, bytes, sizeof(T));
    at_ += sizeof(T);
    return Status();
  }

  // A 64-bit length and that many bytes, which stay in the file.
  Status read_string(std::string_view* out, const char* what);

  // A count of things that take at least `min_bytes` each in the file.
  Status read_count(size_t min_bytes, size_t* out, const char* what);

  // Passes over a value of `type`, checking it. `depth`: arrays that it lies in.
  Status skip_value(uint32_t type, size_t depth = 0);

  // Decodes a value of `type`. An array of more than 2^22 elements is refused: decoded, it takes
  // many times its bytes.
  Status read_value(uint32_t type, MetadataValue* out, size_t depth = 0);

  [[gnu::format(printf, 2, 3)]] Status fail(const char* format, ...) const;

 private:
  Status ends_early(const char* what, uint64_t needed) const;
  Status read_array_head(size_t depth, uint32_t* type, size_t* count);
  Status skip(size_t bytes, const char* what);
  template <class As, class Stored>
  Status read_scalar(MetadataValue* out);

  const FileBytes& file_;
  const std::string& where_;
  size_t at_;
};

}  // namespace lowrank
