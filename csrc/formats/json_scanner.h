// A strict pull scanner for JSON (RFC 8259), written for one use: the header of a safetensors file,
// up to 100 MB of untrusted text that is read where it lies, without a tree. It exists because the
// build takes C++ code from no registry: a JSON library would have to be copied into this
// repository and be ten times as long. What serde_json, the reference reader's parser, refuses is
// refused here: broken UTF-8, lone surrogates, raw control characters, nesting beyond 127.
//
// Time is linear in the text and no function recurses, so that depth costs nothing. Nothing is
// allocated but the strings that the caller asks for.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <string_view>

#include "core/status.h"

namespace lowrank {

class JsonScanner {
 public:
  static constexpr size_t kMaxDepth = 127;
  static constexpr size_t kWhole = std::numeric_limits<size_t>::max();

  // Errors carry `code` and begin with `where`. Both the text and `where` must outlive the scanner.
  JsonScanner(std::string_view text, Code code, const std::string& where)
      : text_(text), code_(code), where_(where) {}

  size_t position() const { return at_; }

  // Each skips whitespace first.
  Status expect(char symbol);
  bool consume(char symbol);  // takes `symbol` if it is next
  bool consume_null();
  Status end();  // nothing but whitespace is left

  // A string, decoded; of a longer one than `limit` bytes only the beginning is kept (it is checked
  // as a whole).
  Status string(std::string* out, size_t limit = kWhole);
  // A non-negative integer below 2^64, written without fraction or exponent.
  Status unsigned_integer(uint64_t* out);
  // Any value, checked and dropped. `depth`: arrays and objects it already lies in.
  Status skip_value(size_t depth);

  // "<where>: header byte 12: found …; expected …"
  Status fail(const char* expected) const;

 private:
  void skip_space();
  Status escape(std::string* out);
  Status unicode_escape(uint32_t* out);
  Status number();
  Status scalar();

  std::string_view text_;
  Code code_;
  const std::string& where_;
  size_t at_ = 0;
};

}  // namespace lowrank
