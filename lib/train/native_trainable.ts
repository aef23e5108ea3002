import { join } from 'node:path';
import { LowrankError } from '../errors.ts';
import type { PeftModel } from '../model/peft_model.ts';
import {
  call,
  type NativeAdamW,
  type NativeComputeType,
  type NativeLoss,
  type NativeModel,
  type NativeRetention,
  type NativeSession,
  type NativeTensorData,
  type NativeTrainBatch,
  native,
} from '../native.ts';
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
  computeType: NativeComputeType;
}

/** A PeftModel's active adapter under training in native code. */
export class NativeTrainable implements Trainable {
  readonly #peft: PeftModel;
  readonly #adapter: string;
  readonly #base: FingerprintPart;
  readonly #session: NativeSession;
  readonly #computeType: NativeComputeType;

  private constructor(peft: PeftModel, adapter: string, base: FingerprintPart, session: NativeSession, computeType: NativeComputeType) {
    this.#peft = peft;
    this.#adapter = adapter;
    this.#base = base;
    this.#session = session;
    this.#computeType = computeType;
  }

  /** Allocates gradients, optimizer and workspace. The model goes on computing in `computeType`. */
  static async create(peft: PeftModel, { computeType, ...options }: SessionOptions): Promise<NativeTrainable> {
    const adapter = trainedAdapter(peft);
    const base = await peft.disableAdapter(() => peft.core.run(describeBase));
    const noDecay = peft.trainableNames().filter((name) => NO_DECAY.test(name));
    const session = await peft.core.run((model) => {
      model.setCompute(computeType);
      return native().createSession(model, { ...options, noDecay });
    });
    return new NativeTrainable(peft, adapter, base, session, computeType);
  }

  accumulate(batch: NativeTrainBatch, options: { gradScale: number; seed: number; step: number; micro: number }): Promise<NativeLoss> {
    return this.#peft.core.run(() => this.#session.accumulate(batch, options));
  }

  update(options: NativeAdamW): Promise<{ gradNorm: number; skipped: boolean }> {
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
      for (const { name, shape } of this.#trained()) {
        const { m, v } = await this.#session.readOptimizer(name);
        tensors.push({ name: `m.${name}`, dtype: 'F32', shape, data: m }, { name: `v.${name}`, dtype: 'F32', shape, data: v });
      }
      return this.#session.optimizerStep;
    });
    await call(() => native().writeSafetensors(join(folder, OPTIMIZER_FILE), tensors, { optimizer: 'adamw', step: String(step) }));
  }

  async loadOptimizer(folder: string): Promise<void> {
    const path = join(folder, OPTIMIZER_FILE);
    const file = await call(() => native().openTensorFileAsync(path));
    try {
      const step = Number(file.metadata().step);
      if (!Number.isSafeInteger(step) || step < 0)
        throw new LowrankError('CHECKPOINT_CORRUPT', `${path}: found step ${file.metadata().step}, expected the number of updates`);
      const present = new Set(file.tensors().map((tensor) => tensor.name));
      await this.#peft.core.run(async () => {
        for (const { name } of this.#trained()) {
          if (!present.has(`m.${name}`) || !present.has(`v.${name}`))
            throw new LowrankError('CHECKPOINT_CORRUPT', `${path} has no moments of ${name}`);
          await this.#session.writeOptimizer(name, await file.readAsync(`m.${name}`), await file.readAsync(`v.${name}`));
        }
        this.#session.optimizerStep = step;
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
