import { join } from 'node:path';
import { writeIntoFolder } from '../files/atomic_folder.ts';
import type { NativeFloatType } from '../native.ts';
import { kStorageTypes } from './compute_type.ts';
import type { ModelCore } from './core.ts';
import { checkFolder, parseSaveOptions, type SaveOptions } from './save_options.ts';
import { parseShardSize, type TensorToSave, writeJson, writeWeights } from './weights_file.ts';

/** Writes the base model in Transformers' layout: weights, config.json, generation_config.json's end tokens, tokenizer. */
export async function saveModel(core: ModelCore, folder: string, options?: SaveOptions): Promise<void> {
  checkFolder(folder);
  const { dtype, maxShardSize } = parseSaveOptions(options);
  const maxShardBytes = parseShardSize(maxShardSize);
  const chosen = dtype === 'auto' ? undefined : kStorageTypes[dtype];
  const tensors = await core.run((native) => {
    const stored = new Map(native.parameters().map((parameter) => [parameter.name, parameter.dtype]));
    const slots = native.slots().filter((slot) => stored.has(slot.name));
    return slots.map(({ name, shape }): TensorToSave => {
      return { name, shape, dtype: chosen ?? floatType(stored.get(name)) };
    });
  });
  await writeIntoFolder(folder, 'config.json', async (staging) => {
    await writeWeights(core, staging, tensors, maxShardBytes);
    await writeJson(join(staging, 'config.json'), savedConfig(core, tensors));
    if (core.eosIds.length > 0) await writeJson(join(staging, 'generation_config.json'), generationConfig(core));
    if (core.hasTokenizer) await core.tokenizer.save(staging);
  });
}

/** Float types stay; block types become bfloat16. */
function floatType(stored: string | undefined): NativeFloatType {
  return stored === 'F32' || stored === 'F16' ? stored : 'BF16';
}

/** The author's config.json, without its quantisation (4-bit weights are saved as floats), with what this package found out: whether the head is tied, and the type of the weights. */
function savedConfig(core: ModelCore, tensors: TensorToSave[]): Record<string, unknown> {
  const stored = tensors.find((tensor) => tensor.shape.length === 2)?.dtype;
  const torchNames = Object.keys(kStorageTypes) as (keyof typeof kStorageTypes)[];
  const { quantization_config: _, ...config } = core.config;
  return {
    ...config,
    architectures: [core.family.architecture],
    model_type: core.family.modelType,
    tie_word_embeddings: core.native.config.tiedHead,
    torch_dtype: torchNames.find((name) => kStorageTypes[name] === stored),
  };
}

function generationConfig(core: ModelCore): Record<string, unknown> {
  const ids = core.eosIds.length === 1 ? core.eosIds[0] : core.eosIds;
  const bos = core.config.bos_token_id;
  return { ...(typeof bos === 'number' ? { bos_token_id: bos } : {}), eos_token_id: ids };
}
