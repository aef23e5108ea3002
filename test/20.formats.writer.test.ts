import assert from 'node:assert/strict';
import { chmodSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { LowrankError } from '../lib/errors.ts';
import { call, type NativeTensorData, native } from '../lib/native.ts';
import { temporaryFolder } from './20.formats-files.ts';

const write = (path: string, tensors: NativeTensorData[], metadata: Record<string, string> = {}) =>
  call(() => native().writeSafetensors(path, tensors, metadata));

const one = (name = 'w', fields: Partial<NativeTensorData> = {}): NativeTensorData => ({
  name,
  dtype: 'F32',
  shape: [1],
  data: new Float32Array([1]),
  ...fields,
});

async function refusal(run: () => Promise<unknown>, code: string): Promise<LowrankError> {
  try {
    await run();
  } catch (error) {
    assert(error instanceof LowrankError, `not a LowrankError: ${error}`);
    assert.equal(error.code, code, error.message);
    return error;
  }
  throw new Error(`accepted; expected ${code}`);
}

describe('writing safetensors', () => {
  const { folder, remove } = temporaryFolder();
  after(remove);
  let path: string;
  let number = 0;
  beforeEach(() => {
    const own = join(folder, String(number++));
    mkdirSync(own);
    path = join(own, 'model.safetensors');
  });

  it('writes the bytes of the reference implementation', async () => {
    await write(
      path,
      [
        one('b', { shape: [2, 1], data: new Float32Array([1, 2]) }),
        { name: 'half', dtype: 'BF16', shape: [3], data: new Uint16Array([1, 2, 3]) },
        { name: 'ids', dtype: 'I64', shape: [], data: new BigInt64Array([-2n]) },
        { name: 'a"\n\u0001é', dtype: 'F32', shape: [0, 4], data: new Float32Array(0) },
        { name: 'u8', dtype: 'U8', shape: [1], data: Buffer.from([9]) },
        { name: 'flag', dtype: 'BOOL', shape: [1], data: new DataView(new Uint8Array([5, 1, 5]).buffer, 1, 1) },
      ],
      { format: 'pt' },
    );
    const bytes = readFileSync(path);
    const length = Number(bytes.readBigUInt64LE());
    assert.equal(length % 8, 0);
    // As safetensors 0.8.0 for Python writes it: by type from U64 down to BOOL, then by name.
    const expected =
      '{"__metadata__":{"format":"pt"},"ids":{"dtype":"I64","shape":[],"data_offsets":[0,8]},' +
      '"a\\"\\n\\u0001é":{"dtype":"F32","shape":[0,4],"data_offsets":[8,8]},"b":{"dtype":"F32","shape":[2,1],"data_offsets":[8,16]},' +
      '"half":{"dtype":"BF16","shape":[3],"data_offsets":[16,22]},"u8":{"dtype":"U8","shape":[1],"data_offsets":[22,23]},' +
      '"flag":{"dtype":"BOOL","shape":[1],"data_offsets":[23,24]}}';
    assert.equal(bytes.toString('utf8', 8, 8 + length), expected.padEnd(expected.length + length - Buffer.byteLength(expected)));
    assert.equal(bytes.toString('hex', 8 + length), 'feffffffffffffff0000803f000000400100020003000901');
  });

  it('is read back as it was', async () => {
    let seed = 7;
    const random = () => (seed = (seed * 48271) % 2147483647);
    const tensors = Array.from({ length: 50 }, (_, i) => {
      const shape = Array.from({ length: random() % 4 }, () => random() % 6);
      const elements = shape.reduce((a, b) => a * b, 1);
      return one(`layer.${i}`, { shape, data: Float32Array.from({ length: elements }, () => random() / 1e6) });
    });
    await write(path, tensors, { b: '2', a: '"\\', __proto__x: '' });
    const file = native().openTensorFile(path);
    assert.deepEqual(file.metadata(), { a: '"\\', b: '2', __proto__x: '' });
    assert.equal(file.tensors().length, 50);
    for (const { name, shape, data } of tensors) {
      assert.deepEqual(file.read(name), data);
      assert.deepEqual(file.tensors().find((tensor) => tensor.name === name)?.shape, shape);
    }
  });

  it('writes the same bytes for the same tensors in any order', async () => {
    const tensors = [one('c'), one('a'), one('b')];
    await write(path, tensors, { x: '1', a: '2' });
    await write(`${path}2`, tensors.reverse(), { a: '2', x: '1' });
    assert.deepEqual(readFileSync(path), readFileSync(`${path}2`));
  });

  it('writes a file without tensors', async () => {
    await write(path, []);
    assert.equal(readFileSync(path).toString('utf8', 8), '{}      ');
    assert.deepEqual(native().openTensorFile(path).tensors(), []);
  });

  it('keeps the arrays alive, and does not mind that the caller forgets them', async () => {
    const elements = 1 << 20;
    const tensors = Array.from({ length: 8 }, (_, i) => one(`t${i}`, { shape: [elements], data: new Float32Array(elements).fill(i) }));
    const written = write(path, tensors);
    for (const tensor of tensors) tensor.data = new Float32Array(0);
    tensors.length = 0;
    for (let i = 0; i < 20; i++) new Float32Array(elements).fill(99);
    await written;
    const file = native().openTensorFile(path);
    for (let i = 0; i < 8; i++) assert(file.read(`t${i}`).every((value) => value === i));
  });

  it('may write one file twice at a time: it is one of the two', async () => {
    const versions = Array.from({ length: 4 }, (_, i) => new Float32Array(100_000).fill(i));
    await Promise.all(versions.map((data) => write(path, [one('w', { shape: [100_000], data })])));
    const values = native().openTensorFile(path).read('w');
    assert(values.every((value) => value === values[0]));
    assert.deepEqual(readdirSync(join(path, '..')), ['model.safetensors']);
  });

  it('respects the umask', async () => {
    await write(path, [one()]);
    assert.equal(statSync(path).mode & 0o777, 0o666 & ~process.umask());
  });

  it('leaves nothing behind and touches nothing where it fails', async () => {
    const within = join(path, '..');
    assert.match((await refusal(() => write(join(path, 'x'), [one()]), 'IO_ERROR')).message, /model\.safetensors\/x.*No such file/);
    mkdirSync(path);
    writeFileSync(join(path, 'kept'), 'kept');
    assert.match((await refusal(() => write(path, [one()]), 'IO_ERROR')).message, /model\.safetensors: Is a directory/);
    assert.deepEqual(readdirSync(within), ['model.safetensors']);
    if (process.getuid?.() !== 0) {
      chmodSync(within, 0o555);
      await refusal(() => write(join(within, 'y'), [one()]), 'IO_ERROR');
      chmodSync(within, 0o755);
    }
    await refusal(() => write('a\0b', [one()]), 'INVALID_OPTION');
  });

  const refused: Record<string, [tensors: unknown, code: string, message: RegExp]> = {
    'a name twice': [[one('a'), one('a')], 'INVALID_OPTION', /tensor 'a' is there twice/],
    'the reserved name': [[one('__metadata__')], 'INVALID_OPTION', /reserved/],
    'a size that is not the shape': [[one('a', { shape: [2] })], 'SHAPE_MISMATCH', /'a' has 4 bytes; expected 8 for F32 \[2\]/],
    'a shape that overflows': [[one('a', { shape: [2 ** 52, 2 ** 52] })], 'SHAPE_MISMATCH', /'a' has 4 bytes/],
    'a negative dimension': [[one('a', { shape: [-1] })], 'INVALID_OPTION', /dimension/],
    'an unknown dtype': [[one('a', { dtype: 'float32' })], 'INVALID_OPTION', /'a' has the dtype 'float32'/],
    'a block type': [[one('a', { dtype: 'Q8_0' })], 'INVALID_OPTION', /'a' is of type Q8_0/],
    'data that is no typed array': [[one('a', { data: [1] as never })], 'INVALID_OPTION', /data of tensor 'a'/],
    'a tensor that is null': [[null], 'INVALID_OPTION', /not an object/],
    'no array': [{}, 'INVALID_OPTION', /not an array/],
  };
  for (const [what, [tensors, code, message]] of Object.entries(refused)) {
    it(`refuses ${what}`, async () => {
      const error = await refusal(async () => write(path, tensors as NativeTensorData[]), code);
      assert.match(error.message, message);
      assert.deepEqual(readdirSync(join(path, '..')), []);
    });
  }

  it('lets an exception of the caller through', async () => {
    const thrown = new Error('mine');
    const throws = () => {
      throw thrown;
    };
    const traps: ProxyHandler<never[]> = { get: throws, ownKeys: throws };
    for (const field of ['name', 'dtype', 'shape', 'data']) {
      const tensor = Object.defineProperty({ ...one() }, field, { get: throws });
      await assert.rejects(async () => write(path, [tensor]), thrown);
    }
    const holed = Object.defineProperty([0], 0, { get: throws });
    await assert.rejects(async () => write(path, [one('a', { shape: holed })]), thrown);
    await assert.rejects(async () => write(path, Object.defineProperty([one()], 0, { get: throws })), thrown);
    await assert.rejects(async () => write(path, [one()], new Proxy({}, traps as object)), thrown);
    await assert.rejects(async () => write(path, [one()], Object.defineProperty({}, 'x', { get: throws, enumerable: true })), thrown);
    assert.deepEqual(readdirSync(join(path, '..')), []);
  });

  it('refuses metadata that is not strings', async () => {
    await refusal(async () => write(path, [one()], { a: 1 } as never), 'INVALID_OPTION');
  });
});
