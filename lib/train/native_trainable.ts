import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { LowrankError, shown } from '../errors.ts';
import { ioError } from '../files/file_system.ts';
import type { PeftModel } from '../model/peft_model.ts';
import {
  call,
  type NativeComputeType,
  type NativeLoss,
  type NativeModel,
  type NativeOptimizer,
  type NativeRetention,
  type NativeSession,
  type NativeTensorData,
  type NativeTrainBatch,
  type NativeUpdate,
  native,
} from '../native.ts';
import { stateFormat } from '../options/optimizers.ts';
import { computeTypeName } from '../system.ts';
import { type FingerprintPart, hashJson, PROBE } from './fingerprint.ts';
import type { Trainable } from './trainable.ts';

const OPTIMIZER_FILE = 'optimizer.safetensors';
/** Transformers' patterns of parameters without weight decay. */
const NO_DECAY = /bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)/i;
const PROBE_TOKENS = 8;
const PROBE_VALUES = 64;

export interface SessionOptions {
  /** Most tokens of a micro-batch. */
  maxTokens: number;
  keep: NativeRetention;
  optimizer: NativeOptimizer;
  computeType: NativeComputeType;
}

/** A PeftModel's active adapter under training in native code. */
export class NativeTrainable implements Trainable {
  readonly #peft: PeftModel;
  readonly #adapter: string;
  readonly #base: FingerprintPart;
  readonly #session: NativeSession;
  readonly #stateFormat: string;
  readonly #computeType: NativeComputeType;

  private constructor(
    peft: PeftModel,
    adapter: string,
    base: FingerprintPart,
    session: NativeSession,
    { computeType, optimizer }: SessionOptions,
  ) {
    this.#peft = peft;
    this.#adapter = adapter;
    this.#base = base;
    this.#session = session;
    this.#computeType = computeType;
    this.#stateFormat = stateFormat(optimizer);
  }

  /** Allocates gradients, optimizer and workspace. The model goes on computing in `computeType`. */
  static async create(peft: PeftModel, options: SessionOptions): Promise<NativeTrainable> {
    const { computeType, optimizer, maxTokens, keep } = options;
    if (optimizer.folder !== undefined) await makeFolder(optimizer.folder);
    const adapter = trainedAdapter(peft);
    const base = await peft.disableAdapter(() => peft.core.run(describeBase));
    const noDecay = peft.trainableNames().filter((name) => NO_DECAY.test(name));
    const session = await peft.core.run((model) => {
      model.setCompute(computeType);
      return native().createSession(model, { maxTokens, keep, optimizer, noDecay });
    });
    return new NativeTrainable(peft, adapter, base, session, options);
  }

  accumulate(batch: NativeTrainBatch, options: { gradScale: number; seed: number; step: number; micro: number }): Promise<NativeLoss> {
    return this.#peft.core.run(() => this.#session.accumulate(batch, options));
  }

  update(options: NativeUpdate): Promise<{ gradNorm: number; skipped: boolean }> {
    return this.#peft.core.run(() => this.#session.update(options));
  }

  zeroGradients(): Promise<void> {
    return this.#peft.core.run(() => this.#session.zeroGradients());
  }

  evaluate(batch: NativeTrainBatch): Promise<NativeLoss> {
    return this.#peft.core.run((model) => model.evaluate(batch));
  }

  saveWeights(folder: string): Promise<void> {
    return this.#peft.savePretrained(folder, { selectedAdapters: [this.#adapter] });
  }

  /** As PEFT does it: an adapter that is not called 'default' has a folder of its own. */
  weightsFolder(folder: string): string {
    return this.#adapter === 'default' ? folder : join(folder, this.#adapter);
  }

  loadWeights(folder: string): Promise<void> {
    return this.#peft.restoreAdapter(this.#adapter, folder);
  }

