import type { NativeTensorData } from '../../lib/native.ts';

// The adapter that test/reference/initial_adapter.py gives PEFT: A from a hash of each element's place, B zero.

const kModules = ['q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj'] as const;
const kRank = 16;

export const kInitialAdapterConfig = {
  peft_type: 'LORA',
  task_type: 'CAUSAL_LM',
  r: kRank,
  lora_alpha: 32,
  lora_dropout: 0,
  bias: 'none',
  target_modules: [...kModules],
};

/** murmur3's 32-bit finaliser. */
function hash32(value: number): number {
  let h = value;
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return (h ^ (h >>> 16)) >>> 0;
}

function initialLoraA(module: number, inFeatures: number): Float32Array {
  const first = Math.imul(module, 0x9e3779b1);
  const bound = Math.sqrt(inFeatures);
  return Float32Array.from({ length: kRank * inFeatures }, (_, element) => (2 * (hash32((first + element) | 0) / 2 ** 32) - 1) / bound);
}

/** The tensors of its adapter_model.safetensors, for a model of the Llama family. */
export function initialAdapterTensors(config: Readonly<Record<string, unknown>>): NativeTensorData[] {
  const size = (key: string) => config[key] as number;
  const hidden = size('hidden_size');
  const queries = size('num_attention_heads') * size('head_dim');
  const keys = size('num_key_value_heads') * size('head_dim');
  const ffn = size('intermediate_size');
  const shapes = {
    q_proj: [queries, hidden],
    k_proj: [keys, hidden],
    v_proj: [keys, hidden],
    o_proj: [hidden, queries],
    gate_proj: [ffn, hidden],
    up_proj: [ffn, hidden],
    down_proj: [hidden, ffn],
  };
  const tensors: NativeTensorData[] = [];
  for (let layer = 0; layer < size('num_hidden_layers'); ++layer) {
    kModules.forEach((module, place) => {
      const [outFeatures, inFeatures] = shapes[module] as [number, number];
      const block = /^[qkvo]_/.test(module) ? 'self_attn' : 'mlp';
      const name = `base_model.model.model.layers.${layer}.${block}.${module}`;
      const a = initialLoraA(layer * kModules.length + place, inFeatures);
      tensors.push({ name: `${name}.lora_A.weight`, dtype: 'F32', shape: [kRank, inFeatures], data: a });
      tensors.push({
        name: `${name}.lora_B.weight`,
        dtype: 'F32',
        shape: [outFeatures, kRank],
        data: new Float32Array(outFeatures * kRank),
      });
    });
  }
  return tensors;
}
