#include "train/segmented_optimizer.h"

#include <algorithm>
#include <cstring>

#include "core/checked.h"
#include "core/op_profile.h"
#include "ops/cpu/kernels.h"
#include "ops/row_chunks.h"
#include "ops/stored_floats.h"

namespace lowrank {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kSegment = kChunkElements;
// Of bf16 parameters and gradients in fp32: twice so many floats stay in the first-level cache.
constexpr size_t kStretch = 2048;
static_assert(kSegment % kCodeBlock == 0 && kStretch % kCodeBlock == 0);

}  // namespace

SegmentedOptimizer::Layout SegmentedOptimizer::layout(size_t states, bool coded, size_t n) {
  Layout layout{};
  const size_t value_bytes = round_up(n * (coded ? 1 : sizeof(float)), kAlignment);
  const size_t absmax_bytes = coded ? round_up(ceil_div(n, kCodeBlock) * sizeof(float), kAlignment) : 0;
  for (size_t state = 0; state < states; ++state) {
    layout.values[state] = state * value_bytes;
    layout.absmax[state] = states * value_bytes + state * absmax_bytes;
  }
  layout.bytes = states * (value_bytes + absmax_bytes);
  return layout;
}

size_t SegmentedOptimizer::state_bytes(std::span<const ElementState> states, bool coded, size_t elements) {
  const bool is_coded = coded && elements >= kSmallestCoded;
  size_t bytes = elements / kSegment * layout(states.size(), is_coded, kSegment).bytes;
  if (elements % kSegment != 0) bytes += layout(states.size(), is_coded, elements % kSegment).bytes;
  return bytes;
}

Status SegmentedOptimizer::initialize(const OptimizerOptions& options, std::span<const Trained> trained) {
  coded_ = options.coded;
  trained_.assign(trained.begin(), trained.end());
  size_t offset = 0;
  for (size_t parameter = 0; parameter < trained_.size(); ++parameter) {
    first_place_.push_back(places_.size());
    const size_t elements = trained_[parameter].parameter->elements();
    for (size_t first = 0; first < elements; first += kSegment) {
      const size_t n = std::min(kSegment, elements - first);
      places_.push_back({parameter, first, n, offset});
      offset += layout(element_states_.size(), is_coded(elements), n).bytes;
    }
  }
  first_place_.push_back(places_.size());
  LR_RETURN_IF_ERROR(memory_.allocate(offset, options.window, options.folder, "the optimizer's states"));
  plan_batches();
  return {};
}

size_t SegmentedOptimizer::end_of(size_t place) const {
  return place + 1 < places_.size() ? places_[place + 1].offset : memory_.bytes();
}

void SegmentedOptimizer::plan_batches() {
  size_t elements = kSegment, stretch = memory_.bytes();  // full: the first place begins a batch and a stretch
  for (size_t place = 0; place < places_.size(); ++place) {
    const size_t bytes = end_of(place) - places_[place].offset;
    const bool turns = place == 0 || (memory_.paged() && stretch + bytes > memory_.stretch());
    if (turns || elements + places_[place].n > kSegment) {
      if (turns) {
        stretch_begin_.push_back(batch_begin_.size());
        stretch = 0;
      }
      batch_begin_.push_back(place);
      elements = 0;
    }
    elements += places_[place].n;
    stretch += bytes;
  }
  stretch_begin_.push_back(batch_begin_.size());
  batch_begin_.push_back(places_.size());
}

SegmentedOptimizer::Segment SegmentedOptimizer::Segment::part(size_t begin, size_t count) const {
  Segment part = *this;
  part.n = count;
  for (float*& value : part.values) value += begin;
  for (CodedState& state : part.codes) {
    state.codes += begin;
    state.absmax += begin / kCodeBlock;
  }
  return part;
}

SegmentedOptimizer::Segment SegmentedOptimizer::states_at(const Place& place) const {
  const Trained& trained = trained_[place.parameter];
  Segment segment{};
  segment.n = place.n;
  segment.decay = trained.decay;
  segment.coded = is_coded(trained.parameter->elements());
  const Layout at = layout(element_states_.size(), segment.coded, place.n);
  unsigned char* const memory = memory_.data() + place.offset;
  for (size_t state = 0; state < element_states_.size(); ++state) {
    segment.values[state] = reinterpret_cast<float*>(memory + at.values[state]);
    segment.codes[state] = {element_states_[state].map, memory + at.values[state],
                            reinterpret_cast<float*>(memory + at.absmax[state])};
  }
  return segment;
}

