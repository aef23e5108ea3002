// The driver of the packed GEMM. A chunk of work is a range of columns of one part by a range of
// rows; its thread packs its own block of B for each cut of K and runs the rows over it. Bound by
// FMA. Measured on Zen 5 with 1024 rows and K, N of 192 to 1536, packing included, of the
// registers' peak per thread: AVX-512 240 to 265 of 272 Gflop/s, AVX2 121 to 130 of 136.
#include "ops/gemm.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "core/checked.h"
#include "core/op_profile.h"
#include "ops/cpu/kernels.h"

namespace lowrank {
namespace {

// What beginning a chunk costs (its rows of A come anew from L3), in panels.
constexpr double kChunkPanels = 0.5;
// Work that is worth waking another thread: a few microseconds.
constexpr double kForkFlops = 5e5;
// B is read where it lies, not packed, for at most this many rows.
constexpr size_t kDirectRows = 48;
// Rows of sums that lie in a tile until they are transposed, or added to a bf16 C; the latter's wait there for
// all blocks of K, where there are several.
constexpr size_t kTransposedRows = 64, kRoundedRows = 64, kWaitingRows = 256;
static_assert(kGemmDecodingDotRows == kGemmMaxDotRows);
// Rows of a weight that row-wise dot products take together, and the least bytes of it in a chunk.
constexpr size_t kDotUnit = 16;
constexpr size_t kDotBytes = size_t{48} << 10;
constexpr size_t kChunksPerThread = 4;

// The cuts of a sum's K, padding included: whole terms and pieces of terms, in order, at bounds that
// depend on the terms and the kind of block alone. They are part of the result.
class KWalk {
 public:
  KWalk(std::span<const GemmTerm> terms, const BlockKernels& kernels)
      : terms_(terms), max_k_(kernels.max_k), unit_(kernels.k_unit) {
    for (const GemmTerm& term : terms) left_ += round_up(term.k, unit_);
  }

  struct Piece {
    const GemmTerm* term;
    size_t begin, k;
  };

  // Moves to the next block; there is always a first one, if only of no k at all.
  bool next() {
    if (begun_ && left_ == 0) return false;
    begun_ = true;
    count_ = 0;
    k_ = 0;
    const size_t blocks = ceil_div(left_, max_k_);
    const size_t target = blocks == 0 ? 0 : ceil_div(left_, blocks);
    while (term_ < terms_.size() && k_ < target && count_ < kGemmMaxSegments) {
      const GemmTerm& term = terms_[term_];
      const size_t rest = term.k - at_;
      size_t take = std::min(rest, target - k_);
      if (take < rest) {  // cut on whole units of the block types, or between terms
        size_t end = round_up(at_ + take, kCutUnit);
        if (end - at_ + k_ > max_k_) end -= kCutUnit;
        if (end <= at_) break;
        take = std::min(rest, end - at_);
      }
      if (take > 0) pieces_[count_++] = {&term, at_, take};
      k_ += round_up(take, unit_);
      at_ += take;
      if (at_ == term.k) {
        ++term_;
        at_ = 0;
      }
    }
    left_ -= k_;
    return true;
  }

  // Whether the block is the last.
  bool last() const { return left_ == 0; }
  std::span<const Piece> pieces() const { return {pieces_, count_}; }

 private:
  static constexpr size_t kCutUnit = 32;

