import { LowrankError, shown } from '../errors.ts';
import type { NativeModelConfig } from '../native.ts';
import { ConfigReader } from './config_reader.ts';
import { readRope } from './rope_config.ts';

// A family is data: what differs between architectures whose blocks are the decoder's (RMSNorm, rotary attention with grouped
// queries, SwiGLU). Defaults are those of Transformers' config classes.

const kMaxWidth = 2 ** 24;
const kMaxLayers = 4096;
const kMaxHeads = 4096;
const kMaxPosition = 2 ** 31 - 1;

export interface Family {
  /** In config.json's `architectures`. */
  architecture: string;
  /** config.json's `model_type`. */
  modelType: string;
  defaults: { vocabSize: number; intermediateSize: number; kvHeads: number | undefined; maxPosition: number };
  biases(config: ConfigReader): { qkvBias: boolean; outputBias: boolean; mlpBias: boolean };
  /** Sliding window of each layer; 0: none. */
  windows(config: ConfigReader, layers: number): number[];
  /** PEFT's targetModules where none are given. */
  loraTargets: readonly string[];
}

const kLlama: Family = {
  architecture: 'LlamaForCausalLM',
  modelType: 'llama',
  defaults: { vocabSize: 32000, intermediateSize: 11008, kvHeads: undefined, maxPosition: 2048 },
  biases(config) {
    const attentionBias = config.boolean('attention_bias', false);
    return { qkvBias: attentionBias, outputBias: attentionBias, mlpBias: config.boolean('mlp_bias', false) };
  },
  windows: (_config, layers) => new Array<number>(layers).fill(0),
  loraTargets: ['q_proj', 'v_proj'],
};

const kMistral: Family = {
  architecture: 'MistralForCausalLM',
  modelType: 'mistral',
  defaults: { vocabSize: 32000, intermediateSize: 14336, kvHeads: 8, maxPosition: 131072 },
  biases: () => ({ qkvBias: false, outputBias: false, mlpBias: false }),
  windows: (config, layers) => new Array<number>(layers).fill(slidingWindow(config, 4096)),
  loraTargets: ['q_proj', 'v_proj'],
};

const kQwen2: Family = {
  architecture: 'Qwen2ForCausalLM',
  modelType: 'qwen2',
  defaults: { vocabSize: 151936, intermediateSize: 22016, kvHeads: 32, maxPosition: 32768 },
  biases: () => ({ qkvBias: true, outputBias: false, mlpBias: false }),
  windows(config, layers) {
    const window = config.boolean('use_sliding_window', false) ? slidingWindow(config, 4096) : 0;
    return slidingLayers(config, layers, window > 0).map((slides) => (slides ? window : 0));
  },
  loraTargets: ['q_proj', 'v_proj'],
};

const kFamilies: readonly Family[] = [kLlama, kMistral, kQwen2];

/** A missing key means the class's default, null means no window. */
function slidingWindow(config: ConfigReader, fallback: number): number {
  if (config.keys().includes('sliding_window') && !config.has('sliding_window')) return 0;
  return config.integer('sliding_window', fallback, 1, kMaxPosition);
}

/** Which layers attend through a window: `layer_types` where given, else those from max_window_layers on. */
function slidingLayers(config: ConfigReader, layers: number, hasWindow: boolean): boolean[] {
  const types = config.strings('layer_types');
  if (types === undefined) {
    const full = config.integer('max_window_layers', 28, 0, kMaxPosition);
    return Array.from({ length: layers }, (_, layer) => hasWindow && layer >= full);
  }
  if (types.length !== layers) throw config.invalid('layer_types', `${layers} entries, one for each layer`);
  return types.map((type) => {
    if (type === 'full_attention') return false;
    if (type !== 'sliding_attention') {
      throw new LowrankError(
        'UNSUPPORTED_MODEL',
        `config.json: layer_types has ${shown(type)}; supported are full_attention and sliding_attention`,
      );
    }
    if (!hasWindow) throw config.invalid('layer_types', 'full_attention only, as use_sliding_window is not set');
    return true;
  });
}

