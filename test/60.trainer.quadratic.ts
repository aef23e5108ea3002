// A small model that really learns, in plain TypeScript, for tests of the loop: for the token `id` that is to predict `target`,
//   nll = ½ (w[id mod N] · mask − target / 50)²
// with a dropout mask drawn from (seed, step, micro), and AdamW in fp32.
import { mkdtempSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { writeIntoFolder } from '../lib/files/atomic_folder.ts';
import { type FileSystem, nodeFiles, writeFileSynced } from '../lib/files/file_system.ts';
import type { NativeLoss, NativeTrainBatch, NativeUpdate } from '../lib/native.ts';
import { parseTrainerOptions, type TrainerOptions } from '../lib/options/trainer_options.ts';
import { evaluateBatches } from '../lib/train/evaluation.ts';
import type { Progress } from '../lib/train/progress.ts';
import type { Trainable } from '../lib/train/trainable.ts';
import { type RowList, UnitData } from '../lib/train/training_data.ts';
import { type FinishedTraining, runTraining } from '../lib/train/training_run.ts';
import type { TokenRow } from '../lib/types.ts';

const SIZE = 16;
const IGNORED = -100;

export function random(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Rows of 2 to 12 tokens of which some are supervised. */
export function randomRows(count: number, seed: number): RowList & { rows: TokenRow[] } {
  const next = random(seed);
  const rows = Array.from({ length: count }, () => {
    const length = 2 + Math.floor(next() * 11);
    const inputIds = Int32Array.from({ length }, () => Math.floor(next() * 100));
    const labels = inputIds.map((id, place) => (place === 1 || next() < 0.6 ? id : IGNORED));
    return { inputIds, labels };
  });
  return { rows, length: count, row: (index) => rows[index] as TokenRow };
}

export interface QuadraticOptions {
  dropout?: number;
  base?: number;
  r?: number;
  isa?: string;
  files?: FileSystem;
  /** Called before each micro-batch. */
  onMicro?: (step: number, micro: number) => void;
  /** Steps whose loss, or gradient, is not finite. */
  brokenLoss?: (step: number) => boolean;
  brokenGradient?: (step: number) => boolean;
}

export class Quadratic implements Trainable {
  readonly weights = new Float32Array(SIZE);
  readonly gradient = new Float32Array(SIZE);
  readonly m = new Float32Array(SIZE);
  readonly v = new Float32Array(SIZE);
  t = 0;
  #step = 0;
  readonly #options: QuadraticOptions;

  constructor(options: QuadraticOptions = {}) {
    this.#options = options;
  }

  async accumulate(
    batch: NativeTrainBatch,
    { gradScale, seed, step, micro }: { gradScale: number; seed: number; step: number; micro: number },
  ): Promise<NativeLoss> {
    this.#options.onMicro?.(step, micro);
    this.#step = step;
    const keep = 1 - (this.#options.dropout ?? 0);
    const next = random(seed * 7919 + step * 104729 + micro);
    const loss = this.#forward(
      batch,
      () => (next() < keep ? 1 / keep : 0),
      (place, slope) => {
        this.gradient[place] = (this.gradient[place] as number) + gradScale * slope;
      },
    );
    if (this.#options.brokenLoss?.(step)) loss.nllSum = Number.NaN;
    await new Promise((resolve) => setImmediate(resolve));
    return loss;
  }

  async evaluate(batch: NativeTrainBatch): Promise<NativeLoss> {
    return this.#forward(
      batch,
      () => 1,
      () => {},
    );
  }

  async update({
    learningRate,
    beta1,
    beta2,
    epsilon,
    weightDecay,
    maxGradNorm,
  }: NativeUpdate): Promise<{ gradNorm: number; skipped: boolean }> {
    if (this.#options.brokenGradient?.(this.#step)) this.gradient[0] = Number.NaN;
    const gradNorm = Math.sqrt(this.gradient.reduce((sum, value) => sum + value * value, 0));
    const skipped = !Number.isFinite(gradNorm);
    if (!skipped) {
      this.t += 1;
      const clip = maxGradNorm > 0 && gradNorm > maxGradNorm ? maxGradNorm / gradNorm : 1;
      this.gradient.forEach((value, i) => {
        const g = value * clip;
        this.m[i] = beta1 * (this.m[i] as number) + (1 - beta1) * g;
        this.v[i] = beta2 * (this.v[i] as number) + (1 - beta2) * g * g;
        const change = (this.m[i] as number) / (1 - beta1 ** this.t) / (Math.sqrt((this.v[i] as number) / (1 - beta2 ** this.t)) + epsilon);
        this.weights[i] = (this.weights[i] as number) * (1 - learningRate * weightDecay) - learningRate * change;
      });
    }
    await this.zeroGradients();
    return { gradNorm, skipped };
  }

  async zeroGradients(): Promise<void> {
    this.gradient.fill(0);
  }

  async saveWeights(folder: string): Promise<void> {
    const files = this.#options.files ?? nodeFiles;
    const write = async (staging: string) => {
      await writeFileSynced(join(staging, 'adapter_model.bin'), bytes(this.weights), files);
      await writeFileSynced(join(staging, 'adapter_config.json'), `{"r": ${this.#options.r ?? 4}}`, files);
    };
    await writeIntoFolder(folder, 'adapter_config.json', write, files);
  }

  weightsFolder(folder: string): string {
    return folder;
  }

  async loadWeights(folder: string): Promise<void> {
    this.weights.set(floats(await nodeFiles.readFile(join(folder, 'adapter_model.bin'))));
  }

  async saveOptimizer(folder: string): Promise<void> {
    const all = Buffer.concat([bytes(this.m), bytes(this.v), bytes(Float32Array.of(this.t))]);
    await writeFileSynced(join(folder, 'optimizer.bin'), all, this.#options.files ?? nodeFiles);
  }

  async loadOptimizer(folder: string): Promise<void> {
    const all = floats(await nodeFiles.readFile(join(folder, 'optimizer.bin')));
    this.m.set(all.subarray(0, SIZE));
    this.v.set(all.subarray(SIZE, 2 * SIZE));
    this.t = all[2 * SIZE] as number;
  }

  async identity() {
    return { base: { probe: [this.#options.base ?? 1, 2, 3] }, adapter: { r: this.#options.r ?? 4 } };
  }

  machine() {
    return { isa: this.#options.isa ?? 'avx2' };
  }

  #forward(batch: NativeTrainBatch, mask: () => number, backward: (place: number, slope: number) => void): NativeLoss {
    const loss: NativeLoss = { nllSum: 0, tokens: 0, correct: 0 };
    batch.ids.forEach((id, i) => {
      const scale = mask();
      const target = batch.targets[i] as number;
      if (target === IGNORED) return;
      const difference = (this.weights[id % SIZE] as number) * scale - target / 50;
      loss.nllSum += 0.5 * difference * difference;
      loss.tokens += 1;
      loss.correct += Math.abs(difference) < 0.5 ? 1 : 0;
      backward(id % SIZE, difference * scale);
    });
    return loss;
  }
}

/** Everything that was shown. */
export class Recorder implements Progress {
  readonly messages: string[] = [];
  begin(): void {}
  step(): void {}
  log(): void {}
  message(text: string): void {
    this.messages.push(text);
  }
  warn(text: string): void {
    this.messages.push(`warning: ${text}`);
  }
  end(): void {}
}

export interface Setup extends QuadraticOptions {
  args?: TrainerOptions['args'];
  rows?: RowList;
  evalRows?: RowList;
  callbacks?: TrainerOptions['callbacks'];
  signal?: AbortSignal;
  model?: Quadratic;
  progress?: Progress;
}

/** The generator of a training of the quadratic model. */
export async function start(setup: Setup) {
  const rows = setup.rows ?? randomRows(23, 1);
  const options = parseTrainerOptions({
    model: 'quadratic',
    trainDataset: [],
    evalDataset: setup.evalRows && [],
    args: { learningRate: 0.05, ...setup.args },
    callbacks: setup.callbacks,
    signal: setup.signal,
  });
  const { args, callbacks, signal } = options;
  const model = setup.model ?? new Quadratic(setup);
  const data = await UnitData.from(rows, args.packing ? args.maxSeqLength : undefined, 'trainDataset');
  const held = setup.evalRows && (await UnitData.from(setup.evalRows, undefined, 'evalDataset'));
  const evaluation = held && {
    rows: held.units,
    run: (isStopped: () => boolean) =>
      evaluateBatches(held.batches(args.perDeviceEvalBatchSize, 1000), (batch) => model.evaluate(batch), isStopped),
  };
  return {
    model,
    data,
    steps: runTraining({
      args,
      callbacks,
      signal,
      trainable: model,
      data,
      evaluation,
      progress: setup.progress ?? new Recorder(),
      files: setup.files,
    }),
  };
}

/** Trains to the end. */
export async function train(setup: Setup): Promise<{ model: Quadratic; result: FinishedTraining; losses: number[] }> {
  const { model, steps } = await start(setup);
  const losses: number[] = [];
  for (;;) {
    const next = await steps.next();
    if (next.done) return { model, result: next.value, losses };
    losses.push(next.value.loss);
  }
}

export function newFolder(): string {
  return mkdtempSync(join(tmpdir(), 'lowrank-test-'));
}

export function bytes(values: Float32Array): Buffer {
  return Buffer.from(values.buffer, values.byteOffset, values.byteLength);
}

function floats(data: Buffer): Float32Array {
  return new Float32Array(data.buffer.slice(data.byteOffset, data.byteOffset + data.byteLength));
}
