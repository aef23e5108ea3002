// Bound by FLOPs: 4·n·C·V for the loss and dh. The vocabulary is walked in groups of blocks. A
// group is packed once by all threads, in the two forms that the products need; then each thread
// takes chunks of rows through it, block by block:
//   S = H·Wᵀ, the chunk's logits for the block
//   S becomes exp(S - shift), with a shift and a sum kept for each row
//   O += S·W, in dh's own memory
// With bf16 products the weights in O are the rounded ones, and so is the sum that dh divides O by;
// the loss takes the sum of the unrounded.
// Rows do not depend on one another, so how they are cut changes no bits; the order of blocks is
// fixed.
#include "ops/linear_cross_entropy.h"

#include <cmath>
#include <limits>

#include "core/buffer.h"
#include "core/half.h"
#include "core/op_profile.h"
#include "ops/cpu/kernels.h"
#include "ops/gemm.h"
#include "ops/round_rows.h"
#include "ops/row_chunks.h"

namespace lowrank {
namespace {

// Floats of a packed piece that stays in L2 while rows stream past it.
constexpr size_t kPieceFloats = size_t{1} << 17;
// Rows of the vocabulary in a block, before rounding to whole panels: the k of O += S·W.
constexpr size_t kBlockTokens = 288;
// Bytes of a packed group: enough blocks that forks are rare, few enough for a last-level cache.
constexpr size_t kGroupBytes = size_t{8} << 20;
// Rows that go through a block together: what its pieces' way from L3 to L2 is spread over.
constexpr size_t kMaxChunkRows = 256;
// Floats of recomputed logits in the pass for grad_w.
constexpr size_t kRecomputeFloats = size_t{1} << 20;

// What is known of a row's logits so far.
struct RowState {
  SoftmaxState softmax;
  double rounded_sum;  // of the weights in O, where they are rounded
  float target_logit;
  float largest;
  bool target_is_largest;  // the target is the first of the largest so far
};

// How the two packed forms of a block are cut into pieces.
struct Pieces {
  size_t length;  // of all but the last piece
  size_t total;

  size_t count() const { return ceil_div(total, length); }
  size_t begin(size_t piece) const { return piece * length; }
  size_t size(size_t piece) const { return std::min(length, total - begin(piece)); }
};

class HeadPass {
 public:
  HeadPass(Context& context, ConstRows h, const Matrix& w, const int32_t* targets, size_t n,
           float* dh)
      : context_(context),
        gemm_(context.kernels.gemm),
        blocks_(block_kernels(context)),
        elementwise_(context.kernels.elementwise),
        h_(h),
        w_(w),
        targets_(targets),
        n_(n),
        channels_(w.cols),
        dh_(dh) {
    block_tokens_ = std::max(blocks_.nr, kBlockTokens / blocks_.nr * blocks_.nr);
    block_floats_ = block_tokens_ * round_up(channels_, blocks_.nr) / blocks_.k_step;
    const size_t forms = dh == nullptr ? 1 : 2;
    group_blocks_ = std::clamp<size_t>(kGroupBytes / (forms * block_floats_ * sizeof(float)), 1,
                                       ceil_div(w.rows, block_tokens_));
    // Cuts along C: of the sum in S = H·Wᵀ, and of the columns in O += S·W (there in whole panels).
    const size_t pieces = ceil_div(block_floats_, kPieceFloats);
    const size_t length = round_up(ceil_div(channels_, pieces), blocks_.nr);
    inner_ = {std::min(length, blocks_.max_k / blocks_.nr * blocks_.nr), channels_};
    outer_ = {length, channels_};
    const size_t threads = context.pool.threads();
    const size_t chunks = ceil_div(n, threads * kMaxChunkRows) * threads;
    chunk_rows_ = round_up(ceil_div(n, chunks), blocks_.mr);
  }

