import { setImmediate } from 'node:timers/promises';
import { z } from 'zod';
import { LowrankError, shown } from '../errors.ts';
import { run } from '../kernels/checks.ts';
import { type NativeModel, type NativeNestedAbsmax, native } from '../native.ts';
import { resolveQuantizationConfig } from '../options/quantization_config.ts';
import { type BaseQuantization, quantizationOf } from './quantize.ts';
import { elementCount } from './tensor.ts';
import type { PackedCodes, TensorLocation, TensorMap } from './tensor_source.ts';

// bitsandbytes' weights in safetensors files. In 4 bits `weight` holds the codes, `weight.absmax`, `weight.quant_map`, `weight.nested_absmax`
// and `weight.nested_quant_map` what they stand for, and `weight.quant_state.bitsandbytes__nf4` (or fp4) the rest, as the bytes of JSON. In
// 8 bits `weight` holds the codes, `SCB` a magnitude for each row, and `weight_format` says that rows lie as they are.

const kState = /^(.+)\.quant_state\.bitsandbytes__(nf4|fp4)$/;
const kRowMagnitudes = /^(.+)\.SCB$/;
const kMostStateBytes = 1 << 16;
const kByteCodes = 256;
/** Bytes read before the event loop gets its turn. */
const kChunk = 1 << 20;

const size = z.int().min(1).max(Number.MAX_SAFE_INTEGER);
const stateSchema = z.object({
  quant_type: z.enum(['nf4', 'fp4']),
  blocksize: size,
  shape: z.array(size),
  dtype: z.string().default('float32'),
  nested_blocksize: size.optional(),
  nested_offset: z.number().optional(),
});

/** Joins the parts of quantised weights into one tensor each, whose type is NF4, FP4 or INT8. */
export function joinPackedWeights(tensors: TensorMap): void {
  for (const name of [...tensors.keys()]) {
    const [, weight, quantType] = kState.exec(name) ?? [];
    if (weight !== undefined) tensors.set(weight, joined4bit(tensors, weight, name, quantType as 'nf4' | 'fp4'));
    const [, module] = kRowMagnitudes.exec(name) ?? [];
    if (module !== undefined) tensors.set(`${module}.weight`, joined8bit(tensors, module));
  }
}

/** That of a folder which holds quantised weights already; `config` is its config.json. */
export function storedQuantization(tensors: TensorMap, config: Record<string, unknown>): BaseQuantization | undefined {
  const codes = [...tensors.values()].find((location) => location.codes !== undefined)?.codes;
  if (codes === undefined) return undefined;
  const loadIn8bit = codes.type === 'INT8';
  const bnb4bitQuantType = codes.type === 'NF4' ? 'nf4' : 'fp4';
  const bnb4bitUseDoubleQuant = codes.nested !== undefined;
  const described = resolveQuantizationConfig({ loadIn4bit: !loadIn8bit, loadIn8bit, bnb4bitQuantType, bnb4bitUseDoubleQuant });
  const quantization = quantizationOf(described, codes.sourceType);
  const written = config.quantization_config as Record<string, unknown> | undefined;
  return { ...quantization, config: written ?? quantization.config };
}

/** Takes a tensor that belongs to `owner` out of the map. */
function take(tensors: TensorMap, owner: string, name: string): TensorLocation {
  const location = tensors.get(name);
  if (location === undefined) throw invalid(owner, `${name} is missing`);
  tensors.delete(name);
  return location;
}

