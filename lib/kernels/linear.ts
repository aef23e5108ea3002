import { Checks, type NativeWeight, run, type Weight } from './checks.ts';

export interface GemmOptions {
  /** [m, k], or [k, m] with transposeA. */
  a: Float32Array;
  /** [k, n], or [n, k] with transposeB (a weight [out, in]). */
  b: Weight;
  m: number;
  n: number;
  k: number;
  transposeA?: boolean;
  transposeB?: boolean;
  /** [n], added to every row. */
  bias?: Float32Array;
  /** [m, n] to add to; left as it is. */
  c?: Float32Array;
}

/** C[m, n] = A · B (+ bias) (+ c). */
export function gemm(options: GemmOptions): Float32Array {
  const checks = new Checks('gemm', options, ['a', 'b', 'm', 'n', 'k', 'transposeA', 'transposeB', 'bias', 'c']);
  const { a, b, m, n, k, transposeA = false, transposeB = false, bias, c } = options;
  checks.dimension('m', m);
  checks.dimension('n', n);
  checks.dimension('k', k);
  checks.flag('transposeA', transposeA);
  checks.flag('transposeB', transposeB);
  checks.floats('a', a, ...(transposeA ? [k, m] : [m, k]));
  const weight = transposeB ? checks.weight('b', b, n, k) : checks.weight('b', b, k, n);
  if (bias !== undefined) checks.floats('bias', bias, n);
  const out = checks.allocate(m, n);
  if (c !== undefined) out.set(checks.floats('c', c, m, n));
  run('gemm', a, transposeA, ...weight, transposeB, m, n, k, bias, out, c !== undefined);
  return out;
}

/** Values of `rows` rows of `columns` elements in a storage type, as ggml's dequantize_row gives them. */
export function dequantize(options: { weight: Weight; rows: number; columns: number }): Float32Array {
  const checks = new Checks('dequantize', options, ['weight', 'rows', 'columns']);
  const { weight, rows, columns } = options;
  checks.dimension('rows', rows);
  checks.dimension('columns', columns);
  const bytes = checks.weight('weight', weight, rows, columns);
  const out = checks.allocate(rows, columns);
  run('dequantize', ...bytes, out);
  return out;
}

/** One LoRA attachment: y += scale · dropout(x)·Aᵀ·Bᵀ. */
export interface Lora {
  /** [r, inFeatures] */
  a: Float32Array;
  /** [outFeatures, r] */
  b: Float32Array;
  r: number;
  /** alpha / r, or alpha / sqrt(r) with rsLoRA. */
  scale: number;
  /** Probability of dropping an element of x; 0 by default. */
  dropout?: number;
  /** Stream of the dropout mask; 0 by default. */
  module?: number;
}

/** A linear layer [outFeatures, inFeatures] with its attachments. */
export interface LoraProjection {
  weight: Weight;
  outFeatures: number;
  bias?: Float32Array;
  loras?: readonly Lora[];
}

export interface LoraLinearOptions {
  /** [tokens, inFeatures] */
  x: Float32Array;
  tokens: number;
  inFeatures: number;
  /** Projections of the same x, which share one pass over it. */
  projections: readonly LoraProjection[];
  /** Seed of the dropout masks; 0 by default. */
  seed?: number;
}

export interface LoraLinearBackwardOptions extends LoraLinearOptions {
  /** As loraLinear returned it. */
  s: Float32Array;
  /** [tokens, outFeatures] of each projection. */
  dy: readonly Float32Array[];
  /** Also return the gradients of weights and biases; false by default. */
  baseGradients?: boolean;
}

export interface LoraProjectionGradients {
  loras: { dA: Float32Array; dB: Float32Array }[];
  /** With baseGradients; dBias where the projection has a bias. */
  dWeight?: Float32Array;
  dBias?: Float32Array;
}

const FORWARD = ['x', 'tokens', 'inFeatures', 'projections', 'seed'];

interface CheckedLora {
  values: [Float32Array, Float32Array, number, number, number, number];
  r: number;
}

interface CheckedProjection {
  weight: NativeWeight;
  bias: Float32Array | undefined;
  loras: CheckedLora[];
  outFeatures: number;
}

