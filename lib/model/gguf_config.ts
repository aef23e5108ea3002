import { LowrankError, shown } from '../errors.ts';
import type { GgufValue, NativeTensorFile, NativeTensorInfo } from '../native.ts';

// A GGUF file's metadata as the config.json that Transformers would have for the same model, so that there is one way from a
// configuration to a decoder.

/** Architectures of GGUF files by general.architecture. llama.cpp stores Mistral models as llama. */
const kArchitectures = {
  llama: { modelType: 'llama', architecture: 'LlamaForCausalLM' },
  qwen2: { modelType: 'qwen2', architecture: 'Qwen2ForCausalLM' },
} as const;

/** Keys that change what a block computes and that these architectures do not have. */
const kForeignKeys = ['expert_count', 'logit_scale', 'residual_scale', 'embedding_scale', 'attention.scale', 'attention.clamp_kqv'];

/** Values of a configuration are numbers, names and short lists; a vocabulary takes megabytes. */
const kMostBytes = 4096;

/** The metadata that a configuration may consist of. */
export function configMetadata(file: NativeTensorFile): Record<string, GgufValue> {
  return file.metadata(kMostBytes);
}

/** config.json for the model in `file`. Throws UNSUPPORTED_MODEL and INVALID_GGUF naming the key. */
export function ggufToConfig(file: NativeTensorFile, metadata = configMetadata(file)): Record<string, unknown> {
  const reader = new MetadataReader(file.path, metadata);
  const tensors = new Map(file.tensors().map((tensor) => [tensor.name, tensor]));
  const kind = reader.string('general.type', 'model');
  if (kind !== 'model') throw new LowrankError('UNSUPPORTED_MODEL', `${file.path} holds ${shown(kind)}; expected a model`);
  if (reader.integer('split.count', 1) > 1) {
    throw new LowrankError('UNSUPPORTED_MODEL', `${file.path} is one part of several; join them with: llama-gguf-split --merge`);
  }
  const name = reader.string('general.architecture');
  const known = Object.hasOwn(kArchitectures, name) ? kArchitectures[name as keyof typeof kArchitectures] : undefined;
  if (!known)
    throw new LowrankError(
      'UNSUPPORTED_MODEL',
      `${file.path} holds a ${shown(name)} model; supported are ${Object.keys(kArchitectures).join(', ')}`,
    );
  for (const key of kForeignKeys) {
    if (reader.has(`${name}.${key}`) && reader.number(`${name}.${key}`) !== 0) {
      throw new LowrankError('UNSUPPORTED_MODEL', `${file.path} sets ${name}.${key}, which is not supported`);
    }
  }
  const size = sizes(reader, name, tensors);
  const window = name === 'llama' ? reader.integer('llama.attention.sliding_window', 0) : 0;
  return {
    ...(window > 0
      ? { architectures: ['MistralForCausalLM'], model_type: 'mistral', sliding_window: window }
      : { architectures: [known.architecture], model_type: known.modelType }),
    ...size,
    hidden_act: 'silu',
    tie_word_embeddings: !tensors.has('output.weight'),
    ...(name === 'llama' && window === 0 ? biases(tensors, file.path) : {}),
    rope_theta: reader.number(`${name}.rope.freq_base`, 10000),
    ...ropeScaling(reader, name, file, tensors.get('rope_freqs.weight')),
    ...specialTokens(reader, size.vocab_size),
  };
}

function sizes(reader: MetadataReader, name: string, tensors: Map<string, NativeTensorInfo>) {
  const hidden = reader.integer(`${name}.embedding_length`);
  const heads = reader.integer(`${name}.attention.head_count`);
  const headDim = reader.integer(`${name}.attention.key_length`, heads > 0 ? Math.floor(hidden / heads) : 0);
  const valueDim = reader.integer(`${name}.attention.value_length`, headDim);
  if (valueDim !== headDim) throw reader.invalid(`${name}.attention.value_length`, `the key length ${headDim}`);
  const rotated = reader.integer(`${name}.rope.dimension_count`, headDim);
  if (rotated !== headDim) {
    throw new LowrankError(
      'UNSUPPORTED_MODEL',
      `${reader.path} rotates ${rotated} of ${headDim} values of a head; supported is the whole head`,
    );
  }
  const [vocabulary] = tensors.get('token_embd.weight')?.shape ?? [];
  if (vocabulary === undefined) throw new LowrankError('INVALID_GGUF', `${reader.path} has no tensor token_embd.weight`);
  return {
    vocab_size: vocabulary,
    hidden_size: hidden,
    intermediate_size: reader.integer(`${name}.feed_forward_length`),
    num_hidden_layers: reader.integer(`${name}.block_count`),
    num_attention_heads: heads,
    num_key_value_heads: reader.integer(`${name}.attention.head_count_kv`, heads),
    head_dim: headDim,
    max_position_embeddings: reader.integer(`${name}.context_length`),
    rms_norm_eps: reader.number(`${name}.attention.layer_norm_rms_epsilon`),
  };
}

/** Transformers knows one flag for the biases of q, k, v and o, and one for those of gate, up and down. */
function biases(tensors: Map<string, NativeTensorInfo>, path: string): Record<string, boolean> {
  const flag = (names: string[]) => {
    const present = names.filter((name) => tensors.has(`blk.0.${name}.bias`));
    if (present.length === 0 || present.length === names.length) return present.length > 0;
    throw new LowrankError(
      'UNSUPPORTED_MODEL',
      `${path} has biases on ${present.join(', ')} alone; supported are all or none of ${names.join(', ')}`,
    );
  };
  return { attention_bias: flag(['attn_q', 'attn_k', 'attn_v', 'attn_output']), mlp_bias: flag(['ffn_gate', 'ffn_up', 'ffn_down']) };
}

