import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { LoraTrainer, PeftModel, type TrainingArguments, type TrainingStep } from '../lib/index.ts';
import {
  assertClose,
  assertSteps,
  type ParityAdapter,
  parityAdapter,
  parityAdapterNames,
  readArrays,
  trainingRows,
  valuesOf,
} from './support/parity.ts';

// Twenty steps carry rounding along; the fixtures' own distance from fp64 after them is below 1e-4 of a tensor's largest value.
const kSteps = { loss: 1e-4, gradNorm: 1e-3 };
const kTrained = 1e-3;

/** Trains on the fixture's batch as one step, `rowsPerMicroBatch` rows at a time. */
async function train(
  fixture: ParityAdapter,
  rowsPerMicroBatch: number,
  outputDir: string,
  more: TrainingArguments = {},
): Promise<TrainingStep[]> {
  const batch = fixture.model.batches[fixture.trainedBatch];
  assert.ok(batch);
  const rows = trainingRows(batch);
  const trainer = new LoraTrainer({
    model: await PeftModel.fromPretrained(fixture.model.folder, fixture.folder, { isTrainable: true }),
    trainDataset: rows,
    args: {
      bf16: false,
      ...fixture.options,
      outputDir,
      perDeviceTrainBatchSize: rowsPerMicroBatch,
      gradientAccumulationSteps: Math.ceil(rows.length / rowsPerMicroBatch),
      saveStrategy: 'no',
      disableTqdm: true,
      loggingStrategy: 'no',
      ...more,
    },
  });
  const steps: TrainingStep[] = [];
  try {
    for await (const step of trainer.steps()) steps.push(step);
    await (trainer.model as PeftModel).savePretrained(outputDir);
  } finally {
    await trainer.model.dispose();
  }
  return steps;
}

describe('parity with PEFT: 20 steps of AdamW with weight decay, clipping and a linear schedule', () => {
  let folder: string;
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'lowrank-parity-'));
  });
  afterEach(() => rmSync(folder, { recursive: true, force: true }));

  for (const [modelName, adapterName] of parityAdapterNames()) {
    it(`gives the losses, gradient norms and final weights of ${adapterName} on ${modelName}`, async () => {
      const fixture = parityAdapter(modelName, adapterName);
      assertSteps(await train(fixture, 3, folder), fixture, kSteps);
      const trained = readArrays(join(folder, 'adapter_model.safetensors'));
      const expectedNames = [...fixture.expected.keys()]
        .filter((key) => key.startsWith('trained.'))
        .map((key) => key.slice('trained.'.length));
      assert.deepEqual([...trained.keys()].sort(), expectedNames.sort());
      for (const [name, values] of trained) assertClose(name, values, valuesOf(fixture.expected, `trained.${name}`), kTrained);
    });
  }

  it('gives the same when rows of different label counts are accumulated one by one', async () => {
    const fixture = parityAdapter('llama_tied', 'all_linear');
    assertSteps(await train(fixture, 1, folder), fixture, kSteps);
  });

  it('gives the same when layers are recomputed in the backward pass', async () => {
    const fixture = parityAdapter('mistral_window', 'all_linear');
    assertSteps(await train(fixture, 3, folder, { gradientCheckpointing: true }), fixture, kSteps);
  });
});