  const std::span<const GemmTerm> terms_;
  const size_t max_k_, unit_;
  size_t left_ = 0, term_ = 0, at_ = 0;
  bool begun_ = false;
  Piece pieces_[kGemmMaxSegments];
  size_t count_ = 0, k_ = 0;
};

Status check_term(const GemmTerm& term, size_t part, size_t n) {
  const Matrix& b = term.b;
  const DTypeInfo& info = dtype_info(b.type);
  if (!info.is_weight) {
    return error(Code::kUnsupportedQuantization,
                 "gemm: part %zu has a weight of type %s, which cannot be multiplied", part,
                 info.name);
  }
  const size_t rows = term.b_transposed ? n : term.k, cols = term.b_transposed ? term.k : n;
  if (b.rows != rows || b.cols != cols) {
    return error(Code::kShapeMismatch,
                 "gemm: part %zu has a weight of [%zu, %zu] where [%zu, %zu] is expected", part,
                 b.rows, b.cols, rows, cols);
  }
  if (b.cols % info.block_elements != 0) {
    return error(
        Code::kShapeMismatch,
        "gemm: part %zu has rows of %zu weights, which is not a multiple of %s's block of %zu",
        part, b.cols, info.name, info.block_elements);
  }
  return {};
}

bool readable_as_floats(const Matrix& b) {
  return b.type == DType::kF32 && b.stride % sizeof(float) == 0 &&
         reinterpret_cast<uintptr_t>(b.data) % alignof(float) == 0;
}

// What becomes of a chunk's sums: they are C, or are added to it after the last.
enum class Output { kC, kTransposed, kAddedInBf16 };

class Gemm {
 public:
  Gemm(Context& context, size_t m, std::span<const GemmPart> parts, Output output = Output::kC)
      : context_(context),
        kernels_(context.kernels.gemm),
        blocks_(block_kernels(context)),
        m_(m),
        parts_(parts),
        output_(output) {}

  Status run() {
    double flops = 0;
    for (const GemmPart& part : parts_) {
      size_t k = 0;
      for (const GemmTerm& term : part.terms) k += term.k;
      flops += 2.0 * static_cast<double>(m_) * static_cast<double>(part.n) * static_cast<double>(k);
    }
    const double worth = 1 + flops / kForkFlops;
    threads_ = worth < static_cast<double>(context_.pool.threads()) ? static_cast<size_t>(worth)
                                                                    : context_.pool.threads();
    return only_dots() ? run_dots() : run_blocks();
  }

 private:
  // ── very few rows: row-wise dot products ──
  bool only_dots() const {
    if (m_ > gemm_dot_rows(context_) || output_ != Output::kC) return false;
    return std::all_of(parts_.begin(), parts_.end(), [](const GemmPart& part) {
      return !part.terms.empty() &&
             std::all_of(part.terms.begin(), part.terms.end(),
                         [](const GemmTerm& term) {
                           return term.b_transposed && term.a_col == 1 &&
                                  term.a_type == DType::kF32;
                         }) &&
             part.c_type == DType::kF32;
    });
  }

  Status run_dots() {
    size_t columns = 0, bytes = 0, longest = 0;
    for (const GemmPart& part : parts_) {
      columns += part.n;
      for (const GemmTerm& term : part.terms) {
        bytes += part.n * term.b.stride;
        longest = std::max(longest, term.k);
      }
    }
    LR_RETURN_IF_ERROR(context_.pool.reserve_scratch(gemm_dot_scratch(longest) * sizeof(float)));
    // Rows of A beyond a few cost as much as reading the weight once more.
    const size_t work = bytes * ceil_div(m_, 4), units = ceil_div(columns, kDotUnit);
    const size_t chunks = std::clamp<size_t>(work / kDotBytes, 1, std::max<size_t>(1, std::min(units, kChunksPerThread * threads_)));
    for_chunks(chunks, [&](size_t chunk, size_t worker) {
      size_t begin = units * chunk / chunks * kDotUnit;
      size_t left = std::min(columns, units * (chunk + 1) / chunks * kDotUnit) - begin;
      for (const GemmPart& part : parts_) {
        const size_t count = begin < part.n ? std::min(left, part.n - begin) : 0;
        if (count > 0) dot_columns(part, begin, count, context_.pool.scratch<float>(worker));
        left -= count;
        begin = begin < part.n ? 0 : begin - part.n;
      }
    });
    return {};
  }

