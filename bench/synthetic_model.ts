// Writes a model with the exact shapes of a published one and random weights, as a folder that loads: config.json, and shards of bf16 safetensors
// that are written as they are made, so that nothing of the model's size is in memory. It has no tokenizer: rows of token ids are its data.
//   node --import tsx bench/synthetic_model.ts llama-3.1-8b FOLDER

import { once } from 'node:events';
import { createWriteStream, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { finished } from 'node:stream/promises';
import { fileURLToPath } from 'node:url';

const kLlama3 = {
  architectures: ['LlamaForCausalLM'],
  model_type: 'llama',
  attention_bias: false,
  bos_token_id: 128000,
  eos_token_id: 128001,
  hidden_act: 'silu',
  initializer_range: 0.02,
  max_position_embeddings: 131072,
  mlp_bias: false,
  num_attention_heads: 32,
  num_key_value_heads: 8,
  rms_norm_eps: 1e-5,
  rope_theta: 500000,
  torch_dtype: 'bfloat16',
  vocab_size: 128256,
};
const kScaling = { high_freq_factor: 4, low_freq_factor: 1, original_max_position_embeddings: 8192, rope_type: 'llama3' };

/** config.json of meta-llama/Llama-3.2-1B and meta-llama/Llama-3.1-8B. */
export const kShapes = {
  'llama-3.2-1b': {
    ...kLlama3,
    head_dim: 64,
    hidden_size: 2048,
    intermediate_size: 8192,
    num_hidden_layers: 16,
    rope_scaling: { ...kScaling, factor: 32 },
    tie_word_embeddings: true,
  },
  'llama-3.1-8b': {
    ...kLlama3,
    hidden_size: 4096,
    intermediate_size: 14336,
    num_hidden_layers: 32,
    rope_scaling: { ...kScaling, factor: 8 },
    tie_word_embeddings: false,
  },
};
export type SyntheticName = keyof typeof kShapes;

type LlamaShape = Pick<
  (typeof kShapes)[SyntheticName],
  | 'hidden_size'
  | 'intermediate_size'
  | 'num_attention_heads'
  | 'num_hidden_layers'
  | 'num_key_value_heads'
  | 'tie_word_embeddings'
  | 'vocab_size'
>;

interface TensorShape {
  name: string;
  shape: number[];
}

const kShardBytes = 4.9e9;
/** Values that are drawn; a tensor takes them in order from a place of its own. A prime, so that rows differ. */
const kDrawn = 8_388_593;

function tensorsOf(config: LlamaShape): TensorShape[] {
  const { hidden_size: hidden, intermediate_size: ffn, num_hidden_layers: layers, vocab_size: vocabulary } = config;
  const keys = (hidden / config.num_attention_heads) * config.num_key_value_heads;
  const block = (layer: number): TensorShape[] =>
    Object.entries({
      input_layernorm: [hidden],
      'self_attn.q_proj': [hidden, hidden],
      'self_attn.k_proj': [keys, hidden],
      'self_attn.v_proj': [keys, hidden],
      'self_attn.o_proj': [hidden, hidden],
      post_attention_layernorm: [hidden],
      'mlp.gate_proj': [ffn, hidden],
      'mlp.up_proj': [ffn, hidden],
      'mlp.down_proj': [hidden, ffn],
    }).map(([name, shape]) => ({ name: `model.layers.${layer}.${name}.weight`, shape }));
  return [
    { name: 'model.embed_tokens.weight', shape: [vocabulary, hidden] },
    ...Array.from({ length: layers }, (_, layer) => block(layer)).flat(),
    { name: 'model.norm.weight', shape: [hidden] },
    ...(config.tie_word_embeddings ? [] : [{ name: 'lm_head.weight', shape: [vocabulary, hidden] }]),
  ];
}

const bytesOf = ({ shape }: TensorShape) => 2 * shape.reduce((product, size) => product * size, 1);

function shardsOf(tensors: TensorShape[], mostBytes: number): TensorShape[][] {
  const shards: TensorShape[][] = [[]];
  let bytes = 0;
  for (const tensor of tensors) {
    bytes += bytesOf(tensor);
    if (bytes > mostBytes && shards.at(-1)!.length > 0) {
      shards.push([]);
      bytes = bytesOf(tensor);
    }
    shards.at(-1)!.push(tensor);
  }
  return shards;
}

/** Normal values of deviation 0.02 in bf16 from a linear congruential generator: the sum of twelve uniform ones. */
function drawValues(): Buffer {
  const values = new Uint16Array(kDrawn);
  const single = new Float32Array(1);
  const bits = new Uint32Array(single.buffer);
  let state = 2463534242;
  for (let i = 0; i < kDrawn; ++i) {
    let sum = -6;
    for (let k = 0; k < 12; ++k) {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      sum += state / 2 ** 32;
    }
    single[0] = 0.02 * sum;
    values[i] = (bits[0]! + 0x7fff + ((bits[0]! >>> 16) & 1)) >>> 16;
  }
  return Buffer.from(values.buffer);
}

/** The bytes of a tensor, piece by piece; norms are 1. */
function* contentOf(tensor: TensorShape, place: number, drawn: Buffer): Generator<Buffer> {
  let left = bytesOf(tensor);
  if (tensor.shape.length === 1) {
    yield Buffer.from(new Uint16Array(left / 2).fill(0x3f80).buffer);
    return;
  }
  for (let at = 2 * ((place * 104_729) % kDrawn); left > 0; at = 0) {
    const piece = drawn.subarray(at, at + left);
    left -= piece.length;
    yield piece;
  }
}

async function writeShard(path: string, tensors: TensorShape[], first: number, drawn: Buffer): Promise<void> {
  let end = 0;
  const entries = tensors.map((tensor) => {
    const begin = end;
    end += bytesOf(tensor);
    return [tensor.name, { dtype: 'BF16', shape: tensor.shape, data_offsets: [begin, end] }];
  });
  const json = JSON.stringify({ __metadata__: { format: 'pt' }, ...Object.fromEntries(entries) });
  const header = Buffer.from(json.padEnd(Math.ceil(json.length / 8) * 8));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(header.length));
  const file = createWriteStream(path);
  const write = async (piece: Buffer) => {
    if (!file.write(piece)) await once(file, 'drain');
  };
  await write(length);
  await write(header);
  for (const [i, tensor] of tensors.entries()) {
    for (const piece of contentOf(tensor, first + i, drawn)) await write(piece);
  }
  file.end();
  await finished(file);
}

