import { readdir, realpath, stat } from 'node:fs/promises';
import { basename, dirname, join, sep } from 'node:path';
import { LowrankError, shown } from '../errors.ts';
import { call, type NativeModelConfig, type NativeQuantizedType, type NativeTensorFile, type NativeTensorInfo, native } from '../native.ts';
import { fromGgufName } from './gguf_names.ts';
import { readJsonObject } from './json_file.ts';

/** Where a tensor of the model lies. */
export interface TensorLocation {
  file: NativeTensorFile;
  info: NativeTensorInfo;
  /** Rows in interleaved-RoPE order for so many heads; 0: in half-split order. */
  unpermuteHeads: number;
  /** Of a weight in bitsandbytes' 4 or 8 bits, whose codes `file` holds: what they stand for. */
  codes?: PackedCodes;
}

/** bitsandbytes' quantisation of a weight, by where it lies. */
export interface PackedCodes {
  type: NativeQuantizedType;
  /** What was quantised, by PyTorch's name. */
  sourceType: string;
  blockSize: number;
  /** What 4-bit codes stand for. */
  quantMap?: TensorLocation;
  /** Of each block, of 8 bits: of each row; with `nested` their codes. */
  absmax: TensorLocation;
  nested?: { absmax: TensorLocation; quantMap: TensorLocation; blockSize: number; offset: number };
}

/** Tensors by their safetensors names. */
export type TensorMap = Map<string, TensorLocation>;

/** Opens a safetensors or GGUF file; its header is checked, its data is mapped. */
export function openTensorFile(path: string): Promise<NativeTensorFile> {
  return call(() => native().openTensorFileAsync(path));
}

/** The tensors of a folder in Transformers' layout: model.safetensors, or shards with model.safetensors.index.json. */
export async function openSafetensorsFolder(folder: string): Promise<TensorMap> {
  const names = await readdir(folder);
  const tensors: TensorMap = new Map();
  const add = (file: NativeTensorFile) => {
    for (const info of file.tensors()) tensors.set(info.name, { file, info, unpermuteHeads: 0 });
  };
  if (names.includes('model.safetensors')) {
    add(await openTensorFile(await checkedPath(folder, 'model.safetensors')));
    return tensors;
  }
  if (!names.includes('model.safetensors.index.json')) throw noWeights(folder, names);
  const index = join(folder, 'model.safetensors.index.json');
  const shardOf = await readIndex(index);
  for (const shard of new Set(shardOf.values())) {
    if (!names.includes(shard)) throw new LowrankError('FILE_NOT_FOUND', `${join(folder, shard)} does not exist, but ${index} names it`);
    const file = await openTensorFile(await checkedPath(folder, shard));
    const strays = file.tensors().filter((info) => shardOf.get(info.name) !== shard);
    if (strays.length > 0)
      throw disagreement(
        index,
        `${shard} has tensors that it does not place there`,
        strays.map((info) => info.name),
      );
    add(file);
  }
  const absent = [...shardOf.keys()].filter((name) => !tensors.has(name));
  if (absent.length > 0) throw disagreement(index, 'tensors that it names are in no shard', absent);
  return tensors;
}

/** The tensors of a GGUF model under their safetensors names. */
export function openGgufTensors(file: NativeTensorFile, config: NativeModelConfig, architecture: string): TensorMap {
  const tensors: TensorMap = new Map();
  for (const info of file.tensors()) {
    if (info.name === 'rope_freqs.weight') continue; // in the configuration already
    const name = fromGgufName(info.name);
    tensors.set(name ?? info.name, { file, info, unpermuteHeads: architecture === 'llama' && name ? permutedHeads(name, config) : 0 });
  }
  return tensors;
}

/** llama.cpp's converter reorders the rows of q and k of llama models for its interleaved rotation. */
function permutedHeads(name: string, config: NativeModelConfig): number {
  if (/\.q_proj\.(weight|bias)$/.test(name)) return config.heads;
  if (/\.k_proj\.(weight|bias)$/.test(name)) return config.kvHeads;
  return 0;
}

/** Shard by tensor name. Names of shards come from a stranger: only files directly in the folder are taken. */
async function readIndex(path: string): Promise<Map<string, string>> {
  const { weight_map: map } = await readJsonObject(path, 'INVALID_SAFETENSORS');
  if (typeof map !== 'object' || map === null || Array.isArray(map)) {
    throw new LowrankError('INVALID_SAFETENSORS', `${path}: weight_map is ${shown(map)}; expected an object from tensor to shard`);
  }
  const shardOf = new Map<string, string>();
  for (const [tensor, shard] of Object.entries(map)) {
    if (typeof shard !== 'string' || !/^[^/\\:\0]+\.safetensors$/.test(shard) || shard.startsWith('.')) {
      throw new LowrankError(
        'INVALID_SAFETENSORS',
        `${path}: ${shown(tensor)} is in ${shown(shard)}; expected the name of a .safetensors file in the same folder`,
      );
    }
    shardOf.set(tensor, shard);
  }
  return shardOf;
}

/**
 * Path of a file in a folder after following links, refused where it leads out of it. Files in a snapshot of the hub's cache are links to
 * blobs of the same repository.
 */
export async function checkedPath(folder: string, name: string): Promise<string> {
  const [root, target] = await Promise.all([realpath(folder), realpath(join(folder, name))]).catch((cause: Error) => {
    throw new LowrankError('FILE_NOT_FOUND', `${join(folder, name)} cannot be opened: ${cause.message}`, { cause });
  });
  const allowed = [root];
  if (basename(dirname(root)) === 'snapshots') allowed.push(join(dirname(dirname(root)), 'blobs'));
  if (!allowed.some((place) => target.startsWith(place + sep))) {
    throw new LowrankError('INVALID_SAFETENSORS', `${join(folder, name)} is a link to ${target}, outside its folder`);
  }
  if (!(await stat(target)).isFile()) throw new LowrankError('INVALID_SAFETENSORS', `${join(folder, name)} is not a file`);
  return target;
}

function noWeights(folder: string, names: string[]): LowrankError {
  const pickle = names.find((name) => /\.(bin|pt|pth|ckpt)$/.test(name));
  if (pickle) {
    return new LowrankError(
      'UNSUPPORTED_MODEL',
      `${folder} has its weights in ${pickle}, a pickle, which can run code and is never opened; convert it in Python with AutoModelForCausalLM.from_pretrained(…).save_pretrained(…, safe_serialization=True)`,
    );
  }
  const gguf = names.find((name) => name.endsWith('.gguf'));
  const advice = gguf ? `; give the path of ${gguf} to load that` : '';
  return new LowrankError('FILE_NOT_FOUND', `${folder} has neither model.safetensors nor model.safetensors.index.json${advice}`);
}

function disagreement(index: string, what: string, names: string[]): LowrankError {
  return new LowrankError('INVALID_SAFETENSORS', `${index} does not agree with the shards: ${what}: ${listed(names)}`);
}

/** The first names of a list, and how many there are more. */
export function listed(names: readonly string[], most = 10): string {
  const rest = names.length - most;
  return names.slice(0, most).join(', ') + (rest > 0 ? ` and ${rest} more` : '');
}
