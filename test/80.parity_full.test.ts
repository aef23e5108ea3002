import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { CausalLM, LoraTrainer, type TrainingArguments, type TrainingStep } from '../lib/index.ts';
import {
  assertClose,
  assertSteps,
  type ParityFull,
  parityFull,
  parityFullNames,
  readArrays,
  trainingRows,
  valuesOf,
} from './support/parity.ts';

// As for adapters: the fixtures' own distance from fp64 after twenty steps is below 1e-4 of a tensor's largest value.
const kSteps = { loss: 1e-4, gradNorm: 1e-3 };
const kTrained = 1e-3;

describe('parity with Transformers: 20 steps of full fine-tuning in float32, AdamW with weight decay, clipping and a linear schedule', () => {
  let folder: string;
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'lowrank-parity-'));
  });
  afterEach(() => rmSync(folder, { recursive: true, force: true }));

  /** Trains on the fixture's batch as one step, `rowsPerMicroBatch` rows at a time; the steps and the names of what was frozen. */
  async function train(
    fixture: ParityFull,
    rowsPerMicroBatch: number,
    more: TrainingArguments = {},
  ): Promise<{ steps: TrainingStep[]; frozen: string[] }> {
    const { model, options, layers, trainedBatch } = fixture;
    const batch = model.batches[trainedBatch];
    assert.ok(batch);
    const rows = trainingRows(batch);
    const trainer = new LoraTrainer({
      model: await CausalLM.fromPretrained(model.folder, { dtype: 'float32' }),
      trainDataset: rows,
      peftConfig: null,
      layers,
      args: {
        bf16: false,
        ...options,
        outputDir: folder,
        perDeviceTrainBatchSize: rowsPerMicroBatch,
        gradientAccumulationSteps: Math.ceil(rows.length / rowsPerMicroBatch),
        saveStrategy: 'no',
        logLevel: 'error',
        ...more,
      },
    });
    const steps: TrainingStep[] = [];
    for await (const step of trainer.steps()) steps.push(step);
    const frozen = trainer.model.parameters().filter((parameter) => !parameter.requiresGrad);
    await trainer.model.dispose();
    return { steps, frozen: frozen.map((parameter) => parameter.name) };
  }

  for (const [modelName, name] of parityFullNames()) {
    it(`gives the losses, gradient norms and weights of ${modelName} (${name})`, async () => {
      const fixture = parityFull(modelName, name);
      const { steps, frozen } = await train(fixture, 3);
      assertSteps(steps, fixture, kSteps);
      assert.equal(frozen.length > 0, Object.keys(fixture.layers).length > 0);
      const saved = readArrays(join(folder, 'model.safetensors'));
      assert.deepEqual([...saved.keys()].sort(), [...fixture.expected.keys()].sort());
      for (const [tensor, values] of saved) {
        assertClose(tensor, values, valuesOf(fixture.expected, tensor), frozen.includes(tensor) ? 0 : kTrained);
      }
    });
  }

  it('gives the same when rows of different label counts are accumulated one by one, and when layers are recomputed', async () => {
    const fixture = parityFull('llama_tied', 'all');
    const { steps } = await train(fixture, 1, { gradientCheckpointing: true });
    assertSteps(steps, fixture, kSteps);
  });
});
