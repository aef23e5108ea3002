// The buffers of a forward and backward over up to `tokens` packed tokens, laid out in one arena before the run.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "core/buffer.h"
#include "core/paged_memory.h"
#include "model/plan.h"
#include "ops/rows.h"

namespace lowrank {

// What a block keeps for its backward.
enum class Keep : uint8_t {
  kAll,        // what its backward reads, but for what is cheap to compute again
  kSelective,  // its input and what attention made; its products are computed again in the backward
  kInput,      // its input; the rest is computed again in the backward
};

// What a forward keeps for its backward, block by block.                 Chen et al. 2016, arXiv:1604.06174
// Counted are the blocks that have a backward: those below the lowest that is trained keep nothing.
struct Retention {
  bool training = false;    // without a backward nothing is kept
  size_t all = 0;           // so many blocks keep all,
  size_t selective = 0;     // so many after them what attention made, and the others their input:
  size_t every = 1;         // where all do, of every so manieth; blocks between two run forward once more together
  std::string folder = {};  // where it is given, a file in it holds the inputs until the backward; `every` is 1 then

  bool parks() const { return training && !folder.empty(); }
  Keep of(size_t block) const {
    return block < all ? Keep::kAll : block - all < selective ? Keep::kSelective : Keep::kInput;
  }
  bool operator==(const Retention&) const = default;
};

inline Retention keep_nothing() { return {}; }
inline Retention keep_all() { return {.training = true, .all = SIZE_MAX}; }

// What a block's backward reads. T tokens each. Rows are in the workspace's type.
struct BlockSaved {
  Rows qkv;          // [T, qkv_width], q and k rotated
  Rows attention;    // [T, query_width]
  float* lse;        // [T, heads]
  float* inv_rms_in;   // [T]
  float* inv_rms_mid;  // [T]
  Rows gate_up;      // [T, 2 * ffn]
  float* s_qkv;      // [T, rank sum of the group], LoRA's inner activations
  float* s_output;
  float* s_gate_up;
  float* s_down;
};

struct Workspace {
  size_t tokens = 0;
  Retention keep;
  DType type = DType::kF32;        // of Rows: kF32 or kBF16

  std::vector<float*> inputs;      // [layers + 1] of [T, hidden]: each block's input, then the last block's output; some may share memory,
                                   // and all but the last lie in `parked` where the retention parks them
  std::vector<BlockSaved> blocks;  // [layers]; some may share memory
  float* mid = nullptr;            // [T, hidden]: the residual stream after a block's attention
  Rows normed;                     // [T, hidden]
  Rows hidden_ffn;                 // [T, ffn]
  float* cos = nullptr;            // [T, rotary_dim / 2]
  float* sin = nullptr;
  // Of the backward. Some share memory: see lay_out.
  float* d_stream = nullptr;       // [T, hidden]
  uint16_t* d_stream_rounded = nullptr;  // the same in bf16, where that is the type
  float* d_normed = nullptr;       // [T, hidden]
  Rows d_ffn;                      // [T, ffn]
  Rows d_qkv;                      // [T, qkv_width]
  Rows d_attention;                // [T, query_width]
  void* attention_scratch = nullptr;
  // Of the head: supervised rows only.
  float* head_in = nullptr;        // [T, hidden], gathered
  Rows head_normed;                // [T, hidden]
  float* d_head = nullptr;         // [T, hidden]
  float* inv_rms_head = nullptr;   // [T]

  // The gradient of the stream as an operand of products.
  ConstRows d_stream_rows(size_t hidden) const {
    return type == DType::kBF16 ? ConstRows{d_stream_rounded, hidden, type} : ConstRows{d_stream, hidden};
  }

  // Gives a parked input's memory back after use, and fetches it ahead of the next. Nothing where inputs are not parked.
  void park(size_t block) const;
  void fetch(size_t block) const;

  // Lays the buffers out for `tokens` (grown when more come). kOutOfMemory names what was wanted.
  Status prepare(const DecoderConfig&, const ModelPlan&, const Retention& keep, DType type, size_t tokens);

  // Bytes by component that prepare would take.
  static std::map<std::string, size_t> estimate(const DecoderConfig&, const ModelPlan&, const Retention& keep, DType type,
                                                size_t tokens);

 private:
  Buffer arena_;
  PagedMemory parked_;
  size_t parked_bytes_ = 0;  // of an input
  uint64_t revision_ = 0;
};

}  // namespace lowrank
