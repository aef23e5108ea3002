import { join } from 'node:path';
import { LowrankError } from '../errors.ts';
import type { PeftModel } from '../model/peft_model.ts';
import type { NativeModel } from '../native.ts';
import { type FingerprintPart, hashJson, PROBE } from './fingerprint.ts';
import type { TrainedWeights } from './trained_weights.ts';

const PROBE_TOKENS = 8;
const PROBE_VALUES = 64;

/** A PeftModel's active adapter. */
export class TrainedAdapter implements TrainedWeights {
  readonly model: PeftModel;
  readonly notes: readonly string[] = [];
  #adapter: string;

  /** @throws INVALID_OPTION unless one adapter is active and may be trained */
  constructor(model: PeftModel) {
    this.model = model;
    this.#adapter = trainedAdapter(model);
  }

  async activate(): Promise<void> {
    await this.model.core.run(() => this.model.setAdapter(this.model.activeAdapters));
    this.#adapter = trainedAdapter(this.model);
  }

  names(): string[] {
    return this.model.trainableNames();
  }

  count(): { trainable: number; all: number } {
    return this.model.countParameters();
  }

  save(folder: string): Promise<void> {
    return this.model.savePretrained(folder, { selectedAdapters: [this.#adapter] });
  }

  /** As PEFT does it: an adapter that is not called 'default' has a folder of its own. */
  folder(folder: string): string {
    return this.#adapter === 'default' ? folder : join(folder, this.#adapter);
  }

  load(folder: string): Promise<void> {
    return this.model.restoreAdapter(this.#adapter, folder);
  }

  async identity(): Promise<{ base: FingerprintPart; adapter: FingerprintPart }> {
    const base = await this.model.disableAdapter(() => this.model.core.run(describeBase));
    const { r, loraAlpha, loraDropout, useRslora, rankPattern, alphaPattern } = this.model.peftConfig[this.#adapter] ?? {};
    const trained = this.model.core.native.parameters().filter((parameter) => parameter.trainable);
    const parameters = hashJson(trained.map(({ name, shape }) => [name, shape]));
    return { base, adapter: { r, loraAlpha, loraDropout, useRslora, rankPattern, alphaPattern, parameters } };
  }
}

/** The one adapter that is active and trained. */
function trainedAdapter(peft: PeftModel): string {
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
