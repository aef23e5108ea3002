import assert from 'node:assert/strict';
import * as kernels from '../lib/kernels.ts';
import { native } from '../lib/native.ts';
import { assertRefused, Random } from './kernels/support.ts';

// Bytes that bitsandbytes 0.50 gives on a CPU: test/reference/make_bitsandbytes_fixture.py.
const fixture = native().openTensorFile('test/fixtures/bitsandbytes.safetensors');
const tensors = new Map(fixture.tensors().map((info) => [info.name, info]));
const names = [...tensors.keys()];

function bits(values: Float32Array | undefined): Uint32Array {
  assert.ok(values);
  return new Uint32Array(values.buffer, values.byteOffset, values.length);
}

/** A tensor of the fixture: bytes of U8, else numbers. */
const bytes = (name: string): Uint8Array => fixture.readRaw(name);
const floats = (name: string): Float32Array => fixture.read(name);
const input = (kind: string) => ({ dtype: tensors.get(`x.${kind}`)!.dtype, data: fixture.readRaw(`x.${kind}`) });

/** One of bitsandbytes' paths gives FP4's second zero a sign, the others do not. */
const unsignedZeros = (values: Float32Array): Float32Array => values.map((value) => value + 0);

function assertSame(got: ArrayLike<number>, want: ArrayLike<number>, what: string): void {
  assert.equal(got.length, want.length, `${what}: length`);
  for (let i = 0; i < want.length; i++) assert.equal(got[i], want[i], `${what} [${i}]`);
}

const cases = (type: RegExp) =>
  names.flatMap((name) => {
    const [kind, of, block, what] = name.split('.');
    return type.test(of ?? '') && (what === 'packed' || what === 'codes')
      ? [{ name: `${kind}.${of}.${block}`, kind: kind!, of: of!, block: Number(block) }]
      : [];
  });

