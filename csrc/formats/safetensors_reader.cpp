#include "formats/safetensors_reader.h"

#include <algorithm>
#include <cstdarg>

#include "core/checked.h"
#include "formats/json_scanner.h"
#include "formats/safetensors_types.h"
#include "formats/text.h"

namespace lowrank {
namespace {

constexpr size_t kLengthBytes = 8;
constexpr size_t kMaxDims = 64;  // NumPy's limit; a header may claim millions
constexpr size_t kShownName =
    256;  // of a name, where it is only needed for messages and comparisons
constexpr size_t kReleaseEvery = 8 << 20;  // bytes of header

// A tensor as the header gives it.
struct Entry {
  std::string name;
  const SafetensorsType* type = nullptr;
  std::vector<size_t> shape;
  size_t begin = 0, end = 0;  // in the data part
};

// Walks over the header. It is walked twice: once to check it in constant memory, once to collect
// what it holds, so that a hostile header is refused before it can make us allocate in its
// proportion.
class HeaderWalk {
 public:
  HeaderWalk(const FileBytes& file, const std::string& path, size_t header_bytes,
             FileIndex* collect)
      : file_(file),
        path_(path),
        data_bytes_(file.size - kLengthBytes - header_bytes),
        data_(file.data + kLengthBytes + header_bytes),
        scanner_({reinterpret_cast<const char*>(file.data) + kLengthBytes, header_bytes},
                 Code::kInvalidSafetensors, path),
        collect_(collect) {}

  Status run() {
    LR_RETURN_IF_ERROR(scanner_.expect('{'));
    if (!scanner_.consume('}')) {
      do {
        LR_RETURN_IF_ERROR(member());
        release_behind();
      } while (scanner_.consume(','));
      LR_RETURN_IF_ERROR(scanner_.expect('}'));
    }
    return scanner_.end();
  }

  const unsigned char* data() const { return data_; }
  size_t data_bytes() const { return data_bytes_; }

 private:
  size_t name_limit() const { return collect_ != nullptr ? JsonScanner::kWhole : kShownName; }

  Status member() {
    LR_RETURN_IF_ERROR(scanner_.string(&entry_.name, name_limit()));
    LR_RETURN_IF_ERROR(scanner_.expect(':'));
    if (entry_.name == "__metadata__") return metadata();
    if (++tensors_ > kMaxTensors)
      return refuse("comes after %zu others; expected at most that many", kMaxTensors);
    return tensor();
  }

  Status metadata() {
    if (metadata_seen_) {
      return error(Code::kInvalidSafetensors, "%s: '__metadata__' is there twice; expected it once",
                   path_.c_str());
    }
    metadata_seen_ = true;
    if (scanner_.consume_null()) return Status();
    LR_RETURN_IF_ERROR(scanner_.expect('{'));
    if (scanner_.consume('}')) return Status();
    std::string key, text;
    do {
      LR_RETURN_IF_ERROR(scanner_.string(&key, name_limit()));
      LR_RETURN_IF_ERROR(scanner_.expect(':'));
      LR_RETURN_IF_ERROR(scanner_.string(&text, name_limit()));
      if (++metadata_entries_ > kMaxMetadata) {
        return error(Code::kInvalidSafetensors,
                     "%s: '__metadata__' has more than %zu keys; expected at most that",
                     path_.c_str(), kMaxMetadata);
      }
      if (collect_ != nullptr) collect_->metadata.push_back({std::move(key), std::move(text)});
    } while (scanner_.consume(','));
    return scanner_.expect('}');
  }