/** The family that a config.json names. Throws UNSUPPORTED_MODEL, saying what was found and what is supported. */
function findFamily(values: Record<string, unknown>): Family {
  const config = new ConfigReader(values, 'config.json');
  const supported = kFamilies.map((family) => family.architecture).join(', ');
  const [architecture] = config.strings('architectures') ?? [];
  if (architecture !== undefined) {
    const family = kFamilies.find((candidate) => candidate.architecture === architecture);
    if (family) return family;
    throw new LowrankError('UNSUPPORTED_MODEL', `the model is a ${architecture}; supported are ${supported}`);
  }
  const modelType = config.string('model_type', undefined);
  const family = kFamilies.find((candidate) => candidate.modelType === modelType);
  if (family) return family;
  throw new LowrankError('UNSUPPORTED_MODEL', `config.json: model_type is ${shown(modelType)}; supported are ${supported}`);
}

/**
 * The decoder that a config.json describes. Throws UNSUPPORTED_MODEL for what the decoder cannot do, UNSUPPORTED_QUANTIZATION for
 * weights quantised by another tool, INVALID_CONFIG for values that cannot be.
 */
export function describeModel(values: Record<string, unknown>): { family: Family; native: NativeModelConfig } {
  const family = findFamily(values);
  const config = new ConfigReader(values, 'config.json');
  refuseQuantized(config);
  const activation = config.string('hidden_act', 'silu');
  if (activation !== 'silu' && activation !== 'swish') {
    throw new LowrankError('UNSUPPORTED_MODEL', `config.json: hidden_act is ${shown(activation)}; supported is silu`);
  }
  const hiddenSize = config.integer('hidden_size', 4096, 1, kMaxWidth);
  const layers = config.integer('num_hidden_layers', 32, 1, kMaxLayers);
  const heads = config.integer('num_attention_heads', 32, 1, kMaxHeads);
  const kvHeads = config.integer(
    'num_key_value_heads',
    config.keys().includes('num_key_value_heads') ? heads : (family.defaults.kvHeads ?? heads),
    1,
    heads,
  );
  if (heads % kvHeads !== 0) throw config.invalid('num_key_value_heads', `a divisor of num_attention_heads ${heads}`);
  if (!config.has('head_dim') && hiddenSize % heads !== 0) {
    throw config.invalid('hidden_size', `a multiple of num_attention_heads ${heads}, as there is no head_dim`);
  }
  const headDim = config.integer('head_dim', hiddenSize / heads, 1, 4096);
  const maxPosition = config.integer('max_position_embeddings', family.defaults.maxPosition, 1, kMaxPosition);
  return {
    family,
    native: {
      vocabSize: config.integer('vocab_size', family.defaults.vocabSize, 1, kMaxWidth),
      hiddenSize,
      intermediateSize: config.integer('intermediate_size', family.defaults.intermediateSize, 1, kMaxWidth),
      layers,
      heads,
      kvHeads,
      headDim,
      normEps: config.number('rms_norm_eps', 1e-6, 0, 1),
      tiedHead: config.boolean('tie_word_embeddings', false),
      ...family.biases(config),
      windows: family.windows(config, layers),
      rope: readRope(config, headDim, maxPosition),
    },
  };
}

function refuseQuantized(config: ConfigReader): void {
  const quantization = config.object('quantization_config');
  if (quantization === undefined) return;
  const method = quantization.string('quant_method', 'unknown');
  if (method === 'bitsandbytes') return;
  throw new LowrankError(
    'UNSUPPORTED_QUANTIZATION',
    `the weights are quantised with ${shown(method)}; supported are float safetensors, those of bitsandbytes in 4 and 8 bits, and GGUF files`,
  );
}