describe('lowrank/kernels: quantize4bit', () => {
  it('gives the bytes of bitsandbytes for numbers of every kind, in every type and block size', () => {
    const all = cases(/^(nf4|fp4)$/);
    assert.deepEqual(new Set(all.map(({ block }) => block)), new Set([64, 128, 256, 512, 1024, 2048, 4096]));
    for (const { name, kind, of, block } of all) {
      const x = input(kind);
      const { packed, state } = kernels.quantize4bit(x, { quantType: of as 'nf4', blockSize: block });
      assertSame(bits(state.absmax as Float32Array), bits(floats(`${name}.absmax`)), `${name}: absmax`);
      assertSame(packed, bytes(`${name}.packed`), `${name}: packed`);
      assertSame(bits(state.code), bits(floats(`codes.${of}`)), `${name}: code`);
      if (!tensors.has(`${name}.values`)) continue;
      const values = kernels.dequantize4bit(packed, state);
      assertSame(bits(unsignedZeros(values)), bits(unsignedZeros(floats(`${name}.values`))), `${name}: values`);
    }
  });

  it('quantises the magnitudes as bitsandbytes does, their mean to 1e-6', () => {
    for (const kind of ['many', 'zeros', 'one']) {
      const name = `${kind}.nested.64`;
      const offset = floats(`${name}.offset`)[0]!;
      const options = { quantType: 'nf4', compressStatistics: true } as const;
      const { packed, state } = kernels.quantize4bit(input(kind), { ...options, offset });
      assertSame(state.absmax, bytes(`${name}.absmax`), `${name}: codes`);
      assertSame(bits(state.nestedAbsmax), bits(floats(`${name}.nested_absmax`)), `${name}: nested absmax`);
      assert.equal(state.offset, offset);
      const plain = { ...state, absmax: floats(`${name}.values`), nestedAbsmax: undefined, offset: undefined };
      assertSame(bits(kernels.dequantize4bit(packed, state)), bits(kernels.dequantize4bit(packed, plain)), `${name}: values`);
      const own = kernels.quantize4bit(input(kind), options).state.offset!;
      assert.ok(Math.abs(own - offset) <= 1e-6 * Math.abs(offset), `${own} is not ${offset}`);
    }
  });

  // The rule of csrc/ops/quantize_4bit.h as a person would write it down.
  it('takes the nearest code for any numbers, lengths and block sizes', () => {
    const random = new Random();
    for (let round = 0; round < 60; round++) {
      const quantType = random.coin() ? 'nf4' : 'fp4';
      const blockSize = [32, 64, 128, 256, 512, 1024, 2048, 4096][random.below(8)]!;
      const length = random.below(3 * blockSize);
      const x = random.normals(length, 10 ** (random.below(76) - 38));
      for (let i = random.below(200); i < length; i += random.below(500)) x[i] = 0;
      const { packed, state } = kernels.quantize4bit(x, { quantType, blockSize });
      const values = kernels.dequantize4bit(packed, state);
      const code = [...state.code].sort((a, b) => a - b);
      const what = `${quantType} of ${length} in blocks of ${blockSize}, round ${round}`;
      for (let i = 0; i < length; i++) {
        const first = i - (i % blockSize);
        const block = x.subarray(first, first + blockSize);
        const absmax = block.reduce((largest, value) => Math.max(largest, Math.abs(value)), 0);
        const least = block.length < blockSize ? Math.fround(1e-38) : 0;
        assert.equal((state.absmax as Float32Array)[first / blockSize], Math.max(absmax, least), what);
        const scaled = x[i]! / Math.max(absmax, 1e-38);
        const distance = Math.min(...code.map((value) => Math.abs(value - scaled)));
        const nibble = i % 2 === 0 ? packed[i >> 1]! >> 4 : packed[i >> 1]! & 15;
        // Two roundings of fp32 may tip what lies in the middle.
        assert.ok(Math.abs(state.code[nibble]! - scaled) <= distance + 3e-7, `${what} [${i}]: ${state.code[nibble]} for ${scaled}`);
        assert.equal(values[i], Math.fround(state.code[nibble]! * Math.max(absmax, least)), what);
      }
      const last = packed.at(-1);
      if (length % 2 === 1) assert.equal(state.code[last! & 15], 0, `${what}: the last nibble`);
    }
  });

  it('makes a block with NaN NaN, and nothing of nothing', () => {
    const x = new Float32Array(130).fill(1);
    x[70] = Number.NaN;
    const { packed, state } = kernels.quantize4bit(x, { quantType: 'nf4' });
    const values = kernels.dequantize4bit(packed, state);
    for (let i = 0; i < 130; i++) assert.equal(values[i], i >= 64 && i < 128 ? Number.NaN : 1);
    const empty = kernels.quantize4bit(new Float32Array(0), { quantType: 'fp4' });
    assert.deepEqual([empty.packed.length, empty.state.absmax.length], [0, 0]);
    assert.equal(kernels.dequantize4bit(empty.packed, empty.state).length, 0);
  });

  it('takes the infinite offset of bitsandbytes, and makes a finite one itself', () => {
    const x = Float32Array.from({ length: 4096 }, (_, i) => (i % 2 ? 9e37 : -9e37));
    const options = { quantType: 'nf4', compressStatistics: true } as const;
    const { state } = kernels.quantize4bit(x, { ...options, offset: Number.POSITIVE_INFINITY });
    assert.deepEqual(new Set(state.absmax), new Set([0]));
    assert.deepEqual(state.nestedAbsmax, Float32Array.of(Number.POSITIVE_INFINITY));
    const own = kernels.quantize4bit(x, options);
    const values = kernels.dequantize4bit(own.packed, own.state);
    for (let i = 0; i < x.length; i++) assert.ok(Math.abs(values[i]! / x[i]! - 1) < 1e-6, `${values[i]} for ${x[i]}`);
    assertRefused(() => kernels.quantize4bit(x, { ...options, offset: Number.NaN }), 'INVALID_OPTION', 'offset');
  });

  it('names what is wrong with an argument', () => {
    const x = new Float32Array(100);
    assertRefused(() => kernels.quantize4bit(x, { quantType: 'int4' as 'nf4' }), 'INVALID_OPTION', 'quantType', 'int4');
    for (const blockSize of [0, 16, 100, 8192, 64.5]) {
      assertRefused(() => kernels.quantize4bit(x, { blockSize }), 'INVALID_OPTION', 'blockSize', String(blockSize));
    }
    assertRefused(() => kernels.quantize4bit(x, { blocksize: 64 } as object), 'UNKNOWN_OPTION', 'blockSize');
    assertRefused(() => kernels.quantize4bit(x, { offset: 1 }), 'INVALID_OPTION', 'compressStatistics');
    assertRefused(() => kernels.quantize4bit(new Float64Array(3) as unknown as Float32Array), 'SHAPE_MISMATCH', 'x');
    assertRefused(() => kernels.quantize4bit({ dtype: 'F16', data: new Uint8Array(3) }), 'SHAPE_MISMATCH', 'x');
    const { packed, state } = kernels.quantize4bit(x, { compressStatistics: true });
    assertRefused(() => kernels.dequantize4bit(packed.subarray(1), state), 'SHAPE_MISMATCH', 'packed', '50');
    assertRefused(() => kernels.dequantize4bit(packed, { ...state, length: 1000 }), 'SHAPE_MISMATCH', 'packed');
    assertRefused(() => kernels.dequantize4bit(packed, { ...state, absmax: new Uint8Array(1) }), 'SHAPE_MISMATCH', 'absmax');
    assertRefused(() => kernels.dequantize4bit(packed, { ...state, nestedAbsmax: undefined }), 'INVALID_OPTION', 'nestedAbsmax');
    assertRefused(() => kernels.dequantize4bit(packed, { ...state, nestedAbsmax: new Float32Array(0) }), 'SHAPE_MISMATCH', 'absmax');
    assertRefused(() => kernels.dequantize4bit(packed, { ...state, code: new Float32Array(15) }), 'SHAPE_MISMATCH', 'code');
  });
});

