// args.gradientCheckpointing: what is kept changes memory, never a bit of what is learnt.
import assert from 'node:assert/strict';
import { mkdtempSync, readdirSync, readFileSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { estimateMemory } from '../lib/memory/estimate.ts';
import { CausalLM } from '../lib/model/causal_lm.ts';
import { getPeftModel } from '../lib/model/peft_model.ts';
import { call, native } from '../lib/native.ts';
import type { LoraConfig } from '../lib/options/lora_config.ts';
import type { TrainingArguments } from '../lib/options/training_arguments.ts';
import { LoraTrainer } from '../lib/train/trainer.ts';
import { llamaConfig, tokenRows } from './60.trainer.llama.ts';

type Checkpointing = TrainingArguments['gradientCheckpointing'];

describe('gradient checkpointing', () => {
  let outputDir: string;
  before(() => {
    outputDir = mkdtempSync(join(tmpdir(), 'lowrank-checkpointing-'));
  });
  after(() => rm(outputDir, { recursive: true, force: true }));

  const trainer = async (layers: number, args: TrainingArguments, peft: LoraConfig = {}) =>
    new LoraTrainer({
      model: await CausalLM.fromConfig({ ...llamaConfig, num_hidden_layers: layers }, { seed: 5 }),
      trainDataset: tokenRows(24, 1),
      peftConfig: { r: 4, loraAlpha: 8, targetModules: 'all-linear', loraDropout: 0.1, ...peft },
      args: { outputDir, maxSteps: 3, perDeviceTrainBatchSize: 4, learningRate: 0.01, logLevel: 'error', ...args },
    });
  const learnt = async (layers: number, args: TrainingArguments, peft?: LoraConfig) => {
    await (await trainer(layers, args, peft)).train();
    return readFileSync(join(outputDir, 'adapter_model.safetensors'));
  };
  const plan = async (gradientCheckpointing: Checkpointing, layers = 7, peft?: LoraConfig) =>
    await (await trainer(layers, { gradientCheckpointing }, peft)).plan();
  const total = async (...request: Parameters<typeof plan>) => (await plan(...request)).total;

  it('gives the same bits whatever is kept, with dropout, in fp32 and bf16', async () => {
    for (const [layers, bf16] of [
      [1, false],
      [2, true],
      [7, false],
      [7, true],
    ] as const) {
      const plain = await learnt(layers, { bf16, gradientCheckpointing: false });
      for (const kept of [true, 'full', 'selective', 'offload', { every: 2 }, { every: 3 }, { every: 7 }, { every: 100 }] as const) {
        const bits = await learnt(layers, { bf16, gradientCheckpointing: kept });
        assert.ok(bits.equals(plain), JSON.stringify({ layers, bf16, kept }));
      }
    }
  });

  it('gives the same bits for every mix that a budget leads to, and where only upper layers are trained', async () => {
    for (const peft of [{}, { layersToTransform: [3, 5] }, { layersToTransform: [6] }, { modulesToSave: ['lm_head', 'embed_tokens'] }]) {
      const plain = await learnt(7, { gradientCheckpointing: false }, peft);
      const [most, least] = [await total(false, 7, peft), await total('full', 7, peft)];
      const seen = new Set<string>();
      for (let part = 0; part <= 8; ++part) {
        const gradientCheckpointing = { budget: Math.ceil(least + ((most - least) * part) / 8) };
        const { settings, total } = await plan(gradientCheckpointing, 7, peft);
        assert.ok(total <= gradientCheckpointing.budget, JSON.stringify({ peft, part, total }));
        if (seen.has(settings.gradientCheckpointing)) continue;
        seen.add(settings.gradientCheckpointing);
        const bits = await learnt(7, { gradientCheckpointing }, peft);
        assert.ok(bits.equals(plain), JSON.stringify({ peft, part, kept: settings.gradientCheckpointing }));
      }
      for (const kept of ['full', 'selective', 'offload', { every: 2 }, { every: 4 }] as const) {
        assert.ok((await learnt(7, { gradientCheckpointing: kept }, peft)).equals(plain), JSON.stringify({ peft, kept }));
      }
    }
  });

  it('keeps the most that a budget allows, and says what would be needed at least', async () => {
    const [none, selective, full] = [await total(false), await total('selective'), await total('full')];
    assert.ok(none > selective && selective > full, String([none, selective, full]));
    assert.equal(await total({ budget: none }), none);
    assert.equal(await total({ budget: '1GiB' }), none);
    // Everything is kept in all layers but one or two, whose attention is kept, or nothing.
    const { settings } = await plan({ budget: none - 1 });
    assert.match(settings.gradientCheckpointing, /^everything kept in [45] layers, attention in \d, inputs in the others$/);
    assert.equal(await total({ budget: full }), full);
    const fewest = Math.min(...(await Promise.all([1, 2, 3, 4, 5, 6, 7].map((every) => total({ every })))));
    assert.equal(await total({ budget: fewest }), fewest);
    await assert.rejects(total({ budget: fewest - 1 }), {
      code: 'OUT_OF_MEMORY',
      message: new RegExp(`needs ${fewest} bytes at least, but may take ${fewest - 1};`),
    });
    assert.equal(await total({ every: 1 }), full);
    assert.equal(await total({ every: 7 }), await total({ every: 8 }));
  });

  it('keeps nothing of layers below the lowest that is trained', async () => {
    const activations = async (peft: LoraConfig) => (await plan(false, 7, peft)).components.activations;
    const [all, top] = [await activations({}), await activations({ layersToTransform: [6] })];
    assert.ok(top < 0.45 * all, String([top, all]));
  });

  it('parks inputs in a file of outputDir without a name, and says where there is no room for one', async () => {
    const activations = async (num_hidden_layers: number) => {
      const { components, settings } = await estimateMemory({
        model: { ...llamaConfig, num_hidden_layers },
        args: { gradientCheckpointing: 'offload', perDeviceTrainBatchSize: 64 },
      });
      assert.equal(settings.gradientCheckpointing, 'offload');
      return components.activations;
    };
    assert.equal(await activations(4), await activations(40));
    await learnt(7, { gradientCheckpointing: 'offload' });
    assert.deepEqual(
      readdirSync(outputDir).filter((name) => name.startsWith('.')),
      [],
    );
    const model = await CausalLM.fromConfig(llamaConfig);
    const peft = await getPeftModel(model, { r: 4 });
    const keep = { mode: 'inputs', every: 1, folder: join(outputDir, 'missing') } as const;
    const session = call(() => native().createSession(peft.core.native, { maxTokens: 8, keep, noDecay: [] }));
    const batch = {
      ids: Int32Array.of(1, 2),
      positions: Int32Array.of(0, 1),
      starts: Int32Array.of(0, 2),
      targets: Int32Array.of(2, -100),
    };
    await assert.rejects(
      call(() => session.accumulate(batch, { gradScale: 1, seed: 0, step: 0, micro: 0 })),
      { code: 'IO_ERROR', message: /missing: no file for the inputs of blocks could be made here/ },
    );
  });

  it('is refused by name where it is not there', async () => {
    const expected = /expected true, false, 'full', 'selective', 'offload', \{ every: layers \} or \{ budget: '6GiB' \}/;
    for (const [wrong, message] of [
      ['partial', expected],
      [{ every: 2, budget: 9 }, expected],
      [{ every: 0 }, /args\.gradientCheckpointing\.every: found 0, expected at least 1/],
      [{ every: 1.5 }, /args\.gradientCheckpointing\.every: found 1\.5/],
      [
        { budget: '6 gigs' },
        /args\.gradientCheckpointing\.budget: found "6 gigs", expected a number of bytes or a text like '512MiB' or '6GB'/,
      ],
      [{ budget: 0 }, /args\.gradientCheckpointing\.budget: found 0/],
    ] as const) {
      await assert.rejects(trainer(1, { gradientCheckpointing: wrong as Checkpointing }), { code: 'INVALID_OPTION', message });
    }
  });
});
