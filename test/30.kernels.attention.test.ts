import assert from 'node:assert/strict';
import * as kernels from '../lib/kernels.ts';
import * as reference from './kernels/reference.ts';
import { assertClose, assertGradients, assertRefused, dot, Random } from './kernels/support.ts';

interface Case {
  options: kernels.AttentionOptions & { keyStarts: Int32Array };
  shape: reference.AttentionReference;
}

/** Packed sequences, some of them at the end of more keys than they have queries. */
function randomCase(random: Random, longest: number): Case {
  const kvHeads = 1 + random.below(3);
  const heads = kvHeads * (1 + random.below(4));
  const headDim = 1 + random.below(40);
  const window = random.coin() ? 0 : 1 + random.below(longest);
  const queryStarts = [0];
  const keyStarts = [0];
  for (let sequences = 1 + random.below(3); sequences > 0; sequences--) {
    const keys = random.below(longest);
    queryStarts.push(queryStarts.at(-1)! + (random.coin() ? keys : Math.min(keys, random.below(keys + 1))));
    keyStarts.push(keyStarts.at(-1)! + keys);
  }
  const starts = { queryStarts: Int32Array.from(queryStarts), keyStarts: Int32Array.from(keyStarts) };
  const scale = random.coin() ? 1 / Math.sqrt(headDim) : 0.3;
  const shape = { heads, kvHeads, headDim, window, scale, ...starts };
  const q = random.normals(queryStarts.at(-1)! * heads * headDim);
  const k = random.normals(keyStarts.at(-1)! * kvHeads * headDim);
  const v = random.normals(k.length);
  return { options: { q, k, v, ...shape }, shape };
}

const describeShape = ({ heads, kvHeads, headDim, window, queryStarts, keyStarts }: reference.AttentionReference) =>
  `heads ${heads}/${kvHeads} x ${headDim}, window ${window}, queries ${Array.from(queryStarts)}, keys ${Array.from(keyStarts)}`;

