import assert from 'node:assert/strict';
import { LowrankError } from '../lib/errors.ts';
import { fromAdapterConfigJson, toAdapterConfigJson } from '../lib/options/adapter_config.ts';
import { parseLoraConfig } from '../lib/options/lora_config.ts';

/** What PEFT 0.21.2 writes for LoraConfig(r=16, lora_alpha=32, target_modules=['q_proj', 'v_proj'], task_type='CAUSAL_LM'). */
const fromPeft = {
  alora_invocation_tokens: null,
  alpha_pattern: {},
  arrow_config: null,
  auto_mapping: null,
  base_model_name_or_path: 'x',
  bias: 'none',
  corda_config: null,
  ensure_weight_tying: false,
  eva_config: null,
  exclude_modules: null,
  fan_in_fan_out: false,
  inference_mode: true,
  init_lora_weights: true,
  kasa_config: null,
  layer_replication: null,
  layers_pattern: null,
  layers_to_transform: null,
  loftq_config: {},
  lora_alpha: 32,
  lora_bias: false,
  lora_dropout: 0.0,
  lora_ga_config: null,
  megatron_config: null,
  megatron_core: 'megatron.core',
  modules_to_save: null,
  monteclora_config: null,
  peft_type: 'LORA',
  peft_version: '0.21.2',
  qalora_group_size: 16,
  r: 16,
  rank_pattern: {},
  revision: null,
  target_modules: ['v_proj', 'q_proj'],
  target_parameters: null,
  task_type: 'CAUSAL_LM',
  trainable_token_indices: null,
  use_bdlora: null,
  use_dora: false,
  use_qalora: false,
  use_rslora: false,
  velora_config: null,
};

function refused(json: unknown, ...parts: string[]): void {
  assert.throws(
    () => fromAdapterConfigJson(json, 'a/adapter_config.json'),
    (error: unknown) =>
      error instanceof LowrankError &&
      error.code === 'INVALID_ADAPTER' &&
      ['a/adapter_config.json', ...parts].every((part) => error.message.includes(part)),
  );
}

describe('adapter_config.json', () => {
  it("is PEFT's to the byte", () => {
    const config = parseLoraConfig({ r: 16, loraAlpha: 32, targetModules: ['v_proj', 'q_proj'], baseModelNameOrPath: 'x' });
    assert.equal(JSON.stringify(toAdapterConfigJson(config), null, 2), JSON.stringify(fromPeft, null, 2));
  });

  it('is read back as it was written, keys without use here included', () => {
    const json = {
      ...fromPeft,
      use_rslora: true,
      rank_pattern: { 'layers.0.q_proj': 4 },
      alpha_pattern: { k_proj: 0.5 },
      layers_to_transform: [0, 2],
      peft_version: '0.17.0',
      note: 'mine',
      eva_config: { rho: 2 },
    };
    const { config, extra } = fromAdapterConfigJson(json, 'f');
    assert.equal(config.useRslora, true);
    assert.deepEqual(config.rankPattern, { 'layers.0.q_proj': 4 });
    assert.deepEqual(config.layersToTransform, [0, 2]);
    assert.deepEqual(toAdapterConfigJson(config, extra), json);
  });

  it('takes the short files of old releases, and any finite alpha', () => {
    const { config } = fromAdapterConfigJson(
      { peft_type: 'LORA', r: 8, lora_alpha: -0.5, target_modules: '.*q_proj', rank_pattern: null, task_type: null },
      'f',
    );
    assert.equal(config.loraAlpha, -0.5);
    assert.equal(config.targetModules, '.*q_proj');
    assert.deepEqual(config.rankPattern, {});
    assert.equal(config.taskType, null);
  });

  it('refuses variants whose numbers would come out otherwise', () => {
    for (const change of [
      { use_dora: true },
      { use_qalora: true },
      { use_bdlora: { target_modules_bd_a: ['q_proj'] } },
      { lora_bias: true },
      { layer_replication: [[0, 2]] },
      { trainable_token_indices: [1] },
      { target_parameters: ['x'] },
      { alora_invocation_tokens: [1, 2] },
      { kasa_config: { k: 1 } },
      { arrow_config: { top_k: 3 } },
      { init_lora_weights: 'pissa_niter_4' },
      { init_lora_weights: 'olora' },
      { use_something_new: true },
    ]) {
      refused({ ...fromPeft, ...change }, Object.keys(change)[0] as string);
    }
    refused({ ...fromPeft, peft_type: 'IA3' }, 'peft_type', 'LORA');
    refused({ ...fromPeft, task_type: 'SEQ_CLS' }, 'task_type');
  });

  it('refuses wrong types and ranges by key', () => {
    refused([], 'expected an object');
    refused(null, 'expected an object');
    refused({}, 'peft_type');
    for (const change of [
      { r: 0 },
      { r: '8' },
      { r: 1e9 },
      { lora_alpha: 'x' },
      { lora_alpha: Number.POSITIVE_INFINITY },
      { target_modules: [1] },
      { bias: 'x' },
      { use_rslora: 1 },
      { rank_pattern: { q: 1.5 } },
      { layers_to_transform: [-1] },
    ]) {
      refused({ ...fromPeft, ...change }, Object.keys(change)[0] as string);
    }
  });
});
