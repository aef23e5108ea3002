import assert from 'node:assert/strict';
import * as kernels from '../lib/kernels.ts';
import * as reference from './kernels/reference.ts';
import { assertClose, assertGradients, assertRefused, dot, doubles, Random } from './kernels/support.ts';

// fp32 sums of up to a few hundred products of order 1: 1e-6 of the largest result.
const TOLERANCE = 2e-6;

/** Rows of a storage type whose fp16 scales are finite: no byte reaches the exponent of infinity. */
function quantized(random: Random, dtype: string, rows: number, columns: number): { dtype: string; data: Uint8Array } {
  const { elements, bytes } = reference.dequantizers[dtype]!;
  return { dtype, data: random.bytes((rows * columns * bytes) / elements, 0x40) };
}

describe('lowrank/kernels: gemm', () => {
  it('agrees with the triple loop for any shape, transposed or not, with a bias or added to c', () => {
    const random = new Random();
    for (let round = 0; round < 60; round++) {
      const [m, n, k] = [random.below(70), random.below(120), random.below(90)];
      const [transposeA, transposeB] = [random.coin(), random.coin()];
      const a = random.normals(m * k);
      const b = random.normals(k * n);
      const bias = random.coin() ? random.normals(n) : undefined;
      const c = random.coin() ? random.normals(m * n) : undefined;
      const got = kernels.gemm({ a, b, m, n, k, transposeA, transposeB, bias, c });
      const want = reference.gemm(a, b, m, n, k, transposeA, transposeB);
      for (let i = 0; i < want.length; i++) want[i]! += (bias?.[i % n] ?? 0) + (c?.[i] ?? 0);
      assertClose(got, want, TOLERANCE, `gemm ${m}x${n}x${k} ${transposeA} ${transposeB}`);
    }
  });

  it('reads a weight in any storage type as dequantize gives it', () => {
    const random = new Random();
    for (const dtype of Object.keys(reference.dequantizers)) {
      for (const [m, n] of [
        [1, 5],
        [7, 33],
        [40, 17],
      ] as const) {
        const k = 512;
        const b = quantized(random, dtype, n, k);
        const values = kernels.dequantize({ weight: b, rows: n, columns: k });
        const a = random.normals(m * k);
        const want = reference.gemm(a, values, m, n, k, false, true);
        assertClose(kernels.gemm({ a, b, m, n, k, transposeB: true }), want, TOLERANCE, `${dtype} ${m}x${n}`);
      }
    }
  });

  it('names the argument that does not fit', () => {
    const good = { a: new Float32Array(6), b: new Float32Array(12), m: 2, n: 4, k: 3 };
    assertRefused(() => kernels.gemm({ ...good, a: new Float32Array(5) }), 'SHAPE_MISMATCH', 'gemm', 'a is', '5', '6 elements', '2 x 3');
    assertRefused(() => kernels.gemm({ ...good, b: new Float32Array(11) }), 'SHAPE_MISMATCH', 'b is', '11', '12 elements');
    assertRefused(() => kernels.gemm({ ...good, m: 2.5 }), 'SHAPE_MISMATCH', 'm is 2.5');
    assertRefused(() => kernels.gemm({ ...good, k: -1 }), 'SHAPE_MISMATCH', 'k is -1');
    assertRefused(() => kernels.gemm({ ...good, bias: new Float32Array(3) }), 'SHAPE_MISMATCH', 'bias', '3', '4');
    assertRefused(() => kernels.gemm({ ...good, a: new Float64Array(6) as never }), 'SHAPE_MISMATCH', 'Float64Array', 'Float32Array');
    assertRefused(() => kernels.gemm({ ...good, b: { dtype: 'Q4_K', data: new Uint8Array(9) } }), 'SHAPE_MISMATCH', 'Q4_K', '256');
    assertRefused(() => kernels.gemm({ ...good, b: { dtype: 'Q9', data: new Uint8Array(9) } }), 'UNSUPPORTED_QUANTIZATION', 'Q9', 'Q4_K');
    assertRefused(() => kernels.gemm({ ...good, transpose_b: true } as never), 'UNKNOWN_OPTION', 'transpose_b', 'transposeB');
    assertRefused(
      () => kernels.gemm({ a: new Float32Array(0), b: new Float32Array(0), m: 2 ** 40, n: 2 ** 40, k: 0 }),
      'OUT_OF_MEMORY',
      'gemm',
    );
  });
});

