#include "formats/json_scanner.h"

#include <algorithm>
#include <bitset>

#include "formats/text.h"

namespace lowrank {
namespace {

// Stands for itself in a string: printable ASCII but the quote and the backslash.
constexpr bool is_plain(char c) { return c >= 0x20 && c < 0x7f && c != '"' && c != '\\'; }

constexpr bool is_digit(char c) { return c >= '0' && c <= '9'; }

int hex_digit(char c) {
  if (is_digit(c)) return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

void append_utf8(uint32_t point, std::string* out) {
  const auto continuation = [&](int shift) {
    out->push_back(static_cast<char>(0x80 | ((point >> shift) & 0x3f)));
  };
  if (point < 0x80) {
    out->push_back(static_cast<char>(point));
  } else if (point < 0x800) {
    out->push_back(static_cast<char>(0xc0 | (point >> 6)));
    continuation(0);
  } else if (point < 0x10000) {
    out->push_back(static_cast<char>(0xe0 | (point >> 12)));
    continuation(6);
    continuation(0);
  } else {
    out->push_back(static_cast<char>(0xf0 | (point >> 18)));
    continuation(12);
    continuation(6);
    continuation(0);
  }
}

}  // namespace

Status JsonScanner::fail(const char* expected) const {
  if (at_ >= text_.size()) {
    return error(code_, "%s: the header ends at byte %zu; expected %s", where_.c_str(), at_,
                 expected);
  }
  return error(code_, "%s: header byte %zu: found %s; expected %s", where_.c_str(), at_,
               quoted(text_.substr(at_, 16)).c_str(), expected);
}

void JsonScanner::skip_space() {
  while (at_ < text_.size()) {
    const char c = text_[at_];
    if (c != ' ' && c != '\n' && c != '\t' && c != '\r') return;
    ++at_;
  }
}

bool JsonScanner::consume(char symbol) {
  skip_space();
  if (at_ >= text_.size() || text_[at_] != symbol) return false;
  ++at_;
  return true;
}

bool JsonScanner::consume_null() {
  skip_space();
  if (text_.substr(at_, 4) != "null") return false;
  at_ += 4;
  return true;
}

Status JsonScanner::expect(char symbol) {
  if (consume(symbol)) return Status();
  const char expected[] = {'\'', symbol, '\'', '\0'};
  return fail(expected);
}

Status JsonScanner::end() {
  skip_space();
  return at_ == text_.size() ? Status() : fail("the end of the header");
}

Status JsonScanner::string(std::string* out, size_t limit) {
  out->clear();
  skip_space();
  if (at_ >= text_.size() || text_[at_] != '"') return fail("a string");
  ++at_;
  std::string decoded;  // of one escape
  while (at_ < text_.size()) {
    const size_t start = at_;
    while (at_ < text_.size() && is_plain(text_[at_])) ++at_;
    if (at_ > start && out->size() < limit)
      out->append(text_.substr(start, std::min(at_ - start, limit - out->size())));
    if (at_ == text_.size()) break;
    const unsigned char c = static_cast<unsigned char>(text_[at_]);
    if (c == '"') {
      ++at_;
      return Status();
    }
    if (c < 0x20) return fail("no raw control character in a string");
    if (c == '\\') {
      decoded.clear();
      LR_RETURN_IF_ERROR(escape(&decoded));
      if (out->size() < limit) *out += decoded;
      continue;
    }
    const size_t length = utf8_sequence(text_.substr(at_, 4));
    if (length == 0) return fail("UTF-8");
    if (out->size() < limit) out->append(text_.substr(at_, length));
    at_ += length;
  }
  return fail("the closing quote of a string");
}

Status JsonScanner::escape(std::string* out) {
  const char kind = at_ + 1 < text_.size() ? text_[at_ + 1] : '\0';
  static constexpr std::string_view kKinds = "\"\\/bfnrt", kMeanings = "\"\\/\b\f\n\r\t";
  if (const size_t index = kKinds.find(kind); index != std::string_view::npos) {
    out->push_back(kMeanings[index]);
    at_ += 2;
    return Status();
  }
  if (kind != 'u') return fail("an escape sequence of JSON");
  uint32_t point;
  LR_RETURN_IF_ERROR(unicode_escape(&point));
  if (point >= 0xd800 && point < 0xe000) {
    uint32_t low = 0;
    if (point >= 0xdc00 || text_.substr(at_, 2) != "\\u")
      return fail("the second half of a surrogate pair");
    LR_RETURN_IF_ERROR(unicode_escape(&low));
    if (low < 0xdc00 || low >= 0xe000) return fail("a surrogate pair before this");
    point = 0x10000 + ((point - 0xd800) << 10) + (low - 0xdc00);
  }
  append_utf8(point, out);
  return Status();
}

// The \uXXXX at the current position.
Status JsonScanner::unicode_escape(uint32_t* out) {
  *out = 0;
  for (size_t i = 2; i < 6; ++i) {
    const int digit = at_ + i < text_.size() ? hex_digit(text_[at_ + i]) : -1;
    if (digit < 0) return fail("four hexadecimal digits after \\u");
    *out = *out * 16 + static_cast<uint32_t>(digit);
  }
  at_ += 6;
  return Status();
}

Status JsonScanner::unsigned_integer(uint64_t* out) {
  static constexpr const char* kExpected = "a whole number from 0 to 2^64 - 1";
  skip_space();
  const size_t start = at_;
  uint64_t value = 0;
  while (at_ < text_.size() && is_digit(text_[at_])) {
    const bool overflows =
        __builtin_mul_overflow(value, uint64_t{10}, &value) ||
        __builtin_add_overflow(value, static_cast<uint64_t>(text_[at_] - '0'), &value);
    if (overflows) {
      at_ = start;
      return fail(kExpected);
    }
    ++at_;
  }
  const size_t digits = at_ - start;
  const char next = at_ < text_.size() ? text_[at_] : '\0';
  const bool leading_zero = digits > 1 && text_[start] == '0';
  if (digits == 0 || leading_zero || next == '.' || next == 'e' || next == 'E') {
    at_ = start;
    return fail(kExpected);
  }
  *out = value;
  return Status();
}

Status JsonScanner::number() {
  const auto digits = [&] {
    const size_t start = at_;
    while (at_ < text_.size() && is_digit(text_[at_])) ++at_;
    return at_ - start;
  };
  const auto take = [&](std::string_view choices) {
    if (at_ >= text_.size() || choices.find(text_[at_]) == std::string_view::npos) return false;
    ++at_;
    return true;
  };
  take("-");
  const bool zero = at_ < text_.size() && text_[at_] == '0';
  const size_t whole = digits();
  if (whole == 0 || (zero && whole > 1)) return fail("a number without leading zeros");
  if (take(".") && digits() == 0) return fail("digits after the decimal point");
  if (take("eE")) {
    take("+-");
    if (digits() == 0) return fail("digits in the exponent");
  }
  return Status();
}

Status JsonScanner::scalar() {
  std::string beginning;
  const char c = at_ < text_.size() ? text_[at_] : '\0';
  if (c == '"') return string(&beginning, 0);
  if (c == '-' || is_digit(c)) return number();
  for (const std::string_view word : {"null", "true", "false"}) {
    if (text_.substr(at_, word.size()) != word) continue;
    at_ += word.size();
    return Status();
  }
  return fail("a JSON value");
}

Status JsonScanner::skip_value(size_t depth) {
  std::bitset<kMaxDepth + 1> is_object;  // for each open array or object
  const size_t outer = depth;
  std::string key;
  for (;;) {
    // A value begins here.
    skip_space();
    const char c = at_ < text_.size() ? text_[at_] : '\0';
    bool opened = false;
    if (c == '{' || c == '[') {
      if (depth == kMaxDepth) return fail("at most 127 levels of nesting");
      ++at_;
      is_object[depth++] = c == '{';
      opened = !consume(c == '{' ? '}' : ']');
      if (!opened) --depth;
    } else {
      LR_RETURN_IF_ERROR(scalar());
    }
    // After a value: close what ends here, or go on to the next member.
    while (!opened) {
      if (depth == outer) return Status();
      const bool object = is_object[depth - 1];
      if (consume(',')) break;
      if (!consume(object ? '}' : ']')) return fail(object ? "',' or '}'" : "',' or ']'");
      --depth;
    }
    if (is_object[depth - 1]) {
      LR_RETURN_IF_ERROR(string(&key, 0));
      LR_RETURN_IF_ERROR(expect(':'));
    }
  }
}

}  // namespace lowrank
