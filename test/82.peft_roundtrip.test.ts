import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { CausalLM, getPeftModel, type LoraConfig, LoraTrainer, PeftModel } from '../lib/index.ts';
import {
  assertClose,
  maskedRows,
  type ParityAdapter,
  type ParityBatch,
  parityAdapter,
  parityAdapterNames,
  parityModel,
  readArrays,
  readJson,
  trainingRows,
  type Values,
  valuesOf,
} from './support/parity.ts';
import { describeWithPeft, type PeftRequest, runPeft } from './support/real_peft.ts';

const kLogits = 1e-4;

/** Keys whose value depends on where and by whom the adapter is written. */
const kOwnKeys = ['base_model_name_or_path', 'inference_mode', 'peft_version'];

/** Adapters made here from nothing: each says what is adapted in another way. */
const kNewAdapters: [string, LoraConfig][] = [
  ['llama_tied', { r: 4, loraAlpha: 8, targetModules: 'all-linear' }],
  ['llama_bias', { r: 3, loraAlpha: 7, targetModules: ['q_proj', 'up_proj'], bias: 'all', useRslora: true }],
  ['llama_multi_query', { r: 2, loraAlpha: 4, targetModules: '.*\\.(k|v)_proj', alphaPattern: { v_proj: 9 } }],
  ['mistral_window', { r: 3, loraAlpha: 6, targetModules: ['o_proj'], modulesToSave: ['lm_head', 'embed_tokens'] }],
  ['mistral_full', { r: 4, loraAlpha: 8, targetModules: ['q_proj', 'down_proj'], rankPattern: { down_proj: 7 } }],
  ['qwen2_window', { r: 3, loraAlpha: 6, layersToTransform: [1, 2], targetModules: ['q_proj', 'gate_proj'] }],
  ['qwen2_full', { r: 2, loraAlpha: 4, targetModules: 'all-linear', bias: 'lora_only', excludeModules: ['up_proj'] }],
];

function batchOf(batches: Record<string, ParityBatch>): ParityBatch {
  return batches.right as ParityBatch;
}

async function logitsOf(model: CausalLM, batch: ParityBatch): Promise<Values> {
  return maskedRows(await model.forward(batch), batch.attentionMask);
}

/** Saves an adapter of PEFT's as this package writes it; returns the logits it has here. */
async function rewrite(fixture: ParityAdapter, folder: string): Promise<Values> {
  const model = await PeftModel.fromPretrained(fixture.model.folder, fixture.folder);
  try {
    await model.savePretrained(folder);
    return await logitsOf(model, batchOf(fixture.model.batches));
  } finally {
    await model.dispose();
  }
}

/** Makes an adapter, trains it for three steps so that B is not zero, saves it; returns the logits it has here. */
async function trainAndSave(modelName: string, config: LoraConfig, folder: string): Promise<Values> {
  const { batches, folder: modelFolder } = parityModel(modelName);
  const batch = batchOf(batches);
  const trainer = new LoraTrainer({
    model: await getPeftModel(await CausalLM.fromPretrained(modelFolder), config),
    trainDataset: trainingRows(batch),
    args: { outputDir: folder, maxSteps: 3, learningRate: 0.02, bf16: false, saveStrategy: 'no', disableTqdm: true, loggingStrategy: 'no' },
  });
  const { adapterPath } = await trainer.train();
  assert.equal(adapterPath, folder);
  try {
    return await logitsOf(trainer.model, batch);
  } finally {
    await trainer.model.dispose();
  }
}

describe('adapters written here have the form of those that PEFT writes', () => {
  let folder: string;
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'lowrank-roundtrip-'));
  });
  afterEach(() => rmSync(folder, { recursive: true, force: true }));

  for (const [modelName, adapterName] of parityAdapterNames()) {
    it(`${adapterName} on ${modelName}: same keys, shapes and values, same adapter_config.json`, async () => {
      const fixture = parityAdapter(modelName, adapterName);
      await rewrite(fixture, folder);
      const written = readArrays(join(folder, 'adapter_model.safetensors'));
      const original = readArrays(join(fixture.folder, 'adapter_model.safetensors'));
      assert.deepEqual([...written.keys()].sort(), [...original.keys()].sort());
      for (const [name, values] of written) assertClose(name, values, valuesOf(original, name), 0);

      const config = readJson(join(folder, 'adapter_config.json')) as Record<string, unknown>;
      const expected = readJson(join(fixture.folder, 'adapter_config.json')) as Record<string, unknown>;
      assert.deepEqual(Object.keys(config), Object.keys(expected));
      for (const key of Object.keys(expected)) if (!kOwnKeys.includes(key)) assert.deepEqual(config[key], expected[key], key);
    });
  }
});

describeWithPeft('adapters written here, loaded by real PEFT', (python, folder) => {
  /** Runs PEFT on what was written and compares its logits with those computed here. */
  function compare(written: { name: string; model: string; adapter: string; batch: ParityBatch; logits: Values }[]): void {
    const requests = written.map(
      ({ model, adapter, batch }, i): PeftRequest => ({
        model,
        adapter,
        inputIds: batch.inputIds,
        attentionMask: batch.attentionMask,
        output: join(folder(), `logits-${i}.safetensors`),
      }),
    );
    const answers = runPeft(python, requests);
    written.forEach(({ name, batch, logits }, i) => {
      assert.deepEqual(answers[i], { missing: [], unexpected: [] }, name);
      const theirs = readArrays(requests[i]?.output as string);
      assertClose(`${name}: logits`, logits, maskedRows(valuesOf(theirs, 'logits'), batch.attentionMask), kLogits);
    });
  }

  it('gives the same logits for every adapter that PEFT wrote and this package wrote again', async () => {
    const written = [];
    for (const [modelName, adapterName] of parityAdapterNames()) {
      const fixture = parityAdapter(modelName, adapterName);
      const adapter = join(folder(), `${modelName}-${adapterName}`);
      const logits = await rewrite(fixture, adapter);
      written.push({
        name: `${adapterName} on ${modelName}`,
        model: fixture.model.folder,
        adapter,
        batch: batchOf(fixture.model.batches),
        logits,
      });
    }
    compare(written);
  });

  it('gives the same logits for adapters made and trained here', async () => {
    const written = [];
    for (const [modelName, config] of kNewAdapters) {
      const { batches, folder: model } = parityModel(modelName);
      const adapter = join(folder(), `new-${modelName}`);
      const logits = await trainAndSave(modelName, config, adapter);
      written.push({ name: `${JSON.stringify(config)} on ${modelName}`, model, adapter, batch: batchOf(batches), logits });
    }
    compare(written);
  });
});
