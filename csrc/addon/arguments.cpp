#include "addon/arguments.h"

namespace lowrank::addon {

Result<DType> weight_type(const std::string& name) {
  for (size_t i = 0; i < static_cast<size_t>(DType::kCount); ++i) {
    const DType type = static_cast<DType>(i);
    if (dtype_info(type).is_weight && name == dtype_info(type).name) return type;
  }
  std::string known;
  for (const DTypeInfo& info : kDTypes) {
    if (info.is_weight) known += (known.empty() ? "" : ", ") + std::string(info.name);
  }
  return error(Code::kUnsupportedQuantization, "dtype is '%.40s'; expected one of %s", name.c_str(), known.c_str());
}

Matrix Arguments::weight() {
  const unsigned char* const data = bytes();
  const std::string name = text();
  const size_t rows = size(), columns = size();
  if (!ok_) return {};
  const Result<DType> type = weight_type(name);
  if (!type.ok()) {
    fail(type.status());
    return {};
  }
  return matrix(data, type.value(), rows, columns);
}

std::vector<Arguments> Arguments::lists() {
  const Napi::Value value = next();
  std::vector<Arguments> result;
  if (!ok_) return result;
  if (!value.IsArray()) {
    fail(error(Code::kInvalidOption, "a kernel's argument is not a list"));
    return result;
  }
  const Napi::Array array = value.As<Napi::Array>();
  for (uint32_t i = 0; i < array.Length(); ++i) {
    const Napi::Value item = array.Get(i);
    if (!item.IsArray()) {
      fail(error(Code::kInvalidOption, "a kernel's argument is not a list of lists"));
      return {};
    }
    result.emplace_back(item.As<Napi::Array>());
  }
  return result;
}

}  // namespace lowrank::addon
