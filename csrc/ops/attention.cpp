// How attention is cut into pieces for threads. The pieces and the order in which each gradient is added up depend on shapes alone:
//   forward   (sequence, key head, kAttentionRows rows), each on its own
//   decode    (sequence, key head, kDecodeKeys keys), then a sum over the key ranges in order
//   backward  (sequence, key head, query chunk, key chunk) in phases of equal distance between the two chunks: within a phase no two pieces
//             share a chunk, so each gradient has one writer at a time and is added up by ascending distance, with no second copy
#include "ops/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "core/checked.h"
#include "core/op_profile.h"
#include "ops/cpu/kernels.h"

namespace lowrank {
namespace {

constexpr size_t kDecodeKeys = 256;
constexpr size_t kDotRows = 64;            // queries of a piece of delta
constexpr size_t kMaxKeys = size_t{1} << 24;  // positions are compared as fp32

Status check(const AttentionShape& shape, std::span<const AttentionSequence> sequences) {
  if (shape.kv_heads == 0 || shape.heads == 0 || shape.heads % shape.kv_heads != 0) {
    return error(Code::kShapeMismatch, "attention: %zu heads with %zu key heads; expected a multiple of the key heads", shape.heads,
                 shape.kv_heads);
  }
  if (shape.head_dim == 0) return error(Code::kShapeMismatch, "attention: head_dim is 0; expected at least 1");
  for (size_t i = 0; i < sequences.size(); ++i) {
    const AttentionSequence& s = sequences[i];
    if (s.q_len > s.kv_len) {
      return error(Code::kShapeMismatch, "attention: sequence %zu has %zu queries and %zu keys; expected at least as many keys", i,
                   s.q_len, s.kv_len);
    }
    if (s.kv_len > kMaxKeys) {
      return error(Code::kShapeMismatch, "attention: sequence %zu has %zu keys; expected at most %zu", i, s.kv_len, kMaxKeys);
    }
  }
  return {};
}

// The kernels whose operands are in the context's compute type; kInvalidOption where some rows are bf16 and there are none for them.
Result<const AttentionProducts*> products_for(const Context& context, std::initializer_list<ConstRows> tensors) {
  const AttentionKernels& kernels = context.kernels.attention;
  if (context.compute == ComputeType::kBf16 && kernels.bf16 != nullptr) return kernels.bf16;
  for (const ConstRows& tensor : tensors) {
    if (tensor.bf16()) {
      return error(Code::kInvalidOption, "attention: rows of bf16 need a computation in bf16, which level %s has not been asked for or has not",
                   level_name(context.kernels.level));
    }
  }
  return &kernels.f32;
}

AttentionGroup group_of(const AttentionShape& shape, const AttentionSequence& s, size_t kv_head, const ConstRows& q, const ConstRows& k,
                        const ConstRows& v) {
  const size_t group = shape.heads / shape.kv_heads, dim = shape.head_dim;
  return {q.at(s.q_begin, kv_head * group * dim), k.at(s.kv_begin, kv_head * dim), v.at(s.kv_begin, kv_head * dim),
          group, dim, s.q_len, s.kv_len, shape.window, shape.scale, shape.heads};
}

// Per-row statistics of a group within [q rows, heads].
template <class T>
T* group_statistics(const AttentionShape& shape, const AttentionSequence& s, size_t kv_head, T* values) {
  return values + s.q_begin * shape.heads + kv_head * (shape.heads / shape.kv_heads);
}

struct ForwardPiece {
  const AttentionSequence* sequence;
  size_t kv_head, begin;  // begin: first row, or first key of a decode piece
};

// Rows [begin, begin + kAttentionRows) of each sequence with at least `shortest` queries, and key head; the last rows, which see most keys,
// go first.
std::vector<ForwardPiece> row_pieces(const AttentionShape& shape, std::span<const AttentionSequence> sequences, size_t shortest) {
  std::vector<ForwardPiece> pieces;
  const size_t group = shape.heads / shape.kv_heads;
  for (const AttentionSequence& s : sequences) {
    if (s.q_len < shortest) continue;
    for (size_t block = ceil_div(s.q_len * group, kAttentionRows); block-- > 0;) {
      for (size_t head = 0; head < shape.kv_heads; ++head) pieces.push_back({&s, head, block * kAttentionRows});
    }
  }
  return pieces;
}

size_t first_visible_key(const AttentionShape& shape, size_t position) {
  return shape.window > 0 && position + 1 > shape.window ? position + 1 - shape.window : 0;
}

// Key ranges of the sequences with one query, those of a (sequence, key head) next to each other.
std::vector<ForwardPiece> decode_pieces(const AttentionShape& shape, std::span<const AttentionSequence> sequences) {
  std::vector<ForwardPiece> pieces;
  for (const AttentionSequence& s : sequences) {
    if (s.q_len != 1) continue;
    for (size_t head = 0; head < shape.kv_heads; ++head) {
      for (size_t key = first_visible_key(shape, s.kv_len - 1); key < s.kv_len; key += kDecodeKeys) {
        pieces.push_back({&s, head, key});
      }
    }
  }
  return pieces;
}

// Sums `count` partial results of one head (stride `stride`) in order: o = Σ 2^(m_i - m) o_i / Σ 2^(m_i - m) l_i.
void combine_partials(const float* partials, size_t count, size_t stride, size_t head_dim, float* o, float* lse) {
  float maximum = partials[head_dim];
  for (size_t i = 1; i < count; ++i) maximum = std::max(maximum, partials[i * stride + head_dim]);
  float sum = 0;
  std::fill(o, o + head_dim, 0.0f);
  for (size_t i = 0; i < count; ++i, partials += stride) {
    const float weight = std::exp2(partials[head_dim] - maximum);
    sum += weight * partials[head_dim + 1];
    for (size_t d = 0; d < head_dim; ++d) o[d] += weight * partials[d];
  }
  for (size_t d = 0; d < head_dim; ++d) o[d] /= sum;
  if (lse != nullptr) *lse = (maximum + std::log2(sum)) * 0.693147180559945309f;
}

void decode(Context& context, const AttentionShape& shape, const std::vector<ForwardPiece>& pieces, size_t scratch_floats,
            const ConstRows& q, const ConstRows& k, const ConstRows& v, const Rows& o, float* lse) {
  const size_t group = shape.heads / shape.kv_heads, head_floats = shape.head_dim + 2, piece_floats = group * head_floats;
  float* const partials = context.pool.scratch<float>(0) + scratch_floats;
  context.pool.parallel(pieces.size(), [&](size_t i, size_t worker) {
    const ForwardPiece& piece = pieces[i];
    context.kernels.attention.decode(group_of(shape, *piece.sequence, piece.kv_head, q, k, v), piece.begin,
                                     std::min(piece.sequence->kv_len, piece.begin + kDecodeKeys), partials + i * piece_floats,
                                     context.pool.scratch<float>(worker));
  });
  for (size_t i = 0, count; i < pieces.size(); i += count) {
    const auto [sequence, kv_head, begin] = pieces[i];
    count = ceil_div(sequence->kv_len - begin, kDecodeKeys);
    for (size_t head = 0; head < group; ++head) {
      float* const row_lse = lse == nullptr ? nullptr : group_statistics(shape, *sequence, kv_head, lse) + head;
      combine_partials(partials + i * piece_floats + head * head_floats, count, piece_floats, shape.head_dim,
                       static_cast<float*>(o.at(sequence->q_begin, (kv_head * group + head) * shape.head_dim).data), row_lse);
    }
  }
}

}  // namespace

Status attention_forward(Context& context, const AttentionShape& shape, std::span<const AttentionSequence> sequences, ConstRows q,
                         ConstRows k, ConstRows v, Rows o, float* lse) {
  const OpTimer timer(context, OpKind::kAttentionForward);
  LR_RETURN_IF_ERROR(check(shape, sequences));
  const Result<const AttentionProducts*> chosen = products_for(context, {q, k, v, o});
  if (!chosen.ok()) return chosen.status();
  const AttentionProducts& products = *chosen.value();
  const size_t group = shape.heads / shape.kv_heads;
  const bool decodes = !q.bf16() && !k.bf16() && !v.bf16() && !o.bf16();
  const std::vector<ForwardPiece> rows = row_pieces(shape, sequences, decodes ? 2 : 1);
  const std::vector<ForwardPiece> keys = decodes ? decode_pieces(shape, sequences) : std::vector<ForwardPiece>();
  const size_t scratch_floats = round_up(std::max(products.scratch_floats(shape.head_dim),
                                                  context.kernels.attention.decode_scratch_floats(shape.head_dim, group)), 16);
  const size_t partial_floats = keys.size() * group * (shape.head_dim + 2);
  LR_RETURN_IF_ERROR(context.pool.reserve_scratch((scratch_floats + partial_floats) * sizeof(float)));

  if (!keys.empty()) decode(context, shape, keys, scratch_floats, q, k, v, o, lse);
  context.pool.parallel(rows.size(), [&](size_t i, size_t worker) {
    const auto [s, kv_head, begin] = rows[i];
    const AttentionOut out{o.at(s->q_begin, kv_head * group * shape.head_dim),
                           lse == nullptr ? nullptr : group_statistics(shape, *s, kv_head, lse)};
    products.forward(group_of(shape, *s, kv_head, q, k, v), out, begin, std::min(s->q_len * group, begin + kAttentionRows),
                     context.pool.scratch<float>(worker));
  });
  return {};
}

size_t attention_backward_scratch(const AttentionShape& shape, size_t q_rows, size_t kv_rows, DType gradients) {
  const size_t sums = gradients == DType::kBF16 ? q_rows * shape.heads + 2 * kv_rows * shape.kv_heads : 0;
  return (q_rows * shape.heads + sums * shape.head_dim) * sizeof(float);
}

namespace {

struct BackwardPiece {
  const AttentionSequence* sequence;
  size_t kv_head;
  AttentionPair pair;
};

// Positions of queries are cut at the same bounds as keys.
struct Chunks {
  size_t first_query, queries_begin, count;  // first chunk with queries, position of the first query, chunks of keys
  explicit Chunks(const AttentionSequence& s)
      : first_query((s.kv_len - s.q_len) / kAttentionChunk),
        queries_begin(s.kv_len - s.q_len),
        count(ceil_div(s.kv_len, kAttentionChunk)) {}
};

// Whether some query of a chunk sees a key of another.
bool meets(const AttentionShape& shape, const AttentionSequence& s, const Chunks& chunks, size_t query, size_t key) {
  const size_t first_position = std::max(chunks.queries_begin, query * kAttentionChunk);
  return query < chunks.count && key <= query &&
         first_visible_key(shape, first_position) < std::min(s.kv_len, (key + 1) * kAttentionChunk);
}

// The pair of a query and a key chunk; false where no query sees a key.
bool make_pair(const AttentionShape& shape, const AttentionSequence& s, const Chunks& chunks, size_t query, size_t key,
               AttentionPair* pair) {
  pair->position_begin = std::max(chunks.queries_begin, query * kAttentionChunk);
  pair->position_end = std::min(s.kv_len, (query + 1) * kAttentionChunk);
  pair->key_begin = key * kAttentionChunk;
  pair->key_end = std::min(s.kv_len, pair->key_begin + kAttentionChunk);
  pair->first_of_queries = query == key;
  pair->first_of_keys = query == std::max(key, chunks.first_query);
  pair->last_of_queries = key == 0 || !meets(shape, s, chunks, query, key - 1);
  pair->last_of_keys = !meets(shape, s, chunks, query + 1, key);
  return meets(shape, s, chunks, query, key);
}

std::vector<BackwardPiece> pieces_at_distance(const AttentionShape& shape, std::span<const AttentionSequence> sequences,
                                              size_t distance) {
  std::vector<BackwardPiece> pieces;
  for (const AttentionSequence& s : sequences) {
    const Chunks chunks(s);
    if (s.q_len == 0) continue;
    for (size_t query = std::max(chunks.first_query, distance); query < chunks.count; ++query) {
      AttentionPair pair;
      if (!make_pair(shape, s, chunks, query, query - distance, &pair)) continue;
      for (size_t head = 0; head < shape.kv_heads; ++head) pieces.push_back({&s, head, pair});
    }
  }
  return pieces;
}

// Zeroes the gradients of keys that no query sees.
void zero_unseen_keys(const AttentionShape& shape, const AttentionSequence& s, const Rows& dk, const Rows& dv) {
  const Chunks chunks(s);
  for (size_t key = 0; key < chunks.count; ++key) {
    AttentionPair pair;
    if (s.q_len > 0 && make_pair(shape, s, chunks, std::max(key, chunks.first_query), key, &pair)) continue;
    const size_t end = std::min(s.kv_len, (key + 1) * kAttentionChunk);
    for (size_t row = s.kv_begin + key * kAttentionChunk; row < s.kv_begin + end; ++row) {
      for (const Rows& gradient : {dk, dv}) {
        std::memset(gradient.at(row, 0).data, 0, shape.kv_heads * shape.head_dim * gradient.element_bytes());
      }
    }
  }
}

// delta[row, head] = Σ_d o · d_o for every row that a sequence names.
void row_dots(Context& context, const AttentionShape& shape, std::span<const AttentionSequence> sequences, const ConstRows& o,
              const ConstRows& d_o, float* delta) {
  std::vector<std::pair<size_t, size_t>> blocks;  // rows [first, second)
  for (const AttentionSequence& s : sequences) {
    for (size_t i = 0; i < s.q_len; i += kDotRows) blocks.emplace_back(s.q_begin + i, s.q_begin + std::min(s.q_len, i + kDotRows));
  }
  context.pool.parallel(blocks.size(), [&](size_t i, size_t) {
    const auto [begin, end] = blocks[i];
    context.kernels.attention.head_dots(o.at(begin, 0), d_o.at(begin, 0), end - begin, shape.heads, shape.head_dim, shape.heads,
                                        delta + begin * shape.heads);
  });
}

// dq, dk and dv with what their sums are kept in.
struct GradientTensors {
  AttentionGradient dq, dk, dv;
};

// Gradients in fp32 hold their own sums; those in bf16 have them in `scratch`, laid out for the rows that sequences name.
GradientTensors gradient_tensors(const AttentionShape& shape, std::span<const AttentionSequence> sequences, const Rows& dq, const Rows& dk,
                                 const Rows& dv, float* scratch) {
  size_t q_rows = 0, kv_rows = 0;
  for (const AttentionSequence& s : sequences) {
    q_rows = std::max(q_rows, s.q_begin + s.q_len);
    kv_rows = std::max(kv_rows, s.kv_begin + s.kv_len);
  }
  float* next = scratch + q_rows * shape.heads;
  const auto with_sums = [&](const Rows& out, size_t rows, size_t heads) -> AttentionGradient {
    if (!out.bf16()) return {out, out};
    const Rows sums{next, heads * shape.head_dim};
    next += rows * sums.stride;
    return {out, sums};
  };
  GradientTensors tensors;
  tensors.dq = with_sums(dq, q_rows, shape.heads);
  tensors.dk = with_sums(dk, kv_rows, shape.kv_heads);
  tensors.dv = with_sums(dv, kv_rows, shape.kv_heads);
  return tensors;
}

AttentionGradient at(const AttentionGradient& gradient, size_t row, size_t column) {
  return {gradient.out.at(row, column), gradient.sums.at(row, column)};
}

}  // namespace

Status attention_backward(Context& context, const AttentionShape& shape, std::span<const AttentionSequence> sequences, ConstRows q,
                          ConstRows k, ConstRows v, ConstRows o, const float* lse, ConstRows d_o, Rows dq, Rows dk, Rows dv,
                          void* scratch) {
  const OpTimer timer(context, OpKind::kAttentionBackward);
  LR_RETURN_IF_ERROR(check(shape, sequences));
  const Result<const AttentionProducts*> chosen = products_for(context, {q, k, v, o, d_o, dq, dk, dv});
  if (!chosen.ok()) return chosen.status();
  const AttentionProducts& products = *chosen.value();
  const size_t group = shape.heads / shape.kv_heads, dim = shape.head_dim;
  LR_RETURN_IF_ERROR(context.pool.reserve_scratch(products.scratch_floats(dim) * sizeof(float)));

  float* const delta = static_cast<float*>(scratch);
  row_dots(context, shape, sequences, o, d_o, delta);
  const GradientTensors to = gradient_tensors(shape, sequences, dq, dk, dv, delta);
  size_t distances = 0;
  for (const AttentionSequence& s : sequences) {
    zero_unseen_keys(shape, s, dk, dv);
    distances = std::max(distances, ceil_div(s.kv_len, kAttentionChunk));
  }
  for (size_t distance = 0; distance < distances; ++distance) {
    const std::vector<BackwardPiece> pieces = pieces_at_distance(shape, sequences, distance);
    context.pool.parallel(pieces.size(), [&](size_t i, size_t worker) {
      const auto& [s, kv_head, pair] = pieces[i];
      const AttentionGradients gradients{d_o.at(s->q_begin, kv_head * group * dim),
                                         group_statistics(shape, *s, kv_head, lse),
                                         group_statistics(shape, *s, kv_head, static_cast<const float*>(delta)),
                                         at(to.dq, s->q_begin, kv_head * group * dim),
                                         at(to.dk, s->kv_begin, kv_head * dim),
                                         at(to.dv, s->kv_begin, kv_head * dim)};
      products.backward(group_of(shape, *s, kv_head, q, k, v), gradients, pair, context.pool.scratch<float>(worker));
    });
  }
  return {};
}

}  // namespace lowrank
