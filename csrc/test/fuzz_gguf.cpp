// Fuzzes the GGUF reader: well-formed files with typed metadata and tensors, in which some numbers
// are exchanged for evil ones.
#include "core/checked.h"
#include "formats/gguf_reader.h"
#include "formats/gguf_types.h"
#include "test/fuzz_checks.h"

using fuzz::Bytes;
using fuzz::Random;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const lowrank::FileBytes file = {data, size, nullptr};
  const lowrank::Result<lowrank::FileIndex> index = lowrank::read_gguf_index(file, fuzz::kPath);
  if (!index.ok()) {
    fuzz::check_refusal(index.status(), lowrank::Code::kInvalidGguf);
    return 0;
  }
  ++fuzz::accepted;
  fuzz::check_tensors(index.value(), data, size);
  for (const lowrank::MetadataEntry& entry : index.value().metadata) {
    const lowrank::GgufValueLocation* const location =
        std::get_if<lowrank::GgufValueLocation>(&entry.value);
    fuzz::check(location != nullptr, "metadata has no location");
    const auto value = lowrank::read_gguf_value(file, fuzz::kPath, *location);
    fuzz::check(value.ok(), "a value that was checked at opening cannot be read");
    // A file that changed: any place must be refused or read, never overrun.
    const lowrank::GgufValueLocation moved = {static_cast<uint32_t>((location->type + size) % 14),
                                              (location->offset * 7 + 3) % (size + 9)};
    const auto other = lowrank::read_gguf_value(file, fuzz::kPath, moved);
    if (!other.ok()) fuzz::check_refusal(other.status(), lowrank::Code::kInvalidGguf);
  }
  return 0;
}

namespace {

// Writes a file; at random, where it is to be damaged, writes an evil number in place of a good
// one.
class Writer {
 public:
  Writer(Random& random, bool damaged) : random_(random), damaged_(damaged) {}

  void u32(uint64_t value) { put(evil() ? fuzz::evil_number(random_) : value, 4); }
  void u64(uint64_t value) { put(evil() ? fuzz::evil_number(random_) : value, 8); }
  void raw(size_t count) {
    for (size_t i = 0; i < count; ++i) bytes.push_back(static_cast<uint8_t>(random_.next()));
  }
  void text(const std::string& value) {
    u64(value.size());
    bytes.insert(bytes.end(), value.begin(), value.end());
  }
  void value(uint32_t type, size_t depth) {
    switch (static_cast<lowrank::GgufValueType>(type)) {
      case lowrank::GgufValueType::kString:
        return text(random_.one_in(4) ? "\xff\x80" : "some text");
      case lowrank::GgufValueType::kArray: return array(depth);
      default: return raw(lowrank::kGgufScalarBytes[type]);
    }
  }

  Bytes bytes;

 private:
  bool evil() { return damaged_ && random_.one_in(40); }

  void put(uint64_t value, size_t width) {
    for (size_t i = 0; i < width; ++i) bytes.push_back(static_cast<uint8_t>(value >> (8 * i)));
  }
  void array(size_t depth) {
    uint32_t type = static_cast<uint32_t>(random_.below(lowrank::kGgufValueTypes));
    const bool nested = type == static_cast<uint32_t>(lowrank::GgufValueType::kArray);
    if (nested && depth > 3 && !damaged_) type = 0;
    if (nested && depth > 12) type = 0;
    const size_t count = random_.below(4);
    u32(type);
    u64(count);
    for (size_t i = 0; i < count; ++i) value(type, depth + 1);
  }

  Random& random_;
  bool damaged_;
};

struct Tensor {
  const lowrank::GgmlType* type;
  std::vector<uint64_t> dims;
  uint64_t bytes;
};

Tensor make_tensor(Random& random) {
  Tensor tensor;
  tensor.type = &lowrank::kGgmlTypes[random.below(std::size(lowrank::kGgmlTypes))];
  const size_t blocks = random.below(3);
  tensor.bytes = blocks * tensor.type->block_bytes;
  tensor.dims.push_back(blocks * tensor.type->block_elements);
  for (size_t more = random.below(4); more > 0; --more) {
    tensor.dims.push_back(random.below(4));
    tensor.bytes *= tensor.dims.back();
  }
  return tensor;
}

Bytes generate(Random& random) {
  const bool damaged = !random.one_in(8);
  Writer out(random, damaged);
  const size_t tensor_count = random.below(5), key_count = random.below(6);
  const bool set_alignment = random.one_in(3);
  const uint64_t alignment = set_alignment ? uint64_t{1} << random.below(8) : 32;
  for (const char c : {'G', 'G', 'U', 'F'}) out.bytes.push_back(static_cast<uint8_t>(c));
  out.u32(2 + random.below(2));
  out.u64(tensor_count);
  out.u64(key_count + set_alignment);
  if (set_alignment) {
    out.text("general.alignment");
    out.u32(static_cast<uint32_t>(lowrank::GgufValueType::kUint32));
    out.u32(alignment);
  }
  for (size_t i = 0; i < key_count; ++i) {
    out.text("key." + std::to_string(damaged && random.one_in(20) ? 0 : i));
    const uint32_t type = static_cast<uint32_t>(random.below(lowrank::kGgufValueTypes));
    out.u32(type);
    out.value(type, 0);
  }
  std::vector<Tensor> tensors;
  uint64_t offset = 0;
  for (size_t i = 0; i < tensor_count; ++i) {
    tensors.push_back(make_tensor(random));
    const Tensor& tensor = tensors.back();
    out.text("blk." + std::to_string(damaged && random.one_in(20) ? 0 : i) + ".weight");
    out.u32(tensor.dims.size());
    for (const uint64_t dimension : tensor.dims) out.u64(dimension);
    out.u32(tensor.type->id);
    out.u64(damaged && random.one_in(20) ? 0 : offset);
    offset = lowrank::round_up(offset + tensor.bytes, alignment);
  }
  out.bytes.resize(lowrank::round_up(out.bytes.size(), alignment), 0);
  out.raw(offset);
  if (damaged && random.one_in(4)) fuzz::mangle(random, &out.bytes);
  return out.bytes;
}

}  // namespace

#if !defined(LOWRANK_LIBFUZZER)
int main(int argc, char** argv) { return fuzz::main_of(argc, argv, generate); }
#endif
