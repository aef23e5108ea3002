// States of 8 bits: the nearest codes of a block's values. Part of optimizer_kernels.cpp.
//
// One value at a time takes a look-up by its upper bits and a comparison in double (code_map.h). Sixteen at a time are searched for in a tree of
// midpoints that lies in sixteen registers: eight steps down, in fp32, each with one to four permutations to look the midpoint up. The two midpoints
// that a value comes to lie between are remembered; where it is so near to one that rounding may have decided, one in ten thousand, it is looked at
// again in double: the codes are the same. On a core of Zen 5 an AdamW update of an element with two such states takes 2.6 ns, of which half is this;
// one value at a time, 6.
#pragma once

#include "ops/code_map.h"
#include "ops/cpu/optimizer_kernels.h"
#include "ops/cpu/vec.h"

namespace lowrank::LR_ISA {
namespace {

// `kSteps` comparisons where they are known when this is compiled; else the map's own number.
template <int kSteps>
LR_INLINE uint8_t nearest_code(const CodeMap& map, float x, float divisor, double absmax) {
  const float quotient = x / divisor;
  uint32_t bits;
  memcpy(&bits, &quotient, sizeof bits);
  uint32_t code = map.first[bits >> 16];
  const int steps = kSteps > 0 ? kSteps : map.steps;
  for (int step = 0; step < steps; ++step) code += static_cast<double>(x) > map.midpoints[code] * absmax;
  return static_cast<uint8_t>(code);
}

#if defined(__AVX512F__)

class MidpointTree {
 public:
  explicit MidpointTree(const CodeMap& map) {
    for (size_t i = 0; i < 16; ++i) nodes_[i] = _mm512_loadu_ps(map.tree + 16 * i);
  }

  // The codes of x / divisor in the lowest bytes of the lanes, and which of them are not sure.
  LR_INLINE __m512i search(const MidpointTree& self, __m512 x, __m512 divisor, __mmask16* unsure) {
    const __m512 quotient = _mm512_div_ps(x, divisor);
    Place place = {_mm512_set1_epi32(1), _mm512_set1_ps(-__builtin_inff()), _mm512_set1_ps(__builtin_inff())};
    const __m512* const t = self.nodes_;
    for (int level = 0; level < 4; ++level) descend(quotient, _mm512_permutexvar_ps(place.node, t[0]), &place);
    descend(quotient, _mm512_permutexvar_ps(place.node, t[1]), &place);
    descend(quotient, of_32(t + 2, place.node), &place);
    descend(quotient, of_64(t + 4, place.node), &place);
    const __mmask16 upper = _mm512_test_epi32_mask(place.node, _mm512_set1_epi32(64));
    descend(quotient, _mm512_mask_blend_ps(upper, of_64(t + 8, place.node), of_64(t + 12, place.node)), &place);
    // Two roundings of the quotient and of a midpoint, and twice as much to be safe. Not a number is never sure.
    const __m512 margin = _mm512_mul_ps(_mm512_abs_ps(quotient), _mm512_set1_ps(0x1p-22f));
    const __m512 gap = _mm512_min_ps(_mm512_sub_ps(quotient, place.below), _mm512_sub_ps(place.above, quotient));
    *unsure = _mm512_cmp_ps_mask(gap, margin, _CMP_NGT_UQ);
    return place.node;
  }

 private:
  // Where the search stands: node i has the children 2i and 2i + 1, and the codes are those of the level below the last one.
  struct Place {
    __m512i node;
    __m512 below, above;  // the nearest midpoints so far
  };

  LR_INLINE void descend(__m512 quotient, __m512 midpoint, Place* place) {
    const __mmask16 right = _mm512_cmp_ps_mask(quotient, midpoint, _CMP_GT_OQ);
    place->below = _mm512_mask_mov_ps(place->below, right, midpoint);
    place->above = _mm512_mask_mov_ps(midpoint, right, place->above);
    const __m512i left = _mm512_add_epi32(place->node, place->node);
    place->node = _mm512_mask_add_epi32(left, right, left, _mm512_set1_epi32(1));
  }

  // Of so many floats, those that the lowest bits of `node` number.
  LR_INLINE __m512 of_32(const __m512* t, __m512i node) { return _mm512_permutex2var_ps(t[0], node, t[1]); }
  LR_INLINE __m512 of_64(const __m512* t, __m512i node) {
    const __mmask16 upper = _mm512_test_epi32_mask(node, _mm512_set1_epi32(32));
    return _mm512_mask_blend_ps(upper, of_32(t, node), of_32(t + 2, node));
  }

  __m512 nodes_[16];
};

template <int kSteps>
LR_INLINE void encode_with(const CodeMap& map, const float* x, size_t n, float absmax, uint8_t* codes) {
  const MidpointTree tree(map);
  const float divisor = absmax > 0 ? absmax : 1.0f;
  for (size_t i = 0; i < n; i += 16) {
    const __mmask16 lanes = n - i < 16 ? V::mask(n - i) : __mmask16{0xffff};
    __mmask16 unsure;
    const __m512i found = MidpointTree::search(tree, _mm512_maskz_loadu_ps(lanes, x + i), V::set(divisor), &unsure);
    _mm512_mask_cvtepi32_storeu_epi8(codes + i, lanes, found);
    for (unsigned left = unsure & lanes; left != 0; left &= left - 1) {
      const size_t at = i + static_cast<size_t>(__builtin_ctz(left));
      codes[at] = nearest_code<kSteps>(map, x[at], divisor, static_cast<double>(absmax));
    }
  }
}

#else

template <int kSteps>
LR_INLINE void encode_with(const CodeMap& map, const float* x, size_t n, float absmax, uint8_t* codes) {
  const float divisor = absmax > 0 ? absmax : 1.0f;
  for (size_t i = 0; i < n; ++i) codes[i] = nearest_code<kSteps>(map, x[i], divisor, static_cast<double>(absmax));
}

#endif

}  // namespace
}  // namespace lowrank::LR_ISA