  void dot_columns(const GemmPart& part, size_t begin, size_t count, float* scratch) const {
    const bool pairs = m_ > kGemmDotRows && block_kernels(context_).k_step == 2;
    const auto dot = pairs && kernels_.dot_pairs != nullptr ? kernels_.dot_pairs : kernels_.dot;
    const float* bias = part.bias == nullptr ? nullptr : part.bias + begin;
    float* c = static_cast<float*>(part.c) + begin;
    bool accumulate = part.add != nullptr;
    if (accumulate && part.add != part.c) {
      for (size_t i = 0; i < m_; ++i)
        std::memcpy(c + i * part.ldc, part.add + i * part.add_ld + begin, count * sizeof(float));
    }
    for (const GemmTerm& term : part.terms) {
      dot(term.b, begin, count, static_cast<const float*>(term.a), term.a_row, m_, c, part.ldc,
          bias, accumulate, scratch);
      bias = nullptr;
      accumulate = true;
    }
  }

  // ── packed blocks ──
  Status run_blocks() {
    size_t depth = 0;
    bool tiled = output_ != Output::kC;  // whether sums go by way of a tile
    for (const GemmPart& part : parts_) {
      size_t blocks = 0;
      for (KWalk walk(part.terms, blocks_); walk.next(); ++blocks)
        depth = std::max(depth, depth_of(walk));
      tiled |= blocks > 1 && part.c_type == DType::kBF16;
      waits_ |= blocks > 1 && output_ == Output::kAddedInBf16;
    }
    const size_t panel_bytes = std::max<size_t>(1, depth * blocks_.nr * sizeof(float));
    split(std::clamp<size_t>(kGemmScratch / panel_bytes, 1, 64));
    const size_t block_floats = round_up(depth * panels_ * blocks_.nr, 16);
    const size_t tile_rows = output_ == Output::kAddedInBf16 && !waits_ ? std::min(rows_, kRoundedRows) : rows_;
    const size_t tile_floats = tiled ? tile_rows * panels_ * blocks_.nr : 0;
    tile_offset_ = block_floats;
    LR_RETURN_IF_ERROR(context_.pool.reserve_scratch((block_floats + tile_floats) * sizeof(float)));
    for_chunks(column_chunks(panels_) * row_chunks_, [&](size_t chunk, size_t worker) {
      const size_t m = chunk % row_chunks_ * rows_;
      size_t column = chunk / row_chunks_;
      for (const GemmPart& part : parts_) {
        const size_t panels = ceil_div(part.n, blocks_.nr), chunks = ceil_div(panels, panels_);
        if (column >= chunks) {
          column -= chunks;
          continue;
        }
        const size_t begin = panels * column / chunks * blocks_.nr;
        const size_t end = std::min(part.n, panels * (column + 1) / chunks * blocks_.nr);
        return run_chunk(part, m, std::min(rows_, m_ - m), begin, end - begin,
                         context_.pool.scratch<float>(worker));
      }
    });
    return {};
  }

  size_t depth_of(const KWalk& walk) const {
    size_t depth = 0;
    for (const KWalk::Piece& piece : walk.pieces()) depth += blocks_.depth(piece.k);
    return depth;
  }

  size_t column_chunks(size_t panels_per_chunk) const {
    size_t chunks = 0;
    for (const GemmPart& part : parts_)
      chunks += ceil_div(ceil_div(part.n, blocks_.nr), panels_per_chunk);
    return chunks;
  }

  // Chooses the chunks (panels_ by rows_) that should finish first on threads_ threads: the even
  // share, plus the wait for whoever takes the last chunk. Changes no bits.
  void split(size_t max_panels) {
    double all_panels = 0;
    for (const GemmPart& part : parts_)
      all_panels += static_cast<double>(ceil_div(part.n, blocks_.nr));
    const double threads = static_cast<double>(threads_);
    double best = -1;
    for (size_t pieces = 1; pieces <= 4 * threads_; pieces *= 2) {
      size_t rows = round_up(ceil_div(m_, pieces), blocks_.mr);
      if (output_ == Output::kTransposed) rows = std::min(rows, kTransposedRows);
      if (waits_) rows = std::min(rows, kWaitingRows);
      if (pieces > 1 && rows < 2 * blocks_.pack_rows) break;
      const size_t row_chunks = ceil_div(m_, rows);
      for (size_t panels = 1; panels <= max_panels; ++panels) {
        const double chunks = static_cast<double>(column_chunks(panels));
        const double rows_cost = static_cast<double>(rows + blocks_.pack_rows);
        const double total =
            (all_panels + kChunkPanels * chunks) * rows_cost * static_cast<double>(row_chunks);
        const double last = static_cast<double>(panels) * rows_cost * (threads - 1) / threads;
        const double cost = total / threads + last;
        if (best >= 0 && cost >= best) continue;
        best = cost;
        panels_ = panels;
        rows_ = rows;
        row_chunks_ = row_chunks;
      }
    }
  }