  Status tensor() {
    bool has_dtype = false, has_shape = false, has_offsets = false;
    LR_RETURN_IF_ERROR(scanner_.expect('{'));
    if (!scanner_.consume('}')) {
      std::string field;
      do {
        LR_RETURN_IF_ERROR(scanner_.string(&field, kShownName));
        LR_RETURN_IF_ERROR(scanner_.expect(':'));
        if (field == "dtype") {
          LR_RETURN_IF_ERROR(once(&has_dtype, "dtype"));
          LR_RETURN_IF_ERROR(dtype());
        } else if (field == "shape") {
          LR_RETURN_IF_ERROR(once(&has_shape, "shape"));
          LR_RETURN_IF_ERROR(shape());
        } else if (field == "data_offsets") {
          LR_RETURN_IF_ERROR(once(&has_offsets, "data_offsets"));
          LR_RETURN_IF_ERROR(offsets());
        } else {
          LR_RETURN_IF_ERROR(scanner_.skip_value(2));
        }
      } while (scanner_.consume(','));
      LR_RETURN_IF_ERROR(scanner_.expect('}'));
    }
    const char* const missing = !has_dtype     ? "dtype"
                                : !has_shape   ? "shape"
                                : !has_offsets ? "data_offsets"
                                               : nullptr;
    if (missing != nullptr)
      return refuse("has no '%s'; expected dtype, shape and data_offsets", missing);
    return finish();
  }

  Status once(bool* seen, const char* field) {
    if (*seen) return refuse("has '%s' twice; expected it once", field);
    *seen = true;
    return Status();
  }

  Status dtype() {
    std::string name;
    LR_RETURN_IF_ERROR(scanner_.string(&name, kShownName));
    entry_.type = find_safetensors_type(name);
    if (entry_.type != nullptr) return Status();
    return refuse("has the dtype %s; expected one of safetensors', such as F32 or BF16",
                  quoted(name).c_str());
  }

  Status shape() {
    entry_.shape.clear();
    LR_RETURN_IF_ERROR(scanner_.expect('['));
    if (scanner_.consume(']')) return Status();
    do {
      uint64_t dimension = 0;
      LR_RETURN_IF_ERROR(scanner_.unsigned_integer(&dimension));
      if (entry_.shape.size() == kMaxDims)
        return refuse("has more than 64 dimensions; expected at most that");
      entry_.shape.push_back(dimension);
    } while (scanner_.consume(','));
    return scanner_.expect(']');
  }

  Status offsets() {
    uint64_t begin = 0, end = 0;
    LR_RETURN_IF_ERROR(scanner_.expect('['));
    LR_RETURN_IF_ERROR(scanner_.unsigned_integer(&begin));
    LR_RETURN_IF_ERROR(scanner_.expect(','));
    LR_RETURN_IF_ERROR(scanner_.unsigned_integer(&end));
    LR_RETURN_IF_ERROR(scanner_.expect(']'));
    entry_.begin = begin;
    entry_.end = end;
    return Status();
  }

  // Checks what concerns this tensor alone.
  Status finish() {
    if (entry_.end < entry_.begin || entry_.end > data_bytes_) {
      return refuse(
          "has the data_offsets [%zu, %zu]; expected ascending ones within the file's %zu bytes of "
          "data",
          entry_.begin, entry_.end, data_bytes_);
    }
    size_t bits =
        1;  // in the reference's order: [2^40, 2^40, 0] overflows, [0, 2^40, 2^40] does not
    bool fits = true;
    for (const size_t dimension : entry_.shape) fits = fits && checked_mul(bits, dimension, &bits);
    fits = fits && checked_mul(bits, entry_.type->bits, &bits);
    const std::string shape = entry_.type->name + (" " + shape_text(entry_.shape));
    if (!fits || bits % 8 != 0) {
      return refuse("is %.300s; expected a size that is a whole number of bytes below 2^61",
                    shape.c_str());
    }
    if (entry_.end - entry_.begin != bits / 8) {
      return refuse("has %zu bytes of data; expected %zu for %.300s", entry_.end - entry_.begin,
                    bits / 8, shape.c_str());
    }
    if (collect_ != nullptr) {
      collect_->tensors.push_back({std::move(entry_.name), entry_.type->dtype, entry_.type->name,
                                   entry_.shape, data_ + entry_.begin, bits / 8});
    }
    return Status();
  }

  void release_behind() {
    const size_t position = kLengthBytes + scanner_.position();
    if (position - released_ < kReleaseEvery) return;
    file_.release(released_, position);
    released_ = position;
  }

