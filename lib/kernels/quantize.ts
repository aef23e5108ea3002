import { LowrankError, shown } from '../errors.ts';
import { Checks, run, type Weight } from './checks.ts';

// bitsandbytes' quantisation, byte for byte: see csrc/ops/quantize_4bit.h and quantize_blockwise.h.

const kQuantTypes = ['nf4', 'fp4'] as const;
const kBlockSizes = [32, 64, 128, 256, 512, 1024, 2048, 4096];
const kNestedBlockSize = 256;
const kByteCodes = 256;

export type QuantType = (typeof kQuantTypes)[number];

export interface Quantize4bitOptions {
  /** 'fp4' by default, as in bitsandbytes. */
  quantType?: QuantType;
  /** Numbers that share a magnitude: a power of two from 32 to 4096; 64 by default. */
  blockSize?: number;
  /** Double quantisation: magnitudes as 8-bit codes too; false by default. */
  compressStatistics?: boolean;
  /**
   * What is taken away from the magnitudes before that; their mean by default. bitsandbytes' own overflows to Infinity, and its codes to
   * zeros, where the magnitudes' sum is no fp32 number; the mean here does not.
   */
  offset?: number;
}

/** What {@link dequantize4bit} needs besides the codes. */
export interface Quantized4bitState {
  quantType: QuantType;
  blockSize: number;
  /** Numbers that were quantised. */
  length: number;
  /** What the sixteen codes stand for. */
  code: Float32Array;
  /** The largest magnitude of each block, or with double quantisation its code. */
  absmax: Float32Array | Uint8Array;
  /** With double quantisation: scales of blocks of `nestedBlockSize` codes, what the 256 codes stand for, and what to add. */
  nestedAbsmax?: Float32Array;
  nestedCode?: Float32Array;
  nestedBlockSize?: number;
  offset?: number;
}

/**
 * Numbers as 4-bit codes, two a byte with the first in the high nibble, as bitsandbytes' quantize_4bit gives them. `x` may also be the bytes
 * of F32, F16 or BF16 numbers.
 */
export function quantize4bit(x: Weight, options: Quantize4bitOptions = {}): { packed: Uint8Array; state: Quantized4bitState } {
  const checks = new Checks('quantize4bit', options, ['quantType', 'blockSize', 'compressStatistics', 'offset']);
  const { quantType = 'fp4', blockSize = 64, compressStatistics = false, offset } = options;
  checks.choice('quantType', quantType, kQuantTypes);
  checkBlockSize('quantize4bit', blockSize);
  checks.flag('compressStatistics', compressStatistics);
  if (offset !== undefined && offset !== Infinity) checks.number('offset', offset);
  if (offset !== undefined && !compressStatistics) {
    throw new LowrankError('INVALID_OPTION', `quantize4bit: offset is ${shown(offset)}; expected nothing without compressStatistics`);
  }
  const values = numbersOf(checks, x);
  const { length } = values;
  const code = checks.allocate(16);
  run('codes4bit', quantType.toUpperCase(), code);
  const packed = new Uint8Array(Math.ceil(length / 2));
  const absmax = checks.allocate(Math.ceil(length / blockSize));
  run('quantize4bit', values, length, blockSize, quantType.toUpperCase(), packed, absmax);
  const state: Quantized4bitState = { quantType, blockSize, length, code, absmax };
  return { packed, state: compressStatistics ? { ...state, ...compress(absmax, offset) } : state };
}

/** The magnitudes' own quantisation. */
function compress(absmax: Float32Array, given: number | undefined) {
  const offset = Math.fround(given ?? meanOf(absmax));
  const { quantized, state } = quantizeBlockwise(
    absmax.map((value) => value - offset),
    { blockSize: kNestedBlockSize },
  );
  return { absmax: quantized, nestedAbsmax: state.absmax, nestedCode: state.code, nestedBlockSize: kNestedBlockSize, offset };
}