function joined4bit(tensors: TensorMap, weight: string, stateName: string, quantType: 'nf4' | 'fp4'): TensorLocation {
  const state = readState(take(tensors, stateName, stateName), quantType);
  const packed = take(tensors, stateName, weight);
  const blocks = Math.ceil(elementCount(state.shape) / state.blocksize);
  const part = (suffix: string, dtype: string, count: number) =>
    expectedTensor(take(tensors, stateName, `${weight}.${suffix}`), dtype, count);
  const quantMap = part('quant_map', 'F32', 16);
  const isNested = tensors.has(`${weight}.nested_absmax`);
  const type = quantType === 'nf4' ? 'NF4' : 'FP4';
  const absmax = part('absmax', isNested ? 'U8' : 'F32', blocks);
  const codes: PackedCodes = { type, sourceType: state.dtype, blockSize: state.blocksize, quantMap, absmax };
  if (isNested) {
    const { nested_blocksize: blockSize, nested_offset: offset } = state;
    if (blockSize === undefined || offset === undefined) throw invalid(stateName, 'it lacks nested_blocksize or nested_offset');
    const scales = part('nested_absmax', 'F32', Math.ceil(blocks / blockSize));
    codes.nested = { absmax: scales, quantMap: part('nested_quant_map', 'F32', kByteCodes), blockSize, offset };
  }
  if (packed.info.bytes !== Math.ceil(elementCount(state.shape) / 2)) {
    throw invalid(stateName, `${weight} has ${packed.info.bytes} bytes, which are not the codes of [${state.shape.join(', ')}]`);
  }
  return { ...packed, info: { ...packed.info, dtype: type, shape: state.shape }, codes };
}

function joined8bit(tensors: TensorMap, module: string): TensorLocation {
  const magnitudes = `${module}.SCB`;
  const scales = take(tensors, magnitudes, magnitudes);
  const packed = take(tensors, magnitudes, `${module}.weight`);
  const [rows = 0, columns = 0] = packed.info.shape;
  expectedTensor(packed, 'I8', rows * columns);
  if (tensors.has(`${module}.weight_format`)) checkRowFormat(take(tensors, magnitudes, `${module}.weight_format`));
  const codes: PackedCodes = { type: 'INT8', sourceType: 'float16', blockSize: columns, absmax: expectedTensor(scales, 'F32', rows) };
  return { ...packed, info: { ...packed.info, dtype: 'INT8' }, codes };
}

/** Old versions could also store tiles as some GPUs read them. */
function checkRowFormat(location: TensorLocation): void {
  const { file, info } = expectedTensor(location, 'U8', 1);
  const [format] = file.readRaw(info.name);
  if (format === 0) return;
  throw new LowrankError(
    'UNSUPPORTED_QUANTIZATION',
    `${file.path}: ${info.name} is ${format}, a layout of a GPU's; expected 0, whole rows, as bitsandbytes 0.45 and later save them`,
  );
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
  const { type, blockSize, quantMap, absmax, nested } = codes;
  if (quantMap !== undefined) checkMap(quantMap, type);
  const magnitudes =
    nested === undefined ? { absmax: await absmax.file.readAsync(absmax.info.name) } : { nested: await nestedAbsmax(absmax, nested) };
  try {
    await native().setQuantizedTensor(model, slot, { type, blockSize, codes: { file, tensor: info.name }, ...magnitudes });
  } catch (error) {
    if (error instanceof Error) error.message = `${file.path}: ${info.name}: ${error.message}`;
    throw error;
  }
}

/** The arithmetic knows the two types' own values only. */
function checkMap(quantMap: TensorLocation, type: string): void {
  const own = new Float32Array(16);
  run('codes4bit', type, own);
  const stored = quantMap.file.read(quantMap.info.name);
  if (stored.every((value, index) => value === own[index])) return;
  throw new LowrankError('UNSUPPORTED_QUANTIZATION', `${quantMap.file.path}: ${quantMap.info.name} does not hold the values of ${type}`);
}

async function nestedAbsmax(codes: TensorLocation, nested: NonNullable<PackedCodes['nested']>): Promise<NativeNestedAbsmax> {
  const { absmax, quantMap, blockSize, offset } = nested;
  return {
    codes: await readBytes(codes),
    absmax: absmax.file.read(absmax.info.name),
    map: quantMap.file.read(quantMap.info.name),
    blockSize,
    offset: Math.fround(offset),
  };
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
