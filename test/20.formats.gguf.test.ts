import assert from 'node:assert/strict';
import { truncateSync } from 'node:fs';
import { LowrankError } from '../lib/errors.ts';
import { call } from '../lib/native.ts';
import { Bytes, f32, GGUF_TYPE, type GgufOptions, gguf, open, put, refusal, temporaryFolder } from './20.formats-files.ts';

describe('GGUF files', () => {
  const { folder, remove } = temporaryFolder();
  after(remove);
  const file = (options: GgufOptions | Uint8Array, name = 'model.gguf') =>
    put(folder, name, options instanceof Uint8Array ? options : gguf(options));

  it('gives metadata of every type', () => {
    const metadata: GgufOptions['metadata'] = [
      ['u8', 'uint8', 255],
      ['i8', 'int8', -128],
      ['u16', 'uint16', 65535],
      ['i16', 'int16', -32768],
      ['u32', 'uint32', 4294967295],
      ['i32', 'int32', -2147483648],
      ['f32', 'float32', 0.5],
      ['f64', 'float64', 0.1],
      ['yes', 'bool', true],
      ['no', 'bool', false],
      ['text', 'string', 'é😀\0'],
      ['small', 'uint64', 2n ** 53n - 1n],
      ['large', 'uint64', 2n ** 64n - 1n],
      ['negative', 'int64', -(2n ** 53n) + 1n],
      ['lowest', 'int64', -(2n ** 63n)],
      ['none', 'array', { of: 'string', items: [] }],
      ['texts', 'array', { of: 'string', items: ['a', '', 'c'] }],
      ['floats', 'array', { of: 'float32', items: [1.5, -2] }],
      [
        'nested',
        'array',
        {
          of: 'array',
          items: [
            { of: 'int32', items: [1, -1] },
            { of: 'string', items: ['x'] },
          ],
        },
      ],
      ['__proto__', 'string', 'polluted'],
    ];
    const found = open(file({ metadata })).metadata();
    const plain = (value: unknown): unknown =>
      value !== null && typeof value === 'object'
        ? (value as { items: unknown[] }).items.map(plain)
        : typeof value === 'bigint' && value < 2n ** 53n && value > -(2n ** 53n)
          ? Number(value)
          : value;
    assert.deepEqual(
      Object.entries(found),
      metadata.map(([key, , value]) => [key, plain(value)]),
    );
    assert.equal(typeof found.large, 'bigint');
    assert.equal(typeof found.small, 'number');
    assert.equal(({} as { polluted?: unknown }).polluted, undefined);
  });

  it('keeps strings that are not UTF-8 readable', () => {
    const found = open(file({ metadata: [['token', 'string', Buffer.from([0x61, 0xff])]] })).metadata();
    assert.equal(found.token, 'a\ufffd');
  });

  it('reads version 2, any power of two as alignment, and reverses shapes', () => {
    for (const version of [2, 3]) {
      for (const alignment of [1, 2, 8, 64, 4096]) {
        const opened = open(
          file({
            version,
            alignment,
            metadata: [['general.alignment', 'uint32', alignment]],
            tensors: [
              { name: 'a', dims: [3, 1], data: f32(1, 2, 3) },
              { name: 'b', dims: [2], data: f32(4, 5) },
            ],
          }),
        );
        assert.equal(opened.format, 'gguf');
        assert.deepEqual(opened.tensors(), [
          { name: 'a', dtype: 'F32', shape: [1, 3], bytes: 12 },
          { name: 'b', dtype: 'F32', shape: [2], bytes: 8 },
        ]);
        assert.deepEqual([...opened.read('a')], [1, 2, 3]);
        assert.deepEqual([...opened.read('b')], [4, 5]);
      }
    }
  });

  it('takes 0 to 4 dimensions, empty tensors, holes, any order, and no padding at the end', () => {
    const opened = open(
      file(
        gguf({
          tensors: [
            { name: 'late', dims: [1, 1, 1, 1], offset: 64, data: new Uint8Array(68) },
            { name: 'scalar', dims: [], offset: 0 },
            { name: 'none', dims: [0, 7], offset: 64 },
            { name: 'cube', dims: [1, 2, 1], offset: 32 },
          ],
        }).subarray(0, -28),
      ),
    );
    assert.deepEqual(
      opened.tensors().map(({ name, shape }) => [name, shape]),
      [
        ['scalar', []],
        ['cube', [1, 2, 1]],
        ['late', [1, 1, 1, 1]],
        ['none', [7, 0]],
      ],
    );
    for (const { name, bytes } of opened.tensors()) assert.equal(opened.read(name).length, bytes / 4);
  });

  it('reads block types', () => {
    const block = Buffer.concat([Buffer.from('0038', 'hex'), Buffer.from(Array.from({ length: 32 }, (_, i) => (i - 16) & 0xff))]);
    const opened = open(file({ tensors: [{ name: 'q', dims: [32, 2], type: 8, data: Buffer.concat([block, block]) }] }));
    assert.deepEqual(opened.tensors()[0], { name: 'q', dtype: 'Q8_0', shape: [2, 32], bytes: 68 });
    const row = Array.from({ length: 32 }, (_, i) => (i - 16) / 2);
    assert.deepEqual([...opened.read('q')], [...row, ...row]);
    assert.equal(opened.readRaw('q').length, 68);
  });

  it('opens a file with types that it cannot unpack, and names the tensor and the type when one is read', () => {
    const types: [id: number, name: string, elements: number, bytes: number][] = [
      [9, 'Q8_1', 32, 40],
      [15, 'Q8_K', 256, 292],
      [16, 'IQ2_XXS', 256, 66],
      [29, 'IQ1_M', 256, 56],
      [34, 'TQ1_0', 256, 54],
      [39, 'MXFP4', 32, 17],
    ];
    for (const [type, name, elements, bytes] of types) {
      const opened = open(
        file({
          tensors: [
            { name: 'odd', dims: [elements], type, data: new Uint8Array(bytes) },
            { name: 'plain', dims: [1], data: f32(6) },
          ],
        }),
      );
      assert.equal(opened.tensors()[0]?.dtype, name);
      assert.match(
        refusal(() => call(() => opened.read('odd')), 'UNSUPPORTED_QUANTIZATION').message,
        new RegExp(`'odd' is of type ${name}`),
      );
      assert.equal(opened.readRaw('odd').length, bytes);
      assert.deepEqual([...opened.read('plain')], [6]);
    }
  });

  const raw = (build: (bytes: Bytes) => void, metadataCount = 1): GgufOptions => {
    const bytes = new Bytes();
    build(bytes);
    return { rawMetadata: bytes.done(), metadataCount };
  };
  const nested = (depth: number) =>
    raw((bytes) => {
      bytes.string('deep').u32(GGUF_TYPE.array);
      for (let i = 1; i < depth; i++) bytes.u32(GGUF_TYPE.array).u64(1);
      bytes.u32(GGUF_TYPE.uint8).u64(0);
    });

  it('takes arrays 8 deep', () => {
    assert.deepEqual(open(file(nested(8))).metadata(), { deep: [[[[[[[[]]]]]]]] });
  });

  const one = { name: 'w', dims: [1], data: f32(1) };
  const refused: Record<string, [options: GgufOptions | Uint8Array, message: RegExp]> = {
    'an empty file': [new Uint8Array(0), /magic number at byte 0 takes 4 bytes.*0 that are left/],
    'another magic number': [Buffer.from('GGML\x03\0\0\0'), /begins with 'GGML'; expected 'GGUF'/],
    'version 1': [{ version: 1 }, /version 1; expected version 2 or 3/],
    'version 4': [{ version: 4 }, /version 4; expected version 2 or 3/],
    'a big-endian file': [{ version: 0x03000000 }, /big-endian.*little-endian/],
    'a tensor count beyond the file': [{ tensorCount: 2n ** 64n - 1n }, /tensor count at byte 8 is 18446744073709551615; expected at most/],
    'a metadata count beyond the file': [{ metadataCount: 2n ** 62n }, /metadata count at byte 16 is 4611686018427387904/],
    'a tensor count that the metadata used up': [
      { tensorCount: 9, metadata: [['long', 'string', 'x'.repeat(300)]] },
      /tensor count is 9; expected at most 0, for which there are bytes after the metadata/,
    ],
    'a key longer than the file': [
      raw((bytes) => bytes.u64(2n ** 63n).raw(Buffer.alloc(20))),
      /metadata key at byte 32 takes 9223372036854775808 bytes/,
    ],
    'a key of 65,536 bytes': [{ metadata: [['k'.repeat(65536), 'uint8', 1]] }, /metadata key has 65536 bytes/],
    'a key that is not UTF-8': [{ metadata: [[Buffer.from([0xff]), 'uint8', 1]] }, /metadata key is '\\xff'; expected UTF-8/],
    'a key twice': [
      {
        metadata: [
          ['a', 'uint8', 1],
          ['a', 'uint8', 1],
        ],
      },
      /metadata key 'a' is there twice/,
    ],
    'an unknown value type': [raw((bytes) => bytes.string('a').u32(13).raw(Buffer.alloc(20))), /'a': a value at byte \d+ has the type 13/],
    'an unknown element type': [
      raw((bytes) => bytes.string('a').u32(9).u32(99).u64(0)),
      /'a': an array at byte \d+ has elements of type 99/,
    ],
    'an array longer than the file': [
      raw((bytes) =>
        bytes
          .string('a')
          .u32(9)
          .u32(0)
          .u64(2n ** 40n),
      ),
      /'a': an array's length.*1099511627776/,
    ],
    'an array whose size wraps around': [
      raw((bytes) =>
        bytes
          .string('a')
          .u32(9)
          .u32(12)
          .u64(2n ** 61n + 1n),
      ),
      /'a': an array's length/,
    ],
    'strings in an array that end early': [
      raw((bytes) => bytes.string('a').u32(9).u32(8).u64(2).string('x').u64(1000)),
      /'a': a string at byte \d+ takes 1000 bytes/,
    ],
    'arrays 9 deep': [nested(9), /'deep': an array at byte \d+ lies in 8 others/],
    'an alignment of 0': [
      { metadata: [['general.alignment', 'uint32', 0]], tensors: [one] },
      /'general.alignment' is 0; expected a power of two/,
    ],
    'an alignment of 48': [{ metadata: [['general.alignment', 'uint32', 48]], tensors: [one] }, /'general.alignment' is 48/],
    'an alignment of another type': [{ metadata: [['general.alignment', 'uint64', 32n]], tensors: [one] }, /value type 10; expected 4/],
    'an alignment beyond the file': [
      { metadata: [['general.alignment', 'uint32', 2 ** 31]], tensors: [one] },
      /'w' has 4 bytes at 0.*0 bytes of data/,
    ],
    'five dimensions': [{ tensors: [{ name: 'w', dims: [1, 1, 1, 1, 1], data: f32(1) }] }, /'w' has 5 dimensions; expected at most 4/],
    'a dimension of 2^63': [{ tensors: [{ name: 'w', dims: [2n ** 63n] }] }, /'w' has a dimension of 9223372036854775808/],
    'a size that wraps around': [
      { tensors: [{ name: 'w', dims: [2n ** 32n, 2n ** 32n] }] },
      /'w' has the shape \[4294967296, 4294967296\]/,
    ],
    'a byte size that wraps around': [{ tensors: [{ name: 'w', dims: [2n ** 62n, 1] }] }, /'w' has the shape/],
    'an unknown tensor type': [{ tensors: [{ ...one, type: 4 }] }, /'w' has the type 4/],
    'a row that is no whole number of blocks': [
      { tensors: [{ name: 'w', dims: [33], type: 8 }] },
      /'w' of type Q8_0 has rows of 33.*multiple of 32/,
    ],
    'an unaligned offset': [{ tensors: [{ ...one, offset: 4, data: new Uint8Array(64) }] }, /'w' has the offset 4.*32/],
    'an offset beyond the file': [{ tensors: [{ ...one, offset: 2n ** 64n - 32n }] }, /'w' has 4 bytes at 18446744073709551584/],
    'a tensor that ends beyond the file': [{ tensors: [{ name: 'w', dims: [9], data: f32(1) }] }, /'w' has 36 bytes at 0.*file's 32 bytes/],
    'tensors that overlap': [
      {
        tensors: [
          { name: 'v', dims: [16], data: new Uint8Array(64) },
          { ...one, offset: 32 },
        ],
      },
      /'w' begins inside tensor 'v'/,
    ],
    'tensors in the same place': [{ tensors: [one, { ...one, name: 'v', offset: 0 }] }, /'v' begins inside tensor 'w'/],
    'a tensor name twice': [{ tensors: [one, one] }, /tensor 'w' is there twice/],
    'a tensor name that is not UTF-8': [{ tensors: [{ ...one, name: Buffer.from([0xc0, 0x80]) }] }, /tensor's name is '\\xc0\\x80'/],
  };
  for (const [what, [options, message]] of Object.entries(refused)) {
    it(`refuses ${what}`, () => {
      const path = file(options);
      const error = refusal(() => open(path), 'INVALID_GGUF');
      assert(error.message.startsWith(path), error.message);
      assert.match(error.message, message);
    });
  }

  it('refuses every file whose head is cut short', () => {
    const whole = gguf({
      metadata: [
        ['a', 'array', { of: 'string', items: ['x', 'yz'] }],
        ['b', 'float64', 1],
      ],
      tensors: [{ name: 'w', dims: [8], data: f32(1, 2, 3, 4, 5, 6, 7, 8) }],
    });
    open(file(whole)).close();
    for (let length = 0; length < whole.length; length++) refusal(() => open(file(whole.subarray(0, length))), 'INVALID_GGUF');
  });

  it('refuses hostile counts within a second and 64 MiB', function () {
    this.timeout(60000);
    // 100 MB that are all zeros: as many empty keys, strings and tensors as fit.
    const zeros = Buffer.alloc(100_000_000);
    const heads = [
      new Bytes().raw(Buffer.from('GGUF')).u32(3).u64(4_000_000).u64(0),
      new Bytes().raw(Buffer.from('GGUF')).u32(3).u64(262_144).u64(0),
      new Bytes().raw(Buffer.from('GGUF')).u32(3).u64(0).u64(7_000_000),
      new Bytes().raw(Buffer.from('GGUF')).u32(3).u64(0).u64(262_144),
      new Bytes()
        .raw(Buffer.from('GGUF'))
        .u32(3)
        .u64(0)
        .u64(1)
        .string('a')
        .u32(9)
        .u32(8)
        .u64(12_000_000)
        .u64(2n ** 60n),
      new Bytes().raw(Buffer.from('GGUF')).u32(3).u64(0).u64(3).string('a').u32(9).u32(0).u64(99_000_000),
    ];
    for (const head of heads) {
      const bytes = Buffer.from(zeros);
      head.done().copy(bytes);
      const path = file(bytes);
      const before = process.memoryUsage.rss();
      const start = performance.now();
      refusal(() => open(path), 'INVALID_GGUF');
      assert(performance.now() - start < 1000, `took ${performance.now() - start} ms`);
      assert(process.memoryUsage.rss() - before < 64 * 2 ** 20, `grew by ${process.memoryUsage.rss() - before}`);
    }
  });

  it('does not decode an array that would fill memory', () => {
    const path = file({ metadata: [['huge', 'array', { of: 'bool', items: [] }]] });
    const bytes = new Bytes().raw(Buffer.from('GGUF')).u32(3).u64(0).u64(1).string('huge').u32(9).u32(7).u64(50_000_000);
    put(folder, 'model.gguf', Buffer.concat([bytes.done(), Buffer.alloc(50_000_000)]));
    const opened = open(path);
    assert.match(refusal(() => call(() => opened.metadata()), 'INVALID_GGUF').message, /'huge': an array.*50000000 elements/);
  });

  it('survives a file that is truncated under it, and says so', () => {
    const path = file({ metadata: [['a', 'string', 'x'.repeat(10000)]], tensors: [{ name: 'w', dims: [8], data: new Uint8Array(32) }] });
    const opened = open(path);
    truncateSync(path, 10);
    refusal(() => call(() => opened.read('w')), 'IO_ERROR');
    try {
      call(() => opened.metadata());
      assert.fail('accepted');
    } catch (error) {
      assert(error instanceof LowrankError && ['IO_ERROR', 'INVALID_GGUF'].includes(error.code), String(error));
    }
  });
});
