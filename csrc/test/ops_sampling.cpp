// The sampler against Transformers' logits processors, its draws by a chi-square test, and its
// errors.
//   ops_sampling [file of cases, made by test/reference/make_sampling_fixture.py]
#include <algorithm>
#include <fstream>
#include <limits>
#include <sstream>

#include "ops/sampling.h"
#include "test/reference.h"

namespace lowrank::test {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

std::vector<double> read_numbers(std::ifstream& file) {
  std::string line, word;
  std::getline(file, line);
  std::istringstream words(line);
  std::vector<double> numbers;
  while (words >> word)
    numbers.push_back(std::strtod(word.c_str(), nullptr));  // takes -inf, which >> does not
  return numbers;
}

void compare(const std::vector<float>& logits, const std::vector<Candidate>& candidates,
             std::vector<double> want, size_t test_case) {
  std::vector<double> got(logits.size());
  for (const Candidate& candidate : candidates)
    got[static_cast<size_t>(candidate.id)] = candidate.probability;
  // Of equal logits on top-p's edge, torch.sort leaves open which are kept: there only their number
  // counts.
  for (size_t id = 0; id < logits.size(); ++id) {
    if (std::count(logits.begin(), logits.end(), logits[id]) > 1) continue;
    expect((got[id] > 0) == (want[id] > 0), "case %zu: token %zu is %s", test_case, id,
           got[id] > 0 ? "kept" : "dropped");
  }
  std::sort(got.begin(), got.end());
  std::sort(want.begin(), want.end());
  for (size_t i = 0; i < got.size(); ++i) {
    // Transformers divides by the temperature in fp32: 2^-24 of a logit of up to 20 is 1e-6 of its
    // probability.
    if (!expect_near(got[i], want[i], 3e-6 * want[i],
                     ("probability of case " + std::to_string(test_case)).c_str(), i))
      return;
  }
}

void test_transformers(const ElementwiseKernels& kernels, const char* path) {
  constexpr size_t kConfigs = 15;  // CONFIGS of the script
  std::ifstream file(path);
  if (!expect(file.good(), "cannot read %s", path)) return;
  SamplingScratch scratch;
  size_t test_case = 0;
  while (file.peek() != EOF) {
    const std::vector<double> context = read_numbers(file), row = read_numbers(file);
    const std::vector<int32_t> ids(context.begin(), context.end());
    const std::vector<float> logits(row.begin(), row.end());
    for (size_t i = 0; i < kConfigs; ++i, ++test_case) {
      const std::vector<double> values = read_numbers(file), want = read_numbers(file);
      if (!expect(values.size() == 5 && want.size() == logits.size(), "case %zu of %s is malformed",
                  test_case, path))
        return;
      const SamplingConfig config{values[0], static_cast<size_t>(values[1]), values[2], values[3],
                                  values[4]};
      if (!expect_ok(sampling_candidates(kernels, logits.data(), logits.size(), config, ids, &scratch),
                     "candidates"))
        continue;
      compare(logits, scratch.candidates, want, test_case);
    }
  }
  expect(test_case == 8 * kConfigs, "%s has %zu cases instead of %zu", path, test_case,
         8 * kConfigs);
}

// Draws with one seed follow the candidates' probabilities, and any (seed, stream, step) always
// gives the same.
void test_draws(const ElementwiseKernels& kernels) {
  Random random(test_seed());
  const std::vector<float> logits = random.normals(40);
  const SamplingConfig config{
      .temperature = 0.9, .top_k = 20, .top_p = 0.95, .min_p = 0, .repetition_penalty = 1};
  SamplingScratch scratch;
  expect_ok(sampling_candidates(kernels, logits.data(), logits.size(), config, {}, &scratch), "candidates");
  const std::vector<Candidate> candidates = scratch.candidates;
  constexpr size_t kDraws = 200000;
  const uint64_t seed = random.next();
  std::vector<size_t> counts(logits.size());
  double log_sum = 0;
  for (float logit : logits) log_sum += std::exp(static_cast<double>(logit));
  log_sum = std::log(log_sum);
  for (size_t draw = 0; draw < kDraws; ++draw) {
    int32_t id = -1, again = -1;
    float logprob = 0;
    expect_ok(sample_row(kernels, logits.data(), logits.size(), config, {}, seed, draw % 5, draw / 5,
                         &scratch, &id, &logprob),
              "draw");
    ++counts[static_cast<size_t>(id)];
    if (draw % 1000 != 0) continue;
    expect_near(logprob, static_cast<double>(logits[static_cast<size_t>(id)]) - log_sum, 1e-6,
                "log-probability", draw);
    expect_ok(sample_row(kernels, logits.data(), logits.size(), config, {}, seed, draw % 5, draw / 5,
                         &scratch, &again, &logprob),
              "draw");
    expect(id == again, "draw %zu gives %d, then %d", draw, id, again);
  }
  double chi_square = 0;
  size_t drawn = 0;
  for (const Candidate& candidate : candidates) {
    const double expected = candidate.probability * static_cast<double>(kDraws);
    const double difference =
        static_cast<double>(counts[static_cast<size_t>(candidate.id)]) - expected;
    chi_square += difference * difference / expected;
    drawn += counts[static_cast<size_t>(candidate.id)];
  }
  expect(drawn == kDraws, "%zu draws fell outside the candidates", kDraws - drawn);
  // Five standard deviations of a chi-square of that many degrees of freedom: one seed in a million
  // fails.
  const double degrees = static_cast<double>(candidates.size() - 1);
  expect(chi_square < degrees + 5 * std::sqrt(2 * degrees),
         "chi-square %g with %g degrees of freedom", chi_square, degrees);
}

void test_greedy(const ElementwiseKernels& kernels) {
  SamplingScratch scratch;
  const SamplingConfig greedy{
      .temperature = 0, .top_k = 3, .top_p = 0.1, .min_p = 0.5, .repetition_penalty = 1};
  const std::vector<float> logits{1, 3, -2, 3, 0.5f};
  int32_t id = -1;
  float logprob = 1;
  expect_ok(sample_row(kernels, logits.data(), logits.size(), greedy, {}, 1, 2, 3, &scratch, &id, &logprob),
            "greedy");
  expect(id == 1, "greedy takes %d instead of the first of the largest", id);
  expect_near(logprob, 3 - std::log(std::exp(1) + 2 * std::exp(3) + std::exp(-2) + std::exp(0.5)),
              1e-6, "greedy log-probability", 0);
  SamplingConfig penalised = greedy;
  penalised.repetition_penalty = 4;
  const int32_t context[] = {1, 3, 3, -7, 1000};  // ids outside the vocabulary are passed over
  expect_ok(sample_row(kernels, logits.data(), logits.size(), penalised, context, 1, 2, 3, &scratch, &id,
                       &logprob),
            "greedy with penalty");
  expect(id == 0, "greedy with penalty takes %d instead of 0", id);
  const float minus = -static_cast<float>(kInfinity);
  const std::vector<float> one_left{minus, minus, -5, minus};
  const SamplingConfig sampled{
      .temperature = 1e-300, .top_k = 2, .top_p = 0.5, .min_p = 0.1, .repetition_penalty = 1};
  expect_ok(
      sample_row(kernels, one_left.data(), one_left.size(), sampled, {}, 1, 2, 3, &scratch, &id, &logprob),
      "one token left");
  expect(id == 2 && logprob == 0, "of one token left: %d with %g", id,
         static_cast<double>(logprob));
}

void test_errors(const ElementwiseKernels& kernels) {
  SamplingScratch scratch;
  int32_t id;
  float logprob;
  const auto run = [&](const std::vector<float>& logits, const SamplingConfig& config) {
    return sample_row(kernels, logits.data(), logits.size(), config, {}, 0, 0, 0, &scratch, &id, &logprob);
  };
  const float infinity = static_cast<float>(kInfinity),
              nan = std::numeric_limits<float>::quiet_NaN();
  for (const double temperature : {0.0, 1.0}) {
    const SamplingConfig config{.temperature = temperature};
    for (const std::vector<float>& logits :
         {std::vector<float>{1, nan, 2}, {1, 2, infinity}, {-infinity, -infinity}, {}}) {
      expect_code(run(logits, config), Code::kNonFinite, "logits that are not finite");
    }
  }
  const double not_a_number = static_cast<double>(nan);
  for (const SamplingConfig& config :
       {SamplingConfig{.temperature = -1}, SamplingConfig{.temperature = kInfinity},
        SamplingConfig{.temperature = not_a_number}, SamplingConfig{.top_p = -0.1},
        SamplingConfig{.top_p = 1.1}, SamplingConfig{.top_p = not_a_number},
        SamplingConfig{.min_p = 2}, SamplingConfig{.repetition_penalty = 0},
        SamplingConfig{.repetition_penalty = not_a_number}}) {
    expect_code(run({1, 2}, config), Code::kInvalidOption, "a value out of its range");
  }
}

}  // namespace
}  // namespace lowrank::test

int main(int argc, char** argv) {
  using namespace lowrank::test;
  for (const lowrank::CpuLevel level : lowrank::available_levels()) {
    const lowrank::ElementwiseKernels& kernels = lowrank::kernels_for(level).elementwise;
    test_transformers(kernels, argc > 1 ? argv[1] : "test/fixtures/sampling/cases.txt");
    test_draws(kernels);
    test_greedy(kernels);
    test_errors(kernels);
  }
  return finish();
}
