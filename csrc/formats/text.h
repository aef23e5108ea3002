// Text that comes from a file: checking it, and showing it in a message without letting it harm the
// message.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace lowrank {

// Bytes of the well-formed UTF-8 sequence at the start of `text` (1 to 4), 0 where there is none:
// no overlong forms, no surrogates, nothing beyond U+10FFFF.
size_t utf8_sequence(std::string_view text);

bool is_utf8(std::string_view text);

// 'text' in quotes: control characters and broken UTF-8 as \xNN, long text cut. Safe to print
// whatever it holds.
std::string quoted(std::string_view text);

// "[2, 3]"
template <class Shape>
std::string shape_text(const Shape& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    if (i > 0) text += ", ";
    text += std::to_string(shape[i]);
  }
  return text + "]";
}

}  // namespace lowrank
