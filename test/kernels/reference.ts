// The ops as their formulas read, in double precision.

type Numbers = ArrayLike<number>;

const at = (values: Numbers, index: number): number => values[index] as number;

export function gemm(a: Numbers, b: Numbers, m: number, n: number, k: number, transposeA: boolean, transposeB: boolean): Float64Array {
  const c = new Float64Array(m * n);
  for (let i = 0; i < m; i++) {
    for (let j = 0; j < n; j++) {
      for (let t = 0; t < k; t++) c[i * n + j]! += at(a, transposeA ? t * m + i : i * k + t) * at(b, transposeB ? j * k + t : t * n + j);
    }
  }
  return c;
}

function philox(counter: [number, number, number, number], key: [number, number]): number[] {
  const product = (a: number, b: number) => BigInt(a >>> 0) * BigInt(b >>> 0);
  const high = (value: bigint) => Number(value >> 32n);
  const low = (value: bigint) => Number(value & 0xffffffffn);
  let c: number[] = counter;
  let [k0, k1] = key;
  for (let round = 0; round < 10; round++) {
    const p0 = product(0xd2511f53, at(c, 0));
    const p1 = product(0xcd9e8d57, at(c, 2));
    c = [(high(p1) ^ at(c, 1) ^ k0) >>> 0, low(p1), (high(p0) ^ at(c, 3) ^ k1) >>> 0, low(p0)];
    k0 = (k0 + 0x9e3779b9) >>> 0;
    k1 = (k1 + 0xbb67ae85) >>> 0;
  }
  return c;
}

/** What dropout multiplies each of `length` elements by. Seeds and modules below 2^32. */
export function dropoutMask(length: number, p: number, seed: number, module: number): Float64Array {
  const threshold = Math.round(p * 65536);
  return Float64Array.from({ length }, (_, e) => {
    const words = philox([Math.floor(e / 8), 0, module, 0], [seed, 0]);
    const word = at(words, (e % 8) >> 1);
    const bits = e % 2 === 0 ? word & 0xffff : word >>> 16;
    return bits >= threshold ? 1 / (1 - p) : 0;
  });
}

export interface LoraReference {
  a: Numbers;
  b: Numbers;
  r: number;
  scale: number;
  mask: Numbers;
}

/** x·Wᵀ + bias + Σ scale · (mask ∘ x)·Aᵀ·Bᵀ */
export function loraLinear(
  x: Numbers,
  weight: Numbers,
  bias: Numbers | undefined,
  loras: LoraReference[],
  tokens: number,
  inFeatures: number,
  outFeatures: number,
): Float64Array {
  const y = gemm(x, weight, tokens, outFeatures, inFeatures, false, true);
  if (bias !== undefined) for (let i = 0; i < y.length; i++) y[i]! += at(bias, i % outFeatures);
  for (const { a, b, r, scale, mask } of loras) {
    const dropped = Float64Array.from({ length: tokens * inFeatures }, (_, i) => at(x, i) * at(mask, i) * scale);
    const s = gemm(dropped, a, tokens, r, inFeatures, false, true);
    const added = gemm(s, b, tokens, outFeatures, r, false, true);
    for (let i = 0; i < y.length; i++) y[i]! += at(added, i);
  }
  return y;
}

export interface AttentionReference {
  heads: number;
  kvHeads: number;
  headDim: number;
  queryStarts: Numbers;
  keyStarts: Numbers;
  scale: number;
  window: number;
}

export function attention(q: Numbers, k: Numbers, v: Numbers, shape: AttentionReference): { o: Float64Array; lse: Float64Array } {
  const { heads, kvHeads, headDim, queryStarts, keyStarts, scale, window } = shape;
  const rows = at(queryStarts, queryStarts.length - 1);
  const o = new Float64Array(rows * heads * headDim);
  const lse = new Float64Array(rows * heads);
  for (let s = 0; s + 1 < queryStarts.length; s++) {
    const [q0, k0] = [at(queryStarts, s), at(keyStarts, s)];
    const queries = at(queryStarts, s + 1) - q0;
    const keys = at(keyStarts, s + 1) - k0;
    for (let i = 0; i < queries; i++) {
      const position = keys - queries + i;
      const first = window > 0 ? Math.max(0, position - window + 1) : 0;
      for (let h = 0; h < heads; h++) {
        const row = ((q0 + i) * heads + h) * headDim;
        const key = (j: number) => ((k0 + j) * kvHeads + Math.floor(h / (heads / kvHeads))) * headDim;
        const scores: number[] = [];
        for (let j = first; j <= position; j++) {
          let score = 0;
          for (let d = 0; d < headDim; d++) score += at(q, row + d) * at(k, key(j) + d);
          scores.push(score * scale);
        }
        const maximum = Math.max(...scores);
        const sum = scores.reduce((total, score) => total + Math.exp(score - maximum), 0);
        lse[(q0 + i) * heads + h] = maximum + Math.log(sum);
        for (const [j, score] of scores.entries()) {
          const p = Math.exp(score - maximum) / sum;
          for (let d = 0; d < headDim; d++) o[row + d]! += p * at(v, key(first + j) + d);
        }
      }
    }
  }
  return { o, lse };
}

/** The pairs (i, i + rotary / 2) of each head, turned by angles [tokens, rotary / 2]. */
export function rope(x: Numbers, angles: Numbers, tokens: number, heads: number, headDim: number, rotary: number): Float64Array {
  const y = Float64Array.from(x);
  const half = rotary / 2;
  for (let t = 0; t < tokens; t++) {
    for (let h = 0; h < heads; h++) {
      for (let i = 0; i < half; i++) {
        const [low, high] = [(t * heads + h) * headDim + i, (t * heads + h) * headDim + i + half];
        const angle = at(angles, t * half + i);
        y[low] = at(x, low) * Math.cos(angle) - at(x, high) * Math.sin(angle);
        y[high] = at(x, high) * Math.cos(angle) + at(x, low) * Math.sin(angle);
      }
    }
  }
  return y;
}

