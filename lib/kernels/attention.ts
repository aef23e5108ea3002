import type { NativeRopeConfig } from '../native.ts';
import { Checks, run } from './checks.ts';

export interface AttentionOptions {
  /** [query rows, heads, headDim] */
  q: Float32Array;
  /** [key rows, kvHeads, headDim] */
  k: Float32Array;
  v: Float32Array;
  /** A multiple of kvHeads. */
  heads: number;
  kvHeads: number;
  headDim: number;
  /** Sequence i has the query rows starts[i] to starts[i + 1]; [0, …, query rows]. */
  queryStarts: Int32Array;
  /** Likewise its key rows, of which there are at least as many (a cache); queryStarts by default. Its queries are the last of its positions. */
  keyStarts?: Int32Array;
  /** 1 / sqrt(headDim) by default. */
  scale?: number;
  /** A query sees the last `window` positions, its own included; 0, the default: all earlier ones. */
  window?: number;
}

export interface AttentionBackwardOptions extends AttentionOptions {
  /** As attention returned them. */
  o: Float32Array;
  lse: Float32Array;
  /** Gradient of o. */
  dO: Float32Array;
}

const FORWARD = ['q', 'k', 'v', 'heads', 'kvHeads', 'headDim', 'queryStarts', 'keyStarts', 'scale', 'window'];

// The bounds of sequences; returns the rows.
function checkStarts(checks: Checks, name: string, starts: Int32Array): number {
  if (!(starts instanceof Int32Array) || starts.length === 0 || starts[0] !== 0) {
    checks.fail(`${name} is not an Int32Array that starts with 0`);
  }
  for (let i = 1; i < starts.length; i++) {
    const [from, to] = [starts[i - 1] as number, starts[i] as number];
    if (to < from) checks.fail(`${name}[${i}] is ${to}; expected at least ${from}, the start before it`);
  }
  return starts[starts.length - 1] as number;
}

function checkAttention(checks: Checks, options: AttentionOptions) {
  const { q, k, v, heads, kvHeads, headDim, queryStarts, keyStarts = queryStarts, window = 0 } = options;
  checks.dimension('kvHeads', kvHeads, 1);
  checks.dimension('heads', heads, 1);
  checks.dimension('headDim', headDim, 1);
  if (heads % kvHeads !== 0) checks.fail(`heads is ${heads}; expected a multiple of kvHeads (${kvHeads})`);
  const scale = checks.number('scale', options.scale ?? 1 / Math.sqrt(headDim));
  checks.whole('window', window);
  const queries = checkStarts(checks, 'queryStarts', queryStarts);
  const keys = checkStarts(checks, 'keyStarts', keyStarts);
  if (keyStarts.length !== queryStarts.length) {
    checks.fail(`keyStarts has ${keyStarts.length} elements; expected ${queryStarts.length}, as queryStarts`);
  }
  checks.floats('q', q, queries, heads, headDim);
  checks.floats('k', k, keys, kvHeads, headDim);
  checks.floats('v', v, keys, kvHeads, headDim);
  const positional = [heads, kvHeads, headDim, scale, window, queryStarts, keyStarts, queryStarts.length - 1, q, k, v];
  return { positional, queries, keys };
}

/** Causal softmax attention over packed sequences; o: [query rows, heads, headDim], lse: [query rows, heads] for the backward. */
export function attention(options: AttentionOptions): { o: Float32Array; lse: Float32Array } {
  const checks = new Checks('attention', options, FORWARD);
  const { positional, queries } = checkAttention(checks, options);
  const o = checks.allocate(queries, options.heads, options.headDim);
  const lse = checks.allocate(queries, options.heads);
  run('attention', ...positional, o, lse);
  return { o, lse };
}

/** Gradients of {@link attention}. */
export function attentionBackward(options: AttentionBackwardOptions): { dq: Float32Array; dk: Float32Array; dv: Float32Array } {
  const checks = new Checks('attentionBackward', options, [...FORWARD, 'o', 'lse', 'dO']);
  const { positional, queries, keys } = checkAttention(checks, options);
  const { heads, kvHeads, headDim, o, lse, dO } = options;
  checks.floats('o', o, queries, heads, headDim);
  checks.floats('lse', lse, queries, heads);
  checks.floats('dO', dO, queries, heads, headDim);
  const dq = checks.allocate(queries, heads, headDim);
  const dk = checks.allocate(keys, kvHeads, headDim);
  const dv = checks.allocate(keys, kvHeads, headDim);
  run('attentionBackward', ...positional, o, lse, dO, dq, dk, dv);
  return { dq, dk, dv };
}