function checkLora(checks: Checks, lora: Lora, name: string, inFeatures: number, outFeatures: number): CheckedLora {
  const { a, b, r, scale, dropout = 0, module = 0 } = lora;
  checks.dimension(`${name}.r`, r, 1);
  checks.floats(`${name}.a`, a, r, inFeatures);
  checks.floats(`${name}.b`, b, outFeatures, r);
  checks.number(`${name}.scale`, scale);
  checks.number(`${name}.dropout`, dropout, 0, 1);
  checks.whole(`${name}.module`, module);
  return { values: [a, b, r, scale, dropout, module], r };
}

function checkGroup(checks: Checks, options: LoraLinearOptions): CheckedProjection[] {
  const { x, tokens, inFeatures, projections, seed = 0 } = options;
  checks.dimension('tokens', tokens);
  checks.dimension('inFeatures', inFeatures, 1);
  checks.floats('x', x, tokens, inFeatures);
  checks.whole('seed', seed);
  return checks.list('projections', projections, (projection, name) => {
    const { weight, outFeatures, bias, loras = [] } = projection;
    checks.dimension(`${name}.outFeatures`, outFeatures, 1);
    return {
      weight: checks.weight(`${name}.weight`, weight, outFeatures, inFeatures),
      bias: bias === undefined ? undefined : checks.floats(`${name}.bias`, bias, outFeatures),
      loras: checks.list(`${name}.loras`, loras, (lora, place) => checkLora(checks, lora, place, inFeatures, outFeatures)),
      outFeatures,
    };
  });
}

function rankSum(group: CheckedProjection[]): number {
  return group.reduce((sum, { loras }) => sum + loras.reduce((ranks, { r }) => ranks + r, 0), 0);
}

/**
 * y[p] = x·W[p]ᵀ + bias[p] + Σ scale · dropout(x)·Aᵀ·Bᵀ for each projection, as [tokens, outFeatures]; `s` is what the backward
 * needs: scale · dropout(x)·Aᵀ of all attachments, [tokens, Σ r].
 */
export function loraLinear(options: LoraLinearOptions): { y: Float32Array[]; s: Float32Array } {
  const checks = new Checks('loraLinear', options, FORWARD);
  const group = checkGroup(checks, options);
  const { x, tokens, inFeatures, seed = 0 } = options;
  const y = group.map(({ outFeatures }) => checks.allocate(tokens, outFeatures));
  const s = checks.allocate(tokens, rankSum(group));
  const native = group.map(({ weight, bias, loras }, index) => [...weight, bias, loras.map(({ values }) => values), y[index]]);
  run('loraLinear', x, tokens, inFeatures, native, s, seed);
  return { y, s };
}

/** Gradients of {@link loraLinear}: of x, and of each projection's attachments (and weights, with baseGradients). */
export function loraLinearBackward(options: LoraLinearBackwardOptions): { dx: Float32Array; projections: LoraProjectionGradients[] } {
  const checks = new Checks('loraLinearBackward', options, [...FORWARD, 's', 'dy', 'baseGradients']);
  const group = checkGroup(checks, options);
  const { x, tokens, inFeatures, seed = 0, s, dy, baseGradients = false } = options;
  checks.floats('s', s, tokens, rankSum(group));
  checks.flag('baseGradients', baseGradients);
  if (!Array.isArray(dy) || dy.length !== group.length) {
    checks.fail(`dy has ${Array.isArray(dy) ? dy.length : 'no'} items; expected ${group.length}, one for each projection`);
  }
  const dx = checks.allocate(tokens, inFeatures);
  const projections = group.map(
    ({ outFeatures, bias, loras }): LoraProjectionGradients => ({
      loras: loras.map(({ r }) => ({ dA: checks.allocate(r, inFeatures), dB: checks.allocate(outFeatures, r) })),
      ...(baseGradients && { dWeight: checks.allocate(outFeatures, inFeatures) }),
      ...(baseGradients && bias !== undefined && { dBias: checks.allocate(outFeatures) }),
    }),
  );
  const native = group.map(({ weight, bias, loras, outFeatures }, index) => {
    const gradients = projections[index] as LoraProjectionGradients;
    const attachments = loras.map(({ values }, place) => {
      const { dA, dB } = gradients.loras[place] as LoraProjectionGradients['loras'][number];
      return [...values, dA, dB];
    });
    const upstream = checks.floats(`dy[${index}]`, dy[index] as Float32Array, tokens, outFeatures);
    return [...weight, bias, attachments, upstream, gradients.dWeight, gradients.dBias];
  });
  run('loraLinearBackward', x, tokens, inFeatures, native, s, seed, dx);
  return { dx, projections };
}