/** Writes a Llama of this config.json into `folder`. */
export async function writeSyntheticModel(config: LlamaShape, folder: string, shardBytes = kShardBytes): Promise<void> {
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, 'config.json'), JSON.stringify(config, null, 2));
  const shards = shardsOf(tensorsOf(config), shardBytes);
  const drawn = drawValues();
  const map: Record<string, string> = {};
  let written = 0;
  const number = (i: number) => String(i).padStart(5, '0');
  for (const [i, tensors] of shards.entries()) {
    const file = `model-${number(i + 1)}-of-${number(shards.length)}.safetensors`;
    await writeShard(join(folder, file), tensors, written, drawn);
    for (const tensor of tensors) map[tensor.name] = file;
    written += tensors.length;
  }
  const total = shards.flat().reduce((sum, tensor) => sum + bytesOf(tensor), 0);
  writeFileSync(join(folder, 'model.safetensors.index.json'), JSON.stringify({ metadata: { total_size: total }, weight_map: map }));
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [name = '', folder] = process.argv.slice(2);
  if (!Object.hasOwn(kShapes, name) || folder === undefined)
    throw new Error(`expected one of ${Object.keys(kShapes).join(', ')} and a folder`);
  await writeSyntheticModel(kShapes[name as SyntheticName], folder);
}
