import assert from 'node:assert/strict';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { TrainedLayers, TrainingStep } from '../../lib/index.ts';
import { native } from '../../lib/native.ts';

// The fixtures that test/reference/make_fixtures.py writes, and how what is computed here is compared with them.

const modelsFolder = fileURLToPath(new URL('../fixtures/models', import.meta.url));
const fullFolder = fileURLToPath(new URL('../fixtures/full', import.meta.url));

export interface ParityBatch {
  inputIds: number[][];
  attentionMask: number[][];
  labels: number[][];
  loss: number;
  tokens: number;
}

export interface ParityModel {
  name: string;
  about: string;
  folder: string;
  batches: Record<string, ParityBatch>;
  /** Read when asked for: tests are named before there need be a native binary. */
  readonly expected: Map<string, Values>;
}

/** Expected values and their shape. */
export interface Values {
  shape: readonly number[];
  data: Float32Array;
}

/** A training of some steps on one batch, as PyTorch did it. */
export interface ParityTraining {
  model: ParityModel;
  trainedBatch: string;
  options: {
    maxSteps: number;
    warmupSteps: number;
    learningRate: number;
    weightDecay: number;
    maxGradNorm: number;
    lrSchedulerType: 'linear';
  };
  training: { losses: number[]; gradNorms: number[]; learningRates: number[] };
  expected: Map<string, Values>;
}

export interface ParityAdapter extends ParityTraining {
  name: string;
  folder: string;
  loss: Record<string, number>;
  trainableParameters: string;
}

/** Full fine-tuning; `expected` are all tensors afterwards. */
export interface ParityFull extends ParityTraining {
  name: string;
  layers: TrainedLayers;
}

export interface ParityGguf {
  name: string;
  path: string;
  inputIds: number[][];
  expected: Map<string, Values>;
}

export function readJson(path: string): unknown {
  return JSON.parse(readFileSync(path, 'utf8'));
}

/** All tensors of a safetensors file. */
export function readArrays(path: string): Map<string, Values> {
  const file = native().openTensorFile(path);
  try {
    return new Map(file.tensors().map(({ name, shape }) => [name, { shape, data: file.read(name) }]));
  } finally {
    file.close();
  }
}

function namesWith(folder: string, suffix: string): string[] {
  if (!existsSync(folder)) return [];
  return readdirSync(folder)
    .filter((name) => name.endsWith(suffix))
    .map((name) => name.slice(0, -suffix.length))
    .sort();
}

/** Names of the tiny models, so that tests can be named before anything is read. */
export function parityModelNames(): string[] {
  return readdirSync(modelsFolder)
    .filter((name) => existsSync(join(modelsFolder, name, 'batches.json')))
    .sort();
}

export function parityModel(name: string): ParityModel {
  const folder = join(modelsFolder, name);
  const { about, batches } = readJson(join(folder, 'batches.json')) as Pick<ParityModel, 'about' | 'batches'>;
  return {
    name,
    about,
    folder,
    batches,
    get expected() {
      return readArrays(join(folder, 'expected.safetensors'));
    },
  };
}

/** [model, adapter] names. */
export function parityAdapterNames(): [string, string][] {
  return parityModelNames().flatMap((model) =>
    namesWith(join(modelsFolder, model, 'adapters'), '.json').map((adapter): [string, string] => [model, adapter]),
  );
}

export function parityAdapter(modelName: string, name: string): ParityAdapter {
  const model = parityModel(modelName);
  const folder = join(model.folder, 'adapters', name);
  const recorded = readJson(`${folder}.json`) as Omit<ParityAdapter, 'name' | 'model' | 'folder' | 'expected'>;
  return { ...recorded, name, model, folder, expected: readArrays(`${folder}.safetensors`) };
}

/** [model, case] names. */
export function parityFullNames(): [string, string][] {
  return readdirSync(fullFolder)
    .sort()
    .flatMap((model) => namesWith(join(fullFolder, model), '.json').map((name): [string, string] => [model, name]));
}