  // "<file>: tensor '<name>' <what>"
  [[gnu::format(printf, 2, 3)]] Status refuse(const char* what, ...) const {
    va_list args;
    va_start(args, what);
    char text[512];
    std::vsnprintf(text, sizeof text, what, args);
    va_end(args);
    return error(Code::kInvalidSafetensors, "%s: tensor %s %s", path_.c_str(),
                 quoted(entry_.name).c_str(), text);
  }

  const FileBytes& file_;
  const std::string& path_;
  size_t data_bytes_;
  const unsigned char* data_;
  JsonScanner scanner_;
  FileIndex* collect_;
  Entry entry_;
  bool metadata_seen_ = false;
  size_t metadata_entries_ = 0, tensors_ = 0;
  size_t released_ = 0;
};

// Tensors, sorted by their data, must cover it from end to end, each byte once.
Status check_coverage(const std::vector<TensorInfo>& tensors, const unsigned char* data,
                      size_t data_bytes, const std::string& path) {
  const unsigned char* covered = data;
  for (const TensorInfo& tensor : tensors) {
    if (tensor.data != covered) {
      return error(Code::kInvalidSafetensors,
                   "%s: tensor %s begins at byte %td of the data; expected %td, where the one "
                   "before it ends",
                   path.c_str(), quoted(tensor.name).c_str(), tensor.data - data, covered - data);
    }
    covered += tensor.bytes;
  }
  const size_t total = static_cast<size_t>(covered - data);
  if (total == data_bytes) return Status();
  return error(Code::kInvalidSafetensors,
               "%s: the tensors end at byte %zu of the data; expected %zu, where the file ends",
               path.c_str(), total, data_bytes);
}

Result<size_t> header_length(const FileBytes& file, const std::string& path) {
  if (file.size < kLengthBytes) {
    return error(Code::kInvalidSafetensors,
                 "%s has %zu bytes; expected a safetensors file, which has at least 8",
                 path.c_str(), file.size);
  }
  uint64_t length = 0;
  for (size_t i = 0; i < kLengthBytes; ++i) length |= uint64_t{file.data[i]} << (8 * i);
  if (length > kMaxSafetensorsHeader) {
    return error(
        Code::kInvalidSafetensors,
        "%s: the header has %llu bytes; expected at most 100000000 (is this a safetensors file?)",
        path.c_str(), static_cast<unsigned long long>(length));
  }
  if (length > file.size - kLengthBytes) {
    return error(Code::kInvalidSafetensors,
                 "%s: the header has %llu bytes; expected at most the %zu that the file has after "
                 "its length "
                 "(it may be truncated)",
                 path.c_str(), static_cast<unsigned long long>(length), file.size - kLengthBytes);
  }
  return static_cast<size_t>(length);
}

}  // namespace

Result<FileIndex> read_safetensors_index(const FileBytes& file, const std::string& path) {
  const Result<size_t> length = header_length(file, path);
  if (!length.ok()) return length.status();
  LR_RETURN_IF_ERROR(HeaderWalk(file, path, length.value(), nullptr).run());

  FileIndex index;
  HeaderWalk walk(file, path, length.value(), &index);
  LR_RETURN_IF_ERROR(walk.run());
  std::sort(index.tensors.begin(), index.tensors.end(),
            [](const TensorInfo& a, const TensorInfo& b) {
              return a.data != b.data     ? a.data < b.data
                     : a.bytes != b.bytes ? a.bytes < b.bytes
                                          : a.name < b.name;
            });
  // Before the coverage, which a name that is there twice breaks too.
  LR_RETURN_IF_ERROR(index_tensors(&index, Code::kInvalidSafetensors, path));
  LR_RETURN_IF_ERROR(index_metadata(&index, Code::kInvalidSafetensors, path));
  LR_RETURN_IF_ERROR(check_coverage(index.tensors, walk.data(), walk.data_bytes(), path));
  return index;
}

}  // namespace lowrank
