// What the tests of attention share: cases of packed sequences and a double-precision reference that follows the formula.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "ops/attention.h"
#include "test/reference.h"

namespace lowrank::test {

struct Case {
  AttentionShape shape;
  std::vector<AttentionSequence> sequences;
  size_t q_rows = 0, kv_rows = 0;
  size_t q_stride = 0, kv_stride = 0;
  std::vector<float> q, k, v, d_o;
  std::string name;
};

struct Lengths {
  size_t q_len, kv_len;
};

// Sequences lie one after another with a row of nothing between them; rows are wider than their heads by `slack`.
inline Case make_case(Random& random, size_t heads, size_t kv_heads, size_t head_dim, size_t window, const std::vector<Lengths>& lengths,
               size_t slack) {
  Case c;
  c.shape = {heads, kv_heads, head_dim, 1.0f / std::sqrt(static_cast<float>(head_dim)), window};
  for (const Lengths& length : lengths) {
    c.sequences.push_back({c.q_rows, length.q_len, c.kv_rows, length.kv_len});
    c.q_rows += length.q_len + 1;
    c.kv_rows += length.kv_len + 1;
  }
  c.q_stride = heads * head_dim + slack;
  c.kv_stride = kv_heads * head_dim + slack;
  c.q = random.normals(c.q_rows * c.q_stride, 1.5f);
  c.k = random.normals(c.kv_rows * c.kv_stride, 1.5f);
  c.v = random.normals(c.kv_rows * c.kv_stride);
  c.d_o = random.normals(c.q_rows * c.q_stride);
  c.name = "heads " + std::to_string(heads) + "/" + std::to_string(kv_heads) + " dim " + std::to_string(head_dim) + " window " +
           std::to_string(window) + " lengths";
  for (const Lengths& length : lengths) c.name += " " + std::to_string(length.q_len) + ":" + std::to_string(length.kv_len);
  return c;
}

// One to three sequences of up to 180 keys, any heads and window.
inline Case random_case(Random& random) {
  const size_t kv_heads = 1 + random.below(3), heads = kv_heads * (1 + random.below(4));
  std::vector<Lengths> lengths;
  for (size_t i = 1 + random.below(3); i-- > 0;) {
    const size_t kv_len = random.below(180);
    lengths.push_back({random.coin() ? kv_len : random.below(kv_len + 1), kv_len});
  }
  const size_t window = random.coin() ? 0 : 1 + random.below(200);
  return make_case(random, heads, kv_heads, 1 + random.below(90), window, lengths, random.below(20));
}

struct Expected {
  std::vector<double> o, lse, dq, dk, dv;
};

// Probabilities of query i of sequence s for head h, over keys [0, kv_len).
inline std::vector<double> probabilities(const Case& c, const AttentionSequence& s, const std::vector<double>& q, const std::vector<double>& k,
                                  size_t i, size_t h, double* lse) {
  const size_t dim = c.shape.head_dim, kv_head = h / (c.shape.heads / c.shape.kv_heads);
  const size_t position = s.kv_len - s.q_len + i;
  std::vector<double> p(s.kv_len, 0.0);
  const size_t begin = c.shape.window > 0 && position + 1 > c.shape.window ? position + 1 - c.shape.window : 0;
  double maximum = -INFINITY, sum = 0;
  for (size_t j = begin; j <= position; ++j) {
    for (size_t d = 0; d < dim; ++d) {
      p[j] += q[(s.q_begin + i) * c.q_stride + h * dim + d] * k[(s.kv_begin + j) * c.kv_stride + kv_head * dim + d];
    }
    p[j] *= c.shape.scale;
    maximum = std::max(maximum, p[j]);
  }
  for (size_t j = begin; j <= position; ++j) sum += p[j] = std::exp(p[j] - maximum);
  for (size_t j = begin; j <= position; ++j) p[j] /= sum;
  *lse = maximum + std::log(sum);
  return p;
}

inline Expected reference(const Case& c, const std::vector<double>& q, const std::vector<double>& k, const std::vector<double>& v) {
  Expected e;
  e.o.assign(c.q.size(), 0);
  e.dq = e.o;
  e.dk.assign(c.k.size(), 0);
  e.dv = e.dk;
  e.lse.assign(c.q_rows * c.shape.heads, 0);
  const size_t dim = c.shape.head_dim;
  for (const AttentionSequence& s : c.sequences) {
    for (size_t i = 0; i < s.q_len; ++i) {
      for (size_t h = 0; h < c.shape.heads; ++h) {
        const size_t row = (s.q_begin + i) * c.q_stride + h * dim;
        const size_t kv_head = h / (c.shape.heads / c.shape.kv_heads);
        const std::vector<double> p = probabilities(c, s, q, k, i, h, &e.lse[(s.q_begin + i) * c.shape.heads + h]);
        const auto key_row = [&](size_t j) { return (s.kv_begin + j) * c.kv_stride + kv_head * dim; };
        double delta = 0;
        for (size_t d = 0; d < dim; ++d) {
          for (size_t j = 0; j < s.kv_len; ++j) e.o[row + d] += p[j] * v[key_row(j) + d];
          delta += e.o[row + d] * c.d_o[row + d];
        }
        for (size_t j = 0; j < s.kv_len; ++j) {
          double dp = 0;
          for (size_t d = 0; d < dim; ++d) dp += c.d_o[row + d] * v[key_row(j) + d];
          const double ds = p[j] * (dp - delta) * c.shape.scale;
          for (size_t d = 0; d < dim; ++d) {
            e.dq[row + d] += ds * k[key_row(j) + d];
            e.dk[key_row(j) + d] += ds * q[row + d];
            e.dv[key_row(j) + d] += p[j] * c.d_o[row + d];
          }
        }
      }
    }
  }
  return e;
}

inline std::vector<double> widened(const std::vector<float>& values) { return {values.begin(), values.end()}; }

constexpr float kUntouched = 123.0f;

// Marks the elements that no sequence's heads cover: they must stay as they were.
inline void keep_untouched(const Case& c, size_t rows, size_t stride, size_t width, bool queries, std::vector<double>& want) {
  std::vector<bool> named(rows, false);
  for (const AttentionSequence& s : c.sequences) {
    const size_t begin = queries ? s.q_begin : s.kv_begin, length = queries ? s.q_len : s.kv_len;
    std::fill(named.begin() + begin, named.begin() + begin + length, true);
  }
  for (size_t i = 0; i < want.size(); ++i) {
    if (!named[i / stride] || i % stride >= width) want[i] = kUntouched;
  }
}

inline void keep_untouched(const Case& c, Expected& want) {
  const size_t q_width = c.shape.heads * c.shape.head_dim, kv_width = c.shape.kv_heads * c.shape.head_dim;
  keep_untouched(c, c.q_rows, c.q_stride, q_width, true, want.o);
  keep_untouched(c, c.q_rows, c.q_stride, q_width, true, want.dq);
  keep_untouched(c, c.kv_rows, c.kv_stride, kv_width, false, want.dk);
  keep_untouched(c, c.kv_rows, c.kv_stride, kv_width, false, want.dv);
  keep_untouched(c, c.q_rows, c.shape.heads, c.shape.heads, true, want.lse);
}

}  // namespace lowrank::test
