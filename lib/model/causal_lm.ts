import { z } from 'zod';
import { LowrankError, shown } from '../errors.ts';
import { call, type NativeTrainBatch, native } from '../native.ts';
import { type GenerateOptions, parseGenerateOptions } from '../options/generate_options.ts';
import { parseOptions } from '../options/parse.ts';
import type { Tokenizer } from '../tokenizer/tokenizer.ts';
import { type Batch, type InputBatch, kIgnoredLabel, packRows, shiftedTargets } from './batch.ts';
import { computeTypeOf, kStorageTypes } from './compute_type.ts';
import { ModelCore } from './core.ts';
import { describeModel } from './families.ts';
import { type Generated, generateRows, type Prompt, promptIds, type StreamedToken, streamRow } from './generation.ts';
import { type LossAndGradients, lossAndGradients } from './gradients.ts';
import { type FromConfigOptions, type LoadOptions, parseFromConfigOptions, parseLoadOptions } from './load_options.ts';
import { loadSource } from './load_source.ts';
import { initialiseWeights } from './random_weights.ts';
import { saveModel } from './save_model.ts';
import type { SaveOptions } from './save_options.ts';
import { elementCount, Tensor } from './tensor.ts';

const countSchema = z.strictObject({ onlyTrainable: z.boolean().default(false) });

export interface ParameterInfo {
  /** Its name in the safetensors files. */
  name: string;
  shape: number[];
  /** Storage type: F32, BF16, Q4_1, … */
  dtype: string;
  requiresGrad: boolean;
}

/**
 * A causal language model.
 *
 * ```ts
 * await using model = await CausalLM.fromPretrained('model.gguf');
 * const { text } = await model.generate([{ role: 'user', content: 'What is the capital of France?' }]);
 * ```
 *
 * Operations on one model run one after the other, whatever the order of awaiting. Native memory is freed by dispose(), or by the garbage
 * collector.
 */
export class CausalLM {
  /** @internal What this model and the PeftModels around it share. */
  readonly core: ModelCore;

  /** @internal Use fromPretrained() or fromConfig(). */
  constructor(core: ModelCore) {
    this.core = core;
  }

  /**
   * Loads a model. Weights stay in their file and in their storage type, unless `dtype` asks for another.
   *
   * @param source hub id, folder in Transformers' layout, or .gguf file.
   * @throws FILE_NOT_FOUND, INVALID_CONFIG, INVALID_SAFETENSORS, INVALID_GGUF, UNSUPPORTED_MODEL, SHAPE_MISMATCH, …
   */
  static async fromPretrained(source: string, options?: LoadOptions): Promise<CausalLM> {
    return new CausalLM(await loadSource(source, parseLoadOptions(options)));
  }

  /** A model of config.json's shape with Transformers' random initial weights, the same for the same seed. */
  static async fromConfig(config: object, options?: FromConfigOptions): Promise<CausalLM> {
    const { seed, dtype, tokenizer } = parseFromConfigOptions(options);
    if (typeof config !== 'object' || config === null || Array.isArray(config)) {
      throw new LowrankError('INVALID_CONFIG', `config is ${shown(config)}; expected the content of a config.json`);
    }
    const values: Record<string, unknown> = structuredClone({ ...config });
    const { family, native: described } = describeModel(values);
    const model = call(() => native().createModel(described));
    await initialiseWeights(model, values, seed, kStorageTypes[dtype === 'auto' ? 'float32' : dtype]);
    const eosIds = [values.eos_token_id ?? []].flat().filter((id): id is number => Number.isSafeInteger(id));
    return new CausalLM(
      new ModelCore({ native: model, family, config: values, source: '', eosIds, tokenizer, dtype, computeType: computeTypeOf(dtype) }),
    );
  }

  /** config.json as written by its author; for a GGUF file, the one that Transformers would have. */
  get config(): Readonly<Record<string, unknown>> {
    return this.core.config;
  }

  /** Throws INVALID_TOKENIZER where the model came without one. */
  get tokenizer(): Tokenizer {
    return this.core.tokenizer;
  }

