import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { LowrankError, shown, suggestion } from '../errors.ts';
import { writeIntoFolder } from '../files/atomic_folder.ts';
import { fetchAdapter } from '../hub/hub.ts';
import { call } from '../native.ts';
import { withCommas } from '../numbers.ts';
import { type LoraConfig, parseLoraConfig, type ResolvedLoraConfig } from '../options/lora_config.ts';
import { parseOptions } from '../options/parse.ts';
import { type Adapter, createAdapter, loadAdapter, restoreAdapter, writeAdapterFolder } from './adapter.ts';
import { openAdapterFolder } from './adapter_files.ts';
import { CausalLM } from './causal_lm.ts';
import type { LoadOptions } from './load_options.ts';
import { isHubId } from './load_source.ts';
import { checkFolder, type SaveOptions } from './save_options.ts';
import { elementCount } from './tensor.ts';

const loadSchema = z.strictObject({
  adapterName: z.string().default('default').describe('What the adapter is called here.'),
  isTrainable: z.boolean().default(false).describe('Whether it is to be trained on.'),
  strict: z
    .boolean()
    .default(true)
    .describe('false: parameters that the file lacks keep initial values, and others than expected are left.'),
});

/** Options of PeftModel.fromPretrained. */
export type PeftLoadOptions = z.input<typeof loadSchema>;

const saveSchema = z.strictObject({
  selectedAdapters: z.array(z.string()).optional().describe('Default: all.'),
  format: z.literal('peft', { error: "'peft' ('gguf' is not supported yet)" }).default('peft').describe('Kind of folder.'),
});

/** Options of PeftModel.savePretrained. */
export interface PeftSaveOptions {
  /** Default: all adapters. */
  selectedAdapters?: string[];
  format?: SaveOptions['format'];
}

/**
 * A CausalLM with adapters. It shares the base's memory: while an adapter is active, the base computes with it too.
 *
 * ```ts
 * const model = await getPeftModel(base, { r: 16, targetModules: 'all-linear' });
 * model.printTrainableParameters();
 * await model.savePretrained('adapter');
 * ```
 */
export class PeftModel extends CausalLM {
  readonly #adapters = new Map<string, Adapter>();
  #active: string[] = [];

  /**
   * Loads an adapter from PEFT's folder (or hub id) onto a model (or what CausalLM.fromPretrained takes).
   *
   * @throws FILE_NOT_FOUND, INVALID_ADAPTER, ADAPTER_MISMATCH listing missing and unexpected parameters.
   */
  static override async fromPretrained(model: CausalLM | string, adapter: string, options?: PeftLoadOptions): Promise<PeftModel>;
  static override async fromPretrained(source: string, options?: LoadOptions): Promise<never>;
  static override async fromPretrained(
    model: CausalLM | string,
    adapter?: string | LoadOptions,
    options?: PeftLoadOptions,
  ): Promise<PeftModel> {
    const parsed = parseOptions(loadSchema, options ?? {}, '');
    if (typeof adapter !== 'string')
      throw new LowrankError('INVALID_OPTION', `adapter: found ${shown(adapter)}, expected the folder or hub id of an adapter`);
    const base = typeof model === 'string' ? await CausalLM.fromPretrained(model) : model;
    if (!(base instanceof CausalLM))
      throw new LowrankError('INVALID_OPTION', `model: found ${shown(model)}, expected a CausalLM or what CausalLM.fromPretrained takes`);
    const peft = base instanceof PeftModel ? base : new PeftModel(base.core);
    try {
      await peft.#load(adapter, parsed);
      peft.setAdapter(parsed.adapterName);
    } catch (error) {
      if (base !== model) await base.dispose();
      throw error;
    }
    return peft;
  }

  /** @internal Adds a new adapter and makes it the active one. */
  async addAdapter(config: ResolvedLoraConfig, name: string, seed: number): Promise<void> {
    const adapter = await this.core.run(() => createAdapter(this.core, name, config, seed));
    this.#adapters.set(name, adapter);
    this.setAdapter(name);
  }

  /** Loads another adapter, without making it active. */
  async loadAdapter(path: string, adapterName: string): Promise<void> {
    await this.#load(path, parseOptions(loadSchema, { adapterName }, ''));
  }

  /** @internal Sets an adapter's weights to those that savePretrained() wrote into a folder. */
  async restoreAdapter(name: string, folder: string): Promise<void> {
    const adapter = this.#find(name);
    const saved = await openAdapterFolder(adapterFolder(folder, name));
    await this.core.run(() => restoreAdapter(this.core, adapter, saved));
  }

  /** Makes adapters the active ones; their updates add up. */
  setAdapter(names: string | string[]): void {
    const wanted = [names].flat();
    for (const name of wanted) this.#find(name);
    this.#activate(wanted);
    this.#active = wanted;
  }

