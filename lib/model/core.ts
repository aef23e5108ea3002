import { LowrankError } from '../errors.ts';
import { fromNative, type NativeComputeType, type NativeModel } from '../native.ts';
import type { Tokenizer } from '../tokenizer/tokenizer.ts';
import type { Dtype } from './compute_type.ts';
import type { Family } from './families.ts';
import type { BaseQuantization } from './quantize.ts';

export interface CoreParts {
  native: NativeModel;
  family: Family;
  config: Record<string, unknown>;
  /** What the user called the model: hub id, folder or file. */
  source: string;
  revision?: string;
  tokenizer?: Tokenizer;
  eosIds: number[];
  /** generation_config.json as written by its author; {} where there is none. */
  generationConfig?: Record<string, unknown>;
  /** What the user asked its weights to be. */
  dtype: Dtype;
  /** What the user wants it to compute in; undefined: what its use says. */
  computeType?: NativeComputeType;
  /** Where its linear layers have bitsandbytes' 4 bits. */
  quantization?: BaseQuantization;
}

/**
 * What a CausalLM and the PeftModels around it share: the native model, its configuration and tokenizer, and the queue that runs one
 * operation on the model at a time.
 */
export class ModelCore {
  readonly family: Family;
  readonly config: Readonly<Record<string, unknown>>;
  readonly source: string;
  readonly revision: string | undefined;
  /** Generation ends at any of these. */
  readonly eosIds: readonly number[];
  readonly generationConfig: Readonly<Record<string, unknown>>;
  /** What its weights were asked to be when it was loaded; 'auto': as they were stored. */
  readonly dtype: Dtype;
  /** What it was made to compute in, by hand and in trainings that do not say; undefined: float32 by hand. */
  readonly computeType: NativeComputeType | undefined;
  /** undefined: weights in a float type, or in GGUF's. */
  readonly quantization: BaseQuantization | undefined;
  /** Of trainings that do not say. */
  gradientCheckpointing = false;
  readonly #tokenizer: Tokenizer | undefined;
  #native: NativeModel | undefined;
  #last: Promise<unknown> = Promise.resolve();

  constructor(parts: CoreParts) {
    this.#native = parts.native;
    this.family = parts.family;
    this.config = Object.freeze(parts.config);
    this.source = parts.source;
    this.revision = parts.revision;
    this.eosIds = parts.eosIds;
    this.generationConfig = Object.freeze(parts.generationConfig ?? {});
    this.dtype = parts.dtype;
    this.computeType = parts.computeType;
    this.quantization = parts.quantization;
    if (parts.computeType) parts.native.setCompute(parts.computeType);
    this.#tokenizer = parts.tokenizer;
  }

  /** Throws INVALID_OPTION after dispose(). */
  get native(): NativeModel {
    if (this.#native) return this.#native;
    throw new LowrankError('INVALID_OPTION', `${this.#title()} was disposed of and cannot be used any more`);
  }

  get hasTokenizer(): boolean {
    return this.#tokenizer !== undefined;
  }

  get tokenizer(): Tokenizer {
    if (this.#tokenizer) return this.#tokenizer;
    throw new LowrankError('INVALID_TOKENIZER', `${this.#title()} has no tokenizer; expected a tokenizer.json beside its config.json`);
  }

  /** Runs `operation` when those before it have finished. */
  async run<T>(operation: (native: NativeModel) => T | Promise<T>): Promise<T> {
    const native = this.native;
    const result = this.#last.then(async () => {
      try {
        return await operation(native);
      } catch (error) {
        throw fromNative(error);
      }
    });
    this.#last = result.catch(() => undefined);
    return result;
  }

  /** Frees the native memory when what is running has finished. */
  async dispose(): Promise<void> {
    const native = this.#native;
    this.#native = undefined;
    await this.#last;
    native?.dispose();
  }

  #title(): string {
    return this.source === '' ? 'the model' : `the model ${this.source}`;
  }
}
