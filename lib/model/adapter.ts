import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { LowrankError, shown } from '../errors.ts';
import { call, type NativeModel, type NativeParameterData, native } from '../native.ts';
import { toAdapterConfigJson } from '../options/adapter_config.ts';
import type { ResolvedLoraConfig } from '../options/lora_config.ts';
import { type AdapterFolder, readAdapterWeights } from './adapter_files.ts';
import { type AdapterParameter, adapterParameters } from './adapter_names.ts';
import { initialiseLora } from './adapter_weights.ts';
import type { ModelCore } from './core.ts';
import { adapterCard } from './model_card.ts';
import { modulesOf } from './modules.ts';
import { type ConfigOrigin, kUserOptions, resolveTargets, type Targets, writtenTargets } from './targets.ts';
import { writeJson } from './weights_file.ts';

/** An adapter on a model. */
export interface Adapter {
  name: string;
  config: ResolvedLoraConfig;
  /** Keys of its adapter_config.json that are kept as they were. */
  extra: Record<string, unknown>;
  isTrainable: boolean;
  targets: Targets;
  parameters: AdapterParameter[];
}

/** Adds a new adapter with initial weights, the same for the same seed. */
export async function createAdapter(core: ModelCore, name: string, config: ResolvedLoraConfig, seed: number): Promise<Adapter> {
  checkName(name);
  const adapter = describe(core, name, config, kUserOptions);
  adapter.isTrainable = !config.inferenceMode;
  await attach(core.native, adapter, (model) => initialiseLora(model, name, adapter.targets.lora, config.initLoraWeights, seed));
  return adapter;
}

/** Adds an adapter from PEFT's folder. Not `strict`: missing parameters keep their initial values, unexpected ones are left. */
export async function loadAdapter(
  core: ModelCore,
  name: string,
  folder: AdapterFolder,
  options: { isTrainable: boolean; strict: boolean },
): Promise<Adapter> {
  checkName(name);
  const adapter = describeFile(core, name, folder);
  adapter.isTrainable = options.isTrainable;
  const values = await readAdapterWeights(folder, adapter.parameters, options.strict);
  await attach(core.native, adapter, async (model) => {
    if (!options.strict) await initialiseLora(model, name, adapter.targets.lora, true, 0);
    for (const [parameter, data] of values) await model.writeParameter(parameter, data);
  });
  return adapter;
}

/** Sets the adapter's parameters to those of a folder that it was saved in. */
export async function restoreAdapter(core: ModelCore, adapter: Adapter, folder: AdapterFolder): Promise<void> {
  const values = await readAdapterWeights(folder, adapter.parameters, true);
  for (const [parameter, data] of values) await call(() => core.native.writeParameter(parameter, data));
}

/** Writes PEFT's folder, without the tokenizer, into `folder`, which is there already. */
export async function writeAdapterFolder(core: ModelCore, adapter: Adapter, folder: string): Promise<void> {
  const parameters = adapter.parameters.map(({ key, native: parameter }): NativeParameterData => ({ name: key, parameter, dtype: 'F32' }));
  await core.run((model) => native().writeParameters(model, join(folder, 'adapter_model.safetensors'), parameters, { format: 'pt' }));
  const config: ResolvedLoraConfig = { ...adapter.config, targetModules: writtenTargets(adapter.config, core.family) };
  config.baseModelNameOrPath ??= core.source;
  config.revision ??= core.revision;
  await writeJson(join(folder, 'adapter_config.json'), toAdapterConfigJson(config, adapter.extra));
  await writeFile(join(folder, 'README.md'), adapterCard(config.baseModelNameOrPath, config));
}

function describe(core: ModelCore, name: string, config: ResolvedLoraConfig, origin: ConfigOrigin): Adapter {
  const model = core.native;
  const targets = resolveTargets(config, modulesOf(model), core.family, origin);
  return { name, config, extra: {}, isTrainable: false, targets, parameters: adapterParameters(name, targets, model.slots()) };
}

function describeFile(core: ModelCore, name: string, folder: AdapterFolder): Adapter {
  const key = (option: string) => option.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
  const origin: ConfigOrigin = {
    nameOption: (option) => `${join(folder.path, 'adapter_config.json')}: ${key(option)}`,
    everyNameMustMatch: false,
  };
  try {
    return { ...describe(core, name, folder.config, origin), extra: folder.extra };
  } catch (error) {
    if (error instanceof LowrankError && error.code === 'INVALID_OPTION')
      throw new LowrankError('ADAPTER_MISMATCH', error.message, { cause: error });
    throw error;
  }
}

/** Puts the adapter's parameters on the native model; nothing is left of it when `fill` fails. */
async function attach(model: NativeModel, adapter: Adapter, fill: (model: NativeModel) => Promise<void>): Promise<void> {
  await call(() => model.addAdapter(adapter.name, adapter.targets.lora));
  try {
    for (const slot of [...adapter.targets.saved, ...adapter.targets.biases]) await call(() => model.addOverride(adapter.name, slot));
    await call(() => fill(model));
  } catch (error) {
    model.removeAdapter(adapter.name);
    throw error;
  }
}

function checkName(name: unknown): void {
  if (typeof name === 'string' && /^[^./\\\s]+$/.test(name) && !name.includes('lora_')) return;
  throw new LowrankError('INVALID_OPTION', `adapterName: found ${shown(name)}, expected a name without dots, slashes, spaces or 'lora_'`);
}