  async saveOptimizer(folder: string): Promise<void> {
    const tensors: NativeTensorData[] = [];
    const step = await this.#peft.core.run(async () => {
      for (const { name, dtype, shape } of this.#session.optimizerStates()) {
        tensors.push({ name, dtype, shape, data: await this.#session.readOptimizer(name) });
      }
      return this.#session.optimizerStep;
    });
    await call(() =>
      native().writeSafetensors(join(folder, OPTIMIZER_FILE), tensors, { optimizer: this.#stateFormat, step: String(step) }),
    );
  }

  /**
   * Sets the optimizer's state to a checkpoint's, byte for byte.
   *
   * @throws INVALID_OPTION where another optimizer made it; CHECKPOINT_CORRUPT
   */
  async loadOptimizer(folder: string): Promise<void> {
    const path = join(folder, OPTIMIZER_FILE);
    const file = await call(() => native().openTensorFileAsync(path));
    try {
      const { optimizer, step } = file.metadata();
      if (optimizer !== this.#stateFormat) {
        throw new LowrankError(
          'INVALID_OPTION',
          `args.optim: ${path} has states of the optimizer ${shown(optimizer)}, expected ${shown(this.#stateFormat)}; resume with the optimizer that the checkpoint was made with`,
        );
      }
      const updates = Number(step);
      if (!Number.isSafeInteger(updates) || updates < 0)
        throw new LowrankError('CHECKPOINT_CORRUPT', `${path}: found step ${step}, expected the number of updates`);
      const present = new Map(file.tensors().map((tensor) => [tensor.name, tensor]));
      await this.#peft.core.run(async () => {
        for (const { name, dtype, shape } of this.#session.optimizerStates()) {
          const found = present.get(name);
          if (found?.dtype !== dtype || String(found.shape) !== String(shape)) {
            const is = found ? `${found.dtype} [${found.shape}]` : 'nothing';
            throw new LowrankError('CHECKPOINT_CORRUPT', `${path}: ${name}: found ${is}, expected ${dtype} [${shape}]`);
          }
          await this.#session.writeOptimizer(name, file.readRaw(name));
        }
        this.#session.optimizerStep = updates;
      });
    } finally {
      file.close();
    }
  }

  async identity(): Promise<{ base: FingerprintPart; adapter: FingerprintPart }> {
    const { r, loraAlpha, loraDropout, useRslora, rankPattern, alphaPattern } = this.#peft.peftConfig[this.#adapter] ?? {};
    const parameters = hashJson(this.#trained().map(({ name, shape }) => [name, shape]));
    return { base: this.#base, adapter: { r, loraAlpha, loraDropout, useRslora, rankPattern, alphaPattern, parameters } };
  }

  machine(): FingerprintPart {
    return { isa: native().systemInfo().isa, computeType: computeTypeName(this.#computeType) };
  }

  dispose(): void {
    this.#session.dispose();
  }

  #trained() {
    return this.#peft.core.native.parameters().filter((parameter) => parameter.trainable);
  }
}

/** For the optimizer's file. */
async function makeFolder(folder: string): Promise<void> {
  await mkdir(folder, { recursive: true }).catch((error: unknown) => {
    throw ioError('making', folder, error);
  });
}

/** The one adapter that is active and trained. */
export function trainedAdapter(peft: PeftModel): string {
  const [adapter, ...others] = peft.activeAdapters;
  if (adapter === undefined || others.length > 0) {
    throw new LowrankError(
      'INVALID_OPTION',
      `model: found a PeftModel with ${others.length === 0 ? 'no active adapter' : `the active adapters ${peft.activeAdapters.join(', ')}`}, expected exactly one (setAdapter)`,
    );
  }
  if (peft.trainableNames().length === 0) {
    throw new LowrankError(
      'INVALID_OPTION',
      `model: found the adapter '${adapter}' loaded for use only, expected one loaded with isTrainable: true`,
    );
  }
  return adapter;
}

/** The base's description, and a few logits for some fixed tokens: another base, or another quantisation of it, computes others. In fp32. */
async function describeBase(model: NativeModel): Promise<FingerprintPart> {
  model.setCompute('f32');
  const { vocabSize } = model.config;
  const positions = Int32Array.from({ length: PROBE_TOKENS }, (_, i) => i);
  const ids = positions.map((i) => (i * 7919 + 1) % vocabSize);
  const logits = await model.logits({ ids, positions, starts: Int32Array.of(0, PROBE_TOKENS) });
  const last = logits.subarray((PROBE_TOKENS - 1) * vocabSize);
  const count = Math.min(PROBE_VALUES, vocabSize);
  const probe = Array.from({ length: count }, (_, i) => last[Math.floor((i * vocabSize) / count)] as number);
  return { config: hashJson(model.config), [PROBE]: probe };
}
