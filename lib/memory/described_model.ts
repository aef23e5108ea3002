import { readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { LowrankError, shown } from '../errors.ts';
import { fetchModelConfig } from '../hub/hub.ts';
import { settleTying } from '../model/bind_tensors.ts';
import { joinPackedWeights } from '../model/bitsandbytes_tensors.ts';
import { CausalLM } from '../model/causal_lm.ts';
import { describeModel, type Family } from '../model/families.ts';
import { configMetadata, ggufToConfig } from '../model/gguf_config.ts';
import { readJsonObject } from '../model/json_file.ts';
import { isHubId } from '../model/load_source.ts';
import { modulesOf } from '../model/modules.ts';
import { PeftModel } from '../model/peft_model.ts';
import { quantizedSlots, quantizedTypeOf } from '../model/quantize.ts';
import { kUserOptions, resolveTargets } from '../model/targets.ts';
import { openGgufTensors, openSafetensorsFolder, openTensorFile, type TensorMap } from '../model/tensor_source.ts';
import { trainedTensors } from '../model/trained_tensors.ts';
import { call, type NativeComputeType, type NativeModel, type NativeModelConfig, native } from '../native.ts';
import type { ResolvedLoraConfig } from '../options/lora_config.ts';
import type { ResolvedQuantizationConfig } from '../options/quantization_config.ts';
import type { TrainedLayers } from '../options/trained_layers.ts';

const FLOAT_TYPES: Readonly<Record<string, string>> = { float32: 'F32', bfloat16: 'BF16', float16: 'F16' };

/** A model by its shape and the storage types of its tensors; none of them is read. */
export interface DescribedModel {
  config: NativeModelConfig;
  family: Family;
  /** Storage type of the tensor of each slot. */
  types: ReadonlyMap<string, string>;
  /** Whether a matrix is used where it lies in its file; others have memory of their own. */
  isInFile: (slot: string) => boolean;
  /** What it was loaded to compute in, where that was said. */
  computeType: NativeComputeType | undefined;
  /** Whether it was asked to have its weights in float32. */
  asFloat32: boolean;
  /** Of trainings that do not say. */
  gradientCheckpointing: boolean;
  /** Whether a tokenizer comes with it; undefined where that cannot be known. */
  hasTokenizer: boolean | undefined;
  /** The folder or .gguf file, where there is one with weights. */
  path: string | undefined;
  /** Adapters that are on it already. */
  peft: PeftModel | undefined;
}

const unsaid = { computeType: undefined, asFloat32: false, gradientCheckpointing: false, path: undefined, peft: undefined };

/**
 * Describes what a user calls a model: a loaded one, a folder, a .gguf file, a hub id (of which config.json alone is fetched), or a config.json:
 * its content, its path, or that of a folder which holds nothing else.
 *
 * @throws FILE_NOT_FOUND, INVALID_CONFIG, UNSUPPORTED_MODEL, INVALID_SAFETENSORS, INVALID_GGUF, …
 */
export async function describeSource(source: string | CausalLM | Record<string, unknown>): Promise<DescribedModel> {
  if (source instanceof CausalLM) return describeLoaded(source);
  if (typeof source !== 'string') return describeConfig(source, undefined);
  const found = await stat(source).catch(() => undefined);
  if (found?.isDirectory()) return describeFolder(source);
  if (found && source.endsWith('.gguf')) return describeGguf(source);
  if (found) return describeConfig(await readJsonObject(source, 'INVALID_CONFIG'), undefined);
  if (isHubId(source)) return describeFolder(await fetchModelConfig(source));
  throw new LowrankError(
    'FILE_NOT_FOUND',
    `${source} does not exist; expected a config.json, a folder, a .gguf file or a hub id such as owner/name`,
  );
}

function describeLoaded(model: CausalLM): DescribedModel {
  const { core } = model;
  const slots = new Set(core.native.slots().map(({ name }) => name));
  const base = core.native.parameters().filter(({ name }) => slots.has(name));
  const types = new Map(base.map(({ name, dtype }) => [name, dtype]));
  const inFile = new Set(base.filter((parameter) => parameter.inFile).map(({ name }) => name));
  const { config } = core.native;
  return {
    ...unsaid,
    config,
    family: core.family,
    types,
    isInFile: (slot) => inFile.has(slot),
    computeType: core.computeType,
    asFloat32: core.dtype === 'float32',
    gradientCheckpointing: core.gradientCheckpointing,
    hasTokenizer: core.hasTokenizer,
    peft: model instanceof PeftModel ? model : undefined,
  };
}

async function describeFolder(folder: string): Promise<DescribedModel> {
  const config = await readJsonObject(join(folder, 'config.json'), 'INVALID_CONFIG');
  const names = await readdir(folder);
  const hasTokenizer = names.includes('tokenizer.json');
  if (!names.includes('model.safetensors') && !names.includes('model.safetensors.index.json')) {
    return describeConfig(config, hasTokenizer ? true : undefined);
  }
  const tensors = await openSafetensorsFolder(folder);
  try {
    joinPackedWeights(tensors);
    const { family, native: described } = describeModel(config);
    described.tiedHead = await settleTying(tensors, described.tiedHead);
    return { ...unsaid, config: described, family, ...placesOf(tensors), hasTokenizer, path: folder };
  } finally {
    close(tensors);
  }
}

async function describeGguf(path: string): Promise<DescribedModel> {
  const file = await openTensorFile(path);
  if (file.format !== 'gguf') throw new LowrankError('INVALID_GGUF', `${path} is a ${file.format} file; expected GGUF`);
  try {
    const metadata = call(() => configMetadata(file));
    const { family, native: config } = describeModel(call(() => ggufToConfig(file, metadata)));
    const tensors = openGgufTensors(file, config, String(metadata['general.architecture']));
    config.tiedHead = await settleTying(tensors, config.tiedHead);
    const hasTokenizer = metadata['tokenizer.ggml.model'] !== undefined;
    return { ...unsaid, config, family, ...placesOf(tensors), hasTokenizer, path };
  } finally {
    file.close();
  }
}

/** All tensors in the type that config.json names (float32 where it names none), or as bitsandbytes has them. */
function describeConfig(values: Record<string, unknown>, hasTokenizer: boolean | undefined): DescribedModel {
  const { family, native: config } = describeModel(values);
  const named = values.dtype ?? values.torch_dtype ?? 'float32';
  const type = typeof named === 'string' ? FLOAT_TYPES[named] : undefined;
  if (type === undefined) {
    throw new LowrankError(
      'INVALID_CONFIG',
      `config.json: dtype is ${shown(named)}; expected one of ${Object.keys(FLOAT_TYPES).join(', ')}`,
    );
  }
  const quantized = values.quantization_config as { bnb_4bit_quant_type?: unknown; load_in_8bit?: unknown } | null | undefined;
  const codes = quantized?.load_in_8bit === true ? 'INT8' : quantized?.bnb_4bit_quant_type === 'nf4' ? 'NF4' : 'FP4';
  const empty = call(() => native().createModel(config, true));
  const types = modulesOf(empty).map(({ weight, kind }): [string, string] => [weight, quantized && kind === 'linear' ? codes : type]);
  const isInFile = (slot: string) => !quantized || !slot.endsWith('_proj.weight');
  return { ...unsaid, config, family, types: new Map(types), isInFile, hasTokenizer };
}

function placesOf(tensors: TensorMap): Pick<DescribedModel, 'types' | 'isInFile'> {
  const types = new Map([...tensors].map(([name, { info, codes }]) => [name, codes?.type ?? info.dtype]));
  const copied = new Set([...tensors].filter(([, { codes, unpermuteHeads }]) => codes || unpermuteHeads > 0).map(([name]) => name));
  return { types, isInFile: (slot) => !copied.has(slot) };
}

function close(tensors: TensorMap): void {
  for (const file of new Set([...tensors.values()].map((location) => location.file))) file.close();
}

/**
 * The native model of a description, for planning: it has no memory. With adapters on it: those that it came with, or a new one; or for full
 * fine-tuning (peftConfig is null) with weights that are trained themselves.
 *
 * @throws INVALID_OPTION where peftConfig fits no module, UNSUPPORTED_QUANTIZATION where weights cannot be quantised
 */
export async function planningModel(
  described: DescribedModel,
  options: {
    peftConfig: ResolvedLoraConfig | null | undefined;
    layers: TrainedLayers;
    quantizationConfig: ResolvedQuantizationConfig | undefined;
    computeType: NativeComputeType;
  },
): Promise<NativeModel> {
  const model = call(() => native().createModel(described.config, true));
  call(() => model.setCompute(options.computeType));
  describeSlots(model, described, options.quantizationConfig);
  if (options.peftConfig === null) await trainBase(model, described, options.layers);
  else await addAdapters(model, described, options.peftConfig);
  return model;
}

async function addAdapters(model: NativeModel, described: DescribedModel, peftConfig: ResolvedLoraConfig | undefined): Promise<void> {
  const adapters = described.peft ? Object.entries(described.peft.peftConfig) : [];
  const added = described.peft || !peftConfig ? adapters : [['default', peftConfig] as const];
  const modules = modulesOf(model);
  for (const [name, config] of added) {
    const { lora, saved, biases } = resolveTargets(config, modules, described.family, {
      ...kUserOptions,
      everyNameMustMatch: !described.peft,
    });
    await call(() => model.addAdapter(name, lora));
    for (const slot of [...saved, ...biases]) await call(() => model.addOverride(name, slot));
  }
  const active = described.peft?.activeAdapters ?? added.map(([name]) => name);
  const trained = described.peft?.trainableNames() ?? model.parameters().map(({ name }) => name);
  call(() => {
    model.setActiveAdapters(active);
    model.setTrainable(trained);
  });
}

/** As lib/train/trained_model.ts does it. */
async function trainBase(model: NativeModel, { types, asFloat32, config }: DescribedModel, layers: TrainedLayers): Promise<void> {
  const type = asFloat32 || [...types.values()].every((stored) => stored === 'F32') ? 'F32' : 'BF16';
  const names = trainedTensors(model, layers);
  await call(() => model.trainBase(names, type));
  const trained = new Set(names);
  for (const { name } of model.slots()) {
    const isTied = name === 'lm_head.weight' && config.tiedHead;
    if (!trained.has(name) && !isTied && types.get(name) !== 'F32') call(() => model.describe(name, type, false));
  }
}

function describeSlots(
  model: NativeModel,
  { types, config, isInFile }: DescribedModel,
  quantization: ResolvedQuantizationConfig | undefined,
): void {
  const chosen = quantization ? quantizedSlots(model, quantization) : new Set<string>();
  for (const { name } of model.slots()) {
    const type = types.get(name) ?? (name === 'lm_head.weight' && config.tiedHead ? undefined : 'F32');
    if (type === undefined) continue; // the embedding is the head
    if (chosen.has(name) && !Object.values(FLOAT_TYPES).includes(type)) {
      throw new LowrankError(
        'UNSUPPORTED_QUANTIZATION',
        `quantizationConfig: ${name} is stored as ${type} already; leave quantizationConfig out, or name its module in llmInt8SkipModules`,
      );
    }
    const coded = quantization && chosen.has(name) ? quantizedTypeOf(quantization) : undefined;
    call(() => model.describe(name, coded ?? type, coded === undefined && isInFile(name)));
  }
}