/**
 * Inverse frequencies [rotaryDim / 2] of a rotary embedding, and the factor of its cosines and sines, as Transformers computes them in fp32 for
 * positions below `length` (which only `dynamic` looks at).
 */
export function ropeFrequencies(config: NativeRopeConfig, length: number): { invFreq: Float32Array; attentionScale: number } {
  const checks = new Checks('ropeFrequencies', config, [
    'kind',
    'theta',
    'rotaryDim',
    'factor',
    'maxPosition',
    'originalMaxPosition',
    'lowFreqFactor',
    'highFreqFactor',
    'betaFast',
    'betaSlow',
    'attentionFactor',
    'mscale',
    'mscaleAllDim',
    'truncate',
  ]);
  const { kind, theta, rotaryDim, factor = 1, maxPosition, originalMaxPosition = 0, lowFreqFactor = 1, highFreqFactor = 4 } = config;
  const { betaFast = 32, betaSlow = 1, attentionFactor = -1, mscale = 0, mscaleAllDim = 0, truncate = true } = config;
  checks.dimension('rotaryDim', rotaryDim, 2);
  checks.dimension('length', length);
  const invFreq = checks.allocate(Math.floor(rotaryDim / 2));
  const attentionScale = new Float32Array(1);
  run(
    'ropeFrequencies',
    kind,
    theta,
    rotaryDim,
    factor,
    maxPosition,
    originalMaxPosition,
    lowFreqFactor,
    highFreqFactor,
    betaFast,
    betaSlow,
    attentionFactor,
    mscale,
    mscaleAllDim,
    truncate,
    length,
    invFreq,
    attentionScale,
  );
  return { invFreq, attentionScale: attentionScale[0] as number };
}

/** Cosines and sines [tokens, invFreq.length] of positions. */
export function ropeTable(options: { positions: Int32Array; invFreq: Float32Array; attentionScale?: number }): {
  cos: Float32Array;
  sin: Float32Array;
} {
  const checks = new Checks('ropeTable', options, ['positions', 'invFreq', 'attentionScale']);
  const { positions, invFreq, attentionScale = 1 } = options;
  checks.ints('positions', positions, positions?.length ?? 0);
  checks.floats('invFreq', invFreq, invFreq?.length ?? 0);
  checks.number('attentionScale', attentionScale);
  const cos = checks.allocate(positions.length, invFreq.length);
  const sin = checks.allocate(positions.length, invFreq.length);
  run('ropeTable', positions, positions.length, invFreq, invFreq.length, attentionScale, cos, sin);
  return { cos, sin };
}

export interface RopeOptions {
  /** [tokens, heads, headDim] */
  x: Float32Array;
  tokens: number;
  heads: number;
  headDim: number;
  /** Even, at most headDim (the default); the rest of a head passes through. */
  rotaryDim?: number;
  /** [tokens, rotaryDim / 2] */
  cos: Float32Array;
  sin: Float32Array;
  /** Rotates back, which is the backward; false by default. */
  inverse?: boolean;
}

/** x with the pairs (i, i + rotaryDim / 2) of each head rotated, in the half-split order of Hugging Face's Llama. */
export function rope(options: RopeOptions): Float32Array {
  const checks = new Checks('rope', options, ['x', 'tokens', 'heads', 'headDim', 'rotaryDim', 'cos', 'sin', 'inverse']);
  const { x, tokens, heads, headDim, rotaryDim = headDim, cos, sin, inverse = false } = options;
  checks.dimension('tokens', tokens);
  checks.dimension('heads', heads);
  checks.dimension('headDim', headDim);
  checks.dimension('rotaryDim', rotaryDim);
  if (rotaryDim % 2 !== 0 || rotaryDim > headDim) {
    checks.fail(`rotaryDim is ${rotaryDim}; expected an even number of at most headDim (${headDim})`);
  }
  checks.floats('x', x, tokens, heads, headDim);
  checks.floats('cos', cos, tokens, rotaryDim / 2);
  checks.floats('sin', sin, tokens, rotaryDim / 2);
  checks.flag('inverse', inverse);
  const out = checks.allocate(x.length);
  out.set(x);
  run('rope', out, tokens, heads, headDim, rotaryDim, cos, sin, inverse);
  return out;
}