  /** Removes an adapter and frees its memory. */
  deleteAdapter(name: string): void {
    this.#find(name);
    call(() => this.core.native.removeAdapter(name));
    this.#adapters.delete(name);
    this.setAdapter(this.#active.filter((active) => active !== name));
  }

  /** Runs `run` with the base alone. */
  async disableAdapter<T>(run: () => Promise<T>): Promise<T> {
    if (typeof run !== 'function') throw new LowrankError('INVALID_OPTION', `run: found ${shown(run)}, expected a function`);
    await this.core.run(() => this.#activate([]));
    try {
      return await run();
    } finally {
      await this.core.run(() => this.#activate(this.#active));
    }
  }

  get activeAdapters(): string[] {
    return [...this.#active];
  }

  /** Configuration of each adapter. */
  get peftConfig(): Record<string, ResolvedLoraConfig> {
    return Object.fromEntries([...this.#adapters].map(([name, adapter]) => [name, adapter.config]));
  }

  /** Names, in the native model, of the parameters that training changes. */
  trainableNames(): string[] {
    return this.core.native
      .parameters()
      .filter((parameter) => parameter.trainable)
      .map((parameter) => parameter.name);
  }

  /** Trainable and all parameters, counted as PEFT does. */
  countParameters(): { trainable: number; all: number } {
    const biasCopies = new Set(
      [...this.#adapters.values()].flatMap((adapter) => adapter.targets.biases.map((slot) => `${slot}.${adapter.name}`)),
    );
    const counts = { trainable: 0, all: 0 };
    for (const { name, shape, trainable } of this.core.native.parameters()) {
      // PEFT trains biases in place; here they are copies, which are not more parameters.
      if (!biasCopies.has(name)) counts.all += elementCount(shape);
      if (trainable) counts.trainable += elementCount(shape);
    }
    return counts;
  }

  /** Prints PEFT's line: trainable params: 4,884,480 || all params: 139,399,488 || trainable%: 3.5039 */
  printTrainableParameters(): void {
    const { trainable, all } = this.countParameters();
    console.log(
      `trainable params: ${withCommas(trainable)} || all params: ${withCommas(all)} || trainable%: ${((100 * trainable) / all).toFixed(4)}`,
    );
  }

  /**
   * Writes PEFT's folder with the tokenizer beside it; adapters other than 'default' go into a folder of their name in it, as PEFT does. The
   * former adapter in the folder stays whole until then.
   */
  override async savePretrained(folder: string, options?: PeftSaveOptions): Promise<void> {
    checkFolder(folder);
    const { selectedAdapters } = parseOptions(saveSchema, options ?? {}, '');
    for (const name of selectedAdapters ?? this.#adapters.keys()) {
      const adapter = this.#find(name);
      await writeIntoFolder(adapterFolder(folder, name), 'adapter_config.json', async (staging) => {
        await writeAdapterFolder(this.core, adapter, staging);
        if (this.core.hasTokenizer) await this.core.tokenizer.save(staging);
      });
    }
  }

  /** PEFT's name in adapter_model.safetensors; with several adapters, the adapter's name stands before the last part as in PEFT's modules. */
  protected override publicName(name: string): string {
    for (const adapter of this.#adapters.values()) {
      const parameter = adapter.parameters.find((candidate) => candidate.native === name);
      if (parameter) return this.#adapters.size === 1 ? parameter.key : parameter.key.replace(/\.(weight|bias)$/, `.${adapter.name}.$1`);
    }
    return name;
  }

  async #load(path: string, options: z.output<typeof loadSchema>): Promise<void> {
    const folder = await openAdapterFolder(await adapterPath(path));
    const adapter = await this.core.run(() => loadAdapter(this.core, options.adapterName, folder, options));
    this.#adapters.set(adapter.name, adapter);
    this.#activate(this.#active);
  }

  #find(name: string): Adapter {
    const adapter = this.#adapters.get(name);
    if (adapter) return adapter;
    const names = [...this.#adapters.keys()];
    const near = suggestion(String(name), names);
    throw new LowrankError(
      'INVALID_OPTION',
      `there is no adapter ${shown(name)}; ${near ? `did you mean '${near}'?` : `there are ${names.join(', ') || 'none'}`}`,
    );
  }

  #activate(names: string[]): void {
    const trained = names.map((name) => this.#find(name)).filter((adapter) => adapter.isTrainable);
    call(() => {
      this.core.native.setActiveAdapters(names);
      this.core.native.setTrainable(trained.flatMap((adapter) => adapter.parameters.map((parameter) => parameter.native)));
    });
  }
}

/** Where PEFT keeps an adapter: 'default' in the folder itself, others in one of their name in it. */
function adapterFolder(folder: string, name: string): string {
  return name === 'default' ? folder : join(folder, name);
}

async function adapterPath(path: string): Promise<string> {
  if (isHubId(path) && !(await stat(path).catch(() => undefined))) return fetchAdapter(path);
  return path;
}

/** Options of getPeftModel beside the configuration. */
export interface GetPeftModelOptions {
  /** Of the initial weights. Default 0. */
  seed?: number;
}

/**
 * Puts a new adapter on a model; the base is shared, not copied. On a PeftModel: adds another one, which becomes the active one.
 *
 * @throws UNKNOWN_OPTION, INVALID_OPTION naming the option and, where nothing matches, the nearest module names.
 */
export async function getPeftModel(
  model: CausalLM,
  config: LoraConfig = {},
  adapterName = 'default',
  options: GetPeftModelOptions = {},
): Promise<PeftModel> {
  const parsed = parseLoraConfig(config);
  const { seed } = parseOptions(z.strictObject({ seed: z.int().min(0).default(0) }), options, '');
  if (!(model instanceof CausalLM)) throw new LowrankError('INVALID_OPTION', `model: found ${shown(model)}, expected a CausalLM`);
  const peft = model instanceof PeftModel ? model : new PeftModel(model.core);
  await peft.addAdapter(parsed, adapterName, seed);
  return peft;
}
