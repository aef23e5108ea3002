// Fuzzes the safetensors reader with headers made from their grammar: most inputs are one step away
// from valid.
#include "core/checked.h"
#include "formats/safetensors_reader.h"
#include "formats/safetensors_types.h"
#include "test/fuzz_checks.h"

using fuzz::Bytes;
using fuzz::Random;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const lowrank::FileBytes file = {data, size, nullptr};
  const lowrank::Result<lowrank::FileIndex> index =
      lowrank::read_safetensors_index(file, fuzz::kPath);
  if (!index.ok()) {
    fuzz::check_refusal(index.status(), lowrank::Code::kInvalidSafetensors);
    return 0;
  }
  ++fuzz::accepted;
  fuzz::check_tensors(index.value(), data, size);
  const uint8_t* end = data + size;
  for (size_t i = index.value().tensors.size(); i-- > 0;) {
    const lowrank::TensorInfo& tensor = index.value().tensors[i];
    fuzz::check(tensor.data + tensor.bytes == end, "the tensors do not cover the data");
    end = tensor.data;
  }
  for (const lowrank::MetadataEntry& entry : index.value().metadata) {
    fuzz::check(std::get_if<std::string>(&entry.value) != nullptr, "metadata is no string");
  }
  return 0;
}

namespace {

std::string number(uint64_t value) { return std::to_string(value); }

std::string space(Random& random) {
  static const char* const kSpaces[] = {"", "", "", "", " ", "\n", "\t ", "\r\n"};
  return random.pick(kSpaces);
}

std::string string(Random& random) {
  static const char* const kTexts[] = {
      "a",        "weight",  "model.layers.0.self_attn.q_proj.weight",
      "",         "\\u0041", "\\ud83d\\ude00",
      "é",        "中",      "😀",
      "\\\"",     "\\u0000", "__metadata__",
      "dtype",    "\\/",     "constructor",
      "__proto__"};
  std::string text = random.pick(kTexts);
  if (random.one_in(2)) text += number(random.below(1000));
  return "\"" + text + "\"";
}

std::string broken_value(Random& random) {
  static const char* const kValues[] = {"null",
                                        "true",
                                        "-1",
                                        "1.5",
                                        "1e3",
                                        "01",
                                        "18446744073709551616",
                                        "\"\\ud800\"",
                                        "\"\\x\"",
                                        "[]",
                                        "{}",
                                        "[1,]",
                                        "{\"a\":}",
                                        "{\"a\":1,}",
                                        "nul",
                                        "\"\x01\"",
                                        "\"\xff\"",
                                        "\"\xc0\x80\"",
                                        "-",
                                        "1.",
                                        "\"",
                                        "[",
                                        "]"};
  if (random.one_in(4)) return std::string(1 + random.below(300), random.one_in(2) ? '[' : '{');
  if (random.one_in(4)) {
    const size_t depth = 100 + random.below(40);
    return std::string(depth, '[') + std::string(depth, ']');
  }
  return random.pick(kValues);
}

struct Tensor {
  std::string name, dtype, shape;
  uint64_t begin = 0, end = 0;
};

Tensor make_tensor(Random& random, uint64_t begin, size_t index) {
  const lowrank::SafetensorsType& type =
      lowrank::kSafetensorsTypes[random.below(std::size(lowrank::kSafetensorsTypes))];
  Tensor tensor;
  tensor.name = random.one_in(6) ? string(random) : "\"t" + number(index) + "\"";
  tensor.dtype = std::string("\"") + type.name + "\"";
  size_t elements = 8;  // a factor that makes whole bytes of any type
  tensor.shape = "[8";
  for (size_t dims = random.below(4); dims > 0; --dims) {
    const size_t dimension = random.below(5);
    tensor.shape += "," + space(random) + number(dimension);
    elements *= dimension;
  }
  tensor.shape += "]";
  tensor.begin = begin;
  tensor.end = begin + elements * type.bits / 8;
  return tensor;
}

void spoil(Random& random, Tensor* tensor) {
  switch (random.below(7)) {
    case 0: tensor->shape = broken_value(random); break;
    case 1: tensor->dtype = broken_value(random); break;
    case 2: tensor->name = string(random); break;
    case 3: tensor->begin = fuzz::evil_number(random); break;
    case 4: tensor->end = fuzz::evil_number(random); break;
    case 5:
      tensor->shape =
          "[" + number(fuzz::evil_number(random)) + "," + number(fuzz::evil_number(random)) + "]";
      break;
    default: tensor->end += random.below(3) - 1; break;
  }
}

std::string text_of(Random& random, const Tensor& tensor) {
  std::string fields[] = {
      "\"dtype\":" + space(random) + tensor.dtype, "\"shape\":" + tensor.shape,
      "\"data_offsets\":[" + number(tensor.begin) + "," + number(tensor.end) + "]"};
  std::swap(fields[0], fields[random.below(3)]);
  std::string text = tensor.name + space(random) + ":" + space(random) + "{";
  for (size_t i = 0; i < 3; ++i) text += (i > 0 ? "," : "") + space(random) + fields[i];
  if (random.one_in(20))
    text += ",\"more\":" +
            (random.one_in(2) ? std::string("[1,{\"x\":[]},-0.5e+7]") : broken_value(random));
  if (random.one_in(40)) text += "," + fields[0];
  return text + "}";
}

std::string metadata(Random& random) {
  if (random.one_in(8)) return "\"__metadata__\":" + broken_value(random);
  std::string text = "\"__metadata__\":{";
  for (size_t i = random.below(3); i > 0; --i)
    text += "\"k" + number(i) + "\":" + string(random) + (i > 1 ? "," : "");
  return text + "}";
}

Bytes generate(Random& random) {
  const bool damaged = !random.one_in(8);
  std::vector<std::string> members;
  if (random.one_in(3)) members.push_back(metadata(random));
  uint64_t begin = 0;
  for (size_t i = 0, count = random.below(6); i < count; ++i) {
    Tensor tensor = make_tensor(random, begin, i);
    begin = tensor.end;
    if (damaged && random.one_in(4)) spoil(random, &tensor);
    members.push_back(text_of(random, tensor));
  }
  for (size_t i = members.size(); i > 1; --i) std::swap(members[i - 1], members[random.below(i)]);
  std::string header = "{";
  for (size_t i = 0; i < members.size(); ++i) header += (i > 0 ? "," : "") + members[i];
  header += "}" + std::string(random.below(9), ' ');
  if (random.one_in(30)) {  // mangled inside the header, whose length stays right
    Bytes text(header.begin(), header.end());
    fuzz::mangle(random, &text);
    header.assign(text.begin(), text.end());
  }
  uint64_t length = header.size();
  if (damaged && random.one_in(10)) length = fuzz::evil_number(random);
  Bytes bytes;
  for (size_t i = 0; i < 8; ++i) bytes.push_back(static_cast<uint8_t>(length >> (8 * i)));
  bytes.insert(bytes.end(), header.begin(), header.end());
  for (uint64_t i = 0; i < begin; ++i) bytes.push_back(static_cast<uint8_t>(random.next()));
  if (damaged && random.one_in(4)) fuzz::mangle(random, &bytes);
  return bytes;
}

}  // namespace

#if !defined(LOWRANK_LIBFUZZER)
int main(int argc, char** argv) { return fuzz::main_of(argc, argv, generate); }
#endif