  Status run(float grad_scale, HeadLoss* loss) {
    LR_RETURN_IF_ERROR(panels_.reserve(panel_bytes(), "the packed head"));
    LR_RETURN_IF_ERROR(states_.reserve(n_ * sizeof(RowState), "the head's softmax"));
    LR_RETURN_IF_ERROR(context_.pool.reserve_scratch(scratch_bytes()));
    constexpr float kNothing = -std::numeric_limits<float>::infinity();
    for (size_t row = 0; row < n_; ++row)
      state(row) = {{0, kNothing, 1, kNothing}, 0, 0, kNothing, false};

    const size_t group_tokens = group_blocks_ * block_tokens_;
    for (size_t token = 0; token < w_.rows; token += group_tokens) {
      const size_t tokens = std::min(group_tokens, w_.rows - token);
      pack_group(token, tokens);
      context_.pool.parallel(ceil_div(n_, chunk_rows_), [&](size_t chunk, size_t worker) {
        const size_t row = chunk * chunk_rows_, rows = std::min(chunk_rows_, n_ - row);
        for (size_t block = 0; block * block_tokens_ < tokens; ++block) {
          const size_t first = block * block_tokens_;
          run_block(block, token + first, std::min(block_tokens_, tokens - first), row, rows,
                    context_.pool.scratch<float>(worker));
        }
      });
    }
    if (dh_ != nullptr) finish_gradient(grad_scale);
    *loss = total();
    return {};
  }

  size_t memory(bool with_grad_w) const {
    const size_t recomputed = with_grad_w ? n_ * recomputed_tokens() * sizeof(float) : 0;
    return Buffer::held(panel_bytes()) + Buffer::held(n_ * sizeof(RowState)) +
           Buffer::held(recomputed) + context_.pool.threads() * Buffer::held(scratch_bytes());
  }

  // dw of every vocabulary row, from logits that are computed again.
  Status accumulate_weight_gradient(float grad_scale, Rows grad_w) {
    const size_t block = recomputed_tokens();
    Buffer logits;
    LR_RETURN_IF_ERROR(logits.reserve(n_ * block * sizeof(float), "a block of logits"));
    float* p = logits.as<float>();
    for (size_t token = 0; token < w_.rows; token += block) {
      const size_t tokens = std::min(block, w_.rows - token);
      Matrix rows = w_;
      rows.data = w_.row(token);
      rows.rows = tokens;
      const GemmTerm term{h_.data, h_.stride, 1, rows, true, channels_, h_.type};
      LR_RETURN_IF_ERROR(gemm(context_, n_, term, p, tokens, tokens, false));
      for_row_chunks(context_, n_, tokens, [&](size_t begin, size_t end) {
        for (size_t row = begin; row < end; ++row) {
          const SoftmaxState& softmax = state(row).softmax;
          const float factor = static_cast<float>(static_cast<double>(grad_scale) / softmax.sum);
          elementwise_.scaled_exp(softmax.shift, factor, tokens, p + row * tokens);
          const size_t target = static_cast<size_t>(targets_[row]);
          if (target >= token && target - token < tokens)
            p[row * tokens + target - token] -= grad_scale;
        }
      });
      LR_RETURN_IF_ERROR(gemm_tn(context_, tokens, channels_, n_, {p, tokens}, h_,
                                 grad_w.at(token, 0)));
    }
    return {};
  }

 private:
  size_t panel_bytes() const {
    return (dh_ == nullptr ? 1 : 2) * group_blocks_ * block_floats_ * sizeof(float);
  }
  size_t scratch_bytes() const {  // of a worker
    return std::max(chunk_rows_ * block_tokens_, channels_) * sizeof(float);
  }
  size_t recomputed_tokens() const {
    return std::clamp<size_t>(kRecomputeFloats / n_ / blocks_.nr, 1, 64) * blocks_.nr;
  }
  RowState& state(size_t row) const { return states_.as<RowState>()[row]; }
  // Pieces begin on whole panels, so that what lies before one is a whole number of pairs.
  float* inner_piece(size_t block, size_t piece, size_t columns) const {
    return panels_.as<float>() + block * block_floats_ +
           blocks_.depth(inner_.begin(piece)) * columns;
  }
  float* outer_piece(size_t block, size_t piece, size_t tokens) const {
    return panels_.as<float>() + (group_blocks_ + block) * block_floats_ +
           outer_.begin(piece) * blocks_.depth(tokens);
  }