void SegmentedOptimizer::update_place(const Kernels& kernels, size_t index, uint64_t seed) const {
  const Place& place = places_[index];
  const Trained& trained = trained_[place.parameter];
  const StoredFloats gradient(kernels, trained.type, trained.gradient);
  const StoredFloats parameter(kernels, trained.type, trained.parameter->value.as<>(), seed, place.parameter);
  const Segment states = states_at(place);
  alignas(kAlignment) float gradients[kStretch], values[kStretch];
  const size_t stretch = parameter.bf16() ? kStretch : place.n;
  for (size_t begin = 0; begin < place.n; begin += stretch) {
    const size_t n = std::min(stretch, place.n - begin), first = place.first + begin;
    Segment part = states.part(begin, n);
    part.gradient = gradient.read(first, n, gradients);
    part.parameter = parameter.read(first, n, values);
    update_segment(kernels.optimizer, part);
    parameter.write(first, n, part.parameter);
  }
}

Status SegmentedOptimizer::update(Context& context, const UpdateOptions& options, double grad_scale, uint64_t step, uint64_t seed) {
  const OpTimer timer(context, OpKind::kOptimizer);
  begin_update(options, grad_scale, step);
  const auto offset_of = [&](size_t stretch) {  // of the states that it begins with
    const size_t place = batch_begin_[stretch_begin_[stretch]];
    return place < places_.size() ? places_[place].offset : memory_.bytes();
  };
  const size_t stretches = stretch_begin_.size() - 1;
  for (size_t stretch = 0; stretch < stretches; ++stretch) {
    if (stretch + 1 < stretches) memory_.prefetch(offset_of(stretch + 1), offset_of(stretch + 2));
    memory_.populate(offset_of(stretch), offset_of(stretch + 1));
    const size_t first = stretch_begin_[stretch];
    context.pool.parallel(stretch_begin_[stretch + 1] - first, [&](size_t index, size_t) {
      const size_t batch = first + index;
      for (size_t place = batch_begin_[batch]; place < batch_begin_[batch + 1]; ++place) {
        update_place(context.kernels, place, seed);
      }
    });
    memory_.release(offset_of(stretch), offset_of(stretch + 1));
  }
  return {};
}

std::vector<StateTensor> SegmentedOptimizer::states(size_t parameter) const {
  const Parameter& of = *trained_[parameter].parameter;
  std::vector<StateTensor> tensors;
  const bool coded = is_coded(of.elements());
  for (const ElementState& state : element_states_) {
    tensors.push_back({state.name, coded ? DType::kU8 : DType::kF32, of.shape});
    if (coded) tensors.push_back({state.absmax_name, DType::kF32, {ceil_div(of.elements(), kCodeBlock)}});
  }
  return tensors;
}

// f(memory, position in the tensor, bytes) for the piece of each segment, in order.
template <class F>
void SegmentedOptimizer::for_each_part(size_t parameter, size_t tensor, const F& f) const {
  const bool coded = is_coded(trained_[parameter].parameter->elements());
  const size_t state = coded ? tensor / 2 : tensor;
  const bool is_absmax = coded && tensor % 2 == 1;
  size_t position = 0;
  for (size_t place = first_place_[parameter]; place < first_place_[parameter + 1]; ++place) {
    const size_t n = places_[place].n;
    const Layout at = layout(element_states_.size(), coded, n);
    const size_t bytes = is_absmax ? ceil_div(n, kCodeBlock) * sizeof(float) : n * (coded ? 1 : sizeof(float));
    f(memory_.data() + places_[place].offset + (is_absmax ? at.absmax[state] : at.values[state]), position, bytes);
    memory_.release(places_[place].offset, end_of(place));
    position += bytes;
  }
}

void SegmentedOptimizer::read_state(size_t parameter, size_t state, void* to) const {
  for_each_part(parameter, state, [&](const unsigned char* memory, size_t position, size_t bytes) {
    std::memcpy(static_cast<unsigned char*>(to) + position, memory, bytes);
  });
}

void SegmentedOptimizer::write_state(size_t parameter, size_t state, const void* from) {
  for_each_part(parameter, state, [&](unsigned char* memory, size_t position, size_t bytes) {
    std::memcpy(memory, static_cast<const unsigned char*>(from) + position, bytes);
  });
}

}  // namespace lowrank
