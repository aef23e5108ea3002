import assert from 'node:assert/strict';
import { describeModel } from '../lib/model/families.ts';
import { assertFails, tinyConfig } from './support/tiny_models.ts';

describe('families: from config.json to a decoder', () => {
  it('reads a Llama with its defaults', () => {
    const { native, family } = describeModel({ architectures: ['LlamaForCausalLM'] });
    assert.equal(family.modelType, 'llama');
    assert.deepEqual(
      [native.vocabSize, native.hiddenSize, native.intermediateSize, native.layers, native.heads, native.kvHeads, native.headDim],
      [32000, 4096, 11008, 32, 32, 32, 128],
    );
    assert.deepEqual(
      [native.normEps, native.tiedHead, native.qkvBias, native.outputBias, native.mlpBias],
      [1e-6, false, false, false, false],
    );
    assert.deepEqual(native.windows, new Array(32).fill(0));
    assert.deepEqual(native.rope, { kind: 'default', theta: 10000, rotaryDim: 128, maxPosition: 2048 });
  });

  it('finds the family by model_type where architectures is missing', () => {
    assert.equal(describeModel({ model_type: 'qwen2' }).family.architecture, 'Qwen2ForCausalLM');
  });

  it('gives biases to q, k, v, o of a Llama with attention_bias, to its MLP with mlp_bias, and to q, k, v of Qwen2', () => {
    const biases = (changes: Record<string, unknown>) => {
      const { qkvBias, outputBias, mlpBias } = describeModel(tinyConfig(changes)).native;
      return [qkvBias, outputBias, mlpBias];
    };
    assert.deepEqual(biases({ attention_bias: true }), [true, true, false]);
    assert.deepEqual(biases({ mlp_bias: true }), [false, false, true]);
    assert.deepEqual(biases({ architectures: ['Qwen2ForCausalLM'] }), [true, false, false]);
    assert.deepEqual(biases({ architectures: ['MistralForCausalLM'], attention_bias: true }), [false, false, false]);
  });

  it('reads the windows of Mistral: its default where the key is missing, none where it is null', () => {
    const windows = (changes: Record<string, unknown>) =>
      describeModel(tinyConfig({ architectures: ['MistralForCausalLM'], ...changes })).native.windows;
    assert.deepEqual(windows({}), [4096, 4096, 4096]);
    assert.deepEqual(windows({ sliding_window: null }), [0, 0, 0]);
    assert.deepEqual(windows({ sliding_window: 5 }), [5, 5, 5]);
  });

  it('reads the windows of Qwen2 from max_window_layers or layer_types', () => {
    const windows = (changes: Record<string, unknown>) =>
      describeModel(tinyConfig({ architectures: ['Qwen2ForCausalLM'], sliding_window: 7, ...changes })).native.windows;
    assert.deepEqual(windows({}), [0, 0, 0]);
    assert.deepEqual(windows({ use_sliding_window: true, max_window_layers: 1 }), [0, 7, 7]);
    assert.deepEqual(windows({ use_sliding_window: true }), [0, 0, 0]);
    assert.deepEqual(
      windows({ use_sliding_window: true, layer_types: ['sliding_attention', 'full_attention', 'sliding_attention'] }),
      [7, 0, 7],
    );
  });

  it('takes head_dim where it is given, whatever the hidden size', () => {
    const { native } = describeModel(tinyConfig({ head_dim: 10, num_attention_heads: 5, num_key_value_heads: 5 }));
    assert.deepEqual([native.headDim, native.rope.rotaryDim], [10, 10]);
  });

  it('reads rotary settings of every kind, in rope_scaling and rope_parameters, with type and rope_type', () => {
    const rope = (changes: Record<string, unknown>) => describeModel(tinyConfig(changes)).native.rope;
    assert.deepEqual(rope({ rope_theta: 5e5 }), { kind: 'default', theta: 5e5, rotaryDim: 8, maxPosition: 128 });
    assert.deepEqual(rope({ rope_parameters: { rope_type: 'default', rope_theta: 77 } }), {
      kind: 'default',
      theta: 77,
      rotaryDim: 8,
      maxPosition: 128,
    });
    assert.deepEqual(rope({ rope_scaling: { type: 'linear', factor: 4 } }), {
      kind: 'linear',
      theta: 10000,
      rotaryDim: 8,
      maxPosition: 128,
      factor: 4,
    });
    assert.equal(rope({ rope_scaling: { rope_type: 'dynamic', factor: 2 }, rope_theta: 9 }).theta, 9);
    assert.deepEqual(
      rope({
        rope_scaling: { rope_type: 'llama3', factor: 8, low_freq_factor: 1, high_freq_factor: 4, original_max_position_embeddings: 64 },
      }),
      {
        kind: 'llama3',
        theta: 10000,
        rotaryDim: 8,
        maxPosition: 128,
        originalMaxPosition: 64,
        factor: 8,
        lowFreqFactor: 1,
        highFreqFactor: 4,
      },
    );
    assert.deepEqual(
      rope({
        rope_scaling: { rope_type: 'yarn', factor: 4, attention_factor: 1.5, beta_fast: 16, truncate: false },
        original_max_position_embeddings: 32,
      }),
      {
        kind: 'yarn',
        theta: 10000,
        rotaryDim: 8,
        maxPosition: 128,
        originalMaxPosition: 32,
        factor: 4,
        attentionFactor: 1.5,
        betaFast: 16,
        truncate: false,
      },
    );
    assert.equal(rope({ rope_scaling: null, partial_rotary_factor: 0.5 }).rotaryDim, 4);
    assert.equal(rope({ rope_scaling: { rope_type: 'yarn', original_max_position_embeddings: 64 } }).factor, 2);
  });

  const unsupported: [string, Record<string, unknown>, RegExp][] = [
    ['another architecture', { architectures: ['GPT2LMHeadModel'] }, /GPT2LMHeadModel.*LlamaForCausalLM/],
    ['another model_type', { architectures: null, model_type: 'gpt2' }, /gpt2.*LlamaForCausalLM/],
    ['another activation', { hidden_act: 'gelu' }, /hidden_act is "gelu".*silu/],
    ['longrope', { rope_scaling: { rope_type: 'longrope' } }, /longrope.*llama3/],
    [
      'rotary settings by layer type',
      { rope_parameters: { full_attention: {}, sliding_attention: {} } },
      /full_attention, sliding_attention/,
    ],
    [
      'another layer type',
      { architectures: ['Qwen2ForCausalLM'], layer_types: ['linear_attention', 'full_attention', 'full_attention'] },
      /linear_attention/,
    ],
  ];
  for (const [what, changes, pattern] of unsupported) {
    it(`refuses ${what} as UNSUPPORTED_MODEL, saying what is supported`, () =>
      assertFails(() => describeModel(tinyConfig(changes)), 'UNSUPPORTED_MODEL', pattern));
  }

  it('refuses weights that another tool quantised', () =>
    assertFails(() => describeModel(tinyConfig({ quantization_config: { quant_method: 'gptq' } })), 'UNSUPPORTED_QUANTIZATION', /gptq/));

  const invalid: [string, unknown, RegExp?][] = [
    ['hidden_size', '24'],
    ['hidden_size', -24],
    ['hidden_size', 1e300],
    ['hidden_size', 0],
    ['hidden_size', 24.5],
    ['hidden_size', 25, /multiple of num_attention_heads 3/],
    ['hidden_size', [24]],
    ['hidden_size', 2 ** 53],
    ['vocab_size', {}],
    ['num_hidden_layers', 1e9],
    ['num_attention_heads', true],
    ['num_key_value_heads', 2, /divisor/],
    ['num_key_value_heads', 4],
    ['head_dim', 7, /head_dim 7/],
    ['rms_norm_eps', 'small'],
    ['rms_norm_eps', -1],
    ['tie_word_embeddings', 'yes'],
    ['attention_bias', 1],
    ['hidden_act', 3],
    ['rope_theta', 0],
    ['rope_theta', 'big'],
    ['rope_scaling', 'linear'],
    ['rope_scaling', { rope_type: 'linear' }, /factor is missing/],
    ['rope_scaling', { rope_type: 'linear', factor: -2 }, /factor is -2/],
    ['rope_scaling', { rope_type: 'llama3', factor: 8, low_freq_factor: 4, high_freq_factor: 4 }, /high_freq_factor is 4/],
    ['partial_rotary_factor', 0.1],
    ['max_position_embeddings', 0],
    ['architectures', 'LlamaForCausalLM'],
  ];
  for (const [key, value, pattern] of invalid) {
    it(`refuses ${key} = ${JSON.stringify(value)}`, () =>
      assertFails(() => describeModel(tinyConfig({ [key]: value })), 'INVALID_CONFIG', pattern ?? new RegExp(key)));
  }

  it('reads no key from the prototype', () =>
    assertFails(() => describeModel(JSON.parse('{"__proto__": {"model_type": "llama"}}')), 'INVALID_CONFIG', /model_type is missing/));
});