describe('lowrank/kernels: attention', () => {
  it('agrees with the reference for packed, grouped, windowed and cached sequences', () => {
    const random = new Random();
    for (let round = 0; round < 40; round++) {
      const { options, shape } = randomCase(random, 90);
      const { o, lse } = kernels.attention(options);
      const want = reference.attention(options.q, options.k, options.v, shape);
      assertClose(o, want.o, 3e-6, `o, ${describeShape(shape)}`);
      assertClose(lse, want.lse, 3e-6, `lse, ${describeShape(shape)}`);
    }
  });

  it('has the gradients of its definition', () => {
    const random = new Random();
    for (let round = 0; round < 12; round++) {
      const { options, shape } = randomCase(random, 20);
      const { o, lse } = kernels.attention(options);
      const dO = random.normals(o.length);
      const { dq, dk, dv } = kernels.attentionBackward({ ...options, o, lse, dO });
      const { q, k, v } = options;
      assertGradients(describeShape(shape), { q, k, v }, { q: dq, k: dk, v: dv }, (moved) =>
        dot(reference.attention(moved.q, moved.k, moved.v, shape).o, dO),
      );
    }
  });

  it('has no gradient of scores where a query sees one key', () => {
    const random = new Random();
    for (const [window, queryStarts, keyStarts] of [
      [1, [0, 37, 300], [0, 37, 300]],
      [1, [0, 3], [0, 20]],
      [0, [0, 1, 1, 2], [0, 1, 1, 2]],
    ] as const) {
      const [tokens, keys, kvHeads, headDim] = [queryStarts.at(-1)!, keyStarts.at(-1)!, 3, 1 + random.below(40)];
      const q = random.normals(tokens * 2 * kvHeads * headDim);
      const [k, v] = [random.normals(keys * kvHeads * headDim), random.normals(keys * kvHeads * headDim)];
      const starts = { queryStarts: Int32Array.from(queryStarts), keyStarts: Int32Array.from(keyStarts) };
      const options = { q, k, v, heads: 2 * kvHeads, kvHeads, headDim, window, ...starts };
      const { o, lse } = kernels.attention(options);
      const { dq, dk, dv } = kernels.attentionBackward({ ...options, o, lse, dO: random.normals(o.length) });
      for (const [name, gradient] of Object.entries({ dq, dk })) {
        assert.ok(
          gradient.every((value) => value === 0),
          `${name}, window ${window}, head_dim ${headDim}`,
        );
      }
      assert.ok(dv.some((value) => value !== 0));
    }
  });

  it('gives a packed sequence what it gets alone', () => {
    const random = new Random();
    const [heads, kvHeads, headDim] = [4, 2, 17];
    const lengths = [13, 1, 150];
    const starts = Int32Array.from([0, 13, 14, 164]);
    const q = random.normals(164 * heads * headDim);
    const [k, v] = [random.normals(164 * kvHeads * headDim), random.normals(164 * kvHeads * headDim)];
    const packed = kernels.attention({ q, k, v, heads, kvHeads, headDim, queryStarts: starts });
    for (const [i, length] of lengths.entries()) {
      const part = (values: Float32Array, width: number) => values.subarray(starts[i]! * width, starts[i + 1]! * width);
      const alone = kernels.attention({
        q: part(q, heads * headDim),
        k: part(k, kvHeads * headDim),
        v: part(v, kvHeads * headDim),
        heads,
        kvHeads,
        headDim,
        queryStarts: Int32Array.from([0, length]),
      });
      assertClose(part(packed.o, heads * headDim), alone.o, 0, `sequence ${i}`);
    }
  });

  it('names the argument that does not fit', () => {
    const good = {
      q: new Float32Array(24),
      k: new Float32Array(12),
      v: new Float32Array(12),
      heads: 4,
      kvHeads: 2,
      headDim: 2,
      queryStarts: Int32Array.from([0, 1, 3]),
    };
    kernels.attention(good);
    assertRefused(
      () => kernels.attention({ ...good, k: new Float32Array(11) }),
      'SHAPE_MISMATCH',
      'k is',
      '11',
      '12 elements',
      '3 x 2 x 2',
    );
    assertRefused(() => kernels.attention({ ...good, heads: 3 }), 'SHAPE_MISMATCH', 'heads is 3', 'kvHeads');
    assertRefused(() => kernels.attention({ ...good, headDim: 0 }), 'SHAPE_MISMATCH', 'headDim is 0');
    assertRefused(() => kernels.attention({ ...good, queryStarts: Int32Array.from([0, 3, 1]) }), 'SHAPE_MISMATCH', 'queryStarts[2]');
    assertRefused(() => kernels.attention({ ...good, queryStarts: Int32Array.from([1, 3]) }), 'SHAPE_MISMATCH', 'queryStarts');
    assertRefused(() => kernels.attention({ ...good, keyStarts: Int32Array.from([0, 3]) }), 'SHAPE_MISMATCH', 'keyStarts', '2', '3');
    assertRefused(() => kernels.attention({ ...good, keyStarts: Int32Array.from([0, 0, 3]) }), 'SHAPE_MISMATCH', 'queries', 'keys');
    assertRefused(() => kernels.attention({ ...good, scale: Number.NaN }), 'INVALID_OPTION', 'scale', 'NaN');
    assertRefused(() => kernels.attention({ ...good, kv_heads: 2 } as never), 'UNKNOWN_OPTION', 'kv_heads', 'kvHeads');
    const { o, lse } = kernels.attention(good);
    assertRefused(() => kernels.attentionBackward({ ...good, o, lse, dO: new Float32Array(1) }), 'SHAPE_MISMATCH', 'dO', '1', '24');
    assertRefused(() => kernels.attentionBackward({ ...good, o, lse: o, dO: o }), 'SHAPE_MISMATCH', 'lse', '24', '12');
  });
});

