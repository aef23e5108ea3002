import { LowrankError } from '../errors.ts';
import { type NativeFloatType, type NativeModel, native } from '../native.ts';
import type { ResolvedQuantizationConfig } from '../options/quantization_config.ts';
import type { Place } from './bind_tensors.ts';
import { modulesOf } from './modules.ts';
import { compilePythonPattern } from './python_pattern.ts';

const kBlockSize = 64;
const kFloatTypes: readonly string[] = ['F32', 'F16', 'BF16'];

/** How the weights of a model came to have 4 bits. */
export interface BaseQuantization {
  quantType: 'nf4' | 'fp4';
  doubleQuant: boolean;
}

/**
 * Puts the weights of linear layers into the model as 4-bit codes, read from their file a piece at a time; other tensors as `otherwise` does.
 * Weights are rounded to `source` first, as Transformers does that loads them in that type.
 */
export function placeQuantized(config: ResolvedQuantizationConfig, source: NativeFloatType, otherwise: Place): Place {
  const options = {
    type: config.bnb4bitQuantType === 'nf4' ? 'NF4' : 'FP4',
    blockSize: kBlockSize,
    nested: config.bnb4bitUseDoubleQuant,
    source,
  } as const;
  let chosen: Set<string> | undefined;
  return async (model, slot, location) => {
    chosen ??= quantizedSlots(model, config);
    const { file, info, unpermuteHeads } = location;
    if (!chosen.has(slot)) return otherwise(model, slot, location);
    if (!kFloatTypes.includes(info.dtype)) {
      throw new LowrankError(
        'UNSUPPORTED_QUANTIZATION',
        `${file.path}: tensor ${info.name} is stored as ${info.dtype} already; leave quantizationConfig out, or name its module in llmInt8SkipModules`,
      );
    }
    await native().quantizeTensor(model, slot, file, info.name, unpermuteHeads, options);
  };
}

/** The slots whose weights a configuration quantises. */
export function quantizedSlots(model: NativeModel, config: ResolvedQuantizationConfig): Set<string> {
  const skips = skipRule(config.llmInt8SkipModules);
  const chosen = modulesOf(model).filter(({ name, kind }) => kind === 'linear' && !skips(name));
  return new Set(chosen.map(({ weight }) => weight));
}

/** Transformers' should_convert_module: from the start to the end of a part of the name, or at the name's end. */
function skipRule(patterns: readonly string[]): (name: string) => boolean {
  const rules = patterns.map((pattern) => {
    const compiled = compilePythonPattern(`(?:${pattern})(?:\\..*)?`, 'quantizationConfig.llmInt8SkipModules');
    return (name: string) => compiled.matchesAll(name) || name.endsWith(pattern);
  });
  return (name) => rules.some((rule) => rule(name));
}
