import { LowrankError } from '../errors.ts';
import { totalBytes } from '../memory/plan.ts';
import { call, type NativeModel, type NativeModelConfig, type NativeOptimizer, type NativeRetention, native } from '../native.ts';
import type { GradientCheckpointing } from '../options/training_arguments.ts';

const kKeepAll: NativeRetention = { mode: 'all', every: 1 };
const kSelective: NativeRetention = { mode: 'selective', every: 1 };
const kInputs: NativeRetention = { mode: 'inputs', every: 1 };

/** Attention's products run at a fraction of the speed of the large ones. */
const ATTENTION_COST = 2.5;

/** What decides what is kept. */
export interface RetentionRequest {
  wanted: GradientCheckpointing;
  model: NativeModel;
  optimizer: NativeOptimizer;
  /** Of a micro-batch. */
  maxTokens: number;
  /** Tokens of a row. */
  length: number;
  /** Of the file in which inputs are parked. */
  folder: string;
  /** What the process takes beside the model and its training. */
  processBytes: number;
}

/**
 * What a forward keeps for its backward, as `args.gradientCheckpointing` says. For a budget: of the mixes that fit the one with the least work done
 * again, or, where keeping all inputs is too much, inputs of every so manieth layer (the number that needs least).
 *
 * @throws OUT_OF_MEMORY where no way of keeping fits the budget
 */
export function retentionOf(request: RetentionRequest): NativeRetention {
  const { wanted, folder } = request;
  const { layers } = request.model.config;
  if (wanted === false) return kKeepAll;
  if (wanted === true || wanted === 'full') return kInputs;
  if (wanted === 'selective') return kSelective;
  if (wanted === 'offload') return { mode: 'inputs', every: 1, folder };
  if ('every' in wanted) return { mode: 'inputs', every: Math.min(wanted.every, layers) };

  const { budget } = wanted;
  if (bytesOf(request, kKeepAll) <= budget) return kKeepAll;
  if (bytesOf(request, kInputs) <= budget) return cheapestMix(request, budget);
  const segments = Array.from({ length: layers }, (_, i): NativeRetention => ({ mode: 'inputs', every: i + 1 }));
  const smallest = segments.map((keep) => ({ keep, bytes: bytesOf(request, keep) })).reduce((a, b) => (b.bytes < a.bytes ? b : a));
  if (smallest.bytes <= budget) return smallest.keep;
  throw new LowrankError(
    'OUT_OF_MEMORY',
    `gradientCheckpointing.budget: this training needs ${smallest.bytes} bytes at least, but may take ${budget}; expected a larger budget, a smaller batch, shorter rows, or 'offload'`,
  );
}

/** What the training would take. */
function bytesOf({ model, maxTokens, optimizer, processBytes }: RetentionRequest, keep: NativeRetention): number {
  return totalBytes(call(() => native().planSession(model, { maxTokens, keep, optimizer }))) + processBytes;
}

/** All in some layers, what attention made in some, inputs in the others. Keeping inputs alone fits. */
function cheapestMix(request: RetentionRequest, budget: number): NativeRetention {
  const { config } = request.model;
  const { layers } = config;
  const mix = (all: number, selective: number): NativeRetention => ({ mode: 'mixed', all, selective });
  const fits = (all: number, selective: number) => bytesOf(request, mix(all, selective)) <= budget;
  const cost = recomputation(config, request.length);
  let best = { work: Number.POSITIVE_INFINITY, all: 0, selective: 0 };
  for (let all = 0; all < layers && fits(all, 0); ++all) {
    const selective = largest(layers - all, (count) => fits(all, count));
    // The last layer's rows are still there when its backward begins.
    const again = Math.max(0, layers - 1 - all);
    const work = again * cost.products + Math.max(0, again - selective) * cost.attention;
    if (work < best.work) best = { work, all, selective };
  }
  return mix(best.all, best.selective);
}

/** The largest count from 0 to `most` for which `holds`, which holds for 0 and for all below one for which it does. */
function largest(most: number, holds: (count: number) => boolean): number {
  let [low, high] = [0, most];
  while (low < high) {
    const middle = Math.ceil((low + high) / 2);
    if (holds(middle)) low = middle;
    else high = middle - 1;
  }
  return low;
}

/** Work of a layer for each token: of the products that selective keeping does again, and of attention. */
function recomputation(config: NativeModelConfig, length: number): { products: number; attention: number } {
  const { hiddenSize, intermediateSize, heads, kvHeads, headDim } = config;
  const queryWidth = heads * headDim;
  const products = 2 * hiddenSize * (2 * queryWidth + 2 * kvHeads * headDim + 2 * intermediateSize);
  return { products, attention: ATTENTION_COST * 2 * queryWidth * length };
}

/** How the log names it. */
export function retentionName(keep: NativeRetention): string {
  if (keep.mode === 'mixed') return `everything kept in ${keep.all} layers, attention in ${keep.selective}, inputs in the others`;
  if (keep.mode === 'all') return 'none';
  if (keep.mode === 'selective') return 'selective';
  if (keep.folder !== undefined) return 'offload';
  return keep.every === 1 ? 'full' : `every ${keep.every} layers`;
}
