#include "formats/gguf_cursor.h"

#include <algorithm>
#include <cstdarg>

#include "core/checked.h"

namespace lowrank {
namespace {

constexpr size_t kMaxArrayDepth =
    8;  // files in the wild do not nest; the depth bounds our own recursion
constexpr size_t kMaxDecoded = size_t{1}
                               << 22;  // elements of an array; the largest vocabularies have 2^18
constexpr size_t kStringHead = 8, kArrayHead = 12;

// The least that an element of `type` takes in the file.
size_t min_bytes(uint32_t type) {
  const auto kind = static_cast<GgufValueType>(type);
  return kind == GgufValueType::kString  ? kStringHead
         : kind == GgufValueType::kArray ? kArrayHead
                                         : kGgufScalarBytes[type];
}

}  // namespace

Status GgufCursor::fail(const char* format, ...) const {
  va_list args;
  va_start(args, format);
  char text[512];
  std::vsnprintf(text, sizeof text, format, args);
  va_end(args);
  return error(Code::kInvalidGguf, "%s: %s", where_.c_str(), text);
}

Status GgufCursor::ends_early(const char* what, uint64_t needed) const {
  return fail("%s at byte %zu takes %llu bytes; expected at most the %zu that are left in the file",
              what, at_, static_cast<unsigned long long>(needed), left());
}

Status GgufCursor::skip(size_t bytes, const char* what) {
  if (bytes > left()) return ends_early(what, bytes);
  at_ += bytes;
  return Status();
}

Status GgufCursor::read_string(std::string_view* out, const char* what) {
  uint64_t length = 0;
  LR_RETURN_IF_ERROR(read(&length, what));
  if (length > left()) return ends_early(what, length);
  *out = {reinterpret_cast<const char*>(file_.data) + at_, static_cast<size_t>(length)};
  at_ += length;
  return Status();
}

Status GgufCursor::read_count(size_t min_bytes, size_t* out, const char* what) {
  uint64_t count = 0;
  LR_RETURN_IF_ERROR(read(&count, what));
  if (count > left() / min_bytes) {
    return fail(
        "%s at byte %zu is %llu; expected at most %zu, for which %zu bytes are left in the file",
        what, at_ - sizeof count, static_cast<unsigned long long>(count), left() / min_bytes,
        left());
  }
  *out = static_cast<size_t>(count);
  return Status();
}

Status GgufCursor::read_array_head(size_t depth, uint32_t* type, size_t* count) {
  if (depth == kMaxArrayDepth)
    return fail("an array at byte %zu lies in %zu others; expected at most 7", at_, depth);
  LR_RETURN_IF_ERROR(read(type, "an array's type"));
  if (*type >= kGgufValueTypes) {
    return fail("an array at byte %zu has elements of type %u; expected a type from 0 to 12",
                at_ - sizeof *type, *type);
  }
  return read_count(min_bytes(*type), count, "an array's length");
}

Status GgufCursor::skip_value(uint32_t type, size_t depth) {
  if (type >= kGgufValueTypes)
    return fail("a value at byte %zu has the type %u; expected a type from 0 to 12", at_, type);
  switch (static_cast<GgufValueType>(type)) {
    case GgufValueType::kString: {
      std::string_view text;
      return read_string(&text, "a string");
    }
    case GgufValueType::kArray: {
      uint32_t element_type = 0;
      size_t count = 0;
      LR_RETURN_IF_ERROR(read_array_head(depth, &element_type, &count));
      if (const size_t bytes = kGgufScalarBytes[element_type]; bytes > 0)
        return skip(count * bytes, "an array");
      for (size_t i = 0; i < count; ++i) LR_RETURN_IF_ERROR(skip_value(element_type, depth + 1));
      return Status();
    }
    default: return skip(kGgufScalarBytes[type], "a value");
  }
}

template <class As, class Stored>
Status GgufCursor::read_scalar(MetadataValue* out) {
  Stored stored = {};
  LR_RETURN_IF_ERROR(read(&stored, "a value"));
  out->value = static_cast<As>(stored);
  return Status();
}

Status GgufCursor::read_value(uint32_t type, MetadataValue* out, size_t depth) {
  if (type >= kGgufValueTypes)
    return fail("a value at byte %zu has the type %u; expected a type from 0 to 12", at_, type);
  switch (static_cast<GgufValueType>(type)) {
    case GgufValueType::kUint8: return read_scalar<uint64_t, uint8_t>(out);
    case GgufValueType::kInt8: return read_scalar<int64_t, int8_t>(out);
    case GgufValueType::kUint16: return read_scalar<uint64_t, uint16_t>(out);
    case GgufValueType::kInt16: return read_scalar<int64_t, int16_t>(out);
    case GgufValueType::kUint32: return read_scalar<uint64_t, uint32_t>(out);
    case GgufValueType::kInt32: return read_scalar<int64_t, int32_t>(out);
    case GgufValueType::kFloat32: return read_scalar<double, float>(out);
    case GgufValueType::kUint64: return read_scalar<uint64_t, uint64_t>(out);
    case GgufValueType::kInt64: return read_scalar<int64_t, int64_t>(out);
    case GgufValueType::kFloat64: return read_scalar<double, double>(out);
    case GgufValueType::kBool:
      return read_scalar<bool, uint8_t>(out);  // a byte: any but 0 is true, as in ggml
    case GgufValueType::kString: {
      std::string_view text;
      LR_RETURN_IF_ERROR(read_string(&text, "a string"));
      out->value = std::string(text);
      return Status();
    }
    case GgufValueType::kArray: {
      uint32_t element_type = 0;
      size_t count = 0;
      LR_RETURN_IF_ERROR(read_array_head(depth, &element_type, &count));
      if (count > kMaxDecoded)
        return fail("an array at byte %zu has %zu elements; expected at most 4194304", at_, count);
      MetadataValue::Array elements(count);
      for (MetadataValue& element : elements)
        LR_RETURN_IF_ERROR(read_value(element_type, &element, depth + 1));
      out->value = std::move(elements);
      return Status();
    }
  }
  return Status();
}

}  // namespace lowrank
