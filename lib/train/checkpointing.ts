import { LowrankError } from '../errors.ts';
import type { NativeRetention } from '../native.ts';
import type { GradientCheckpointing } from '../options/training_arguments.ts';

const kKeepAll: NativeRetention = { mode: 'all', every: 1 };
const kSelective: NativeRetention = { mode: 'selective', every: 1 };
const kInputs: NativeRetention = { mode: 'inputs', every: 1 };

/**
 * What a forward keeps for its backward, as `args.gradientCheckpointing` says. For a budget: the first of everything, selective, and
 * inputs of every so manieth layer (the number that needs least) whose plan fits.
 *
 * @param bytesOf what the training would take
 * @throws OUT_OF_MEMORY where no way of keeping fits the budget
 */
export function retentionOf(wanted: GradientCheckpointing, layers: number, bytesOf: (keep: NativeRetention) => number): NativeRetention {
  if (wanted === false) return kKeepAll;
  if (wanted === true || wanted === 'full') return kInputs;
  if (wanted === 'selective') return kSelective;
  if ('every' in wanted) return { mode: 'inputs', every: Math.min(wanted.every, layers) };

  for (const keep of [kKeepAll, kSelective]) {
    if (bytesOf(keep) <= wanted.budget) return keep;
  }
  const segments = Array.from({ length: layers }, (_, i): NativeRetention => ({ mode: 'inputs', every: i + 1 }));
  const smallest = segments.map((keep) => ({ keep, bytes: bytesOf(keep) })).reduce((a, b) => (b.bytes < a.bytes ? b : a));
  if (smallest.bytes <= wanted.budget) return smallest.keep;
  throw new LowrankError(
    'OUT_OF_MEMORY',
    `gradientCheckpointing.budget: this training needs ${smallest.bytes} bytes at least, but may take ${wanted.budget}; expected a larger budget, a smaller batch or shorter rows`,
  );
}

/** How the log names it. */
export function retentionName({ mode, every }: NativeRetention): string {
  if (mode === 'all') return 'none';
  if (mode === 'selective') return 'selective';
  return every === 1 ? 'full' : `every ${every} layers`;
}
