import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { setImmediate, setTimeout } from 'node:timers/promises';
import { LowrankError } from '../lib/errors.ts';
import { CausalLM } from '../lib/model/causal_lm.ts';
import { getPeftModel, PeftModel } from '../lib/model/peft_model.ts';
import type { TrainerOptions } from '../lib/options/trainer_options.ts';
import { LoraTrainer } from '../lib/train/trainer.ts';
import { llamaConfig, tokenRows } from './60.trainer.llama.ts';
import { newFolder } from './60.trainer.quadratic.ts';

const code =
  (expected: string, ...parts: string[]) =>
  (error: unknown) =>
    error instanceof LowrankError && error.code === expected && parts.every((part) => error.message.includes(part));

describe('LoraTrainer on a small Llama', () => {
  let outputDir: string;
  let base: CausalLM;
  before(async () => {
    base = await CausalLM.fromConfig(llamaConfig, { seed: 5 });
  });
  after(() => base.dispose());
  beforeEach(() => {
    outputDir = newFolder();
  });
  afterEach(() => rm(outputDir, { recursive: true, force: true }));

  const trainDataset = tokenRows(40, 1);
  const peftConfig = { r: 4, loraAlpha: 8, targetModules: 'all-linear', loraDropout: 0.1 };
  const newBase = () => CausalLM.fromConfig(llamaConfig, { seed: 5 });
  const options = async (change: Partial<TrainerOptions> = {}): Promise<TrainerOptions> => ({
    model: await newBase(),
    trainDataset,
    peftConfig,
    ...change,
    args: {
      outputDir,
      maxSteps: 12,
      perDeviceTrainBatchSize: 4,
      gradientAccumulationSteps: 2,
      learningRate: 0.01,
      saveSteps: 5,
      loggingSteps: 4,
      logLevel: 'error',
      ...change.args,
    },
  });
  const adapter = (folder: string) => readFileSync(join(folder, 'adapter_model.safetensors'));

  it('learns, logs, evaluates and writes the adapter that gives the same losses when loaded', async () => {
    const trainer = new LoraTrainer(
      await options({
        evalDataset: tokenRows(10, 2),
        args: { bf16: false, maxSteps: 40, evalStrategy: 'steps', evalSteps: 20, evalOnStart: true }, // as the loaded model computes
      }),
    );
    const result = await trainer.train();
    const evaluations = result.logHistory.filter((entry) => entry.evalLoss !== undefined);
    assert.deepEqual(
      evaluations.map((entry) => entry.step),
      [0, 20, 40],
    );
    assert.ok((evaluations[2]?.evalLoss as number) < 0.99 * (evaluations[0]?.evalLoss as number), JSON.stringify(evaluations));
    assert.equal(result.globalStep, 40);
    assert.equal(result.adapterPath, outputDir);
    const { loss, perplexity, tokens, accuracy } = await trainer.evaluate();
    assert.equal(loss, evaluations[2]?.evalLoss);
    assert.ok(perplexity === Math.exp(loss) && tokens > 0 && accuracy > 0 && accuracy <= 1);
    const loaded = await PeftModel.fromPretrained(await newBase(), outputDir);
    const again = new LoraTrainer({
      model: await getPeftModel(await newBase(), peftConfig),
      trainDataset,
      evalDataset: tokenRows(10, 2),
      args: { outputDir, bf16: false, perDeviceEvalBatchSize: 3, logLevel: 'error' },
    });
    await again.plan();
    await again.model.restoreAdapter('default', outputDir);
    assert.ok(Math.abs((await again.evaluate()).loss - loss) < 1e-6 * loss);
    const row = trainDataset[0] as { inputIds: number[] };
    const [a, b] = await Promise.all([loaded, trainer.model].map((model) => model.forward({ inputIds: [row.inputIds] })));
    assert.deepEqual(a?.data, b?.data);
  });

  it('resumes bit for bit: weights, optimizer, log; with dropout and packing, in every compute type', async () => {
    for (const [packing, bf16] of [
      [false, false],
      [true, false],
      [false, true],
      [true, true],
    ] as const) {
      const args = { packing, bf16, maxSeqLength: 64 };
      const whole = newFolder();
      const { logHistory } = await new LoraTrainer(await options({ args: { ...args, outputDir: whole } })).train();
      const resumed = await new LoraTrainer(
        await options({ args: { ...args, resumeFromCheckpoint: join(whole, 'checkpoint-5') } }),
      ).train();
      assert.ok(adapter(outputDir).equals(adapter(whole)));
      for (const file of ['optimizer.safetensors', 'adapter_model.safetensors']) {
        assert.ok(readFileSync(join(outputDir, 'checkpoint-12', file)).equals(readFileSync(join(whole, 'checkpoint-12', file))), file);
      }
      const figures = (logs: typeof logHistory) =>
        logs.map(({ step, loss, gradNorm, learningRate, epoch }) => ({ step, loss, gradNorm, learningRate, epoch }));
      assert.deepEqual(figures(resumed.logHistory), figures(logHistory));
      await rm(whole, { recursive: true });
    }
  });

  it('gives the same bits twice and others for another seed', async () => {
    const run = async (seed: number) => {
      await new LoraTrainer(await options({ args: { seed, maxSteps: 4 } })).train();
      return adapter(outputDir);
    };
    const first = await run(1);
    assert.ok(first.equals(await run(1)));
    assert.ok(!first.equals(await run(2)));
  });

  it('gives the same bits whatever the number of threads', () => {
    const child = new URL('./60.trainer.threads_child.ts', import.meta.url).pathname;
    const hashes = [1, 2, 3].map((threads) => {
      const env = { ...process.env, LOWRANK_THREADS: String(threads) };
      const { stdout, stderr } = spawnSync(process.execPath, ['--import', 'tsx', child, outputDir], { encoding: 'utf8', env });
      assert.match(stdout, /^[0-9a-f]{64}$/, stderr);
      return stdout;
    });
    assert.equal(new Set(hashes).size, 1);
  });

  it('does not crash when its worker thread is terminated', () => {
    const child = new URL('./60.trainer.terminate_child.ts', import.meta.url).pathname;
    const { stdout, stderr } = spawnSync(process.execPath, ['--import', 'tsx', child, outputDir], { encoding: 'utf8' });
    assert.equal(stdout, '8 ended', stderr);
  });

  it('gives the same gradient step packed or not, in one micro-batch or accumulated', async () => {
    const norms: number[] = [];
    for (const args of [
      { perDeviceTrainBatchSize: 40, gradientAccumulationSteps: 1 },
      { perDeviceTrainBatchSize: 10, gradientAccumulationSteps: 4 },
      { perDeviceTrainBatchSize: 40, gradientAccumulationSteps: 1, packing: true, maxSeqLength: 48 },
    ]) {
      const trainer = new LoraTrainer(
        await options({ peftConfig: { ...peftConfig, loraDropout: 0 }, args: { ...args, maxSteps: 1, saveStrategy: 'no' } }),
      );
      for await (const step of trainer.steps()) norms.push(step.gradNorm);
    }
    for (const norm of norms) assert.ok(Math.abs(norm - (norms[0] as number)) < 1e-5 * norm, norms.join(' '));
  });

  it('refuses to resume on another base, and with another rank', async () => {
    await new LoraTrainer(await options({ args: { maxSteps: 5 } })).train();
    const other = await CausalLM.fromConfig(llamaConfig, { seed: 6 });
    await assert.rejects(
      new LoraTrainer(await options({ model: other, args: { resumeFromCheckpoint: true } })).train(),
      code('INVALID_OPTION', 'base.probe'),
    );
    await assert.rejects(
      new LoraTrainer(await options({ peftConfig: { ...peftConfig, r: 8 }, args: { resumeFromCheckpoint: true } })).train(),
      code('INVALID_OPTION', 'adapter.r was 4 and is 8'),
    );
  });

  it("trains on a PeftModel's own adapter, and keeps the number of trained parameters over a resume", async () => {
    const peft = await getPeftModel(await newBase(), { ...peftConfig, modulesToSave: ['lm_head'] }, 'tuned');
    const trained = peft.countParameters().trainable;
    const result = await new LoraTrainer(await options({ model: peft, peftConfig: undefined, args: { maxSteps: 5 } })).train();
    assert.equal(result.adapterPath, join(outputDir, 'tuned'));
    assert.ok((await readdir(result.adapterPath)).includes('adapter_model.safetensors'));
    const fresh = await getPeftModel(await newBase(), { ...peftConfig, modulesToSave: ['lm_head'] }, 'tuned');
    await new LoraTrainer(
      await options({ model: fresh, peftConfig: undefined, args: { maxSteps: 7, resumeFromCheckpoint: true } }),
    ).train();
    assert.equal(fresh.countParameters().trainable, trained);
    const forUse = await PeftModel.fromPretrained(await newBase(), join(outputDir, 'tuned'));
    await assert.rejects(
      new LoraTrainer(await options({ model: forUse, peftConfig: undefined })).train(),
      code('INVALID_OPTION', 'isTrainable'),
    );
    await assert.throws(
      () => new LoraTrainer({ model: fresh, trainDataset, peftConfig }),
      code('INVALID_OPTION', 'peftConfig', 'PeftModel'),
    );
  });

  it('plans its memory before it allocates', async () => {
    const trainer = new LoraTrainer(await options());
    const plan = await trainer.plan();
    const bytes = Object.values(plan.components);
    assert.ok(bytes.length > 1 && bytes.every((size) => Number.isSafeInteger(size) && size >= 0), JSON.stringify(plan));
    assert.equal(
      plan.total,
      bytes.reduce((a, b) => a + b),
    );
    assert.equal(trainer.model.activeAdapters[0], 'default');
  });

  it('stops reading rows when the adapter cannot be made, and answers with its error', async () => {
    const unhandled: unknown[] = [];
    const note = (reason: unknown) => unhandled.push(reason);
    process.on('unhandledRejection', note);
    try {
      let read = 0;
      const endless = async function* () {
        for (; ; read++) {
          yield { inputIds: [1, 2, 3] };
          await setImmediate();
        }
      };
      const change = { peftConfig: { r: 4, targetModules: ['nothing_here'] } };
      const unread = new LoraTrainer(await options({ ...change, trainDataset: endless() }));
      await assert.rejects(unread.train(), code('INVALID_OPTION', 'nothing_here'));
      const before = read;
      await setTimeout(20);
      assert.equal(read, before);
      // Both fail: the adapter's error is the answer, as rows are only for those that can be trained.
      await assert.rejects(new LoraTrainer(await options({ ...change, trainDataset: [] })).train(), code('INVALID_OPTION', 'nothing_here'));
      await setTimeout(20);
      assert.deepEqual(unhandled, []);
    } finally {
      process.off('unhandledRejection', note);
    }
  });

  it('validates when it is made, and says what is missing when it is used', async () => {
    assert.throws(
      () => new LoraTrainer({ model: base, trainDataset, args: { learningRate: -1 } }),
      code('INVALID_OPTION', 'args.learningRate'),
    );
    assert.throws(() => new LoraTrainer({ model: { generate() {} } as never, trainDataset }), code('INVALID_OPTION', 'model'));
    const trainer = new LoraTrainer(await options());
    assert.throws(() => trainer.model, code('INVALID_OPTION', 'trainer.model'));
    await assert.rejects(trainer.evaluate(), code('INVALID_OPTION', 'evalDataset'));
    await assert.rejects(
      new LoraTrainer({ model: await newBase(), trainDataset: [], args: { outputDir, logLevel: 'error' } }).train(),
      code('INVALID_DATASET'),
    );
    const unsupervised = [{ inputIds: [1, 2, 3], labels: [-100, -100, -100] }];
    await assert.rejects(
      new LoraTrainer({ model: await newBase(), trainDataset: unsupervised, args: { outputDir, logLevel: 'error' } }).train(),
      code('INVALID_DATASET'),
    );
    const foreign = [{ inputIds: [1, 2, 5000] }];
    await assert.rejects(
      new LoraTrainer({ model: await newBase(), trainDataset: foreign, args: { outputDir, logLevel: 'error' } }).train(),
      (error: unknown) => error instanceof LowrankError && /5000/.test(error.message),
    );
  });

  it('does not train twice at once, and trains again afterwards', async () => {
    const trainer = new LoraTrainer(await options({ args: { maxSteps: 2 } }));
    const first = trainer.train();
    await assert.rejects(trainer.train(), code('INVALID_OPTION', 'already'));
    await first;
    assert.equal((await trainer.train()).globalStep, 2);
  });

  it('keeps the event loop free', async () => {
    let last = performance.now();
    let longest = 0;
    const timer = setInterval(() => {
      longest = Math.max(longest, performance.now() - last);
      last = performance.now();
    }, 10);
    await new LoraTrainer(await options({ args: { maxSteps: 30, saveSteps: 5 } })).train();
    clearInterval(timer);
    assert.ok(longest < 100, `a 10 ms timer was ${longest} ms late`);
  });
});
