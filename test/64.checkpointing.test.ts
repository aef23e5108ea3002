// args.gradientCheckpointing: what is kept changes memory, never a bit of what is learnt.
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { CausalLM } from '../lib/model/causal_lm.ts';
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

  const trainer = async (layers: number, args: TrainingArguments) =>
    new LoraTrainer({
      model: await CausalLM.fromConfig({ ...llamaConfig, num_hidden_layers: layers }, { seed: 5 }),
      trainDataset: tokenRows(24, 1),
      peftConfig: { r: 4, loraAlpha: 8, targetModules: 'all-linear', loraDropout: 0.1 },
      args: { outputDir, maxSteps: 3, perDeviceTrainBatchSize: 4, learningRate: 0.01, logLevel: 'error', ...args },
    });

  it('gives the same bits whatever is kept, with dropout, in fp32 and bf16', async () => {
    for (const [layers, bf16] of [
      [1, false],
      [2, true],
      [7, false],
      [7, true],
    ] as const) {
      const learnt = async (gradientCheckpointing: Checkpointing) => {
        await (await trainer(layers, { bf16, gradientCheckpointing })).train();
        return readFileSync(join(outputDir, 'adapter_model.safetensors'));
      };
      const plain = await learnt(false);
      for (const kept of [true, 'full', 'selective', { every: 2 }, { every: 3 }, { every: 7 }, { every: 100 }] as const) {
        assert.ok((await learnt(kept)).equals(plain), JSON.stringify({ layers, bf16, kept }));
      }
    }
  });

  it('keeps the most that a budget allows, and says what would be needed at least', async () => {
    const total = async (gradientCheckpointing: Checkpointing) => (await (await trainer(7, { gradientCheckpointing })).plan()).total;
    const [none, selective, full] = [await total(false), await total('selective'), await total('full')];
    assert.ok(none > selective && selective > full, String([none, selective, full]));
    assert.equal(await total({ budget: none }), none);
    assert.equal(await total({ budget: '1GiB' }), none);
    assert.equal(await total({ budget: none - 1 }), selective);
    const least = await total({ budget: selective - 1 });
    assert.ok(least <= full);
    await assert.rejects(total({ budget: least - 1 }), {
      code: 'OUT_OF_MEMORY',
      message: new RegExp(`needs ${least} bytes at least, but may take ${least - 1};`),
    });
    assert.equal(await total({ every: 1 }), full);
    assert.equal(await total({ every: 7 }), await total({ every: 8 }));
  });

  it('is refused by name where it is not there', async () => {
    const expected =
      /expected true, false, 'full', 'selective', \{ every: layers \} or \{ budget: '6GiB' \} \('offload' is not available yet\)/;
    for (const [wrong, message] of [
      ['offload', expected],
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
