// Prints a digest of every kernel's results on seeded input: 30.kernels.levels.test.ts compares it between numbers of threads.
import { createHash } from 'node:crypto';
import * as kernels from '../../lib/kernels.ts';
import { Random } from './support.ts';

const random = new Random();
const hash = createHash('sha256');
const add = (results: object): void => {
  for (const value of Object.values(results)) {
    if (ArrayBuffer.isView(value)) hash.update(new Uint8Array(value.buffer, value.byteOffset, value.byteLength));
    else if (typeof value === 'object') add(value as object);
    else hash.update(String(value));
  }
};

function linear(): void {
  const [tokens, inFeatures, outFeatures, r] = [301, 211, 173, 8];
  const projections = [0, 1].map((module) => ({
    weight: random.normals(outFeatures * inFeatures),
    outFeatures,
    loras: [{ a: random.normals(r * inFeatures), b: random.normals(outFeatures * r), r, scale: 2, dropout: 0.1, module }],
  }));
  const options = { x: random.normals(tokens * inFeatures), tokens, inFeatures, projections, seed: 7 };
  const { y, s } = kernels.loraLinear(options);
  add(y);
  add(kernels.loraLinearBackward({ ...options, s, dy: y, baseGradients: true }));
}

function attention(): void {
  const [heads, kvHeads, headDim] = [6, 2, 24];
  const queryStarts = Int32Array.from([0, 257, 258, 700]);
  const options = {
    q: random.normals(700 * heads * headDim),
    k: random.normals(700 * kvHeads * headDim),
    v: random.normals(700 * kvHeads * headDim),
    heads,
    kvHeads,
    headDim,
    queryStarts,
  };
  const { o, lse } = kernels.attention(options);
  add({ o, lse });
  add(kernels.attentionBackward({ ...options, o, lse, dO: random.normals(o.length) }));
  const { invFreq } = kernels.ropeFrequencies({ kind: 'default', theta: 1e4, rotaryDim: headDim, maxPosition: 700 }, 700);
  const table = kernels.ropeTable({ positions: Int32Array.from({ length: 700 }, (_, i) => i), invFreq });
  add([kernels.rope({ x: o, tokens: 700, heads, headDim, ...table })]);
}

function elementwise(): void {
  const [tokens, channels] = [509, 130];
  const [x, dy] = [random.normals(tokens * channels), random.normals(tokens * channels)];
  const weight = random.normals(channels);
  const { y, invRms } = kernels.rmsNorm({ x, weight, tokens, channels });
  add([y, kernels.rmsNormBackward({ x, weight, invRms, dy, tokens, channels })]);
  add([kernels.swiglu({ gate: x, up: dy, tokens, channels }), kernels.swigluBackward({ gate: x, up: dy, dh: y, tokens, channels })]);
  add([kernels.dropout({ x, tokens, channels, p: 0.2, seed: 3 }), kernels.gradNorm([x, dy, y])]);
  kernels.adamW({ p: x, m: y, v: dy.map(Math.abs), g: dy, step: 3, learningRate: 1e-3 });
  add([x, y]);
}

function head(): void {
  const [rows, channels, vocabulary] = [203, 96, 2049];
  const weight = random.normals(vocabulary * channels);
  const targets = random.ints(rows, vocabulary);
  const h = kernels.embedding({ table: weight, rows: vocabulary, columns: channels, ids: targets });
  add(kernels.linearCrossEntropy({ h, weight, vocabulary, channels, targets, gradients: 'all' }));
  add([kernels.embeddingBackward({ ids: targets, dx: h, rows: vocabulary, columns: channels })]);
}

linear();
attention();
elementwise();
head();
console.log(hash.digest('hex'));
