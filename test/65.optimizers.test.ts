// args.optim: every optimizer learns, resumes bit for bit, and holds the bytes that its plan says; paging changes no bit.
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync } from 'node:fs';
import { readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { LowrankError } from '../lib/errors.ts';
import { CausalLM } from '../lib/model/causal_lm.ts';
import { getPeftModel } from '../lib/model/peft_model.ts';
import { native } from '../lib/native.ts';
import { OPTIMIZERS, type OptimizerName } from '../lib/options/optimizers.ts';
import type { TrainingArguments } from '../lib/options/training_arguments.ts';
import { LoraTrainer } from '../lib/train/trainer.ts';
import { llamaConfig, tokenRows } from './60.trainer.llama.ts';

const names = Object.keys(OPTIMIZERS) as OptimizerName[];
/** Lion takes steps of full size in every direction, SGD tiny ones. */
const rateOf = (optim: OptimizerName) => (optim.includes('lion') ? 1e-3 : optim === 'sgd' ? 0.3 : 1e-2);
/** Its adapter of rank 256 has 2.3 million parameters: 17.8 MiB of AdamW's 32-bit states, 4.5 MiB of 8-bit ones. */
const wide = { ...llamaConfig, hidden_size: 256, intermediate_size: 512 };

const code =
  (expected: string, ...parts: string[]) =>
  (error: unknown) =>
    error instanceof LowrankError && error.code === expected && parts.every((part) => error.message.includes(part));

describe('optimizers', () => {
  const folders: string[] = [];
  const newFolder = () => {
    folders.push(mkdtempSync(join(tmpdir(), 'lowrank-optimizers-')));
    return folders.at(-1) as string;
  };
  after(() => Promise.all(folders.map((folder) => rm(folder, { recursive: true, force: true }))));

  // Of rank 128, so that matrices of 32 x 128 have 8-bit states and those of fewer inputs do not.
  const trainer = async (args: TrainingArguments, { config = llamaConfig, r = 128 }: { config?: typeof llamaConfig; r?: number } = {}) =>
    new LoraTrainer({
      model: await CausalLM.fromConfig(config, { seed: 5 }),
      trainDataset: tokenRows(4, 1), // a step sees them all
      peftConfig: { r, loraAlpha: r, targetModules: 'all-linear', loraDropout: 0.1 },
      args: {
        maxSteps: 8,
        perDeviceTrainBatchSize: 4,
        saveSteps: 4,
        loggingSteps: 1,
        weightDecay: 0.01,
        lrSchedulerType: 'constant',
        logLevel: 'error',
        ...args,
      },
    });
  const learnt = (folder: string) => readFileSync(join(folder, 'adapter_model.safetensors'));
  const states = (folder: string, step: number) => readFileSync(join(folder, `checkpoint-${step}`, 'optimizer.safetensors'));

  for (const optim of names) {
    it(`${optim} learns and resumes bit for bit`, async () => {
      const [whole, resumed] = [newFolder(), newFolder()];
      const args = { optim, learningRate: rateOf(optim) };
      const { logHistory } = await (await trainer({ ...args, outputDir: whole })).train();
      const losses = logHistory.flatMap(({ loss }) => (loss === undefined ? [] : [loss]));
      assert.equal(losses.length, 8);
      assert.ok((losses[7] as number) < 0.98 * (losses[0] as number), losses.join(', '));
      await (await trainer({ ...args, outputDir: resumed, resumeFromCheckpoint: join(whole, 'checkpoint-4') })).train();
      assert.ok(learnt(resumed).equals(learnt(whole)));
      assert.ok(states(resumed, 8).equals(states(whole, 8)));
    });
  }

  it('pages states through a file without a name, and learns the same bits', async () => {
    for (const [paged, plain] of [
      ['paged_adamw_32bit', 'adamw_torch'],
      ['paged_adamw_8bit', 'adamw_8bit'],
      ['paged_lion_32bit', 'lion_32bit'],
    ] as const) {
      const args = { learningRate: rateOf(paged), maxSteps: 4, saveSteps: 2, saveTotalLimit: 4 };
      const [a, b, c] = [newFolder(), newFolder(), newFolder()];
      const big = { config: wide, r: 256 };
      await (await trainer({ ...args, optim: plain, outputDir: a }, big)).train();
      await (await trainer({ ...args, optim: paged, optimizerMemory: '4MiB', outputDir: b }, big)).train();
      assert.ok(learnt(b).equals(learnt(a)), paged);
      assert.ok(states(b, 4).equals(states(a, 4)), paged);
      // The states of both are the same, so that either continues the other's.
      const resumeFromCheckpoint = join(a, 'checkpoint-2');
      await (await trainer({ ...args, optim: paged, optimizerMemory: '4MiB', outputDir: c, resumeFromCheckpoint }, big)).train();
      assert.ok(learnt(c).equals(learnt(a)), paged);
      assert.deepEqual(
        (await readdir(b)).filter((name) => name.includes('optimizer')),
        [],
      );
    }
  });

  it("muon's steps are those of adjustLrFn, and options of other optimizers are refused", async () => {
    const states = new Set<string>();
    for (const adjustLrFn of [undefined, 'match_rms_adamw', 'original', 'spectral_unclamped'] as const) {
      const folder = newFolder();
      await (await trainer({ outputDir: folder, optim: 'muon', maxSteps: 1, saveStrategy: 'no', optimArgs: { adjustLrFn } })).train();
      states.add(learnt(folder).toString('base64'));
    }
    assert.equal(states.size, 3);
    await assert.rejects(
      () => trainer({ outputDir: newFolder(), optim: 'sgd', optimArgs: { adjustLrFn: 'original' } }),
      code('INVALID_OPTION', 'args.optimArgs.adjustLrFn', "'muon'"),
    );
    await assert.rejects(
      () => trainer({ outputDir: newFolder(), optim: 'adamw_torch', optimArgs: { momentum: 0.5 } }),
      code('INVALID_OPTION', 'args.optimArgs.momentum', "'sgd' and 'muon'"),
    );
  });

  it('refuses to continue with another optimizer than the checkpoint was made with', async () => {
    const folder = newFolder();
    await (await trainer({ outputDir: folder, optim: 'adamw_8bit', maxSteps: 4 })).train();
    for (const optim of ['adamw_torch', 'lion_8bit', 'adafactor'] as const) {
      const other = await trainer({ outputDir: newFolder(), optim, resumeFromCheckpoint: join(folder, 'checkpoint-4') });
      await assert.rejects(() => other.train(), code('INVALID_OPTION', 'args.optim', 'adamw_8bit'));
    }
  });

  it('plans the bytes of its states', async () => {
    const bytes = async (args: TrainingArguments) =>
      (await (await trainer({ outputDir: newFolder(), ...args }, { config: wide, r: 256 })).plan()).components.optimizer;
    const adamw = await bytes({ optim: 'adamw_torch' });
    const coded = await bytes({ optim: 'adamw_8bit' });
    assert.equal(await bytes({ optim: 'lion_32bit' }), adamw / 2);
    assert.ok(coded > adamw * 0.25 && coded < adamw * 0.27, `${coded} of ${adamw}`);
    assert.equal(await bytes({ optim: 'paged_adamw_8bit' }), coded);
    assert.equal(await bytes({ optim: 'paged_adamw_8bit', optimizerMemory: '4MiB' }), 4 * 2 ** 20);
    assert.ok((await bytes({ optim: 'adafactor' })) < adamw / 50);
  });

  it('says which folder has no room for the states', async () => {
    const model = await CausalLM.fromConfig(wide, { seed: 5 });
    const peft = await getPeftModel(model, { r: 256, targetModules: 'all-linear' });
    const folder = join(newFolder(), 'missing');
    const optimizer = { kind: 'adamw', bits: 32, window: 4 * 2 ** 20, folder } as const;
    assert.throws(
      () => native().createSession(peft.core.native, { maxTokens: 8, keep: { mode: 'all', every: 1 }, noDecay: [], optimizer }),
      (error: Error & { code?: string }) => error.code === 'IO_ERROR' && error.message.includes(folder),
    );
  });
});