describe('lowrank/kernels: dequantize', () => {
  it("gives the values of ggml's blocks", () => {
    const random = new Random();
    for (const dtype of Object.keys(reference.dequantizers)) {
      const weight = quantized(random, dtype, 3, 256);
      const got = kernels.dequantize({ weight, rows: 3, columns: 256 });
      assertClose(got, reference.dequantize(dtype, weight.data), 2e-7, dtype);
    }
    const values = random.normals(10);
    assert.deepEqual(kernels.dequantize({ weight: values, rows: 2, columns: 5 }), values);
  });

  it('names what does not fit', () => {
    const weight = { dtype: 'Q8_0', data: new Uint8Array(34) };
    assertRefused(() => kernels.dequantize({ weight, rows: 1, columns: 33 }), 'SHAPE_MISMATCH', '33', '32');
    assertRefused(() => kernels.dequantize({ weight, rows: 2, columns: 32 }), 'SHAPE_MISMATCH', 'weight.data', '34', '68 bytes');
  });
});

type Projection = kernels.LoraProjection & { weight: Float32Array; loras: kernels.Lora[] };

interface Group {
  options: Omit<kernels.LoraLinearOptions, 'projections'> & { projections: Projection[] };
  /** Of each attachment of each projection. */
  masks: Float64Array[][];
}

function randomGroup(random: Random): Group {
  const tokens = random.below(30);
  const inFeatures = 1 + random.below(40);
  const projections = Array.from({ length: 1 + random.below(3) }, () => {
    const outFeatures = 1 + random.below(40);
    const loras = Array.from({ length: random.below(3) }, (): kernels.Lora => {
      const r = 1 + random.below(17);
      return {
        a: random.normals(r * inFeatures),
        b: random.normals(outFeatures * r),
        r,
        scale: 0.25 + random.uniform(),
        dropout: random.coin() ? 0.3 : 0,
        module: random.below(1000),
      };
    });
    const bias = random.coin() ? random.normals(outFeatures) : undefined;
    return { weight: random.normals(outFeatures * inFeatures), outFeatures, bias, loras };
  });
  const seed = random.below(2 ** 31);
  const masks = projections.map(({ loras }) =>
    loras.map(({ dropout = 0, module = 0 }) => reference.dropoutMask(tokens * inFeatures, dropout, seed, module)),
  );
  return { options: { tokens, inFeatures, x: random.normals(tokens * inFeatures), projections, seed }, masks };
}

