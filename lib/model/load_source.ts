import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { LowrankError, shown } from '../errors.ts';
import { fetchModel } from '../hub/hub.ts';
import { call, type NativeFloatType, type NativeModelConfig, native } from '../native.ts';
import { Tokenizer } from '../tokenizer/tokenizer.ts';
import { bindInPlace, bindTensors, type Place, settleTying } from './bind_tensors.ts';
import { joinPackedWeights, storedQuantization } from './bitsandbytes_tensors.ts';
import { computeTypeOf, type Dtype, kStorageTypes } from './compute_type.ts';
import { type CoreParts, ModelCore } from './core.ts';
import { describeModel, type Family } from './families.ts';
import { configMetadata, ggufToConfig } from './gguf_config.ts';
import { readJsonObject } from './json_file.ts';
import type { ResolvedLoadOptions } from './load_options.ts';
import { placeQuantized, quantizationOf } from './quantize.ts';
import { openGgufTensors, openSafetensorsFolder, openTensorFile, type TensorMap } from './tensor_source.ts';

/** What a model is made from, before its native side exists. */
interface Parts {
  config: Record<string, unknown>;
  family: Family;
  native: NativeModelConfig;
  tensors: TensorMap;
  eosIds: number[];
  generationConfig?: Record<string, unknown>;
  /** Being built on its own thread. */
  tokenizer: Promise<Tokenizer> | undefined;
}

/** Loads a hub id, a folder in Transformers' layout or a .gguf file. */
export async function loadSource(source: unknown, options: ResolvedLoadOptions): Promise<ModelCore> {
  if (typeof source !== 'string' || source === '') {
    throw new LowrankError('INVALID_OPTION', `source is ${shown(source)}; expected a hub id, a folder or a .gguf file`);
  }
  const path = await resolveSource(source, options);
  const { tokenizer, ...parts } = path.endsWith('.gguf') ? await readGguf(path) : await readFolder(path);
  const stored = storedQuantization(parts.tensors, parts.config);
  if (stored !== undefined && options.quantizationConfig) {
    process.emitWarning(
      `quantizationConfig: the weights of ${source} are quantised already (${stored.type.toLowerCase()}); only bnb4bitComputeDtype is taken of it`,
      'LowrankWarning',
    );
  }
  parts.native.tiedHead = await settleTying(parts.tensors, parts.native.tiedHead);
  const model = call(() => native().createModel(parts.native));
  try {
    await bindTensors(model, parts.tensors, path, options.signal, placeFor(options, stored !== undefined));
    const computeType = computeTypeOf(options.quantizationConfig?.bnb4bitComputeDtype ?? options.dtype);
    const core: CoreParts = { ...parts, native: model, source, tokenizer: await tokenizer, dtype: options.dtype, computeType };
    const { quantizationConfig, dtype } = options;
    const quantization =
      stored ?? (quantizationConfig ? quantizationOf(quantizationConfig, sourceTypeOf(parts.tensors, dtype)) : undefined);
    if (quantization !== undefined) core.quantization = quantization;
    if (options.revision !== undefined) core.revision = options.revision;
    return new ModelCore(core);
  } catch (error) {
    model.dispose();
    throw error;
  }
}

/** Path of the folder or .gguf file that the user means. */
async function resolveSource(source: string, options: ResolvedLoadOptions): Promise<string> {
  const found = await stat(source).catch(() => undefined);
  if (found?.isDirectory()) return source;
  if (found && source.endsWith('.gguf')) return source;
  if (found) {
    throw new LowrankError(
      'UNSUPPORTED_MODEL',
      `${source} is neither a folder nor a .gguf file; give the folder that holds it and its config.json`,
    );
  }
  if (!isHubId(source))
    throw new LowrankError('FILE_NOT_FOUND', `${source} does not exist; expected a folder, a .gguf file or a hub id such as owner/name`);
  return fetchModel(source, options);
}

