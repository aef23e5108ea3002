// What must hold of whatever a reader of model files makes of any input.
#pragma once

#include <string>

#include "core/status.h"
#include "formats/file_index.h"
#include "formats/scalars.h"
#include "formats/text.h"
#include "test/fuzz_driver.h"

namespace fuzz {

inline const std::string kPath = "input";

inline void check_refusal(const lowrank::Status& status, lowrank::Code expected) {
  check(status.code() == expected, "the error has another code");
  check(status.message().rfind(kPath, 0) == 0, "the message does not begin with the file");
  check(status.message().size() < 4096, "the message is long");
  check(lowrank::is_utf8(status.message()), "the message is not UTF-8");
}

inline void check_tensors(const lowrank::FileIndex& index, const uint8_t* data, size_t size) {
  check(index.tensors_by_name.size() == index.tensors.size(), "the index by name has another size");
  unsigned sum = 0;
  const uint8_t* covered = data;
  for (const lowrank::TensorInfo& tensor : index.tensors) {
    check(tensor.data >= data && tensor.data <= data + size, "a tensor begins outside the file");
    check(tensor.bytes <= static_cast<size_t>(data + size - tensor.data),
          "a tensor ends outside the file");
    check(tensor.bytes == 0 || tensor.data >= covered, "tensors overlap");
    if (tensor.bytes > 0) covered = tensor.data + tensor.bytes;
    for (size_t i = 0; i < tensor.bytes; ++i) sum += tensor.data[i];
    if (!lowrank::is_scalar_float(tensor.dtype)) continue;
    const size_t count = tensor.bytes / lowrank::dtype_info(tensor.dtype).block_bytes;
    std::vector<float> values(count);
    lowrank::scalars_to_f32(tensor.dtype, tensor.data, count, values.data());
  }
  asm volatile("" : : "r"(sum));  // the bytes are read for the sanitizer's sake
  for (size_t i = 1; i < index.tensors.size(); ++i) {
    const std::string& before = index.tensors[index.tensors_by_name[i - 1]].name;
    check(before < index.tensors[index.tensors_by_name[i]].name,
          "names are not distinct and sorted");
  }
}

}  // namespace fuzz
