import { LowrankError } from '../errors.ts';
import { type NativeFloatType, type NativeModel, type NativeQuantization, type NativeQuantizedType, native } from '../native.ts';
import type { ResolvedQuantizationConfig } from '../options/quantization_config.ts';
import type { Place } from './bind_tensors.ts';
import { modulesOf } from './modules.ts';
import { compilePythonPattern } from './python_pattern.ts';

const kBlockSize = 64;
const kFloatTypes: readonly string[] = ['F32', 'F16', 'BF16'];

/** How the weights of a model came to have 4 or 8 bits. */
export interface BaseQuantization {
  type: NativeQuantizedType;
  doubleQuant: boolean;
  /** What they were quantised from, by PyTorch's name. */
  sourceType: string;
  /** quantization_config of its config.json, as Transformers writes it. */
  config: Record<string, unknown>;
}

/** What loading a model with `config` makes of its weights, which are of `sourceType`. */
export function quantizationOf(config: ResolvedQuantizationConfig, sourceType: string): BaseQuantization {
  const type = quantizedTypeOf(config);
  return { type, doubleQuant: type !== 'INT8' && config.bnb4bitUseDoubleQuant, sourceType, config: configJson(config) };
}

/** The storage type of the weights that a configuration quantises. */
export function quantizedTypeOf(config: ResolvedQuantizationConfig): NativeQuantizedType {
  if (config.loadIn8bit) return 'INT8';
  return config.bnb4bitQuantType === 'nf4' ? 'NF4' : 'FP4';
}

/** Bits and type, for logs: 4 bits (nf4, double quantisation). */
export function quantizationName({ type, doubleQuant }: BaseQuantization): string {
  if (type === 'INT8') return '8 bits (int8, a magnitude for each row)';
  return `4 bits (${type.toLowerCase()}${doubleQuant ? ', double quantisation' : ''})`;
}

function configJson(config: ResolvedQuantizationConfig): Record<string, unknown> {
  const { llmInt8SkipModules: skipped } = config;
  return {
    _load_in_4bit: config.loadIn4bit,
    _load_in_8bit: config.loadIn8bit,
    bnb_4bit_compute_dtype: config.bnb4bitComputeDtype ?? 'float32',
    bnb_4bit_quant_storage: config.bnb4bitQuantStorage,
    bnb_4bit_quant_type: config.bnb4bitQuantType,
    bnb_4bit_use_double_quant: config.bnb4bitUseDoubleQuant,
    llm_int8_enable_fp32_cpu_offload: false,
    llm_int8_has_fp16_weight: false,
    // A list takes the place of Transformers' own, which is the head.
    llm_int8_skip_modules: skipped.length === 0 ? null : [...new Set(['lm_head', ...skipped])],
    llm_int8_threshold: config.llmInt8Threshold,
    load_in_4bit: config.loadIn4bit,
    load_in_8bit: config.loadIn8bit,
    quant_method: 'bitsandbytes',
  };
}

/**
 * Puts the weights of linear layers into the model as codes, read from their file a piece at a time; other tensors as `otherwise` does.
 * Weights are rounded to `source` first, as Transformers does that loads them in that type.
 */
export function placeQuantized(config: ResolvedQuantizationConfig, source: NativeFloatType, otherwise: Place): Place {
  const options: NativeQuantization = {
    type: quantizedTypeOf(config),
    blockSize: kBlockSize,
    nested: config.bnb4bitUseDoubleQuant,
    source,
  };
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