export function rmsNorm(x: Numbers, weight: Numbers, eps: number, tokens: number, channels: number): Float64Array {
  const y = new Float64Array(tokens * channels);
  for (let t = 0; t < tokens; t++) {
    let squares = 0;
    for (let c = 0; c < channels; c++) squares += at(x, t * channels + c) ** 2;
    const rms = Math.sqrt(squares / channels + eps);
    for (let c = 0; c < channels; c++) y[t * channels + c] = (at(x, t * channels + c) * at(weight, c)) / rms;
  }
  return y;
}

export function swiglu(gate: Numbers, up: Numbers): Float64Array {
  return Float64Array.from({ length: gate.length }, (_, i) => (at(gate, i) / (1 + Math.exp(-at(gate, i)))) * at(up, i));
}

export function embedding(table: Numbers, ids: Numbers, columns: number): Float64Array {
  return Float64Array.from({ length: ids.length * columns }, (_, i) =>
    at(table, at(ids, Math.floor(i / columns)) * columns + (i % columns)),
  );
}

/** Σ of the negative log-likelihoods, and how many targets have the largest logit. */
export function crossEntropy(h: Numbers, weight: Numbers, targets: Numbers, channels: number, vocabulary: number) {
  const logits = gemm(h, weight, targets.length, vocabulary, channels, false, true);
  let nllSum = 0;
  let correct = 0;
  for (let i = 0; i < targets.length; i++) {
    const row = logits.subarray(i * vocabulary, (i + 1) * vocabulary);
    const maximum = Math.max(...row);
    nllSum += maximum + Math.log(row.reduce((sum, logit) => sum + Math.exp(logit - maximum), 0)) - at(row, at(targets, i));
    if (row.indexOf(maximum) === at(targets, i)) correct++;
  }
  return { nllSum, correct };
}

function half(bytes: Uint8Array, offset: number): number {
  const bits = at(bytes, offset) | (at(bytes, offset + 1) << 8);
  const [sign, exponent, mantissa] = [bits & 0x8000 ? -1 : 1, (bits >> 10) & 31, bits & 1023];
  if (exponent === 31) return mantissa ? Number.NaN : sign * Infinity;
  return sign * (exponent === 0 ? mantissa * 2 ** -24 : (1 + mantissa / 1024) * 2 ** (exponent - 15));
}

/** Values of some storage types, by ggml's definitions of their blocks. */
export const dequantizers: Record<string, { elements: number; bytes: number; read: (block: Uint8Array, i: number) => number }> = {
  F16: { elements: 1, bytes: 2, read: (block) => half(block, 0) },
  BF16: {
    elements: 1,
    bytes: 2,
    read: (block) => new Float32Array(new Uint32Array([(at(block, 0) | (at(block, 1) << 8)) << 16]).buffer)[0]!,
  },
  INT8: {
    elements: 64,
    bytes: 68,
    read: (block, i) => (new DataView(block.buffer, block.byteOffset).getFloat32(0, true) / 127) * ((at(block, 4 + i) << 24) >> 24),
  },
  Q8_0: { elements: 32, bytes: 34, read: (block, i) => half(block, 0) * ((at(block, 2 + i) << 24) >> 24) },
  Q4_0: { elements: 32, bytes: 18, read: (block, i) => half(block, 0) * (((at(block, 2 + (i % 16)) >> (i < 16 ? 0 : 4)) & 15) - 8) },
  Q4_1: {
    elements: 32,
    bytes: 20,
    read: (block, i) => half(block, 0) * ((at(block, 4 + (i % 16)) >> (i < 16 ? 0 : 4)) & 15) + half(block, 2),
  },
  Q4_K: {
    elements: 256,
    bytes: 144,
    read: (block, i) => {
      const group = Math.floor(i / 32);
      const byte = (offset: number) => at(block, 4 + offset);
      const scale = group < 4 ? byte(group) & 63 : (byte(group + 4) & 15) | ((byte(group - 4) >> 6) << 4);
      const minimum = group < 4 ? byte(group + 4) & 63 : (byte(group + 4) >> 4) | ((byte(group) >> 6) << 4);
      const quant = (at(block, 16 + Math.floor(i / 64) * 32 + (i % 32)) >> (group % 2 === 0 ? 0 : 4)) & 15;
      return half(block, 0) * scale * quant - half(block, 2) * minimum;
    },
  },
  Q6_K: {
    elements: 256,
    bytes: 210,
    read: (block, i) => {
      const [part, within] = [Math.floor(i / 128), i % 128];
      const [quarter, lane] = [Math.floor(within / 32), within % 32];
      const low = (at(block, part * 64 + (quarter % 2) * 32 + lane) >> (quarter < 2 ? 0 : 4)) & 15;
      const high = (at(block, 128 + part * 32 + lane) >> (2 * quarter)) & 3;
      const scale = (at(block, 192 + Math.floor(i / 16)) << 24) >> 24;
      return half(block, 208) * scale * ((low | (high << 4)) - 32);
    },
  },
};

export function dequantize(dtype: string, data: Uint8Array): Float64Array {
  const { elements, bytes, read } = dequantizers[dtype]!;
  return Float64Array.from({ length: (data.length / bytes) * elements }, (_, i) => {
    const block = Math.floor(i / elements);
    return read(data.subarray(block * bytes, (block + 1) * bytes), i % elements);
  });
}
