import { mkdir } from 'node:fs/promises';
import { ioError } from '../files/file_system.ts';
import {
  type NativeComputeType,
  type NativeLoss,
  type NativeOptimizer,
  type NativeRetention,
  type NativeSession,
  type NativeTrainBatch,
  type NativeUpdate,
  native,
} from '../native.ts';
import { stateFormat } from '../options/optimizers.ts';
import { computeTypeName } from '../system.ts';
import type { FingerprintPart } from './fingerprint.ts';
import { readOptimizer, writeOptimizer } from './optimizer_file.ts';
import type { Trainable } from './trainable.ts';
import type { TrainedWeights } from './trained_weights.ts';

/** Transformers' patterns of parameters without weight decay. */
const NO_DECAY = /bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)/i;

export interface SessionOptions {
  /** Most tokens of a micro-batch. */
  maxTokens: number;
  keep: NativeRetention;
  optimizer: NativeOptimizer;
  computeType: NativeComputeType;
  /** Of what is drawn in updates. */
  seed: number;
}

/** Weights under training in native code. */
export class NativeTrainable implements Trainable {
  readonly #weights: TrainedWeights;
  readonly #identity: { base: FingerprintPart; adapter: FingerprintPart };
  readonly #session: NativeSession;
  readonly #stateFormat: string;
  readonly #computeType: NativeComputeType;

  private constructor(
    weights: TrainedWeights,
    identity: { base: FingerprintPart; adapter: FingerprintPart },
    session: NativeSession,
    { computeType, optimizer }: SessionOptions,
  ) {
    this.#weights = weights;
    this.#identity = identity;
    this.#session = session;
    this.#computeType = computeType;
    this.#stateFormat = stateFormat(optimizer);
  }

  /** Allocates gradients, optimizer and workspace. The model goes on computing in `computeType`. */
  static async create(weights: TrainedWeights, options: SessionOptions): Promise<NativeTrainable> {
    const { computeType, optimizer, maxTokens, keep, seed } = options;
    for (const { folder } of [optimizer, keep]) if (folder !== undefined) await makeFolder(folder);
    await weights.activate();
    const identity = await weights.identity();
    const noDecay = weights.names().filter((name) => NO_DECAY.test(name));
    const session = await weights.model.core.run((model) => {
      model.setCompute(computeType);
      return native().createSession(model, { maxTokens, keep, optimizer, noDecay, seed });
    });
    return new NativeTrainable(weights, identity, session, options);
  }

  accumulate(batch: NativeTrainBatch, options: { gradScale: number; seed: number; step: number; micro: number }): Promise<NativeLoss> {
    return this.#run(() => this.#session.accumulate(batch, options));
  }

  update(options: NativeUpdate): Promise<{ gradNorm: number; skipped: boolean }> {
    return this.#run(() => this.#session.update(options));
  }

  zeroGradients(): Promise<void> {
    return this.#run(() => this.#session.zeroGradients());
  }

  evaluate(batch: NativeTrainBatch): Promise<NativeLoss> {
    return this.#weights.model.core.run(() => this.#session.evaluate(batch));
  }

  saveWeights(folder: string): Promise<void> {
    return this.#weights.save(folder);
  }

  weightsFolder(folder: string): string {
    return this.#weights.folder(folder);
  }

  loadWeights(folder: string): Promise<void> {
    return this.#weights.load(folder);
  }

  saveOptimizer(folder: string): Promise<void> {
    return this.#run(() => writeOptimizer(this.#session, folder, this.#stateFormat));
  }

  /** @throws INVALID_OPTION where another optimizer made it; CHECKPOINT_CORRUPT */
  loadOptimizer(folder: string): Promise<void> {
    return this.#run(() => readOptimizer(this.#session, folder, this.#stateFormat));
  }

  async identity(): Promise<{ base: FingerprintPart; adapter: FingerprintPart }> {
    return this.#identity;
  }

  machine(): FingerprintPart {
    return { isa: native().systemInfo().isa, computeType: computeTypeName(this.#computeType) };
  }

  dispose(): void {
    this.#session.dispose();
  }

  #run<T>(operation: () => T | Promise<T>): Promise<T> {
    return this.#weights.model.core.run(operation);
  }
}

/** For the optimizer's file. */
async function makeFolder(folder: string): Promise<void> {
  await mkdir(folder, { recursive: true }).catch((error: unknown) => {
    throw ioError('making', folder, error);
  });
}
