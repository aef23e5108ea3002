// Rotary embedding: frequencies and tables against Transformers 5.24.0 (LlamaRotaryEmbedding, fp32), the rotation against its formula.
#include "ops/rope.h"

#include <cstring>

#include "test/reference.h"

using namespace lowrank;
using namespace lowrank::test;

namespace {

struct Recorded {
  const char* name;
  RopeConfig config;
  size_t length;  // the last position + 1
  std::vector<float> inv_freq;
  double attention_scale;
  std::vector<float> cos, sin;  // at position length - 1
};

// Printed by test/reference/make_rope_rows.py.
const Recorded kRecorded[] = {
    {"default", {RopeKind::kDefault, 10000.0, 16}, 131072,
     {1.0f, 0.316227764f, 0.100000001f, 0.0316227786f, 0.00999999978f, 0.00316227786f, 0.00100000005f,
      0.000316227786f},
     1,
     {-0.817983508f, -0.308497071f, 0.930127978f, -0.4815346f, -0.786407828f, 0.978586078f, 0.640311718f,
      -0.821027815f},
     {-0.575241685f, -0.951225281f, 0.367235571f, -0.876427054f, -0.61770767f, -0.205838144f, -0.768115163f,
      -0.570888221f}},
    {"default, theta 500000", {RopeKind::kDefault, 500000.0, 10}, 131072,
     {1.0f, 0.0724779591f, 0.0052530556f, 0.000380730664f, 2.75945895e-05f},
     1,
     {-0.817983508f, 0.914147913f, -0.870556951f, 0.934930086f, -0.889174819f},
     {-0.575241685f, -0.405380845f, -0.492067665f, -0.354831994f, -0.457567632f}},
    {"linear", {RopeKind::kLinear, 10000.0, 16, 3.0}, 131072,
     {0.333333343f, 0.105409257f, 0.0333333351f, 0.0105409259f, 0.00333333318f, 0.00105409266f, 0.000333333359f,
      0.000105409265f},
     1,
     {-0.97867161f, 0.809315324f, -0.604474962f, 0.770592272f, -0.975471914f, 0.997613788f, 0.957681835f,
      0.315581769f},
     {-0.205430955f, -0.587374389f, 0.796624184f, -0.637328446f, -0.220123887f, -0.0690415651f, -0.287828892f,
      0.948898375f}},
    {"dynamic, short", {RopeKind::kDynamic, 10000.0, 16, 2.0, 2048}, 2048,
     {1.0f, 0.316227764f, 0.100000001f, 0.0316227786f, 0.00999999978f, 0.00316227786f, 0.00100000005f,
      0.000316227786f},
     1,
     {0.249715254f, 0.98874855f, -0.879267335f, -0.323264688f, -0.0496266708f, 0.982004762f, -0.458408684f,
      0.797703862f},
     {-0.968319297f, 0.14958711f, -0.476328611f, 0.946308613f, 0.998767853f, 0.188856319f, 0.888741493f,
      0.603049397f}},
    {"dynamic, long", {RopeKind::kDynamic, 10000.0, 16, 2.0, 2048}, 10000,
     {1.0f, 0.231908545f, 0.053781569f, 0.0124724042f, 0.00289245718f, 0.000670785492f, 0.000155560891f,
      3.60758968e-05f},
     1,
     {-0.771617353f, 0.936551392f, -0.852755427f, 0.579944789f, -0.797687948f, 0.911450982f, 0.0153424246f,
      0.935641944f},
     {0.636086941f, 0.350530297f, -0.522310436f, -0.814655781f, -0.603070378f, 0.411408633f, 0.999882281f,
      0.352950692f}},
    {"llama3", {RopeKind::kLlama3, 500000.0, 32, 8.0, 131072, 8192, 1.0, 4.0}, 131072,
     {1.0f, 0.440366626f, 0.193922758f, 0.0853971019f, 0.0376060307f, 0.0165604409f, 0.00729266508f,
      0.00321144611f, 0.000524846022f, 7.78465546e-05f, 3.42810235e-05f, 1.50962178e-05f, 6.64786967e-06f,
      2.92749974e-06f, 1.28917316e-06f, 5.6770881e-07f},
     1,
     {-0.817983508f, -0.372722f, -0.560530901f, -0.916865408f, -0.995121777f, -0.969645917f, 0.687491775f,
      0.998944223f, 0.948304296f, -0.711864114f, -0.217391238f, -0.396664143f, 0.643799543f, 0.927282035f,
      0.985757947f, 0.997232854f},
     {-0.575241685f, 0.927943051f, 0.828133523f, 0.399196535f, 0.0986541584f, 0.244513348f, 0.726192176f,
      -0.0459396914f, -0.317362607f, -0.702317238f, -0.97608453f, 0.917963803f, 0.765194178f, 0.374363571f,
      0.168170273f, 0.0743415132f}},
    {"yarn", {RopeKind::kYarn, 10000.0, 32, 4.0, 16384, 4096}, 131072,
     {1.0f, 0.562341332f, 0.316227764f, 0.177827939f, 0.100000001f, 0.0562341288f, 0.0282346234f, 0.0139721958f,
      0.00678571407f, 0.00321337907f, 0.00146820047f, 0.00063509983f, 0.000250000012f, 0.000140585325f,
      7.90569466e-05f, 4.44569851e-05f},
     1.13862944,
     {-0.931380093f, 0.18655394f, -0.351263851f, -0.933248878f, 1.05907106f, 1.0061419f, 1.13685012f, -1.11620653f,
      -1.07359302f, 1.11422789f, -0.792183101f, 0.0102858152f, 0.247341439f, 1.03832042f, -0.674034834f,
      1.02220345f},
     {-0.654987097f, -1.12324286f, -1.08309305f, -0.652321577f, 0.418145239f, 0.533062339f, -0.0636293739f,
      0.224855393f, -0.379308552f, 0.234463573f, -0.817877114f, 1.13858294f, 1.11144018f, -0.467298329f,
      -0.917689502f, -0.501574576f}},
    {"yarn, bounds not whole", {.kind = RopeKind::kYarn, .theta = 150000.0, .rotary_dim = 32, .factor = 32.0,
      .max_position = 131072, .original_max_position = 4096, .truncate = false}, 131072,
     {1.0f, 0.47478205f, 0.225418001f, 0.107024416f, 0.0508132726f, 0.0193350017f, 0.00679495931f, 0.00209379266f,
      0.000456483918f, 3.83088118e-05f, 1.8188337e-05f, 8.63549576e-06f, 4.09997847e-06f, 1.94659629e-06f,
      9.24208962e-07f, 4.38797855e-07f},
     1.34657359,
     {-1.101475f, 0.110065356f, -0.820876896f, -1.12215126f, 1.34597003f, -0.719362855f, -0.0261029657f,
      -0.590402782f, -1.33310735f, 0.40922609f, -0.978241801f, 0.57225883f, 1.15677214f, 1.3029815f, 1.3367058f,
      1.34434712f},
     {-0.774605274f, 1.34206784f, 1.06743693f, -0.744336665f, -0.0403120555f, 1.13832223f, -1.34632063f,
      -1.21024168f, -0.189960882f, -1.28288519f, 0.92536664f, 1.21892583f, 0.6893031f, 0.339852482f, 0.162721232f,
      0.0774037018f}},
    {"yarn, mscale", {.kind = RopeKind::kYarn, .theta = 10000.0, .rotary_dim = 32, .factor = 40.0,
      .max_position = 163840, .original_max_position = 4096, .beta_fast = 16.0, .beta_slow = 2.0, .mscale = 0.707,
      .mscale_all_dim = 1.0}, 131072,
     {1.0f, 0.562341332f, 0.316227764f, 0.177827939f, 0.100000001f, 0.0562341288f, 0.0316227786f, 0.0143151497f,
      0.00609999988f, 0.00233371649f, 0.000695701048f, 4.44569851e-05f, 2.49999994e-05f, 1.40585325e-05f,
      7.90569447e-06f, 4.44569832e-06f},
     0.921042355,
     {-0.753397465f, 0.150904313f, -0.284138888f, -0.754909158f, 0.856687307f, 0.813872635f, -0.443513781f,
      -0.661090672f, 0.00207168423f, -0.377846897f, -0.918093204f, 0.826864898f, -0.912639499f, -0.247330099f,
      0.46925953f, 0.769050837f},
     {-0.529821992f, -0.908596158f, -0.876118779f, -0.527665794f, 0.338239521f, 0.431196481f, -0.807226479f,
      -0.641309679f, 0.921040058f, -0.839970708f, -0.0736475736f, -0.405725926f, -0.124129698f, 0.887212992f,
      0.792536795f, 0.506833136f}},
    {"yarn, attention_factor", {.kind = RopeKind::kYarn, .theta = 10000.0, .rotary_dim = 16, .factor = 4.0,
      .max_position = 16384, .original_max_position = 4096, .attention_factor = 0.8}, 131072,
     {1.0f, 0.316227764f, 0.100000001f, 0.025693506f, 0.00624999963f, 0.00138349656f, 0.000250000012f,
      7.90569466e-05f},
     0.8,
     {-0.654386818f, -0.246797666f, 0.744102418f, 0.794830799f, -0.578789175f, 0.51212132f, 0.173781872f,
      -0.473576277f},
     {-0.460193366f, -0.760980248f, 0.293788463f, -0.0907964632f, 0.552270889f, -0.61459887f, 0.780896842f,
      -0.644767821f}},
};

void test_recorded() {
  ThreadPool pool(2);
  Context context{pool, kernels_for(available_levels().back())};
  for (const Recorded& r : kRecorded) {
    std::vector<float> inv_freq;
    float scale = 0;
    expect_ok(rope_frequencies(r.config, r.length, &inv_freq, &scale), r.name);
    if (!expect(inv_freq.size() == r.inv_freq.size(), "%s: %zu frequencies", r.name, inv_freq.size())) continue;
    // Two units in the last place: torch's power is not rounded correctly everywhere.
    for (size_t i = 0; i < inv_freq.size(); ++i) expect_near(inv_freq[i], r.inv_freq[i], 2.4e-7 * r.inv_freq[i], r.name, i);
    expect_near(scale, r.attention_scale, 1e-7 * r.attention_scale, r.name, 0);

    const std::vector<int32_t> positions(3, static_cast<int32_t>(r.length - 1));
    const size_t half = r.cos.size();
    std::vector<float> cos(3 * half), sin(3 * half);
    expect_ok(rope_table(context, positions.data(), 3, r.inv_freq, scale, cos.data(), sin.data()), r.name);
    for (size_t i = 0; i < 3 * half; ++i) {
      expect_near(cos[i], r.cos[i % half], 2e-7, r.name, i);
      expect_near(sin[i], r.sin[i % half], 2e-7, r.name, i);
    }
  }
}

// The pair (i, i + rotary/2) turns by its angle; the rest of a head and what lies between rows stay.
void test_rotation(Random& random) {
  for (size_t n = 0; n < 60; ++n) {
    const size_t tokens = random.below(40), heads = 1 + random.below(5), half = 1 + random.below(40);
    const size_t head_dim = 2 * half + random.below(20), stride = heads * head_dim + random.below(7);
    const std::vector<float> angles = random.normals(tokens * half, 3.0f), x = random.normals(tokens * stride);
    std::vector<float> cos(angles.size()), sin(angles.size());
    for (size_t i = 0; i < angles.size(); ++i) {
      cos[i] = std::cos(angles[i]);
      sin[i] = std::sin(angles[i]);
    }
    for (bool inverse : {false, true}) {
      std::vector<double> want(x.begin(), x.end());
      for (size_t t = 0; t < tokens; ++t) {
        for (size_t h = 0; h < heads; ++h) {
          double* head = want.data() + t * stride + h * head_dim;
          for (size_t i = 0; i < half; ++i) {
            const double c = cos[t * half + i], s = inverse ? -sin[t * half + i] : sin[t * half + i];
            const double low = head[i], high = head[i + half];
            head[i] = low * c - high * s;
            head[i + half] = high * c + low * s;
          }
        }
      }
      for_each_level(3, [&](Context& context, const char* level) {
        std::vector<float> got = x;
        expect_ok(rope_apply(context, {got.data(), stride}, tokens, heads, head_dim, 2 * half, cos.data(), sin.data(), inverse), level);
        expect_all_near(got.data(), want, 2e-7, level);
        for (size_t t = 0; t < tokens; ++t) {
          for (size_t h = 0; h < heads; ++h) {
            const size_t rest = t * stride + h * head_dim + 2 * half;
            expect(std::memcmp(&got[rest], &x[rest], (head_dim - 2 * half) * sizeof(float)) == 0, "%s: the unrotated part moved", level);
          }
        }
      });
    }
  }
}

void test_errors() {
  ThreadPool pool(1);
  Context context{pool, kernels_for(CpuLevel::kGeneric)};
  const auto frequencies = [](RopeConfig config) {
    std::vector<float> inv_freq;
    float scale;
    return rope_frequencies(config, 8, &inv_freq, &scale);
  };
  expect_code(frequencies({RopeKind::kDefault, 10000.0, 7}), Code::kInvalidConfig, "odd rotary_dim");
  expect_code(frequencies({RopeKind::kDefault, 10000.0, 0}), Code::kInvalidConfig, "rotary_dim 0");
  expect_code(frequencies({RopeKind::kDefault, -1.0, 8}), Code::kInvalidConfig, "negative theta");
  expect_code(frequencies({RopeKind::kLinear, 10000.0, 8, 0.0}), Code::kInvalidConfig, "factor 0");
  expect_code(frequencies({RopeKind::kLinear, 10000.0, 8, NAN}), Code::kInvalidConfig, "factor NaN");
  expect_code(frequencies({RopeKind::kDynamic, 10000.0, 8, 2.0, 0}), Code::kInvalidConfig, "max_position 0");
  expect_code(frequencies({RopeKind::kLlama3, 10000.0, 8, 2.0, 64, 32, 4.0, 4.0}), Code::kInvalidConfig, "llama3 without a band");
  float x[4] = {}, table[4] = {};
  expect_code(rope_apply(context, {x, 4}, 1, 1, 4, 6, table, table, false), Code::kShapeMismatch, "rotary_dim above head_dim");
  expect_code(rope_apply(context, {x, 4}, 1, 1, 4, 3, table, table, false), Code::kShapeMismatch, "odd rotary_dim");
}

}  // namespace

int main() {
  Random random(test_seed());
  test_recorded();
  test_rotation(random);
  test_errors();
  return finish();
}