function meanOf(absmax: Float32Array): number {
  const mean = new Float32Array(1);
  run('meanAbsmax', absmax, absmax.length, mean);
  return mean[0] as number;
}

/** The numbers that codes of {@link quantize4bit} (or of bitsandbytes) stand for. */
export function dequantize4bit(packed: Uint8Array, state: Quantized4bitState): Float32Array {
  const checks = new Checks('dequantize4bit', state, [
    'quantType',
    'blockSize',
    'length',
    'code',
    'absmax',
    'nestedAbsmax',
    'nestedCode',
    'nestedBlockSize',
    'offset',
  ]);
  const { blockSize, length, code } = state;
  checkBlockSize('dequantize4bit', blockSize);
  checks.dimension('length', length);
  checks.floats('code', code, 16);
  checks.bytes('packed', packed, Math.ceil(length / 2));
  const absmax = magnitudesOf(checks, state, Math.ceil(length / blockSize));
  const out = checks.allocate(length);
  run('dequantize4bit', packed, length, blockSize, code, absmax, out);
  return out;
}

/** The magnitudes of a state's blocks, double quantisation undone. */
function magnitudesOf(checks: Checks, state: Quantized4bitState, blocks: number): Float32Array {
  const { absmax, nestedAbsmax, nestedCode, nestedBlockSize = kNestedBlockSize, offset } = state;
  if (absmax instanceof Float32Array) return checks.floats('absmax', absmax, blocks);
  checks.bytes('absmax', absmax, blocks);
  if (nestedAbsmax === undefined || offset === undefined) {
    throw new LowrankError('INVALID_OPTION', 'dequantize4bit: absmax holds codes; expected nestedAbsmax and offset beside it');
  }
  const code = nestedCode ?? createDynamicMap();
  const values = dequantizeBlockwise(absmax, { absmax: nestedAbsmax, code, blockSize: nestedBlockSize });
  return values.map((value) => value + offset);
}

/** What {@link dequantizeBlockwise} needs besides the codes. */
export interface QuantizedBlockwiseState {
  /** The largest magnitude of each block. */
  absmax: Float32Array;
  /** What the 256 codes stand for. */
  code: Float32Array;
  blockSize: number;
}

export interface QuantizeBlockwiseOptions {
  /** 256 ascending numbers up to 1; the signed dynamic map by default. */
  code?: Float32Array;
  /** Numbers that share a magnitude; 4096 by default. */
  blockSize?: number;
}

/** Numbers as 8-bit codes, as bitsandbytes' quantize_blockwise gives them on a CPU. `x` may also be the bytes of F32, F16 or BF16 numbers. */
export function quantizeBlockwise(
  x: Weight,
  options: QuantizeBlockwiseOptions = {},
): { quantized: Uint8Array; state: QuantizedBlockwiseState } {
  const checks = new Checks('quantizeBlockwise', options, ['code', 'blockSize']);
  const { code = createDynamicMap(), blockSize = 4096 } = options;
  checks.floats('code', code, kByteCodes);
  if (code.some((value, index) => !Number.isFinite(value) || (index > 0 && value < (code[index - 1] as number)))) {
    throw new LowrankError('INVALID_OPTION', 'quantizeBlockwise: code is not in order; expected 256 ascending numbers');
  }
  checks.whole('blockSize', blockSize, 1);
  const values = numbersOf(checks, x);
  const quantized = new Uint8Array(values.length);
  const absmax = checks.allocate(Math.ceil(values.length / blockSize));
  run('quantizeBlockwise', values, values.length, blockSize, code, quantized, absmax);
  return { quantized, state: { absmax, code, blockSize } };
}

