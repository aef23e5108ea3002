import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { LowrankError } from '../lib/errors.ts';
import type { TrainerCallback } from '../lib/train/callbacks.ts';
import { evaluateBatches } from '../lib/train/evaluation.ts';
import { intervalSteps, planSteps } from '../lib/train/step_plan.ts';
import { UnitData } from '../lib/train/training_data.ts';
import { bytes, newFolder, Quadratic, Recorder, randomRows, start, train } from './60.trainer.quadratic.ts';

const code =
  (expected: string, ...parts: string[]) =>
  (error: unknown) =>
    error instanceof LowrankError && error.code === expected && parts.every((part) => error.message.includes(part));

describe('training loop', () => {
  let outputDir: string;
  beforeEach(() => {
    outputDir = newFolder();
  });
  afterEach(() => rm(outputDir, { recursive: true, force: true }));

  it('gives the same weights for batch 8, 4 accumulated twice and 1 accumulated eight times', async () => {
    const rows = randomRows(16, 3);
    const weights: Float32Array[] = [];
    for (const [perDeviceTrainBatchSize, gradientAccumulationSteps] of [
      [8, 1],
      [4, 2],
      [1, 8],
    ]) {
      const { model } = await train({
        rows,
        args: { outputDir, perDeviceTrainBatchSize, gradientAccumulationSteps, numTrainEpochs: 2, maxGradNorm: 0 },
      });
      weights.push(model.weights);
    }
    for (const other of weights.slice(1)) {
      for (const [i, value] of other.entries()) assert.ok(Math.abs(value - (weights[0]?.[i] as number)) < 1e-6, `weight ${i}`);
    }
  });

  it("makes an epoch's last, shorter step a step of its own with its own divisor, and carries nothing over", async () => {
    const rows = randomRows(9, 4);
    const { model, data, steps } = await start({
      rows,
      args: { outputDir, perDeviceTrainBatchSize: 2, gradientAccumulationSteps: 2, numTrainEpochs: 2, learningRate: 0, maxGradNorm: 0 },
    });
    const expected = [0, 1].flatMap((epoch) => {
      const order = data.order(42, epoch);
      return [order.slice(0, 4), order.slice(4, 8), order.slice(8)].map((units) => lossOf(model, data, [...units]));
    });
    let count = 0;
    for await (const step of steps) {
      const { loss, gradNorm } = await (expected[count] as ReturnType<typeof lossOf>);
      assert.ok(Math.abs(step.loss - loss) < 1e-12, `loss of step ${step.step}`);
      assert.ok(Math.abs(step.gradNorm - gradNorm) < 1e-6 * gradNorm, `gradient of step ${step.step}: ${step.gradNorm} is not ${gradNorm}`);
      assert.equal(step.epoch, [0.4, 0.8, 1, 1.4, 1.8, 2][count]);
      count += 1;
    }
    assert.equal(count, 6);
  });

  async function lossOf(model: Quadratic, data: UnitData, units: number[]) {
    const batch = data.batch(units);
    const { nllSum, tokens } = await model.evaluate(batch);
    const single = new Quadratic();
    await single.accumulate(batch, { gradScale: 1 / tokens, seed: 0, step: 0, micro: 0 });
    return { loss: nllSum / tokens, gradNorm: Math.hypot(...single.gradient) };
  }

  it('counts steps and epochs as Transformers does', () => {
    const args = { perDeviceTrainBatchSize: 2, gradientAccumulationSteps: 2, dataloaderDropLast: false, maxSteps: -1, numTrainEpochs: 3 };
    assert.deepEqual(planSteps(9, args), { microBatchesPerEpoch: 5, stepsPerEpoch: 3, totalSteps: 9, epochs: 3 });
    assert.deepEqual(planSteps(9, { ...args, dataloaderDropLast: true }), {
      microBatchesPerEpoch: 4,
      stepsPerEpoch: 2,
      totalSteps: 6,
      epochs: 3,
    });
    assert.deepEqual(planSteps(9, { ...args, numTrainEpochs: 1.5 }), {
      microBatchesPerEpoch: 5,
      stepsPerEpoch: 3,
      totalSteps: 5,
      epochs: 2,
    });
    assert.deepEqual(planSteps(9, { ...args, maxSteps: 7 }), { microBatchesPerEpoch: 5, stepsPerEpoch: 3, totalSteps: 7, epochs: 3 });
    assert.throws(() => planSteps(1, { ...args, dataloaderDropLast: true }), code('INVALID_DATASET', '1 row'));
    assert.deepEqual([intervalSteps(5, 100), intervalSteps(0.1, 101), intervalSteps(0.001, 10)], [5, 11, 1]);
  });

  it('visits every row once an epoch, in another order each time, the same for the same seed', async () => {
    const data = await UnitData.from(randomRows(30, 5), undefined, 'trainDataset');
    const [first, second] = [[...data.order(1, 0)], [...data.order(1, 1)]];
    assert.deepEqual(
      [...first].sort((a, b) => a - b),
      Array.from({ length: 30 }, (_, i) => i),
    );
    assert.notDeepEqual(first, second);
    assert.notDeepEqual(first, [...data.order(2, 0)]);
    assert.deepEqual(first, [...data.order(1, 0)]);
  });

  it('warms up, decays and logs as Transformers does', async () => {
    const { result, losses } = await train({
      rows: randomRows(20, 6),
      args: {
        outputDir,
        maxSteps: 10,
        perDeviceTrainBatchSize: 4,
        loggingSteps: 4,
        loggingFirstStep: true,
        warmupSteps: 2,
        learningRate: 0.1,
      },
    });
    const logs = result.logHistory;
    assert.deepEqual(
      logs.map((entry) => entry.step),
      [1, 4, 8, 10],
    );
    assert.equal(logs[0]?.learningRate, 0);
    assert.equal(logs[1]?.learningRate, 0.1 * (7 / 8));
    const mean = (from: number, to: number) => losses.slice(from, to).reduce((sum, loss) => sum + loss, 0) / (to - from);
    assert.ok(Math.abs((logs[1]?.loss as number) - mean(1, 4)) < 1e-12);
    assert.ok(Math.abs((logs[2]?.loss as number) - mean(4, 8)) < 1e-12);
    assert.ok(Math.abs(result.trainingLoss - mean(0, 10)) < 1e-12);
    assert.equal(logs[3]?.trainLoss, result.trainingLoss);
    const lines = readFileSync(join(outputDir, 'runs', 'log.jsonl'), 'utf8')
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line));
    assert.equal(lines.length, 4);
    assert.equal(lines[1].learning_rate, 0.1 * (7 / 8));
    assert.ok('grad_norm' in lines[1] && 'tokens_per_second' in lines[1]);
  });

  it('evaluates to the same loss whatever the batch', async () => {
    const data = await UnitData.from(randomRows(13, 7), undefined, 'evalDataset');
    const model = new Quadratic();
    model.weights.set(model.weights.map((_, i) => i / 10));
    const results = await Promise.all(
      [
        [1, 1000],
        [4, 1000],
        [8, 1000],
        [8, 5],
      ].map(([count, tokens]) => evaluateBatches(data.batches(count as number, tokens as number), (batch) => model.evaluate(batch))),
    );
    for (const result of results)
      assert.ok(Math.abs((result?.loss as number) - (results[0]?.loss as number)) < 1e-6 * (results[0]?.loss as number));
    assert.equal(results[3]?.tokens, results[0]?.tokens);
  });

  it('calls callbacks as Transformers does, and does what they ask for', async () => {
    const events: string[] = [];
    const record = (name: string) => () => void events.push(name);
    const callback: TrainerCallback = {
      onTrainBegin: record('trainBegin'),
      onEpochBegin: record('epochBegin'),
      onStepBegin: record('stepBegin'),
      onStepEnd(state, control, step) {
        events.push('stepEnd');
        assert.equal(step.step, state.globalStep);
        if (state.globalStep === 3) control.shouldSave = control.shouldTrainingStop = true;
      },
      onLog: record('log'),
      onEvaluate: record('evaluate'),
      onSave: record('save'),
      onEpochEnd: record('epochEnd'),
      onTrainEnd: record('trainEnd'),
    };
    const { result } = await train({
      rows: randomRows(8, 8),
      evalRows: randomRows(3, 9),
      callbacks: [callback],
      args: { outputDir, perDeviceTrainBatchSize: 4, evalStrategy: 'epoch', numTrainEpochs: 5, loggingSteps: 2 },
    });
    assert.equal(result.globalStep, 3);
    assert.deepEqual(events.filter((name) => name === 'save').length, 1);
    assert.ok((await readdir(outputDir)).includes('checkpoint-3'));
    const order = [
      'trainBegin',
      'epochBegin',
      'stepBegin',
      'stepEnd',
      'stepBegin',
      'stepEnd',
      'log',
      'epochEnd',
      'log',
      'evaluate',
      'epochBegin',
      'stepBegin',
      'stepEnd',
      'save',
      'epochEnd',
      'log',
      'evaluate',
      'log',
      'trainEnd',
    ];
    assert.deepEqual(events, order);
  });

  it('ends the training with the error of a callback', async () => {
    const callbacks = [{ onStepEnd: () => Promise.reject(new Error('mine')) }];
    await assert.rejects(train({ callbacks, args: { outputDir } }), /mine/);
    await train({ args: { outputDir, maxSteps: 1 } });
  });

  it('ends with the best weights when asked, and never deletes the best checkpoint', async () => {
    // The learning rate is so high that the evaluation gets worse after a while.
    const args = {
      outputDir,
      maxSteps: 12,
      perDeviceTrainBatchSize: 4,
      evalStrategy: 'steps' as const,
      evalSteps: 2,
      saveSteps: 2,
      saveTotalLimit: 2,
      loadBestModelAtEnd: true,
      learningRate: 0.9,
      lrSchedulerType: 'constant' as const,
    };
    const { model, result } = await train({ rows: randomRows(12, 10), evalRows: randomRows(5, 11), args });
    const evaluations = result.logHistory.filter((entry) => entry.evalLoss !== undefined);
    assert.equal(evaluations.length, 6);
    const best = evaluations.reduce((a, b) => ((b.evalLoss as number) < (a.evalLoss as number) ? b : a));
    assert.ok(best.step < 10, 'the test needs a best that is not the last');
    const saved = readFileSync(join(outputDir, `checkpoint-${best.step}`, 'adapter_model.bin'));
    assert.ok(saved.equals(bytes(model.weights)));
    assert.ok(saved.equals(readFileSync(join(outputDir, 'adapter_model.bin'))));
    const kept = (await readdir(outputDir)).filter((name) => name.startsWith('checkpoint-')).sort();
    assert.deepEqual(kept, [`checkpoint-${best.step}`, 'checkpoint-12'].sort());
  });

  it('leaves out steps that are not finite, counts them, and gives up after ten in a row', async () => {
    const progress = new Recorder();
    const { model, result, losses } = await train({
      progress,
      args: { outputDir, maxSteps: 8 },
      brokenLoss: (step) => step === 2,
      brokenGradient: (step) => step === 4,
    });
    assert.equal(result.skippedSteps, 2);
    assert.equal(model.t, 6);
    assert.ok(Number.isNaN(losses[2]));
    assert.ok(Number.isFinite(result.trainingLoss));
    assert.ok(progress.messages.some((text) => text.includes('step 3: the loss is NaN')));
    assert.ok(progress.messages.some((text) => text.includes('step 5: the norm of the gradient is NaN')));
    await assert.rejects(train({ args: { outputDir, maxSteps: 50 }, brokenGradient: (step) => step >= 5 }), code('NON_FINITE', 'step 15'));
  });

  it('leaves out rows without a supervised token and refuses data that has none', async () => {
    const rows = randomRows(5, 12);
    rows.rows[2]?.labels.fill(-100);
    const data = await UnitData.from(rows, undefined, 'trainDataset');
    assert.equal(data.units, 4);
    assert.equal(data.summary.empty, 1);
    for (const row of rows.rows) row.labels.fill(-100);
    await assert.rejects(UnitData.from(rows, undefined, 'trainDataset'), code('INVALID_DATASET', 'none of the 5 rows'));
    await assert.rejects(UnitData.from(randomRows(0, 1), undefined, 'trainDataset'), code('INVALID_DATASET', 'no rows'));
  });

  it('trains on packed rows', async () => {
    const rows = randomRows(40, 13);
    const { result } = await train({
      rows,
      args: { outputDir, packing: true, maxSeqLength: 24, perDeviceTrainBatchSize: 2, numTrainEpochs: 1 },
    });
    assert.equal(
      result.tokens,
      rows.rows.reduce((sum, row) => sum + row.inputIds.length, 0),
    );
    assert.ok(result.globalStep < 20);
  });
});
