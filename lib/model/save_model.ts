import { join } from 'node:path';
import { writeIntoFolder } from '../files/atomic_folder.ts';
import { nodeFiles } from '../files/file_system.ts';
import { kStorageTypes } from './compute_type.ts';
import type { ModelCore } from './core.ts';
import { checkFolder, parseSaveOptions, type SaveOptions } from './save_options.ts';
import { parseShardSize, type TensorToSave, writeJson, writeWeights } from './weights_file.ts';

/** Files of weights, of which another save may have made others: a single one, or shards with their index. */
const kWeightFiles = /^model(-\d+-of-\d+)?\.safetensors(\.index\.json)?$/;

const kQuantizedTypes: readonly TensorToSave['dtype'][] = ['NF4', 'FP4', 'INT8'];
const kSavedTypes: readonly TensorToSave['dtype'][] = ['F32', 'F16', 'BF16', ...kQuantizedTypes];

/** Transformers insists on their type. */
const kConfigFloats = ['llm_int8_threshold'];

const isQuantizedType = (dtype: TensorToSave['dtype']) => kQuantizedTypes.includes(dtype);

/**
 * Writes the base model in Transformers' layout: weights, config.json, generation_config.json, tokenizer. `isReplaced`: files of something else in the
 * folder, whose place the model takes.
 */
export async function saveModel(
  core: ModelCore,
  folder: string,
  options?: SaveOptions,
  isReplaced: (name: string) => boolean = () => false,
): Promise<void> {
  checkFolder(folder);
  const { dtype, maxShardSize } = parseSaveOptions(options);
  const maxShardBytes = parseShardSize(maxShardSize);
  const chosen = dtype === 'auto' ? undefined : kStorageTypes[dtype];
  const tensors = await core.run((native) => {
    const stored = new Map(native.parameters().map((parameter) => [parameter.name, parameter.dtype]));
    const slots = native.slots().filter((slot) => stored.has(slot.name));
    return slots.map(({ name, shape }): TensorToSave => {
      return { name, shape, dtype: chosen ?? savedType(stored.get(name)) };
    });
  });
  const write = async (staging: string) => {
    await writeWeights(core, staging, tensors, maxShardBytes);
    await writeJson(join(staging, 'config.json'), savedConfig(core, tensors), kConfigFloats);
    const generation = generationConfig(core);
    if (Object.keys(generation).length > 0) await writeJson(join(staging, 'generation_config.json'), generation);
    if (core.hasTokenizer) await core.tokenizer.save(staging);
  };
  await writeIntoFolder(folder, 'config.json', write, nodeFiles, (name) => kWeightFiles.test(name) || isReplaced(name));
}

/** Float types and those of bitsandbytes stay; GGUF's block types become bfloat16. */
function savedType(stored: string | undefined): TensorToSave['dtype'] {
  return kSavedTypes.find((type) => type === stored) ?? 'BF16';
}

/** The author's config.json, with the quantisation that is saved, and with what this package found out: whether the head is tied, and the type of the weights. */
function savedConfig(core: ModelCore, tensors: TensorToSave[]): Record<string, unknown> {
  const stored = tensors.find(({ shape, dtype }) => shape.length === 2 && !isQuantizedType(dtype))?.dtype;
  const torchNames = Object.keys(kStorageTypes) as (keyof typeof kStorageTypes)[];
  const { quantization_config: _, dtype, torch_dtype: __, ...config } = core.config;
  const isQuantized = tensors.some((tensor) => isQuantizedType(tensor.dtype));
  return {
    ...config,
    ...(isQuantized ? { quantization_config: core.quantization?.config } : {}),
    architectures: [core.family.architecture],
    model_type: core.family.modelType,
    tie_word_embeddings: core.native.config.tiedHead,
    // Transformers 5 writes the first; earlier ones know the second only. Where both are there, the first counts.
    [dtype === undefined ? 'torch_dtype' : 'dtype']: torchNames.find((name) => kStorageTypes[name] === stored),
  };
}

/** The author's, with the end tokens of config.json too. */
function generationConfig(core: ModelCore): Record<string, unknown> {
  if (core.eosIds.length === 0) return { ...core.generationConfig };
  const ids = core.eosIds.length === 1 ? core.eosIds[0] : core.eosIds;
  const bos = core.config.bos_token_id;
  return { ...(typeof bos === 'number' ? { bos_token_id: bos } : {}), ...core.generationConfig, eos_token_id: ids };
}