  void run_chunk(const GemmPart& part, size_t m, size_t rows, size_t n, size_t columns,
                 float* scratch) const {
    float* tile = scratch + tile_offset_;
    if (output_ == Output::kC) {
      const BlockOutput c{part.c,       part.ldc,  part.add,
                          part.add_ld, part.bias, part.c_type == DType::kBF16};
      run_sum(part, m, rows, n, columns, c.at(m, n), tile, scratch);
      return;
    }
    if (output_ == Output::kAddedInBf16) {
      run_added(part, m, rows, n, columns, tile, scratch);
      return;
    }
    run_sum(part, m, rows, n, columns, {tile, columns}, tile, scratch);
    for (size_t j = 0; j < columns; ++j) {
      float* c = static_cast<float*>(part.c) + (n + j) * part.ldc + m;
      for (size_t i = 0; i < rows; ++i) c[i] += tile[i * columns + j];
    }
  }

  // C += the sums, in bf16.
  void run_added(const GemmPart& part, size_t m, size_t rows, size_t n, size_t columns, float* tile,
                 float* block) const {
    const auto add = [&](size_t first, size_t count) {
      for (size_t i = 0; i < count; ++i) {
        uint16_t* c = static_cast<uint16_t*>(part.c) + (first + i) * part.ldc + n;
        context_.kernels.elementwise.add_bf16(tile + i * columns, columns, c);
      }
    };
    if (waits_) {
      run_sum(part, m, rows, n, columns, {tile, columns}, tile, block);
      add(m, rows);
      return;
    }
    KWalk walk(part.terms, blocks_);
    walk.next();
    pack_block(walk, n, columns, block);
    for (size_t i = 0; i < rows; i += kRoundedRows) {
      const size_t count = std::min(kRoundedRows, rows - i);
      multiply_block(walk, m + i, count, columns, {tile, columns}, block);
      add(m + i, count);
    }
  }

  // Several blocks of K add into C, or, where C is bf16, into the tile until the last one.
  void run_sum(const GemmPart& part, size_t m, size_t rows, size_t n, size_t columns,
               const BlockOutput& c, float* tile, float* block) const {
    const bool direct = m_ <= kDirectRows && blocks_.k_step == 1 &&
                        std::all_of(part.terms.begin(), part.terms.end(), [](const GemmTerm& term) {
                          return !term.b_transposed && readable_as_floats(term.b);
                        });
    BlockOutput sum = c;
    for (KWalk walk(part.terms, blocks_); walk.next();) {
      if (c.bf16) {
        sum.c = walk.last() ? c.c : tile;
        sum.ldc = walk.last() ? c.ldc : columns;
        sum.bf16 = walk.last();
      }
      if (direct && !walk.pieces().empty()) {
        for (const KWalk::Piece& piece : walk.pieces()) {
          const Matrix& b = piece.term->b;
          const float* source = reinterpret_cast<const float*>(b.row(piece.begin)) + n;
          kernels_.direct(segment_of(piece, m), rows, source, b.stride / sizeof(float), columns,
                          sum);
          sum = added(sum);
        }
      } else {
        pack_block(walk, n, columns, block);
        multiply_block(walk, m, rows, columns, sum, block);
        sum = added(sum);
      }
    }
  }

  // What comes after `sum` adds to what it wrote.
  static BlockOutput added(const BlockOutput& sum) {
    return {sum.c, sum.ldc, static_cast<const float*>(sum.c), sum.ldc, nullptr, sum.bf16};
  }