function ropeScaling(
  reader: MetadataReader,
  name: string,
  file: NativeTensorFile,
  factors: NativeTensorInfo | undefined,
): Record<string, unknown> {
  if (factors) return llama3Scaling(reader, name, file.read(factors.name));
  const kind = reader.string(`${name}.rope.scaling.type`, 'none');
  const factor = reader.number(`${name}.rope.scaling.factor`, reader.number(`${name}.rope.scale_linear`, 1));
  if (kind === 'none' || (kind === 'linear' && factor === 1)) return factor === 1 ? {} : { rope_scaling: { rope_type: 'linear', factor } };
  if (kind === 'linear') return { rope_scaling: { rope_type: 'linear', factor } };
  const unusual = ['attn_factor', 'yarn_attn_factor', 'yarn_ext_factor', 'yarn_log_multiplier'].find((key) =>
    reader.has(`${name}.rope.scaling.${key}`),
  );
  if (kind !== 'yarn' || unusual) {
    const found = kind === 'yarn' ? `yarn with ${unusual}` : shown(kind);
    throw new LowrankError(
      'UNSUPPORTED_MODEL',
      `${reader.path} scales rotary positions by ${found}; supported are none, linear, yarn and Llama 3's factors`,
    );
  }
  const original = reader.integer(`${name}.rope.scaling.original_context_length`);
  const scaling: Record<string, unknown> = { rope_type: 'yarn', factor, original_max_position_embeddings: original };
  for (const key of ['beta_fast', 'beta_slow']) {
    if (reader.has(`${name}.rope.scaling.yarn_${key}`)) scaling[key] = reader.number(`${name}.rope.scaling.yarn_${key}`);
  }
  return { rope_scaling: scaling };
}

/** What every Llama 3.1 to 3.3 has; only the factor differs, and GGUF keeps none of them but the divisors they lead to. */
const kLlama3 = { low_freq_factor: 1, high_freq_factor: 4, original_max_position_embeddings: 8192 };

/** Finds Llama 3's parameters again from the divisors of the frequencies in rope_freqs.weight. */
function llama3Scaling(reader: MetadataReader, name: string, divisors: Float32Array): Record<string, unknown> {
  const factor = Math.max(...divisors);
  if (factor === 1 && Math.min(...divisors) === 1) return {};
  const theta = reader.number(`${name}.rope.freq_base`, 10000);
  const { low_freq_factor: low, high_freq_factor: high, original_max_position_embeddings: original } = kLlama3;
  const agrees = divisors.every((divisor, i) => {
    const wavelength = 2 * Math.PI * theta ** (i / divisors.length);
    const smooth = Math.min(1, Math.max(0, (original / wavelength - low) / (high - low)));
    return Math.abs(divisor * ((1 - smooth) / factor + smooth) - 1) < 1e-3;
  });
  if (agrees) return { rope_scaling: { rope_type: 'llama3', factor, ...kLlama3 } };
  throw new LowrankError(
    'UNSUPPORTED_MODEL',
    `${reader.path} has rope_freqs.weight, which are not Llama 3's factors; other factors are not supported`,
  );
}

function specialTokens(reader: MetadataReader, vocabulary: number): Record<string, unknown> {
  // -1 and its unsigned twin stand for "none".
  const id = (key: string) => {
    const value = reader.number(`tokenizer.ggml.${key}`, -1);
    return Number.isInteger(value) && value >= 0 && value < vocabulary ? value : undefined;
  };
  const ends = [...new Set([id('eos_token_id'), id('eot_token_id'), id('eom_token_id')].filter((end) => end !== undefined))];
  const tokens = { bos_token_id: id('bos_token_id'), eos_token_id: ends.length > 1 ? ends : ends[0], pad_token_id: id('padding_token_id') };
  return Object.fromEntries(Object.entries(tokens).filter(([, value]) => value !== undefined));
}

/** Typed access to metadata; throws INVALID_GGUF naming the file and the key. */
class MetadataReader {
  readonly path: string;
  readonly #values: Record<string, GgufValue>;

  constructor(path: string, values: Record<string, GgufValue>) {
    this.path = path;
    this.#values = values;
  }

  has(key: string): boolean {
    return Object.hasOwn(this.#values, key);
  }

  integer(key: string, fallback?: number): number {
    const value = this.has(key) ? this.#values[key] : fallback;
    if (typeof value === 'number' && Number.isSafeInteger(value) && value >= 0) return value;
    throw this.invalid(key, 'an integer of at least 0');
  }

  number(key: string, fallback?: number): number {
    const value = this.has(key) ? this.#values[key] : fallback;
    if (typeof value === 'number' && Number.isFinite(value)) return shortest(value);
    throw this.invalid(key, 'a finite number');
  }

  string(key: string, fallback?: string): string {
    const value = this.has(key) ? this.#values[key] : fallback;
    if (typeof value === 'string') return value;
    throw this.invalid(key, 'a string');
  }

  invalid(key: string, expected: string): LowrankError {
    const found = this.has(key) ? shown(this.#values[key]) : 'missing';
    return new LowrankError('INVALID_GGUF', `${this.path}: ${key} is ${found}; expected ${expected}`);
  }
}

/** The shortest decimal that is the same fp32 number: 1e-5 for 9.999999747378752e-06. */
function shortest(value: number): number {
  for (let digits = 1; digits < 9; ++digits) {
    const short = Number(value.toPrecision(digits));
    if (Math.fround(short) === Math.fround(value) && Math.fround(value) === value) return short;
  }
  return value;
}
