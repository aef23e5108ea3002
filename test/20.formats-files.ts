// Builders of safetensors and GGUF files, valid or not, for the tests of the native readers.

import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { LowrankError } from '../lib/errors.ts';
import { call, type NativeTensorFile, native } from '../lib/native.ts';

/** A folder that the returned function removes. */
export function temporaryFolder(): { folder: string; remove: () => void } {
  const folder = mkdtempSync(join(tmpdir(), 'lowrank-formats-'));
  return { folder, remove: () => rmSync(folder, { recursive: true, force: true }) };
}

/** A safetensors file with `header` as it is given: an object is written as JSON. */
export function safetensors(header: object | string | Uint8Array, data: Uint8Array = new Uint8Array(0), length?: bigint): Buffer {
  const text =
    header instanceof Uint8Array ? Buffer.from(header) : Buffer.from(typeof header === 'string' ? header : JSON.stringify(header), 'utf8');
  const head = Buffer.alloc(8);
  head.writeBigUInt64LE(length ?? BigInt(text.length));
  return Buffer.concat([head, text, data]);
}

export const GGUF_TYPE = {
  uint8: 0,
  int8: 1,
  uint16: 2,
  int16: 3,
  uint32: 4,
  int32: 5,
  float32: 6,
  bool: 7,
  string: 8,
  array: 9,
  uint64: 10,
  int64: 11,
  float64: 12,
} as const;

export type GgufType = keyof typeof GGUF_TYPE;

/** A little-endian byte string under construction. */
export class Bytes {
  parts: Buffer[] = [];
  length = 0;

  raw(bytes: Uint8Array): this {
    this.parts.push(Buffer.from(bytes));
    this.length += bytes.length;
    return this;
  }
  u32(value: number): this {
    const bytes = Buffer.alloc(4);
    bytes.writeUInt32LE(value);
    return this.raw(bytes);
  }
  u64(value: number | bigint): this {
    const bytes = Buffer.alloc(8);
    bytes.writeBigUInt64LE(BigInt.asUintN(64, BigInt(value)));
    return this.raw(bytes);
  }
  string(text: string | Uint8Array): this {
    const bytes = Buffer.from(text as string);
    return this.u64(bytes.length).raw(bytes);
  }
  value(type: GgufType, value: unknown): this {
    const scalar = Buffer.alloc(8);
    const number = value as number;
    switch (type) {
      case 'uint8':
        return this.raw(Buffer.from([number]));
      case 'int8':
        return this.raw(Buffer.from([number & 0xff]));
      case 'uint16':
        scalar.writeUInt16LE(number);
        return this.raw(scalar.subarray(0, 2));
      case 'int16':
        scalar.writeInt16LE(number);
        return this.raw(scalar.subarray(0, 2));
      case 'uint32':
        return this.u32(number);
      case 'int32':
        scalar.writeInt32LE(number);
        return this.raw(scalar.subarray(0, 4));
      case 'float32':
        scalar.writeFloatLE(number);
        return this.raw(scalar.subarray(0, 4));
      case 'bool':
        return this.raw(Buffer.from([value ? 1 : 0]));
      case 'string':
        return this.string(value as string | Uint8Array);
      case 'uint64':
      case 'int64':
        return this.u64(value as bigint);
      case 'float64':
        scalar.writeDoubleLE(number);
        return this.raw(scalar);
      case 'array': {
        const { of, items } = value as { of: GgufType; items: unknown[] };
        this.u32(GGUF_TYPE[of]).u64(items.length);
        for (const item of items) this.value(of, item);
        return this;
      }
    }
  }
  done(): Buffer {
    return Buffer.concat(this.parts);
  }
}

export interface GgufTensor {
  name: string | Uint8Array;
  /** ggml's order: innermost first. */
  dims: (number | bigint)[];
  /** ggml's number of the type; 0: F32. */
  type?: number;
  /** Left out: where the tensors before it end, aligned. */
  offset?: number | bigint;
  data?: Uint8Array;
}

export interface GgufOptions {
  version?: number;
  metadata?: [key: string | Uint8Array, type: GgufType, value: unknown][];
  tensors?: GgufTensor[];
  alignment?: number;
  tensorCount?: number | bigint;
  metadataCount?: number | bigint;
  /** Written in place of the metadata. */
  rawMetadata?: Uint8Array;
}

/** A GGUF file; every number can be made to lie. */
export function gguf(options: GgufOptions = {}): Buffer {
  const { version = 3, metadata = [], tensors = [], alignment = 32 } = options;
  const bytes = new Bytes().raw(Buffer.from('GGUF')).u32(version);
  bytes.u64(options.tensorCount ?? tensors.length).u64(options.metadataCount ?? metadata.length);
  if (options.rawMetadata) bytes.raw(options.rawMetadata);
  for (const [key, type, value] of metadata) bytes.string(key).u32(GGUF_TYPE[type]).value(type, value);
  const data = new Bytes();
  for (const tensor of tensors) {
    bytes.string(tensor.name).u32(tensor.dims.length);
    for (const dimension of tensor.dims) bytes.u64(dimension);
    bytes.u32(tensor.type ?? 0).u64(tensor.offset ?? data.length);
    data.raw(tensor.data ?? new Uint8Array(0));
    data.raw(new Uint8Array((alignment - (data.length % alignment)) % alignment));
  }
  bytes.raw(new Uint8Array((alignment - (bytes.length % alignment)) % alignment));
  return bytes.raw(data.done()).done();
}

/** Writes `bytes` to `name` in `folder` and returns the path. */
export function put(folder: string, name: string, bytes: Uint8Array): string {
  const path = join(folder, name);
  writeFileSync(path, bytes);
  return path;
}

export function f32(...values: number[]): Uint8Array {
  return new Uint8Array(new Float32Array(values).buffer);
}

export const open = (path: string): NativeTensorFile => call(() => native().openTensorFile(path));

/** The error that `run` throws, which must be a LowrankError with this code. */
export function refusal(run: () => unknown, code: string): LowrankError {
  try {
    run();
  } catch (error) {
    assert(error instanceof LowrankError, `not a LowrankError: ${error}`);
    assert.equal(error.code, code, error.message);
    return error;
  }
  throw new Error(`accepted; expected ${code}`);
}