  // A task packs the rows of one panel of S = H·Wᵀ, which are some of the k of O += S·W.
  void pack_group(size_t token, size_t tokens) {
    const size_t panels_per_block = block_tokens_ / blocks_.nr;
    context_.pool.parallel(ceil_div(tokens, blocks_.nr), [&](size_t task, size_t) {
      const size_t block = task / panels_per_block, at = task % panels_per_block * blocks_.nr;
      const size_t block_begin = block * block_tokens_,
                   size = std::min(block_tokens_, tokens - block_begin);
      const size_t first = token + block_begin + at, count = std::min(blocks_.nr, size - at);
      const size_t columns = round_up(size, gemm_.width);
      for (size_t piece = 0; piece < inner_.count(); ++piece) {
        const size_t k = inner_.size(piece), depth = blocks_.depth(k);
        blocks_.pack(w_, true, inner_.begin(piece), k, first, count,
                     inner_piece(block, piece, columns) + at * depth, depth, 0);
      }
      if (dh_ == nullptr) return;
      for (size_t piece = 0; piece < outer_.count(); ++piece) {
        blocks_.pack(w_, false, first, count, outer_.begin(piece), outer_.size(piece),
                     outer_piece(block, piece, size), blocks_.depth(size), blocks_.depth(at));
      }
    });
  }

  void run_block(size_t block, size_t token, size_t tokens, size_t row, size_t rows, float* s) {
    const size_t columns = round_up(tokens, gemm_.width);
    for (size_t piece = 0; piece < inner_.count(); ++piece) {
      const ConstRows h = h_.at(row, inner_.begin(piece));
      const GemmSegment segment{h.data, h.stride, 1, inner_.size(piece), h.bf16()};
      blocks_.block(&segment, 1, rows, inner_piece(block, piece, columns), tokens,
                    {s, tokens, piece > 0 ? s : nullptr, tokens});
    }
    for (size_t i = 0; i < rows; ++i) update_row(row + i, token, tokens, s + i * tokens);
    if (dh_ == nullptr) return;
    const bool rounded = blocks_.round != nullptr;  // then the weights are bf16, in half their place
    for (size_t piece = 0; piece < outer_.count(); ++piece) {
      const GemmSegment segment{s, rounded ? 2 * tokens : tokens, 1, tokens, rounded};
      float* dh = dh_ + row * channels_ + outer_.begin(piece);
      blocks_.block(&segment, 1, rows, outer_piece(block, piece, tokens), outer_.size(piece),
                    {dh, channels_, token > 0 ? dh : nullptr, channels_});
    }
  }

  // Takes the logits of [token, token + tokens) into the row's state and turns them into weights.
  void update_row(size_t row, size_t token, size_t tokens, float* logits) {
    RowState& row_state = state(row);
    const size_t target = static_cast<size_t>(targets_[row]);
    const bool holds_target = target >= token && target - token < tokens;
    bool target_is_first = false;
    if (holds_target) {
      row_state.target_logit = logits[target - token];
      target_is_first = std::none_of(logits, logits + (target - token),
                                     [&](float logit) { return logit >= row_state.target_logit; });
    }
    elementwise_.softmax_block(logits, tokens, &row_state.softmax);
    if (row_state.softmax.largest > row_state.largest) {
      row_state.largest = row_state.softmax.largest;
      row_state.target_is_largest = target_is_first && row_state.target_logit == row_state.largest;
    }
    if (dh_ == nullptr) return;
    if (blocks_.round != nullptr) {
      row_state.rounded_sum *= static_cast<double>(row_state.softmax.rescale);
      row_state.rounded_sum +=
          blocks_.round(logits, tokens, reinterpret_cast<uint16_t*>(logits));
    }
    if (row_state.softmax.rescale != 1.0f && token > 0) {
      elementwise_.scale(row_state.softmax.rescale, channels_, dh_ + row * channels_);
    }
  }

