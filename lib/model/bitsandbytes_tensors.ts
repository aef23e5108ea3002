import { setImmediate } from 'node:timers/promises';
import { z } from 'zod';
import { LowrankError, shown } from '../errors.ts';
import { run } from '../kernels/checks.ts';
import { dequantizeBlockwise } from '../kernels/quantize.ts';
import { type NativeModel, native } from '../native.ts';
import { elementCount } from './tensor.ts';
import type { PackedCodes, TensorLocation, TensorMap } from './tensor_source.ts';

// bitsandbytes' 4-bit weights in safetensors files: `weight` holds the codes, `weight.absmax`, `weight.quant_map`, `weight.nested_absmax` and
// `weight.nested_quant_map` what they stand for, and `weight.quant_state.bitsandbytes__nf4` (or fp4) the rest, as the bytes of JSON.

const kState = /^(.+)\.quant_state\.bitsandbytes__(nf4|fp4)$/;
const kMostStateBytes = 1 << 16;
const kByteCodes = 256;
/** Bytes read before the event loop gets its turn. */
const kChunk = 1 << 20;

const size = z.int().min(1).max(Number.MAX_SAFE_INTEGER);
const stateSchema = z.object({
  quant_type: z.enum(['nf4', 'fp4']),
  blocksize: size,
  shape: z.array(size),
  nested_blocksize: size.optional(),
  nested_offset: z.number().optional(),
});

/** Joins the parts of 4-bit weights into one tensor each, whose type is NF4 or FP4. */
export function joinPackedWeights(tensors: TensorMap): void {
  for (const name of [...tensors.keys()]) {
    const [, weight, quantType] = kState.exec(name) ?? [];
    if (weight !== undefined) tensors.set(weight, joined(tensors, weight, name, quantType as 'nf4' | 'fp4'));
  }
}

function joined(tensors: TensorMap, weight: string, stateName: string, quantType: 'nf4' | 'fp4'): TensorLocation {
  const take = (name: string): TensorLocation => {
    const location = tensors.get(name);
    if (location === undefined) throw invalid(stateName, `${name} is missing`);
    tensors.delete(name);
    return location;
  };
  const state = readState(take(stateName), quantType);
  const packed = take(weight);
  const blocks = Math.ceil(elementCount(state.shape) / state.blocksize);
  const part = (suffix: string, dtype: string, count: number) => expectedTensor(take(`${weight}.${suffix}`), dtype, count);
  const quantMap = part('quant_map', 'F32', 16);
  const isNested = tensors.has(`${weight}.nested_absmax`);
  const codes: PackedCodes = {
    quantType,
    blockSize: state.blocksize,
    quantMap,
    absmax: part('absmax', isNested ? 'U8' : 'F32', blocks),
  };
  if (isNested) {
    const { nested_blocksize: blockSize, nested_offset: offset } = state;
    if (blockSize === undefined || offset === undefined) throw invalid(stateName, 'it lacks nested_blocksize or nested_offset');
    const absmax = part('nested_absmax', 'F32', Math.ceil(blocks / blockSize));
    codes.nested = { absmax, quantMap: part('nested_quant_map', 'F32', kByteCodes), blockSize, offset };
  }
  if (packed.info.bytes !== Math.ceil(elementCount(state.shape) / 2)) {
    throw invalid(stateName, `${weight} has ${packed.info.bytes} bytes, which are not the codes of [${state.shape.join(', ')}]`);
  }
  return { ...packed, info: { ...packed.info, dtype: quantType.toUpperCase(), shape: state.shape }, codes };
}

function readState({ file, info }: TensorLocation, quantType: string): z.output<typeof stateSchema> {
  if (info.bytes > kMostStateBytes) throw invalid(info.name, `it has ${info.bytes} bytes`);
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder().decode(file.readRaw(info.name)));
  } catch (cause) {
    throw invalid(info.name, `it is not JSON: ${(cause as Error).message}`);
  }
  const result = stateSchema.safeParse(value);
  if (!result.success) throw invalid(info.name, result.error.issues.map(({ path, message }) => `${path.join('.')}: ${message}`).join('; '));
  if (result.data.quant_type !== quantType) throw invalid(info.name, `quant_type is ${shown(result.data.quant_type)}`);
  return result.data;
}

function expectedTensor(location: TensorLocation, dtype: string, count: number): TensorLocation {
  const { info } = location;
  if (info.dtype === dtype && elementCount(info.shape) === count) return location;
  throw invalid(info.name, `it holds ${elementCount(info.shape)} of ${info.dtype}; expected ${count} of ${dtype}`);
}

/** Gives a slot the weight that was joined from its parts, without quantising again. */
export async function placeCodes(model: NativeModel, slot: string, location: TensorLocation, codes: PackedCodes): Promise<void> {
  const { file, info } = location;
  const type = codes.quantType === 'nf4' ? 'NF4' : 'FP4';
  checkMap(codes, type);
  const absmax = codes.nested === undefined ? await codes.absmax.file.readAsync(codes.absmax.info.name) : await nestedMagnitudes(codes);
  const packed = await readBytes(location);
  try {
    await native().setQuantizedTensor(model, slot, type, codes.blockSize, packed, absmax);
  } catch (error) {
    if (error instanceof Error) error.message = `${file.path}: ${info.name}: ${error.message}`;
    throw error;
  }
}

/** The arithmetic knows the two types' own values only. */
function checkMap({ quantMap }: PackedCodes, type: string): void {
  const own = new Float32Array(16);
  run('codes4bit', type, own);
  const stored = quantMap.file.read(quantMap.info.name);
  if (stored.every((value, index) => value === own[index])) return;
  throw new LowrankError('UNSUPPORTED_QUANTIZATION', `${quantMap.file.path}: ${quantMap.info.name} does not hold the values of ${type}`);
}

/** code * nested absmax + offset in fp32, each rounded. */
async function nestedMagnitudes({ absmax, nested }: PackedCodes): Promise<Float32Array> {
  const { absmax: scales, quantMap, blockSize, offset } = nested as NonNullable<PackedCodes['nested']>;
  const state = { absmax: scales.file.read(scales.info.name), code: quantMap.file.read(quantMap.info.name), blockSize };
  const shift = Math.fround(offset);
  return dequantizeBlockwise(await readBytes(absmax), state).map((value) => value + shift);
}

async function readBytes({ file, info }: TensorLocation): Promise<Uint8Array> {
  const bytes = new Uint8Array(info.bytes);
  for (let begin = 0; begin < info.bytes; begin += kChunk) {
    bytes.set(file.readRaw(info.name, begin, Math.min(info.bytes, begin + kChunk)), begin);
    if (info.bytes > kChunk) await setImmediate();
  }
  return bytes;
}

function invalid(name: string, why: string): LowrankError {
  return new LowrankError('INVALID_SAFETENSORS', `${name} is not what bitsandbytes writes: ${why}`);
}