describe('lowrank/kernels: quantizeBlockwise', () => {
  it('has the maps of bitsandbytes', () => {
    assertSame(bits(kernels.createDynamicMap()), bits(floats('map.signed')), 'signed');
    assertSame(bits(kernels.createDynamicMap(false)), bits(floats('map.unsigned')), 'unsigned');
  });

  it('gives the bytes of bitsandbytes for numbers of every kind', () => {
    for (const { name, kind, of, block } of cases(/signed$/)) {
      const code = floats(`map.${of}`);
      const { quantized, state } = kernels.quantizeBlockwise(input(kind), { code, blockSize: block });
      assertSame(bits(state.absmax), bits(floats(`${name}.absmax`)), `${name}: absmax`);
      assertSame(quantized, bytes(`${name}.codes`), `${name}: codes`);
      if (!tensors.has(`${name}.values`)) continue;
      assertSame(bits(kernels.dequantizeBlockwise(quantized, state)), bits(floats(`${name}.values`)), `${name}: values`);
    }
  });

  it('names what is wrong with an argument', () => {
    const x = new Float32Array(10);
    const descending = kernels.createDynamicMap().reverse();
    assertRefused(() => kernels.quantizeBlockwise(x, { code: descending }), 'INVALID_OPTION', 'code');
    assertRefused(() => kernels.quantizeBlockwise(x, { code: new Float32Array(16) }), 'SHAPE_MISMATCH', 'code');
    assertRefused(() => kernels.quantizeBlockwise(x, { blockSize: 0 }), 'INVALID_OPTION', 'blockSize');
    const { quantized, state } = kernels.quantizeBlockwise(x);
    assertRefused(() => kernels.dequantizeBlockwise(quantized, { ...state, blockSize: 2 }), 'SHAPE_MISMATCH', 'absmax');
    assertRefused(() => kernels.dequantizeBlockwise([] as unknown as Uint8Array, state), 'SHAPE_MISMATCH', 'quantized');
  });
});

