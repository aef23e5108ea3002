import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { LowrankError, shown } from '../errors.ts';
import { type NativeFloatType, type NativeParameterData, native } from '../native.ts';
import type { ModelCore } from './core.ts';
import { elementCount } from './tensor.ts';

/** A parameter of the model to write. */
export interface TensorToSave {
  name: string;
  shape: number[];
  dtype: NativeFloatType;
}

const kBytes: Record<NativeFloatType, number> = { F32: 4, BF16: 2, F16: 2 };

/**
 * Writes model.safetensors into `folder`, or shards of at most `maxShardBytes` with their index, in Transformers' layout.
 * Tensors that are stored in another type than they are to have are converted one at a time.
 */
export async function writeWeights(core: ModelCore, folder: string, tensors: TensorToSave[], maxShardBytes: number): Promise<void> {
  const shards = splitIntoShards(tensors, maxShardBytes);
  const metadata = { format: 'pt' };
  const weightMap: Record<string, string> = {};
  for (const [i, shard] of shards.entries()) {
    const number = (n: number) => String(n).padStart(5, '0');
    const name = shards.length === 1 ? 'model.safetensors' : `model-${number(i + 1)}-of-${number(shards.length)}.safetensors`;
    const parameters = shard.map(({ name: parameter, dtype }): NativeParameterData => ({ name: parameter, parameter, dtype }));
    for (const tensor of shard) weightMap[tensor.name] = name;
    await core.run((model) => native().writeParameters(model, join(folder, name), parameters, metadata));
  }
  if (shards.length === 1) return;
  const totalSize = tensors.reduce((sum, tensor) => sum + bytesOf(tensor), 0);
  const index = { metadata: { total_size: totalSize }, weight_map: weightMap };
  await writeJson(join(folder, 'model.safetensors.index.json'), index);
}

/** Writes JSON as Python's json.dump(indent=2) does, with a final newline. */
export async function writeJson(path: string, value: unknown): Promise<void> {
  await writeFile(path, `${JSON.stringify(value, null, 2)}\n`);
}

/** Bytes of a size as Transformers writes it: 5GB, 200MB, or a number. */
export function parseShardSize(value: number | string): number {
  const units: Record<string, number> = { '': 1, KB: 1e3, MB: 1e6, GB: 1e9, KIB: 2 ** 10, MIB: 2 ** 20, GIB: 2 ** 30 };
  const [, digits = '', unit = ''] = /^(\d+(?:\.\d+)?)\s*([A-Za-z]*)$/.exec(String(value)) ?? [];
  const bytes = Number(digits) * (units[unit.toUpperCase()] ?? Number.NaN);
  if (bytes >= 1 && Number.isFinite(bytes)) return bytes;
  throw new LowrankError('INVALID_OPTION', `maxShardSize: found ${shown(value)}, expected a number of bytes or a size such as '5GB'`);
}

function bytesOf(tensor: TensorToSave): number {
  return elementCount(tensor.shape) * kBytes[tensor.dtype];
}

function splitIntoShards(tensors: TensorToSave[], maxBytes: number): TensorToSave[][] {
  const shards: TensorToSave[][] = [];
  let room = 0;
  for (const tensor of tensors) {
    const bytes = bytesOf(tensor);
    if (shards.length === 0 || bytes > room) {
      shards.push([]);
      room = maxBytes;
    }
    shards.at(-1)?.push(tensor);
    room -= bytes;
  }
  return shards;
}
