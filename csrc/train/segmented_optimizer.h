// The optimizers whose update of an element depends on that element alone. All states lie in one flat memory, parameter by parameter, in
// segments of up to 2^15 elements: a segment's states lie side by side (for 8 bits: codes, codes, absmax, absmax), so that an update is
// one pass over the memory, whatever the parameters' sizes, and no block of 256 elements straddles two parameters.
#pragma once

#include "core/paged_memory.h"
#include "ops/cpu/kernels.h"
#include "train/optimizer.h"

namespace lowrank {

// A state of every element.
struct ElementState {
  const char* name;
  const char* absmax_name;  // of its scales, where it has 8 bits
  const CodeMap* map;       // null: 32 bits always
};

class SegmentedOptimizer : public Optimizer {
 public:
  Status initialize(const OptimizerOptions&, std::span<const Trained>);
  static size_t state_bytes(std::span<const ElementState>, bool coded, size_t elements);

  std::vector<StateTensor> states(size_t parameter) const final;
  void read_state(size_t parameter, size_t state, void* to) const final;
  void write_state(size_t parameter, size_t state, const void* from) final;
  Status update(Context&, const UpdateOptions&, double grad_scale, uint64_t step, uint64_t seed) final;

 protected:
  explicit SegmentedOptimizer(std::span<const ElementState> states) : element_states_(states) {}

  // Elements of one parameter with their states: `values` of 32 bits, or `codes`.
  struct Segment {
    size_t n;
    const float* gradient;
    float* parameter;
    bool decay, coded;
    float* values[2];
    CodedState codes[2];

    // The states of [begin, begin + n), which begins on a block.
    Segment part(size_t begin, size_t n) const;
  };
  // Called once before the segments of an update, which then come from several threads.
  virtual void begin_update(const UpdateOptions&, double grad_scale, uint64_t step) = 0;
  virtual void update_segment(const OptimizerKernels&, const Segment&) const = 0;

 private:
  struct Place {
    size_t parameter, first, n;  // elements [first, first + n) of trained_[parameter]
    size_t offset;               // of its states in the memory
  };
  // Bytes from a segment's states to one of them.
  struct Layout {
    size_t values[2], absmax[2], bytes;
  };
  static Layout layout(size_t states, bool coded, size_t n);
  bool is_coded(size_t elements) const { return coded_ && elements >= kSmallestCoded; }
  // Its gradient and parameter are not set.
  Segment states_at(const Place&) const;
  void update_place(const Kernels&, size_t place, uint64_t seed) const;
  void plan_batches();
  size_t end_of(size_t place) const;
  template <class F>
  void for_each_part(size_t parameter, size_t state, const F& f) const;

  std::span<const ElementState> element_states_;
  bool coded_ = false;
  std::vector<Trained> trained_;
  std::vector<Place> places_;
  std::vector<size_t> first_place_;   // of each parameter, and the end
  std::vector<size_t> batch_begin_;   // places that one thread takes at a time, about 2^15 elements; and the end
  std::vector<size_t> stretch_begin_; // batches between two turns of the window; and the end
  PagedMemory memory_;
};

}  // namespace lowrank