describe('lowrank/kernels: int8VectorwiseQuant', () => {
  const kColumns = 37;
  const kinds = names.flatMap((name) => (name.endsWith('.rows.codes') ? [name.split('.')[0]!] : []));
  const signed = (name: string) => new Int8Array(bytes(name).slice().buffer);

  it('gives the bytes of bitsandbytes for numbers of every kind, in every type', () => {
    assert.ok(kinds.length >= 8, String(kinds));
    for (const kind of kinds) {
      const { dtype, data } = input(kind);
      const size = dtype === 'F32' ? 4 : 2;
      const rows = Math.floor(data.length / size / kColumns);
      const own = { dtype, data: data.slice(0, rows * kColumns * size) };
      const got = kernels.int8VectorwiseQuant(own, { rows, columns: kColumns });
      assertSame(bits(got.absmax), bits(floats(`${kind}.rows.absmax`)), `${kind}: absmax`);
      assertSame(got.quantized, signed(`${kind}.rows.codes`), `${kind}: codes`);
      assertSame(bits(kernels.int8VectorwiseDequant(got)), bits(floats(`${kind}.rows.values`)), `${kind}: values`);
    }
  });

  it('rounds to the nearest code of each row', () => {
    const random = new Random();
    for (let round = 0; round < 40; round++) {
      const [rows, columns] = [random.below(9), random.below(200)];
      const x = random.normals(rows * columns, 10 ** (random.below(60) - 30));
      if (rows > 2 && columns > 0) x.fill(0, columns, 2 * columns);
      const { quantized, absmax } = kernels.int8VectorwiseQuant(x, { rows, columns });
      const values = kernels.int8VectorwiseDequant({ quantized, absmax });
      for (let row = 0; row < rows; row++) {
        const of = x.subarray(row * columns, (row + 1) * columns);
        assert.equal(
          absmax[row],
          of.reduce((largest, value) => Math.max(largest, Math.abs(value)), 0),
        );
        of.forEach((value, i) => {
          const step = absmax[row]! / 127;
          // Half a step, and what two roundings of fp32 add.
          assert.ok(Math.abs(values[row * columns + i]! - value) <= step * (0.5 + 3e-5), `round ${round}: row ${row}, column ${i}`);
        });
      }
    }
  });

  it('makes zeros of rows with infinities, NaN of their values', () => {
    const x = new Float32Array([1, -2, Number.POSITIVE_INFINITY, 3, 3, Number.NaN, 0, 0, 0]);
    const { quantized, absmax } = kernels.int8VectorwiseQuant(x, { rows: 3, columns: 3 });
    assert.deepEqual([...quantized], [0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert.deepEqual([...absmax], [Number.POSITIVE_INFINITY, Number.NaN, 0]);
  });

  it('names what is wrong with an argument', () => {
    const x = new Float32Array(6);
    assertRefused(() => kernels.int8VectorwiseQuant(x, { rows: 2, columns: 4 }), 'SHAPE_MISMATCH', 'x', '8');
    assertRefused(() => kernels.int8VectorwiseQuant(x, { rows: 2, columns: 1.5 }), 'SHAPE_MISMATCH', 'columns');
    assertRefused(() => kernels.int8VectorwiseQuant(x, { rows: 2, cols: 3 } as never), 'UNKNOWN_OPTION', 'cols');
    const absmax = new Float32Array(4);
    assertRefused(() => kernels.int8VectorwiseDequant({ quantized: new Int8Array(6), absmax }), 'SHAPE_MISMATCH', 'quantized', '6');
    assertRefused(() => kernels.int8VectorwiseDequant({ quantized: x as never, absmax }), 'SHAPE_MISMATCH', 'quantized');
  });
});
