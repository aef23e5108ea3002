import { readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { setImmediate } from 'node:timers/promises';
import { LowrankError } from '../errors.ts';
import { recoverFolders } from '../files/atomic_folder.ts';
import { call, type NativeTensorFile, type NativeTensorInfo } from '../native.ts';
import { type AdapterConfig, fromAdapterConfigJson } from '../options/adapter_config.ts';
import { type AdapterParameter, isRepetition, normalisedKey } from './adapter_names.ts';
import { readJsonObject } from './json_file.ts';
import { checkedPath, listed, openTensorFile } from './tensor_source.ts';

const kConfig = 'adapter_config.json';
const kWeights = 'adapter_model.safetensors';
const kFloats = ['F32', 'BF16', 'F16'];
/** Values checked before the event loop gets its turn: some milliseconds. */
const kChunk = 1 << 18;

/** An adapter folder of PEFT's. */
export interface AdapterFolder extends AdapterConfig {
  path: string;
  file: NativeTensorFile;
}

/** Opens the folder that PEFT or this package wrote. Throws FILE_NOT_FOUND, INVALID_ADAPTER, INVALID_SAFETENSORS. */
export async function openAdapterFolder(path: string): Promise<AdapterFolder> {
  if (!(await stat(path).catch(() => undefined))?.isDirectory())
    throw new LowrankError('FILE_NOT_FOUND', `${path} is not a folder; expected one with ${kConfig} and ${kWeights}`);
  let names = await readdir(path);
  if (!names.includes(kConfig) && names.some((name) => name.startsWith(`.${kConfig}.was-`))) {
    await recoverFolders(path); // a save was killed while it replaced the files
    names = await readdir(path);
  }
  const config = fromAdapterConfigJson(await readJsonObject(join(path, kConfig), 'INVALID_ADAPTER'), join(path, kConfig));
  if (!names.includes(kWeights)) throw noWeights(path, names);
  return { ...config, path, file: await openTensorFile(await checkedPath(path, kWeights)) };
}

function noWeights(path: string, names: string[]): LowrankError {
  const pickle = names.find((name) => /\.(bin|pt|pth)$/.test(name));
  if (!pickle) return new LowrankError('FILE_NOT_FOUND', `${join(path, kWeights)} does not exist`);
  return new LowrankError(
    'INVALID_ADAPTER',
    `${path} has its weights in ${pickle}, a pickle, which can run code and is never opened; convert it in Python with PeftModel.from_pretrained(base, folder).save_pretrained(folder, safe_serialization=True)`,
  );
}

/**
 * Values of the adapter's parameters, checked: every parameter has a tensor and the reverse (unless not `strict`), shapes are those of the base and
 * the configuration, values are finite. Throws ADAPTER_MISMATCH listing what is missing and unexpected, INVALID_ADAPTER.
 */
export async function readAdapterWeights(
  { path, file }: AdapterFolder,
  parameters: readonly AdapterParameter[],
  strict: boolean,
): Promise<Map<string, Float32Array>> {
  const expected = new Set(parameters.map((parameter) => parameter.key));
  const tensors = file.tensors().filter((info) => !isRepetition(info.name, expected));
  const found = new Map(tensors.map((info) => [normalisedKey(info.name, expected), info]));
  checkPairs(path, found);
  const missing = [...expected].filter((key) => !found.has(key));
  const unexpected = [...found.keys()].filter((key) => !expected.has(key));
  if (strict && missing.length + unexpected.length > 0) {
    const parts = [
      missing.length > 0 ? `it lacks ${listed(missing)}` : '',
      unexpected.length > 0 ? `it has ${listed(unexpected)}, which the base and ${kConfig} have no place for` : '',
    ];
    throw new LowrankError('ADAPTER_MISMATCH', `${join(path, kWeights)} does not fit: ${parts.filter(Boolean).join('; ')}`);
  }
  const values = new Map<string, Float32Array>();
  for (const parameter of parameters) {
    const info = found.get(parameter.key);
    if (info) values.set(parameter.native, await readChecked(file, info, parameter.shape));
  }
  return values;
}

function checkPairs(path: string, found: Map<string, NativeTensorInfo>): void {
  for (const key of found.keys()) {
    const other = key.includes('.lora_A.') ? key.replace('.lora_A.', '.lora_B.') : key.replace('.lora_B.', '.lora_A.');
    if (other !== key && !found.has(other))
      throw new LowrankError('INVALID_ADAPTER', `${join(path, kWeights)} has ${key} without ${other}`);
  }
}

async function readChecked(file: NativeTensorFile, info: NativeTensorInfo, shape: number[]): Promise<Float32Array> {
  if (info.shape.length !== shape.length || info.shape.some((size, axis) => size !== shape[axis])) {
    throw new LowrankError(
      'ADAPTER_MISMATCH',
      `${file.path}: ${info.name} has shape [${info.shape.join(', ')}]; the base and ${kConfig} make it [${shape.join(', ')}]`,
    );
  }
  if (!kFloats.includes(info.dtype))
    throw new LowrankError('INVALID_ADAPTER', `${file.path}: ${info.name} is stored as ${info.dtype}; expected ${kFloats.join(', ')}`);
  const values = await call(() => file.readAsync(info.name));
  for (let begin = 0; begin < values.length; begin += kChunk) {
    const bad = values.subarray(begin, begin + kChunk).findIndex((value) => !Number.isFinite(value));
    if (bad >= 0)
      throw new LowrankError(
        'INVALID_ADAPTER',
        `${file.path}: ${info.name} holds ${values[begin + bad]} at element ${begin + bad}; expected finite values`,
      );
    if (begin + kChunk < values.length) await setImmediate();
  }
  return values;
}