describe('lowrank/kernels: loraLinear', () => {
  const inputsOf = ({ x, projections }: Group['options']): Record<string, ArrayLike<number>> => {
    const inputs: Record<string, ArrayLike<number>> = { x };
    for (const [p, { weight, bias, loras }] of projections.entries()) {
      inputs[`weight${p}`] = weight;
      if (bias !== undefined) inputs[`bias${p}`] = bias;
      for (const [l, { a, b }] of loras.entries()) {
        inputs[`a${p}.${l}`] = a;
        inputs[`b${p}.${l}`] = b;
      }
    }
    return inputs;
  };

  const forward = ({ options, masks }: Group, inputs: Record<string, ArrayLike<number>>): Float64Array[] =>
    options.projections.map(({ outFeatures, loras }, p) => {
      const { tokens, inFeatures } = options;
      const attachments = loras.map(({ r, scale }, l) => ({
        a: inputs[`a${p}.${l}`]!,
        b: inputs[`b${p}.${l}`]!,
        r,
        scale,
        mask: masks[p]![l]!,
      }));
      return reference.loraLinear(inputs.x!, inputs[`weight${p}`]!, inputs[`bias${p}`], attachments, tokens, inFeatures, outFeatures);
    });

  it('agrees with the reference for any group of projections and attachments', () => {
    const random = new Random();
    for (let round = 0; round < 30; round++) {
      const group = randomGroup(random);
      const { y } = kernels.loraLinear(group.options);
      const want = forward(group, inputsOf(group.options));
      for (const [p, values] of want.entries()) assertClose(y[p]!, values, TOLERANCE, `round ${round} y[${p}]`);
    }
  });

  it('has the gradients of its definition', () => {
    const random = new Random();
    for (let round = 0; round < 6; round++) {
      const group = randomGroup(random);
      const { s } = kernels.loraLinear(group.options);
      const { tokens, projections } = group.options;
      const dy = projections.map(({ outFeatures }) => random.normals(tokens * outFeatures));
      const got = kernels.loraLinearBackward({ ...group.options, s, dy, baseGradients: true });
      const gradients: Record<string, ArrayLike<number>> = { x: got.dx };
      for (const [p, { loras, dWeight, dBias }] of got.projections.entries()) {
        gradients[`weight${p}`] = dWeight!;
        if (dBias !== undefined) gradients[`bias${p}`] = dBias;
        for (const [l, { dA, dB }] of loras.entries()) {
          gradients[`a${p}.${l}`] = dA;
          gradients[`b${p}.${l}`] = dB;
        }
      }
      const loss = (inputs: Record<string, Float64Array>) => forward(group, inputs).reduce((sum, y, p) => sum + dot(y, dy[p]!), 0);
      assertGradients(`round ${round}`, inputsOf(group.options), gradients, loss);
    }
  });

  it('leaves the base gradients out unless asked, and names what does not fit', () => {
    const lora = { a: new Float32Array(6), b: new Float32Array(8), r: 2, scale: 1 };
    const projection = { weight: new Float32Array(12), outFeatures: 4, loras: [lora] };
    const good = { x: new Float32Array(6), tokens: 2, inFeatures: 3, projections: [projection] };
    const { s } = kernels.loraLinear(good);
    const dy = [new Float32Array(8)];
    const { projections } = kernels.loraLinearBackward({ ...good, s, dy });
    assert.deepEqual(Object.keys(projections[0]!), ['loras']);
    const withLora = (changes: Partial<kernels.Lora>) => ({ ...good, projections: [{ ...projection, loras: [{ ...lora, ...changes }] }] });
    assertRefused(() => kernels.loraLinear(withLora({ a: new Float32Array(5) })), 'SHAPE_MISMATCH', 'projections[0].loras[0].a', '5', '6');
    assertRefused(() => kernels.loraLinear(withLora({ dropout: 1 })), 'INVALID_OPTION', 'dropout', '1');
    assertRefused(() => kernels.loraLinear(withLora({ r: 0 })), 'SHAPE_MISMATCH', '.r is 0');
    assertRefused(() => kernels.loraLinear({ ...good, x: new Float32Array(7) }), 'SHAPE_MISMATCH', 'x is', '7', '6');
    assertRefused(() => kernels.loraLinearBackward({ ...good, s: new Float32Array(5), dy }), 'SHAPE_MISMATCH', 's is', '5', '4');
    assertRefused(() => kernels.loraLinearBackward({ ...good, s, dy: [] }), 'SHAPE_MISMATCH', 'dy', '0', '1');
    assertRefused(() => kernels.loraLinearBackward({ ...good, s, dy: [new Float32Array(7)] }), 'SHAPE_MISMATCH', 'dy[0]', '7', '8');
  });

  it('is linear in x without attachments', () => {
    const random = new Random();
    const weight = random.normals(12);
    const x = random.normals(9);
    const { y } = kernels.loraLinear({ x, tokens: 3, inFeatures: 3, projections: [{ weight, outFeatures: 4 }] });
    assertClose(y[0]!, doubles(kernels.gemm({ a: x, b: weight, m: 3, n: 4, k: 3, transposeB: true })), 1e-6, 'y');
  });
});