  // dh = grad_scale · (O / Σ - w[target])
  void finish_gradient(float grad_scale) {
    const size_t chunk_rows = std::max<size_t>(1, kChunkElements / channels_);
    context_.pool.parallel(ceil_div(n_, chunk_rows), [&](size_t chunk, size_t worker) {
      float* target_row = context_.pool.scratch<float>(worker);
      for (size_t row = chunk * chunk_rows; row < std::min(n_, (chunk + 1) * chunk_rows); ++row) {
        gemm_.dequantize(w_, static_cast<size_t>(targets_[row]), 1, 0, channels_, target_row,
                         channels_);
        if (blocks_.round != nullptr && w_.type != DType::kBF16) {  // as it stands in O
          for (size_t c = 0; c < channels_; ++c)
            target_row[c] = bf16_to_f32(f32_to_bf16(target_row[c]));
        }
        const double sum =
            blocks_.round == nullptr ? state(row).softmax.sum : state(row).rounded_sum;
        const float factor = static_cast<float>(static_cast<double>(grad_scale) / sum);
        elementwise_.blend(-grad_scale, target_row, channels_, factor, dh_ + row * channels_);
      }
    });
  }

  HeadLoss total() const {
    HeadLoss loss;
    for (size_t row = 0; row < n_; ++row) {
      const RowState& row_state = state(row);
      loss.nll_sum += static_cast<double>(row_state.softmax.shift) +
                      std::log(row_state.softmax.sum) - static_cast<double>(row_state.target_logit);
      loss.correct += row_state.target_is_largest && !std::isnan(row_state.softmax.sum) ? 1 : 0;
    }
    return loss;
  }

  Context& context_;
  const GemmKernels& gemm_;
  const BlockKernels& blocks_;
  const ElementwiseKernels& elementwise_;
  const ConstRows h_;
  const Matrix& w_;
  const int32_t* targets_;
  size_t n_, channels_;
  float* dh_;

  size_t block_tokens_, block_floats_, group_blocks_, chunk_rows_;
  Pieces inner_, outer_;
  Buffer panels_;  // H·Wᵀ's form of each block of the group, then S·W's
  Buffer states_;
};

Status check(const Matrix& w, const int32_t* targets, size_t n) {
  const size_t block_elements = dtype_info(w.type).block_elements;
  if (w.cols == 0 || w.cols % block_elements != 0) {
    return error(Code::kShapeMismatch,
                 "the head has rows of %zu elements, but %s comes in blocks of %zu", w.cols,
                 dtype_info(w.type).name, block_elements);
  }
  for (size_t row = 0; row < n; ++row) {
    if (targets[row] < 0 || static_cast<size_t>(targets[row]) >= w.rows) {
      return error(Code::kShapeMismatch, "target %zu is %d, but must be at least 0 and below %zu",
                   row, targets[row], w.rows);
    }
  }
  return {};
}

}  // namespace

size_t linear_cross_entropy_memory(Context& context, const Matrix& w, size_t n, bool with_dh,
                                   bool with_grad_w) {
  if (n == 0 || w.rows == 0 || w.cols == 0) return 0;
  float placeholder;  // its address alone counts
  return HeadPass(context, {}, w, nullptr, n, with_dh ? &placeholder : nullptr).memory(with_grad_w);
}

Status linear_cross_entropy(Context& context, ConstRows h, const Matrix& w,
                            const int32_t* targets, size_t n, float grad_scale, float* dh,
                            Rows grad_w, HeadLoss* loss) {
  const OpTimer timer(context, OpKind::kHead);
  *loss = {};
  LR_RETURN_IF_ERROR(check(w, targets, n));
  if (n == 0) return {};
  Buffer rounded;
  if (activation_type(context) == DType::kBF16 && !h.bf16()) {
    LR_RETURN_IF_ERROR(rounded.reserve(n * w.cols * sizeof(uint16_t), "the head's rounded input"));
    round_rows(context, h, n, w.cols, rounded.as<uint16_t>());
    h = {rounded.as<uint16_t>(), w.cols, DType::kBF16};
  }
  HeadPass pass(context, h, w, targets, n, dh);
  LR_RETURN_IF_ERROR(pass.run(grad_scale, loss));
  return grad_w.data == nullptr ? Status() : pass.accumulate_weight_gradient(grad_scale, grad_w);
}

}  // namespace lowrank
