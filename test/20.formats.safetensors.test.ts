import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { appendFileSync, readFileSync, renameSync, rmSync, truncateSync, utimesSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { call, type NativeTensorFile, native } from '../lib/native.ts';
import { f32, open, put, refusal, safetensors, temporaryFolder } from './20.formats-files.ts';

const ONE = { dtype: 'F32', shape: [1], data_offsets: [0, 4] };
const ONE_TEXT = JSON.stringify(ONE);
const FOUR = new Uint8Array(4);

describe('safetensors files', () => {
  const { folder, remove } = temporaryFolder();
  after(remove);
  const file = (bytes: Uint8Array, name = 'model.safetensors') => put(folder, name, bytes);

  it('gives every float type as fp32, and every type as bytes', () => {
    const types: [dtype: string, bytes: Uint8Array, values?: number[]][] = [
      ['F64', new Uint8Array(new Float64Array([0.1, -1e300]).buffer), [Math.fround(0.1), -Infinity]],
      ['F32', f32(1.5, -0), [1.5, -0]],
      ['F16', Buffer.from('003c0100ff7b007c', 'hex'), [1, 2 ** -24, 65504, Infinity]],
      ['BF16', Buffer.from('803f0100', 'hex'), [1, 2 ** -133]],
      ['F8_E4M3', Buffer.from('387e0180', 'hex'), [1, 448, 2 ** -9, -0]],
      ['F8_E5M2', Buffer.from('3c7b017c', 'hex'), [1, 57344, 2 ** -16, Infinity]],
      ['I64', new Uint8Array(8)],
      ['I32', new Uint8Array(4)],
      ['I16', new Uint8Array(2)],
      ['I8', new Uint8Array(1)],
      ['U64', new Uint8Array(8)],
      ['U32', new Uint8Array(4)],
      ['U16', new Uint8Array(2)],
      ['U8', new Uint8Array(1)],
      ['BOOL', new Uint8Array(1)],
      ['C64', new Uint8Array(8)],
      ['F8_E8M0', new Uint8Array(1)],
    ];
    const width: Record<string, number> = { F64: 8, F32: 4, F16: 2, BF16: 2, I64: 8, I32: 4, I16: 2, U64: 8, U32: 4, U16: 2, C64: 8 };
    const header: Record<string, unknown> = {};
    let end = 0;
    for (const [dtype, bytes] of types) {
      header[dtype] = { dtype, shape: [bytes.length / (width[dtype] ?? 1)], data_offsets: [end, end + bytes.length] };
      end += bytes.length;
    }
    const opened = open(file(safetensors(header, Buffer.concat(types.map(([, bytes]) => bytes)))));
    assert.equal(opened.format, 'safetensors');
    assert.deepEqual(
      opened.tensors().map((tensor) => tensor.dtype),
      types.map(([dtype]) => dtype),
    );
    for (const [dtype, bytes, values] of types) {
      assert.deepEqual([...opened.readRaw(dtype)], [...bytes], dtype);
      if (values) assert.deepEqual([...opened.read(dtype)], values, dtype);
      else assert.match(refusal(() => call(() => opened.read(dtype)), 'UNSUPPORTED_QUANTIZATION').message, new RegExp(`'${dtype}'`));
    }
  });

  it('knows NaN in both 8-bit float types', () => {
    const header = { a: { dtype: 'F8_E4M3', shape: [2], data_offsets: [0, 2] }, b: { dtype: 'F8_E5M2', shape: [1], data_offsets: [2, 3] } };
    const opened = open(file(safetensors(header, Buffer.from('7fff7d', 'hex'))));
    assert([...opened.read('a'), ...opened.read('b')].every(Number.isNaN));
  });

  it('takes empty and 0-d tensors, and a header that leaves the data unaligned', () => {
    const header = {
      scalar: { dtype: 'F32', shape: [], data_offsets: [0, 4] },
      none: { dtype: 'F32', shape: [3, 0], data_offsets: [4, 4] },
      row: { dtype: 'F32', shape: [1, 2], data_offsets: [4, 12] },
    };
    for (let padding = 0; padding < 8; padding++) {
      const opened = open(file(safetensors(JSON.stringify(header) + ' '.repeat(padding), f32(7, 8, 9))));
      assert.deepEqual([...opened.read('scalar')], [7]);
      assert.deepEqual([...opened.read('none')], []);
      assert.deepEqual([...opened.read('row')], [8, 9]);
      assert.deepEqual(
        opened.tensors().map(({ name, shape, bytes }) => ({ name, shape, bytes })),
        [
          { name: 'scalar', shape: [], bytes: 4 },
          { name: 'none', shape: [3, 0], bytes: 0 },
          { name: 'row', shape: [1, 2], bytes: 8 },
        ],
      );
    }
  });

  it('gives metadata as it is written, __proto__ included', () => {
    const header = `{"__metadata__":{"format":"pt","__proto__":"x","é":"\\ud83d\\ude00\\u0000\\n"},"a":${ONE_TEXT}}`;
    const metadata = open(file(safetensors(header, FOUR))).metadata();
    assert.deepEqual(Object.entries(metadata), [
      ['format', 'pt'],
      ['__proto__', 'x'],
      ['é', '😀\0\n'],
    ]);
  });

  // Each verdict is that of the reference reader, safetensors 0.8.0 for Python.
  const unusual: Record<string, [header: string, data?: Uint8Array]> = {
    'no tensor at all': ['{}'],
    'whitespace around everything': [`\n { "a" : {"dtype":"F32",\t"shape":[ 1 ] ,"data_offsets":[ 0 , 4 ]} }\r\n `, FOUR],
    'metadata null': [`{"__metadata__":null,"a":${ONE_TEXT}}`, FOUR],
    'fields in another order': ['{"a":{"data_offsets":[0,4],"shape":[1],"dtype":"F32"}}', FOUR],
    'tensors in another order than their data': [
      '{"b":{"dtype":"U8","shape":[1],"data_offsets":[3,4]},"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}',
      FOUR,
    ],
    'unknown fields': ['{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":[1,{"y":null}]}}', FOUR],
    'nesting of 127': [`{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":${'['.repeat(125)}${']'.repeat(125)}}}`, FOUR],
    'an empty name': [`{"":${ONE_TEXT}}`, FOUR],
    'NUL in a name': [`{"a\\u0000b":${ONE_TEXT}}`, FOUR],
    'a huge dimension after 0': ['{"a":{"dtype":"F32","shape":[0,9223372036854775807,3],"data_offsets":[0,0]}}'],
    'two nibbles to a byte': ['{"a":{"dtype":"F4","shape":[8],"data_offsets":[0,4]}}', FOUR],
  };
  for (const [what, [header, data]] of Object.entries(unusual)) {
    it(`accepts ${what}`, () => {
      open(file(safetensors(header, data))).close();
    });
  }

  const tensor = (fields: string) => `{"a":{${fields}}}`;
  const refused: Record<string, [bytes: Uint8Array, message: RegExp]> = {
    'an empty file': [new Uint8Array(0), /0 bytes.*at least 8/],
    'a file shorter than its length field': [new Uint8Array(7), /7 bytes/],
    'an empty header': [safetensors(''), /ends at byte 0/],
    'a header longer than the file': [safetensors('{}', FOUR, 15n), /15 bytes.*at most the 6/],
    'a header of 100,000,001 bytes': [safetensors('{}', FOUR, 100_000_001n), /100000001 bytes.*at most 100000000/],
    'a header of 2^64-1 bytes': [safetensors('{}', FOUR, 2n ** 64n - 1n), /18446744073709551615 bytes/],
    'an array': [safetensors('[]'), /expected '\{'/],
    'text after the header': [safetensors('{}x'), /byte 2.*'x'/],
    'a NUL after the header': [safetensors('{}\0'), /'\\x00'/],
    'a byte order mark': [safetensors('\ufeff{}'), /expected '\{'/],
    'broken UTF-8': [safetensors(Buffer.from('7b22ff223a7b7d7d', 'hex')), /expected UTF-8/],
    'overlong UTF-8': [safetensors(Buffer.from('7b22c080223a7b7d7d', 'hex')), /expected UTF-8/],
    'a lone surrogate': [safetensors('{"\\ud800":{}}'), /surrogate/],
    'a raw control character': [safetensors('{"a\u0001":{}}'), /control character/],
    'a trailing comma': [safetensors(`{"a":${ONE_TEXT},}`, FOUR), /expected a string/],
    'a name twice': [safetensors(`{"a":${ONE_TEXT},"a":${ONE_TEXT}}`, FOUR), /tensor 'a' is there twice/],
    'a name twice, once escaped': [safetensors(`{"a":${ONE_TEXT},"\\u0061":${ONE_TEXT}}`, FOUR), /tensor 'a' is there twice/],
    '__metadata__ twice': [safetensors('{"__metadata__":{},"__metadata__":{}}'), /'__metadata__' is there twice/],
    'a metadata key twice': [safetensors('{"__metadata__":{"x":"1","x":"2"}}'), /metadata key 'x' is there twice/],
    'metadata that is a number': [safetensors('{"__metadata__":{"x":1}}'), /expected a string/],
    'a field twice': [safetensors(tensor('"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]'), FOUR), /'a' has 'dtype' twice/],
    'a missing field': [safetensors(tensor('"dtype":"F32","data_offsets":[0,4]'), FOUR), /'a' has no 'shape'/],
    'an unknown dtype': [safetensors(tensor('"dtype":"f32","shape":[1],"data_offsets":[0,4]'), FOUR), /'a' has the dtype 'f32'/],
    'a tensor that is an array': [safetensors('{"a":["F32",[1],[0,4]]}', FOUR), /expected '\{'/],
    'a fractional dimension': [safetensors(tensor('"dtype":"F32","shape":[1.0],"data_offsets":[0,4]'), FOUR), /whole number/],
    'a negative dimension': [safetensors(tensor('"dtype":"F32","shape":[-1],"data_offsets":[0,4]'), FOUR), /whole number/],
    'a dimension of 2^64': [safetensors(tensor('"dtype":"F32","shape":[18446744073709551616],"data_offsets":[0,4]'), FOUR), /whole number/],
    'a leading zero': [safetensors(tensor('"dtype":"F32","shape":[01],"data_offsets":[0,4]'), FOUR), /whole number/],
    'three offsets': [safetensors(tensor('"dtype":"F32","shape":[1],"data_offsets":[0,4,4]'), FOUR), /expected '\]'/],
    'a shape that wraps around': [
      safetensors(tensor('"dtype":"F32","shape":[4611686018427387905,4],"data_offsets":[0,16]'), new Uint8Array(16)),
      /'a' is F32 \[4611686018427387905, 4\].*below 2\^61/,
    ],
    'a shape that overflows before its 0': [
      safetensors(tensor('"dtype":"F32","shape":[9223372036854775807,3,0],"data_offsets":[0,0]')),
      /below 2\^61/,
    ],
    'half a byte': [safetensors(tensor('"dtype":"F4","shape":[7],"data_offsets":[0,4]'), FOUR), /whole number of bytes/],
    'a size that is not the shape': [
      safetensors(tensor('"dtype":"F32","shape":[2],"data_offsets":[0,4]'), FOUR),
      /'a' has 4 bytes.*8.*F32 \[2\]/,
    ],
    'descending offsets': [safetensors(tensor('"dtype":"F32","shape":[1],"data_offsets":[4,0]'), FOUR), /\[4, 0\].*ascending/],
    'data beyond the file': [safetensors(tensor('"dtype":"F32","shape":[2],"data_offsets":[0,8]'), FOUR), /\[0, 8\].*file's 4 bytes/],
    'a hole before the first tensor': [
      safetensors(tensor('"dtype":"U8","shape":[3],"data_offsets":[1,4]'), FOUR),
      /'a' begins at byte 1.*expected 0/,
    ],
    'a hole between tensors': [
      safetensors({ a: { dtype: 'U8', shape: [1], data_offsets: [0, 1] }, b: { dtype: 'U8', shape: [2], data_offsets: [2, 4] } }, FOUR),
      /'b' begins at byte 2.*expected 1/,
    ],
    'tensors that overlap': [
      safetensors({ a: { dtype: 'U8', shape: [3], data_offsets: [0, 3] }, b: { dtype: 'U8', shape: [2], data_offsets: [2, 4] } }, FOUR),
      /'b' begins at byte 2.*expected 3/,
    ],
    'a tail after the last tensor': [safetensors({ a: ONE }, new Uint8Array(5)), /end at byte 4.*expected 5/],
    'nesting of 128': [
      safetensors(tensor(`"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":${'['.repeat(126)}${']'.repeat(126)}`), FOUR),
      /127 levels/,
    ],
  };
  for (const [what, [bytes, message]] of Object.entries(refused)) {
    it(`refuses ${what}`, () => {
      const path = file(bytes);
      const error = refusal(() => open(path), 'INVALID_SAFETENSORS');
      assert(error.message.startsWith(path), error.message);
      assert.match(error.message, message);
    });
  }

  it('refuses every file that is cut short', () => {
    const whole = safetensors({ __metadata__: { a: 'b' }, a: ONE, b: { dtype: 'BF16', shape: [2, 1], data_offsets: [4, 8] } }, f32(1, 2));
    open(file(whole)).close();
    for (let length = 0; length < whole.length; length++) {
      refusal(() => open(file(whole.subarray(0, length))), 'INVALID_SAFETENSORS');
    }
  });

  it('says how to convert a pickle', () => {
    for (const head of ['504b0304', '80027d']) {
      const path = file(Buffer.concat([Buffer.from(head, 'hex'), new Uint8Array(100)]), 'pytorch_model.bin');
      assert.match(refusal(() => open(path), 'INVALID_SAFETENSORS').message, /pickle.*save_file/);
    }
  });

  it('does not let a name harm the message', () => {
    const name = `\\u001b[31m${'x'.repeat(10000)}`;
    const { message } = refusal(() => open(file(safetensors(`{"${name}":{}}`))), 'INVALID_SAFETENSORS');
    assert(message.length < 1000 && !message.includes('\u001b') && message.includes('\\x1b'));
  });

  it('refuses what is no file, without waiting', () => {
    const fifo = join(folder, 'fifo');
    execFileSync('mkfifo', [fifo]);
    assert.match(refusal(() => open(fifo), 'IO_ERROR').message, /fifo is a pipe/);
    assert.match(refusal(() => open(folder), 'IO_ERROR').message, /is a folder/);
    assert.match(refusal(() => open('/dev/zero'), 'IO_ERROR').message, /is a device/);
    assert.match(refusal(() => open(join(folder, 'none')), 'FILE_NOT_FOUND').message, /none/);
    assert.match(refusal(() => open(`${join(folder, 'model.safetensors')}/x`), 'FILE_NOT_FOUND').message, /x/);
    refusal(() => open('a\0b'), 'INVALID_OPTION');
    refusal(() => call(() => native().openTensorFile(5 as never)), 'INVALID_OPTION');
  });

  it('refuses headers of 100 MB within a second and 64 MiB', function () {
    this.timeout(60000);
    const size = 99_999_000;
    const full = (piece: string, begin: string, end: string) => {
      const header = Buffer.alloc(size, piece);
      header.write(begin, 0);
      header.write(end, size - end.length);
      return header;
    };
    const headers = [
      full('[', '{"a":', '}'),
      full('1,', '{"a":{"dtype":"F32","shape":[', '1]}}'),
      full('x', '{"', '":1}'),
      full(' ', '{', 'x'),
      full('"a":{"dtype":"U8","shape":[],"data_offsets":[0,1]},', '{', ',,'),
      full('"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},', '{', '"a":{}}'),
      full('"a":"b",', '{"__metadata__":{', ' "a":"b"}}'),
    ];
    for (const header of headers) {
      const path = file(safetensors(header));
      const before = process.memoryUsage.rss();
      const start = performance.now();
      refusal(() => open(path), 'INVALID_SAFETENSORS');
      assert(performance.now() - start < 1000, `took ${performance.now() - start} ms`);
      assert(process.memoryUsage.rss() - before < 64 * 2 ** 20, `grew by ${process.memoryUsage.rss() - before}`);
    }
  });

  it('opens a file of 5 GB without reading it', () => {
    const large = 5_000_000_000;
    const header = { large: { dtype: 'U8', shape: [large], data_offsets: [0, large] }, last: { ...ONE, data_offsets: [large, large + 4] } };
    const bytes = safetensors(header);
    const path = file(bytes, 'large.safetensors');
    truncateSync(path, bytes.length + large);
    appendFileSync(path, f32(7));
    const before = process.memoryUsage.rss();
    const opened = open(path);
    assert.deepEqual([...opened.read('last')], [7]);
    assert.equal(opened.tensors()[0]?.bytes, large);
    assert(process.memoryUsage.rss() - before < 32 * 2 ** 20, `grew by ${process.memoryUsage.rss() - before}`);
    refusal(() => call(() => opened.readRaw('large')), 'OUT_OF_MEMORY');
    rmSync(path);
  });

  it('survives a file that is truncated under it, and says so', () => {
    const values = new Float32Array(100_000).fill(3);
    const path = file(safetensors({ a: { dtype: 'F32', shape: [100_000], data_offsets: [0, 400_000] } }, new Uint8Array(values.buffer)));
    const opened = open(path);
    truncateSync(path, 50_000);
    for (const read of [() => opened.read('a'), () => opened.readRaw('a')]) {
      assert.match(refusal(() => call<unknown>(read), 'IO_ERROR').message, /changed while it was open: it has 50000 bytes/);
    }
  });

  it('notices a file that is written to in place, not one that is replaced', () => {
    const path = file(safetensors({ a: ONE }, f32(1)));
    const opened = open(path);
    const beside = put(folder, 'beside', safetensors({ a: ONE }, f32(2)));
    renameSync(beside, path);
    assert.deepEqual([...opened.read('a')], [1]);
    const replaced = open(path);
    assert.deepEqual([...replaced.read('a')], [2]);
    const bytes = readFileSync(path);
    writeFileSync(path, bytes);
    utimesSync(path, new Date(1e12), new Date(1e12));
    assert.match(refusal(() => call(() => replaced.read('a')), 'IO_ERROR').message, /written to/);
  });

  it('answers a closed file, a missing tensor and a foreign object with an error', () => {
    const opened = open(file(safetensors({ a: ONE }, f32(1))));
    assert.match(refusal(() => call(() => opened.read('b')), 'INVALID_OPTION').message, /no tensor 'b'/);
    refusal(() => call(() => opened.read(undefined as never)), 'INVALID_OPTION');
    opened.close();
    opened.close();
    for (const use of [() => opened.path, () => opened.format, () => opened.tensors(), () => opened.metadata(), () => opened.read('a')]) {
      assert.match(refusal(() => call<unknown>(use), 'INVALID_OPTION').message, /closed/);
    }
    assert.throws(() => opened.read.call({} as never, 'a'), TypeError);
    const bare = Reflect.construct(opened.constructor, []) as NativeTensorFile;
    refusal(() => call(() => bare.tensors()), 'INVALID_OPTION');
  });
});