export function parityFull(modelName: string, name: string): ParityFull {
  const path = join(fullFolder, modelName, name);
  const recorded = readJson(`${path}.json`) as Omit<ParityFull, 'name' | 'model' | 'expected'>;
  return { ...recorded, name, model: parityModel(modelName), expected: readArrays(`${path}.safetensors`) };
}

export function parityGgufNames(): string[] {
  return namesWith(join(modelsFolder, 'gguf'), '.gguf');
}

export function parityGguf(name: string): ParityGguf {
  const path = join(modelsFolder, 'gguf', name);
  const { inputIds } = readJson(`${path}.json`) as Pick<ParityGguf, 'inputIds'>;
  return { name, path: `${path}.gguf`, inputIds, expected: readArrays(`${path}.safetensors`) };
}

export function valuesOf(values: Map<string, Values>, name: string): Values {
  const found = values.get(name);
  assert.ok(found, `${name} is missing; there are ${[...values.keys()].join(', ')}`);
  return found;
}

/** The largest error relative to the largest expected value, and the error's norm relative to the expected norm. */
function relativeErrors(actual: Float32Array, expected: Float32Array): { max: number; norm: number } {
  let largest = 0;
  let largestError = 0;
  let squares = 0;
  let errorSquares = 0;
  for (let i = 0; i < expected.length; ++i) {
    const error = Math.abs((actual[i] as number) - (expected[i] as number));
    // A NaN must not be lost in Math.max's favour of what came before.
    largestError = error > largestError || Number.isNaN(error) ? error : largestError;
    largest = Math.max(largest, Math.abs(expected[i] as number));
    squares += (expected[i] as number) ** 2;
    errorSquares += error ** 2;
  }
  const relative = (error: number, size: number) => (error === 0 ? 0 : error / size);
  return { max: relative(largestError, largest), norm: relative(Math.sqrt(errorSquares), Math.sqrt(squares)) };
}

/** Asserts equal shapes, and errors of at most `tolerance` of the largest expected value and of the expected norm. */
export function assertClose(what: string, actual: Values, expected: Values, tolerance: number): void {
  assert.deepEqual([...actual.shape], [...expected.shape], `${what}: shape`);
  const { max, norm } = relativeErrors(actual.data, expected.data);
  assert.ok(
    max <= tolerance && norm <= tolerance,
    `${what}: relative error ${max.toExponential(2)} (largest), ${norm.toExponential(2)} (norm); allowed ${tolerance}`,
  );
}

/** `values` [rows, length, channels] with zeros where the mask is zero, as the expected logits have them. */
export function maskedRows(values: Values, mask: number[][]): Values {
  const [, length, channels] = values.shape as [number, number, number];
  const data = values.data.slice();
  mask.forEach((row, r) => {
    row.forEach((kept, c) => {
      if (!kept) data.fill(0, (r * length + c) * channels, (r * length + c + 1) * channels);
    });
  });
  return { shape: values.shape, data };
}

/** Asserts the learning rates, losses and gradient norms of a training's steps. */
export function assertSteps(
  steps: readonly TrainingStep[],
  { training }: ParityTraining,
  tolerances: { loss: number; gradNorm: number },
): void {
  assert.equal(steps.length, training.losses.length);
  steps.forEach((step, i) => {
    const near = (what: string, actual: number, expected: number, tolerance: number) =>
      assert.ok(Math.abs(actual - expected) <= tolerance * Math.abs(expected), `${what} of step ${i + 1}: ${actual}; expected ${expected}`);
    near('learning rate', step.learningRate, training.learningRates[i] as number, 1e-9);
    near('loss', step.loss, training.losses[i] as number, tolerances.loss);
    near('gradient norm', step.gradNorm, training.gradNorms[i] as number, tolerances.gradNorm);
  });
}

/** A batch's rows without their padding, as training data. */
export function trainingRows(batch: ParityBatch): { inputIds: number[]; labels: number[] }[] {
  return batch.inputIds.map((ids, r) => {
    const kept = (_: number, c: number) => batch.attentionMask[r]?.[c] === 1;
    return { inputIds: ids.filter(kept), labels: (batch.labels[r] as number[]).filter(kept) };
  });
}
