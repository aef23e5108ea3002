import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fetchSmolLm2 } from '../lib/hub/smollm2.ts';
import { CausalLM } from '../lib/index.ts';
import { describeModel } from '../lib/model/families.ts';
import { ggufToConfig } from '../lib/model/gguf_config.ts';
import { native } from '../lib/native.ts';
import { f32, type GgufOptions, type GgufTensor, gguf, put } from './20.formats-files.ts';
import { assertFails, deleteTemporaryFolders, largestDifference, temporaryFolder, tinyConfig } from './support/tiny_models.ts';

type Metadata = NonNullable<GgufOptions['metadata']>;

const kBlock: Record<string, string> = {
  'self_attn.q_proj': 'attn_q',
  'self_attn.k_proj': 'attn_k',
  'self_attn.v_proj': 'attn_v',
  'self_attn.o_proj': 'attn_output',
  'mlp.gate_proj': 'ffn_gate',
  'mlp.up_proj': 'ffn_up',
  'mlp.down_proj': 'ffn_down',
  input_layernorm: 'attn_norm',
  post_attention_layernorm: 'ffn_norm',
};

function ggufName(name: string): string {
  const global: Record<string, string> = {
    'model.embed_tokens.weight': 'token_embd.weight',
    'model.norm.weight': 'output_norm.weight',
    'lm_head.weight': 'output.weight',
  };
  const [, layer, module = '', kind] = /^model\.layers\.(\d+)\.(.+)\.(weight|bias)$/.exec(name) ?? [];
  return global[name] ?? `blk.${layer}.${kBlock[module]}.${kind}`;
}

/** llama.cpp's order of the rows of q and k: the two halves of a head interleaved. */
function interleaved(values: Float32Array, heads: number, columns: number): Float32Array {
  const headDim = values.length / columns / heads;
  const result = new Float32Array(values.length);
  for (let head = 0; head < heads; ++head) {
    for (let i = 0; i < headDim; ++i) {
      const from = head * headDim + (i % 2) * (headDim / 2) + (i >> 1);
      result.set(values.subarray(from * columns, (from + 1) * columns), (head * headDim + i) * columns);
    }
  }
  return result;
}

/** The tensors of a model as llama.cpp's converter writes them. */
async function tensorsOf(model: CausalLM, architecture: string): Promise<GgufTensor[]> {
  const { heads, kvHeads } = model.core.native.config;
  const tensors: GgufTensor[] = [];
  for (const { name, shape } of model.parameters()) {
    let data = await model.core.native.readParameter(name);
    const [, part] = /\.([qk])_proj\./.exec(name) ?? [];
    if (architecture === 'llama' && part) data = interleaved(data, part === 'q' ? heads : kvHeads, shape[1] ?? 1);
    tensors.push({ name: ggufName(name), dims: [...shape].reverse(), data: f32(...data) });
  }
  return tensors;
}

function metadataOf(model: CausalLM, architecture: string, more: Metadata = []): Metadata {
  const { config } = model.core.native;
  const key = (name: string) => `${architecture}.${name}`;
  return [
    ['general.architecture', 'string', architecture],
    [key('block_count'), 'uint32', config.layers],
    [key('context_length'), 'uint32', config.rope.maxPosition],
    [key('embedding_length'), 'uint32', config.hiddenSize],
    [key('feed_forward_length'), 'uint32', config.intermediateSize],
    [key('attention.head_count'), 'uint32', config.heads],
    [key('attention.head_count_kv'), 'uint32', config.kvHeads],
    [key('attention.layer_norm_rms_epsilon'), 'float32', config.normEps],
    [key('rope.freq_base'), 'float32', config.rope.theta],
    ...more,
  ];
}

/** A GGUF file of a model. */
async function ggufOf(model: CausalLM, architecture: string, more: Metadata = [], extra: GgufTensor[] = []): Promise<string> {
  const bytes = gguf({ metadata: metadataOf(model, architecture, more), tensors: [...(await tensorsOf(model, architecture)), ...extra] });
  return put(temporaryFolder(), 'model.gguf', bytes);
}

const kInput = { inputIds: [Array.from({ length: 20 }, (_, i) => (i * 5) % 37)] };