  /** Logits [rows, T, V]: T is the longest row; zeros where there is padding. */
  async forward(batch: InputBatch): Promise<Tensor> {
    const { config } = this.core.native;
    const packed = packRows(batch, config.vocabSize, this.#hasWindows());
    const logits = await this.core.run((model) => model.logits(packed.native));
    const vocabulary = config.vocabSize;
    const result = new Tensor(
      [batch.inputIds.length, packed.width, vocabulary],
      new Float32Array(batch.inputIds.length * packed.width * vocabulary),
    );
    for (let i = 0; i < packed.rows.length; ++i) {
      const place = (packed.rows[i] as number) * packed.width + (packed.columns[i] as number);
      result.data.set(logits.subarray(i * vocabulary, (i + 1) * vocabulary), place * vocabulary);
    }
    return result;
  }

  /** Mean loss over the supervised tokens, dropout off. Labels are not shifted; -100 is ignored. */
  async loss(batch: Batch): Promise<{ loss: number; tokens: number }> {
    const { native: packed, tokens } = this.#trainBatch(batch);
    const { nllSum } = await this.core.run((model) => model.evaluate(packed));
    return { loss: nllSum / tokens, tokens };
  }

  /**
   * Loss and its gradients: of the trainable parameters of the active adapters, or of all parameters of a model without adapters. Keys are
   * names in the safetensors files, for adapters those of PEFT's adapter_model.safetensors.
   */
  async lossAndGradients(batch: Batch): Promise<LossAndGradients> {
    const { native: packed, tokens } = this.#trainBatch(batch);
    return lossAndGradients(this.core, packed, tokens, (name) => this.publicName(name));
  }

  /** Answers a prompt. Without options: greedily, at most 256 tokens. */
  async generate(prompt: Prompt, options?: GenerateOptions): Promise<Generated> {
    const [answer] = await this.generateBatch([prompt], options);
    return answer as Generated;
  }

  /** Answers several prompts together; each as if it were alone, up to rounding. */
  async generateBatch(prompts: Prompt[], options?: GenerateOptions): Promise<Generated[]> {
    const parsed = parseGenerateOptions(options);
    if (!Array.isArray(prompts)) throw new LowrankError('INVALID_OPTION', `prompts is ${shown(prompts)}; expected an array of prompts`);
    const ids = await Promise.all(prompts.map((prompt) => promptIds(this.core, prompt)));
    return generateRows(this.core, ids, parsed);
  }

  /** The answer token by token; `text` is always whole characters. Leaving the loop ends the generation. */
  async *stream(prompt: Prompt, options?: GenerateOptions): AsyncGenerator<StreamedToken> {
    const parsed = parseGenerateOptions(options);
    yield* streamRow(this.core, await promptIds(this.core, prompt), parsed);
  }

  /** Every tensor of the model and its adapters. */
  parameters(): ParameterInfo[] {
    return call(() => this.core.native.parameters()).map(({ name, shape, dtype, trainable }) => ({
      name: this.publicName(name),
      shape,
      dtype,
      requiresGrad: trainable,
    }));
  }

  /** Number of values in the parameters. */
  numParameters(options: { onlyTrainable?: boolean } = {}): number {
    const { onlyTrainable } = parseOptions(countSchema, options, '');
    const counted = this.parameters().filter((parameter) => !onlyTrainable || parameter.requiresGrad);
    return counted.reduce((sum, parameter) => sum + elementCount(parameter.shape), 0);
  }

  /** Writes the model as Transformers loads it: safetensors, config.json, tokenizer. The folder's former model stays whole until then. */
  async savePretrained(folder: string, options?: SaveOptions): Promise<void> {
    await saveModel(this.core, folder, options);
  }

  /** Frees the native memory when running operations have finished; the model cannot be used after that. */
  dispose(): Promise<void> {
    return this.core.dispose();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose();
  }

  /** Name in the safetensors files of a native parameter. */
  protected publicName(name: string): string {
    return name;
  }

  #hasWindows(): boolean {
    return this.core.native.config.windows.some((window) => window > 0);
  }

  #trainBatch(batch: Batch): { native: NativeTrainBatch; tokens: number } {
    const { vocabSize } = this.core.native.config;
    const packed = packRows(batch, vocabSize, this.#hasWindows());
    const targets = shiftedTargets(packed, batch, vocabSize);
    const tokens = targets.reduce((count, target) => count + (target === kIgnoredLabel ? 0 : 1), 0);
    if (tokens === 0)
      throw new LowrankError('INVALID_OPTION', 'labels supervise nothing; expected a label other than -100 after the first column');
    return { native: { ...packed.native, targets }, tokens };
  }
}