describe('lowrank/kernels: rope', () => {
  it('rotates by position times frequency, and back', () => {
    const random = new Random();
    for (let round = 0; round < 20; round++) {
      const [tokens, heads, half] = [random.below(30), 1 + random.below(4), 1 + random.below(24)];
      const headDim = 2 * half + random.below(9);
      const positions = random.ints(tokens, 4096);
      const { invFreq, attentionScale } = kernels.ropeFrequencies(
        { kind: 'default', theta: 10000, rotaryDim: 2 * half, maxPosition: 4096 },
        4096,
      );
      const { cos, sin } = kernels.ropeTable({ positions, invFreq, attentionScale });
      const angles = Float64Array.from(cos, (_, i) => Math.fround(positions[Math.floor(i / half)]! * invFreq[i % half]!));
      const x = random.normals(tokens * heads * headDim);
      const shape = { tokens, heads, headDim, rotaryDim: 2 * half, cos, sin };
      const y = kernels.rope({ x, ...shape });
      assertClose(y, reference.rope(x, angles, tokens, heads, headDim, 2 * half), 5e-7, `round ${round}`);
      assertClose(kernels.rope({ x: y, ...shape, inverse: true }), x, 1e-6, `round ${round}, back`);
      const dy = random.normals(y.length);
      const dx = kernels.rope({ x: dy, ...shape, inverse: true });
      assertGradients(`round ${round}`, { x }, { x: dx }, (moved) =>
        dot(reference.rope(moved.x, angles, tokens, heads, headDim, 2 * half), dy),
      );
    }
  });

  it('extends the context as configured', () => {
    const plain = kernels.ropeFrequencies({ kind: 'default', theta: 10000, rotaryDim: 8, maxPosition: 64 }, 64);
    const linear = kernels.ropeFrequencies({ kind: 'linear', theta: 10000, rotaryDim: 8, factor: 4, maxPosition: 64 }, 64);
    assertClose(
      linear.invFreq,
      plain.invFreq.map((frequency) => frequency / 4),
      1e-7,
      'linear',
    );
    const dynamic = { kind: 'dynamic', theta: 10000, rotaryDim: 8, factor: 2, maxPosition: 64 } as const;
    assertClose(kernels.ropeFrequencies(dynamic, 64).invFreq, plain.invFreq, 0, 'dynamic within the trained length');
    const theta = 10000 * (2 * (128 / 64) - 1) ** (8 / 6);
    const grown = kernels.ropeFrequencies({ kind: 'default', theta, rotaryDim: 8, maxPosition: 64 }, 64);
    assertClose(kernels.ropeFrequencies(dynamic, 128).invFreq, grown.invFreq, 1e-6, 'dynamic beyond it');
    const yarn = kernels.ropeFrequencies(
      { kind: 'yarn', theta: 10000, rotaryDim: 8, factor: 4, maxPosition: 256, originalMaxPosition: 64 },
      64,
    );
    assertClose([yarn.attentionScale], [0.1 * Math.log(4) + 1], 1e-6, 'yarn');
  });

  it('names what does not fit', () => {
    const good = {
      x: new Float32Array(12),
      tokens: 2,
      heads: 1,
      headDim: 6,
      rotaryDim: 4,
      cos: new Float32Array(4),
      sin: new Float32Array(4),
    };
    kernels.rope(good);
    assertRefused(() => kernels.rope({ ...good, rotaryDim: 8 }), 'SHAPE_MISMATCH', 'rotaryDim is 8', '6');
    assertRefused(() => kernels.rope({ ...good, rotaryDim: 3 }), 'SHAPE_MISMATCH', 'rotaryDim is 3');
    assertRefused(() => kernels.rope({ ...good, cos: new Float32Array(3) }), 'SHAPE_MISMATCH', 'cos', '3', '4');
    const config = { kind: 'linear', theta: 10000, rotaryDim: 8, factor: 0, maxPosition: 64 } as const;
    assertRefused(() => kernels.ropeFrequencies(config, 8), 'INVALID_CONFIG', 'factor', '0');
    assertRefused(() => kernels.ropeFrequencies({ ...config, kind: 'ntk' as never }, 8), 'INVALID_OPTION', 'kind', 'ntk', 'dynamic');
    assertRefused(() => kernels.ropeFrequencies({ ...config, rotaryDim: 7 }, 8), 'INVALID_CONFIG', '7');
  });
});