describe('GGUF models', () => {
  afterEach(deleteTemporaryFolders);

  const same: [string, string, Record<string, unknown>, Metadata?][] = [
    ['a Llama', 'llama', {}],
    ['a tied Llama with biases', 'llama', { tie_word_embeddings: true, attention_bias: true, mlp_bias: true }],
    [
      'a Llama with other heads than its hidden size has room for',
      'llama',
      { head_dim: 10 },
      [
        ['llama.attention.key_length', 'uint32', 10],
        ['llama.attention.value_length', 'uint32', 10],
        ['llama.rope.dimension_count', 'uint32', 10],
      ],
    ],
    [
      'a Mistral with a window',
      'llama',
      { architectures: ['MistralForCausalLM'], sliding_window: 6 },
      [['llama.attention.sliding_window', 'uint32', 6]],
    ],
    ['a Qwen2', 'qwen2', { architectures: ['Qwen2ForCausalLM'], rope_theta: 1e6 }],
    [
      'linear scaling',
      'llama',
      { rope_scaling: { rope_type: 'linear', factor: 4 } },
      [
        ['llama.rope.scaling.type', 'string', 'linear'],
        ['llama.rope.scaling.factor', 'float32', 4],
      ],
    ],
    [
      'the old key of linear scaling',
      'llama',
      { rope_scaling: { rope_type: 'linear', factor: 4 } },
      [['llama.rope.scale_linear', 'float32', 4]],
    ],
    [
      'YaRN',
      'qwen2',
      { architectures: ['Qwen2ForCausalLM'], rope_scaling: { rope_type: 'yarn', factor: 4, original_max_position_embeddings: 32 } },
      [
        ['qwen2.rope.scaling.type', 'string', 'yarn'],
        ['qwen2.rope.scaling.factor', 'float32', 4],
        ['qwen2.rope.scaling.original_context_length', 'uint32', 32],
      ],
    ],
  ];
  for (const [what, architecture, changes, more] of same) {
    it(`give the logits of the same weights in safetensors: ${what}`, async () => {
      const model = await CausalLM.fromConfig(tinyConfig(changes), { seed: 51 });
      const loaded = await CausalLM.fromPretrained(await ggufOf(model, architecture, more));
      assert.deepEqual(loaded.core.native.config, model.core.native.config);
      assert.deepEqual((await loaded.forward(kInput)).data, (await model.forward(kInput)).data);
    });
  }

  it("find Llama 3's scaling again from the divisors that the file holds", async () => {
    const scaling = { rope_type: 'llama3', factor: 32, low_freq_factor: 1, high_freq_factor: 4, original_max_position_embeddings: 8192 };
    const model = await CausalLM.fromConfig(
      tinyConfig({ hidden_size: 192, rope_theta: 500000, rope_scaling: scaling, max_position_embeddings: 131072 }),
      { seed: 52 },
    );
    // As llama.cpp's converter computes them.
    const divisors = Array.from({ length: 32 }, (_, i) => {
      const wavelength = 2 * Math.PI * 500000 ** ((2 * i) / 64);
      if (wavelength < 8192 / 4) return 1;
      if (wavelength > 8192) return 32;
      const smooth = (8192 / wavelength - 1) / 3;
      return 1 / ((1 - smooth) / 32 + smooth);
    });
    const frequencies = (values: number[]): GgufTensor => ({ name: 'rope_freqs.weight', dims: [32], data: f32(...values) });
    const loaded = await CausalLM.fromPretrained(await ggufOf(model, 'llama', [], [frequencies(divisors)]));
    assert.deepEqual(loaded.config.rope_scaling, scaling);
    assert.deepEqual((await loaded.forward(kInput)).data, (await model.forward(kInput)).data);
    divisors[20] = 5;
    await assertFails(
      async () => CausalLM.fromPretrained(await ggufOf(model, 'llama', [], [frequencies(divisors)])),
      'UNSUPPORTED_MODEL',
      /rope_freqs\.weight/,
    );
  });

  it('end generation at every end token of the file', async () => {
    const model = await CausalLM.fromConfig(tinyConfig());
    const ids: Metadata = [
      ['tokenizer.ggml.eos_token_id', 'uint32', 3],
      ['tokenizer.ggml.eot_token_id', 'uint32', 7],
      ['tokenizer.ggml.eom_token_id', 'uint32', 0xffffffff],
      ['tokenizer.ggml.bos_token_id', 'uint32', 1],
    ];
    const loaded = await CausalLM.fromPretrained(await ggufOf(model, 'llama', ids));
    assert.deepEqual(loaded.core.eosIds, [3, 7]);
    assert.deepEqual([loaded.config.eos_token_id, loaded.config.bos_token_id], [[3, 7], 1]);
  });

  const refused: [string, Metadata, string, RegExp][] = [
    ['another architecture', [['general.architecture', 'string', 'gemma3']], 'UNSUPPORTED_MODEL', /"gemma3".*llama, qwen2/],
    ['no architecture', [['general.architecture', 'uint32', 3]], 'INVALID_GGUF', /general\.architecture is 3/],
    ['an adapter', [['general.type', 'string', 'adapter']], 'UNSUPPORTED_MODEL', /adapter/],
    ['a part of several', [['split.count', 'uint16', 3]], 'UNSUPPORTED_MODEL', /llama-gguf-split/],
    ['experts', [['llama.expert_count', 'uint32', 8]], 'UNSUPPORTED_MODEL', /expert_count/],
    ['a count as text', [['llama.block_count', 'string', '3']], 'INVALID_GGUF', /llama\.block_count is "3"/],
    ['no heads', [['llama.attention.head_count', 'uint32', 0]], 'INVALID_CONFIG', /num_attention_heads/],
    ['heads by layer', [['llama.attention.head_count_kv', 'float32', 1.5]], 'INVALID_GGUF', /head_count_kv is 1\.5/],
    ['an epsilon that is no number', [['llama.attention.layer_norm_rms_epsilon', 'float32', Number.NaN]], 'INVALID_GGUF', /rms_epsilon/],
    ['heads rotated in part', [['llama.rope.dimension_count', 'uint32', 4]], 'UNSUPPORTED_MODEL', /rotates 4 of 8/],
    ['longrope', [['llama.rope.scaling.type', 'string', 'longrope']], 'UNSUPPORTED_MODEL', /"longrope"/],
    ['more layers than tensors', [['llama.block_count', 'uint32', 4]], 'INVALID_CONFIG', /lacks .*model\.layers\.3\./],
    ['a hidden size that the tensors do not have', [['llama.embedding_length', 'uint32', 48]], 'SHAPE_MISMATCH', /expected/],
  ];
  for (const [what, change, code, pattern] of refused) {
    it(`are refused: ${what}`, async () => {
      const model = await CausalLM.fromConfig(tinyConfig());
      const changed = new Map(metadataOf(model, 'llama').map((entry) => [entry[0], entry]));
      for (const entry of change) changed.set(entry[0], entry);
      const path = put(
        temporaryFolder(),
        'model.gguf',
        gguf({ metadata: [...changed.values()], tensors: await tensorsOf(model, 'llama') }),
      );
      await assertFails(() => CausalLM.fromPretrained(path), code, pattern);
    });
  }

  it('are refused with an unknown tensor', async () => {
    const model = await CausalLM.fromConfig(tinyConfig());
    const path = await ggufOf(model, 'llama', [], [{ name: 'blk.0.attn_q_norm.weight', dims: [8], data: f32(...new Float32Array(8)) }]);
    await assertFails(() => CausalLM.fromPretrained(path), 'INVALID_CONFIG', /unexpected blk\.0\.attn_q_norm\.weight/);
  });

  it('are saved as safetensors in the type asked for, with a tokenizer, and give the same answers', async () => {
    const file = native().openTensorFile(await fetchSmolLm2());
    assert.equal(describeModel(ggufToConfig(file)).native.heads, 9);
    const model = await CausalLM.fromPretrained(await fetchSmolLm2());
    const text = 'The capital of France is';
    const input = { inputIds: [await model.tokenizer.encode(text)] };
    const logits = (await model.forward(input)).data;
    // bfloat16 keeps 8 bits of a weight, float16 11, float32 all.
    for (const [dtype, tolerance] of [
      ['float32', 1e-3],
      ['float16', 0.05],
      ['bfloat16', 1],
    ] as const) {
      const folder = join(temporaryFolder(), dtype);
      await model.savePretrained(folder, { dtype, maxShardSize: '200MB' });
      const config = JSON.parse(readFileSync(join(folder, 'config.json'), 'utf8')) as Record<string, unknown>;
      assert.deepEqual([config.torch_dtype, config.tie_word_embeddings], [dtype, true]);
      const saved = await CausalLM.fromPretrained(folder);
      const difference = largestDifference((await saved.forward(input)).data, logits);
      assert.ok(difference < tolerance, `${dtype}: ${difference}`);
      assert.deepEqual(await saved.tokenizer.encode(text), input.inputIds[0]);
      assert.deepEqual(saved.core.eosIds, [2]);
      await saved.dispose();
    }
    await model.dispose();
  });

  it('are not written yet', async () => {
    const model = await CausalLM.fromConfig(tinyConfig());
    await assertFails(() => model.savePretrained(temporaryFolder(), { format: 'gguf' }), 'INVALID_OPTION', /gguf.*not supported yet/);
    await assertFails(() => model.savePretrained(temporaryFolder(), { maxShardSize: 'huge' }), 'INVALID_OPTION', /maxShardSize/);
  });
});
