#include "formats/file_index.h"

#include <algorithm>
#include <numeric>

#include "formats/text.h"

namespace lowrank {
namespace {

Status refuse_duplicates(const std::vector<std::string_view>& names,
                         const std::vector<size_t>& order, const char* what, Code code,
                         const std::string& path) {
  for (size_t i = 1; i < order.size(); ++i) {
    if (names[order[i]] != names[order[i - 1]]) continue;
    return error(code, "%s: %s %s is there twice; expected every name once", path.c_str(), what,
                 quoted(names[order[i]]).c_str());
  }
  return Status();
}

}  // namespace

std::vector<size_t> order_of(const std::vector<std::string_view>& names) {
  std::vector<size_t> order(names.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    const int compared = names[a].compare(names[b]);
    return compared != 0 ? compared < 0 : a < b;
  });
  return order;
}

Status index_tensors(FileIndex* index, Code code, const std::string& path) {
  std::vector<std::string_view> names;
  names.reserve(index->tensors.size());
  for (const TensorInfo& tensor : index->tensors) names.push_back(tensor.name);
  index->tensors_by_name = order_of(names);
  return refuse_duplicates(names, index->tensors_by_name, "tensor", code, path);
}

Status index_metadata(FileIndex* index, Code code, const std::string& path) {
  std::vector<std::string_view> keys;
  keys.reserve(index->metadata.size());
  for (const MetadataEntry& entry : index->metadata) keys.push_back(entry.key);
  index->metadata_by_name = order_of(keys);
  return refuse_duplicates(keys, index->metadata_by_name, "metadata key", code, path);
}

}  // namespace lowrank