  void pack_block(const KWalk& walk, size_t n, size_t columns, float* block) const {
    const size_t depth = depth_of(walk);
    size_t at = 0;
    for (const KWalk::Piece& piece : walk.pieces()) {
      blocks_.pack(piece.term->b, piece.term->b_transposed, piece.begin, piece.k, n, columns, block,
                   depth, at);
      at += blocks_.depth(piece.k);
    }
  }

  void multiply_block(const KWalk& walk, size_t m, size_t rows, size_t columns,
                      const BlockOutput& sum, const float* block) const {
    GemmSegment segments[kGemmMaxSegments];
    size_t count = 0;
    for (const KWalk::Piece& piece : walk.pieces()) segments[count++] = segment_of(piece, m);
    blocks_.block(segments, count, rows, block, columns, sum);
  }

  static GemmSegment segment_of(const KWalk::Piece& piece, size_t m) {
    const GemmTerm& term = *piece.term;
    const bool bf16 = term.a_type == DType::kBF16;
    const size_t at = m * term.a_row + piece.begin * term.a_col;
    const void* a =
        static_cast<const unsigned char*>(term.a) + at * (bf16 ? sizeof(uint16_t) : sizeof(float));
    return {a, term.a_row, term.a_col, piece.k, bf16};
  }

  // Work too small to share runs here; the pool's call keeps the arithmetic mode the same.
  template <class F>
  void for_chunks(size_t chunks, const F& f) const {
    if (threads_ > 1) {
      context_.pool.parallel(chunks, f);
      return;
    }
    context_.pool.parallel(1, [&](size_t, size_t worker) {
      for (size_t chunk = 0; chunk < chunks; ++chunk) f(chunk, worker);
    });
  }

  Context& context_;
  const GemmKernels& kernels_;
  const BlockKernels& blocks_;
  const size_t m_;
  const std::span<const GemmPart> parts_;
  const Output output_;
  bool waits_ = false;  // sums that are to be added wait for several blocks of K
  size_t threads_ = 1;
  size_t panels_ = 1, rows_ = 1, row_chunks_ = 1;  // the chunks
  size_t tile_offset_ = 0;
};

}  // namespace

Status gemm(Context& context, size_t m, std::span<const GemmPart> parts) {
  const OpTimer timer(context, OpKind::kGemm);
  const bool bf16 = block_kernels(context).k_step == 2;
  for (size_t part = 0; part < parts.size(); ++part) {
    bool rows_in_bf16 = parts[part].c_type == DType::kBF16;
    for (const GemmTerm& term : parts[part].terms) {
      LR_RETURN_IF_ERROR(check_term(term, part, parts[part].n));
      rows_in_bf16 |= term.a_type == DType::kBF16;
    }
    if (rows_in_bf16 && !bf16) {
      return error(Code::kInvalidOption, "gemm: part %zu has bf16 rows, but fp32 is computed in",
                   part);
    }
  }
  if (m == 0) return {};
  return Gemm(context, m, parts).run();
}

Status gemm_tn(Context& context, size_t m, size_t n, size_t t, ConstRows a, ConstRows b, Rows c,
               bool transposed_c) {
  const OpTimer timer(context, OpKind::kGemm);
  if (m == 0 || n == 0 || t == 0) return {};
  if ((a.bf16() || b.bf16()) && block_kernels(context).k_step != 2)
    return error(Code::kInvalidOption, "gemm_tn: bf16 rows, but fp32 is computed in");
  const Matrix right{b.data, b.type, t, n, b.stride * b.element_bytes()};
  const GemmTerm term{a.data, 1, a.stride, right, false, t, a.type};
  GemmPart part{c.data, c.stride, n, {&term, 1}};
  if (c.bf16()) {
    if (transposed_c) return error(Code::kInvalidOption, "gemm_tn: a transposed C in bf16");
    return Gemm(context, m, {&part, 1}, Output::kAddedInBf16).run();
  }
  part.add = static_cast<const float*>(c.data);
  part.add_ld = c.stride;
  return Gemm(context, m, {&part, 1}, transposed_c ? Output::kTransposed : Output::kC).run();
}

}  // namespace lowrank
