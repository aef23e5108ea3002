// Status and Result: how every native function says what went wrong. No exceptions cross csrc.
#pragma once

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <string>
#include <utility>

namespace lowrank {

// Each code becomes `LowrankError.code` in JavaScript; see code_name.
enum class Code : uint8_t {
  kOk,
  kInvalidOption,
  kFileNotFound,
  kInvalidSafetensors,
  kInvalidGguf,
  kInvalidConfig,
  kInvalidAdapter,
  kAdapterMismatch,
  kUnsupportedModel,
  kUnsupportedQuantization,
  kShapeMismatch,
  kOutOfMemory,
  kNonFinite,
  kIoError,
  kAborted,
};

constexpr const char* code_name(Code code) {
  switch (code) {
    case Code::kOk: return "OK";
    case Code::kInvalidOption: return "INVALID_OPTION";
    case Code::kFileNotFound: return "FILE_NOT_FOUND";
    case Code::kInvalidSafetensors: return "INVALID_SAFETENSORS";
    case Code::kInvalidGguf: return "INVALID_GGUF";
    case Code::kInvalidConfig: return "INVALID_CONFIG";
    case Code::kInvalidAdapter: return "INVALID_ADAPTER";
    case Code::kAdapterMismatch: return "ADAPTER_MISMATCH";
    case Code::kUnsupportedModel: return "UNSUPPORTED_MODEL";
    case Code::kUnsupportedQuantization: return "UNSUPPORTED_QUANTIZATION";
    case Code::kShapeMismatch: return "SHAPE_MISMATCH";
    case Code::kOutOfMemory: return "OUT_OF_MEMORY";
    case Code::kNonFinite: return "NON_FINITE";
    case Code::kIoError: return "IO_ERROR";
    case Code::kAborted: return "ABORTED";
  }
  return "IO_ERROR";
}

class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(Code code, std::string message) : code_(code), message_(std::move(message)) {}

  bool ok() const { return code_ == Code::kOk; }
  Code code() const { return code_; }
  // One sentence that names the thing, what was found and what was expected.
  const std::string& message() const { return message_; }

 private:
  Code code_ = Code::kOk;
  std::string message_;
};

// printf-style construction, since csrc has no std::format (g++ 12).
[[gnu::format(printf, 2, 3)]] inline Status error(Code code, const char* format, ...) {
  va_list args, copy;
  va_start(args, format);
  va_copy(copy, args);
  const int length = std::vsnprintf(nullptr, 0, format, args);
  va_end(args);
  std::string message(length > 0 ? static_cast<size_t>(length) : 0, '\0');
  if (length > 0) std::vsnprintf(message.data(), message.size() + 1, format, copy);
  va_end(copy);
  return Status(code, std::move(message));
}

// A value or the reason there is none.
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}             // NOLINT(google-explicit-constructor)
  Result(Status status) : status_(std::move(status)) {}     // NOLINT(google-explicit-constructor)

  bool ok() const { return status_.ok(); }
  const Status& status() const { return status_; }
  T& value() { return value_; }
  const T& value() const { return value_; }

 private:
  Status status_;
  T value_{};
};

}  // namespace lowrank

// Returns from the enclosing function when `expression` (a Status) is not ok.
#define LR_RETURN_IF_ERROR(expression)                        \
  do {                                                        \
    if (::lowrank::Status lr_status = (expression); !lr_status.ok()) return lr_status; \
  } while (0)