/** The numbers that codes of {@link quantizeBlockwise} (or of bitsandbytes) stand for. */
export function dequantizeBlockwise(quantized: Uint8Array, state: QuantizedBlockwiseState): Float32Array {
  const checks = new Checks('dequantizeBlockwise', state, ['absmax', 'code', 'blockSize']);
  const { absmax, code, blockSize } = state;
  checks.bytes('quantized', quantized, quantized?.length ?? 0);
  checks.whole('blockSize', blockSize, 1);
  checks.floats('code', code, kByteCodes);
  checks.floats('absmax', absmax, Math.ceil(quantized.length / blockSize));
  const out = checks.allocate(quantized.length);
  run('dequantizeBlockwise', quantized, quantized.length, blockSize, code, absmax, out);
  return out;
}

/** A matrix in 8 bits: a magnitude for each row. */
export interface QuantizedRows {
  /** [rows, columns] */
  quantized: Int8Array;
  /** The largest magnitude of each row. */
  absmax: Float32Array;
}

/**
 * Rows of numbers as 8-bit codes, as bitsandbytes' int8_vectorwise_quant gives them on a CPU. `x` may also be the bytes of F32, F16 or BF16
 * numbers; weights of LLM.int8() are rounded to F16 before.
 */
export function int8VectorwiseQuant(x: Weight, options: { rows: number; columns: number }): QuantizedRows {
  const checks = new Checks('int8VectorwiseQuant', options, ['rows', 'columns']);
  const rows = checks.dimension('rows', options.rows);
  const columns = checks.dimension('columns', options.columns);
  const values = checks.floats('x', numbersOf(checks, x), rows * columns);
  const quantized = new Int8Array(rows * columns);
  const absmax = checks.allocate(rows);
  run('int8VectorwiseQuant', values, rows, columns, new Uint8Array(quantized.buffer), absmax);
  return { quantized, absmax };
}

/** The numbers that codes of {@link int8VectorwiseQuant} (or of bitsandbytes) stand for, as its int8_vectorwise_dequant gives them. */
export function int8VectorwiseDequant({ quantized, absmax }: QuantizedRows): Float32Array {
  const checks = new Checks('int8VectorwiseDequant', { quantized, absmax }, ['quantized', 'absmax']);
  if (!(quantized instanceof Int8Array)) checks.fail(`quantized is ${shown(quantized)}; expected an Int8Array`);
  checks.floats('absmax', absmax, absmax?.length ?? 0);
  const rows = absmax.length;
  const columns = rows === 0 ? 0 : quantized.length / rows;
  if (quantized.length !== rows * columns || !Number.isInteger(columns)) {
    checks.fail(`quantized has ${quantized.length} codes; expected as many in each of ${rows} rows`);
  }
  const out = checks.allocate(quantized.length);
  run('int8VectorwiseDequant', new Uint8Array(quantized.buffer, quantized.byteOffset, quantized.length), absmax, rows, columns, out);
  return out;
}

/** The 256 numbers of bitsandbytes' dynamic map: a unary exponent from 1 to 1e-6, and what bits are left as a linear fraction. */
export function createDynamicMap(signed = true): Float32Array {
  const code = new Float32Array(kByteCodes);
  run('dynamicMap', signed, code);
  return code;
}

function checkBlockSize(kernel: string, blockSize: number): void {
  if (kBlockSizes.includes(blockSize)) return;
  throw new LowrankError('INVALID_OPTION', `${kernel}: blockSize is ${shown(blockSize)}; expected one of ${kBlockSizes.join(', ')}`);
}

const kScalarBytes: Readonly<Record<string, number>> = { F32: 4, F16: 2, BF16: 2 };

/** fp32 numbers of any float type. */
function numbersOf(checks: Checks, x: Weight): Float32Array {
  if (x instanceof Float32Array) return x;
  const bytes = typeof x === 'object' && x !== null ? kScalarBytes[x.dtype] : undefined;
  if (bytes === undefined || !(x.data instanceof Uint8Array)) {
    return checks.fail(`x is ${shown(x)}; expected a Float32Array, or { dtype, data } with dtype F32, F16 or BF16`);
  }
  const length = Math.floor(x.data.length / bytes);
  const values = checks.allocate(length);
  run('dequantize', ...checks.weight('x', x, 1, length), values);
  return values;
}
