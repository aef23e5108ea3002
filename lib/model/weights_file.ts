import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { LowrankError, shown } from '../errors.ts';
import { type NativeFloatType, type NativeParameterData, type NativeQuantizedType, type NativeTensorData, native } from '../native.ts';
import { packedTensors } from './bitsandbytes_files.ts';
import type { ModelCore } from './core.ts';
import { elementCount } from './tensor.ts';

/** A parameter of the model to write. */
export interface TensorToSave {
  name: string;
  shape: number[];
  /** A quantised weight stays in its own type, in bitsandbytes' layout. */
  dtype: NativeFloatType | NativeQuantizedType;
}

const kBytes: Record<NativeFloatType, number> = { F32: 4, BF16: 2, F16: 2 };
/** With magnitudes of the smallest blocks, in fp32. */
const kMostQuantizedBytes: Record<NativeQuantizedType, number> = { NF4: 0.5 + 4 / 64, FP4: 0.5 + 4 / 64, INT8: 1 + 4 / 64 };
/** Maps and JSON beside the codes of a weight. */
const kMostStateBytes = 2048;

/**
 * Writes model.safetensors into `folder`, or shards of at most `maxShardBytes` with their index, in Transformers' layout.
 * Tensors that are stored in another type than they are to have are converted one at a time.
 */
export async function writeWeights(core: ModelCore, folder: string, tensors: TensorToSave[], maxShardBytes: number): Promise<void> {
  const shards = splitIntoShards(tensors, maxShardBytes);
  const metadata = { format: 'pt' };
  const weightMap: Record<string, string> = {};
  let totalSize = 0;
  for (const [i, shard] of shards.entries()) {
    const number = (n: number) => String(n).padStart(5, '0');
    const file = shards.length === 1 ? 'model.safetensors' : `model-${number(i + 1)}-of-${number(shards.length)}.safetensors`;
    await core.run(async (model) => {
      const parameters: NativeParameterData[] = [];
      const packed: NativeTensorData[] = [];
      for (const { name, shape, dtype } of shard) {
        if (isFloat(dtype)) parameters.push({ name, parameter: name, dtype });
        else packed.push(...(await packedTensors(model, name, shape, core.quantization?.sourceType ?? 'float32')));
      }
      for (const { name } of [...parameters, ...packed]) weightMap[name] = file;
      totalSize += shard.reduce((sum, tensor) => sum + (isFloat(tensor.dtype) ? bytesOf(tensor) : 0), 0);
      totalSize += packed.reduce((sum, { data }) => sum + data.byteLength, 0);
      await native().writeParameters(model, join(folder, file), parameters, metadata, packed);
    });
  }
  if (shards.length === 1) return;
  const index = { metadata: { total_size: totalSize }, weight_map: weightMap };
  await writeJson(join(folder, 'model.safetensors.index.json'), index);
}

/** Writes JSON as Python's json.dump(indent=2) does, with a final newline. Whole numbers are written as 6.0 under the keys of `floats`. */
export async function writeJson(path: string, value: unknown, floats: readonly string[] = []): Promise<void> {
  let text = `${JSON.stringify(value, null, 2)}\n`;
  for (const key of floats) text = text.replace(new RegExp(`^( *"${key}": -?\\d+)(,?)$`, 'gm'), '$1.0$2');
  await writeFile(path, text);
}

/** Bytes of a size as Transformers writes it: 5GB, 200MB, or a number. */
export function parseShardSize(value: number | string): number {
  const units: Record<string, number> = { '': 1, KB: 1e3, MB: 1e6, GB: 1e9, KIB: 2 ** 10, MIB: 2 ** 20, GIB: 2 ** 30 };
  const [, digits = '', unit = ''] = /^(\d+(?:\.\d+)?)\s*([A-Za-z]*)$/.exec(String(value)) ?? [];
  const bytes = Number(digits) * (units[unit.toUpperCase()] ?? Number.NaN);
  if (bytes >= 1 && Number.isFinite(bytes)) return bytes;
  throw new LowrankError('INVALID_OPTION', `maxShardSize: found ${shown(value)}, expected a number of bytes or a size such as '5GB'`);
}

function isFloat(dtype: TensorToSave['dtype']): dtype is NativeFloatType {
  return dtype in kBytes;
}

/** The most that it takes. */
function bytesOf({ shape, dtype }: TensorToSave): number {
  const elements = elementCount(shape);
  return isFloat(dtype) ? elements * kBytes[dtype] : elements * kMostQuantizedBytes[dtype] + kMostStateBytes;
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