/** owner/name, as the hub spells them. */
export function isHubId(text: string): boolean {
  return /^[\w-][\w.-]*\/[\w-][\w.-]*$/.test(text) && !text.endsWith('.gguf') && !text.includes('..');
}

async function readFolder(folder: string): Promise<Parts> {
  const config = await readJsonObject(join(folder, 'config.json'), 'INVALID_CONFIG');
  const { family, native: described } = describeModel(config);
  const generation = (await exists(join(folder, 'generation_config.json')))
    ? await readJsonObject(join(folder, 'generation_config.json'), 'INVALID_CONFIG')
    : {};
  const eosIds = [...new Set([...readEosIds(config, 'config.json'), ...readEosIds(generation, 'generation_config.json')])];
  const tokenizer = (await exists(join(folder, 'tokenizer.json'))) ? awaitedLater(Tokenizer.fromFile(folder)) : undefined;
  const tensors = await openSafetensorsFolder(folder);
  joinPackedWeights(tensors);
  return { config, family, native: described, tensors, eosIds, generationConfig: generation, tokenizer };
}

async function readGguf(path: string): Promise<Parts> {
  const file = await openTensorFile(path);
  if (file.format !== 'gguf') throw new LowrankError('INVALID_GGUF', `${path} is a ${file.format} file; expected GGUF`);
  const metadata = call(() => configMetadata(file));
  const config = call(() => ggufToConfig(file, metadata));
  const { family, native: described } = describeModel(config);
  const tensors = openGgufTensors(file, described, String(metadata['general.architecture']));
  const tokenizer = metadata['tokenizer.ggml.model'] === undefined ? undefined : awaitedLater(Tokenizer.fromGguf(path));
  return { config, family, native: described, tensors, eosIds: readEosIds(config, path), tokenizer };
}

/** Until it is awaited, or when something else fails first, a failure of `work` must not count as unhandled. */
function awaitedLater<T>(work: Promise<T>): Promise<T> {
  work.catch(() => undefined);
  return work;
}

function readEosIds(config: Record<string, unknown>, name: string): number[] {
  const value = config.eos_token_id ?? [];
  const ids: unknown[] = Array.isArray(value) ? value : [value];
  if (ids.every((id): id is number => typeof id === 'number' && Number.isSafeInteger(id))) return ids;
  throw new LowrankError('INVALID_CONFIG', `${name}: eos_token_id is ${shown(value)}; expected a token id or a list of them`);
}

/** How tensors get into their slots. */
function placeFor(options: ResolvedLoadOptions, isQuantized: boolean): Place {
  const { dtype, quantizationConfig } = options;
  const place = dtype === 'auto' ? bindInPlace : placeAs(kStorageTypes[dtype]);
  if (!quantizationConfig || isQuantized) return place;
  return placeQuantized(quantizationConfig, dtype === 'auto' ? 'F32' : kStorageTypes[dtype], place);
}

/** By PyTorch's name, the type that weights are quantised from. */
function sourceTypeOf(tensors: TensorMap, dtype: Dtype): string {
  if (dtype !== 'auto') return dtype;
  const weight = [...tensors].find(([name]) => name.endsWith('_proj.weight'))?.[1].info.dtype;
  return Object.entries(kStorageTypes).find(([, type]) => type === weight)?.[0] ?? 'float32';
}

/** Converts what is stored in another float type, instead of using it in its file. */
function placeAs(dtype: NativeFloatType): Place {
  const others = Object.values<string>(kStorageTypes).filter((type) => type !== dtype);
  return async (model, slot, { file, info, unpermuteHeads }) => {
    await model.bind(slot, file, info.name, unpermuteHeads);
    if (others.includes(info.dtype)) await model.convert(slot, dtype);
  };
}

async function exists(path: string): Promise<boolean> {
  return (await stat(path).catch(() => undefined)) !== undefined;
}
