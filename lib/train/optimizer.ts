import type { NativeOptimizer } from '../native.ts';
import { OPTIMIZERS } from '../options/optimizers.ts';
import type { ResolvedTrainingArguments } from '../options/training_arguments.ts';

/** What a paged optimizer keeps in memory where args.optimizerMemory is left out. */
const DEFAULT_WINDOW = 512 * 2 ** 20;

/** The native optimizer that args.optim names. States that do not fit args.optimizerMemory lie in a file in args.outputDir. */
export function optimizerOf(args: ResolvedTrainingArguments): NativeOptimizer {
  const { kind, bits, paged } = OPTIMIZERS[args.optim];
  const adjustLr = args.optimArgs?.adjustLrFn;
  return {
    kind,
    bits,
    ...(paged && { window: args.optimizerMemory ?? DEFAULT_WINDOW, folder: args.outputDir }),
    ...(adjustLr && { adjustLr }),
  };
}

/** SGD's and Muon's; torch's own default of SGD is 0, which is no momentum. */
export function momentumOf({ optim, optimArgs }: ResolvedTrainingArguments): number {
  return optimArgs?.momentum ?? (optim === 'muon' ? 0.95 : 0.9);
}
