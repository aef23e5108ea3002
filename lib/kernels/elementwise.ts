import { Checks, run } from './checks.ts';

export interface RmsNormOptions {
  /** [tokens, channels] */
  x: Float32Array;
  /** [channels] */
  weight: Float32Array;
  tokens: number;
  channels: number;
  /** 1e-6 by default. */
  eps?: number;
}

/** y = x · weight / sqrt(mean(x²) + eps) of each row; invRms: [tokens] for the backward. */
export function rmsNorm(options: RmsNormOptions): { y: Float32Array; invRms: Float32Array } {
  const checks = new Checks('rmsNorm', options, ['x', 'weight', 'tokens', 'channels', 'eps']);
  const { x, weight, tokens, channels, eps = 1e-6 } = options;
  checks.dimension('tokens', tokens);
  checks.dimension('channels', channels, 1);
  checks.number('eps', eps, 0);
  checks.floats('x', x, tokens, channels);
  checks.floats('weight', weight, channels);
  const y = checks.allocate(tokens, channels);
  const invRms = checks.allocate(tokens);
  run('rmsNorm', x, weight, eps, tokens, channels, y, invRms);
  return { y, invRms };
}

export interface RmsNormBackwardOptions {
  x: Float32Array;
  weight: Float32Array;
  /** As rmsNorm returned it. */
  invRms: Float32Array;
  /** [tokens, channels] */
  dy: Float32Array;
  tokens: number;
  channels: number;
}

/** Gradients of {@link rmsNorm}. */
export function rmsNormBackward(options: RmsNormBackwardOptions): { dx: Float32Array; dWeight: Float32Array } {
  const checks = new Checks('rmsNormBackward', options, ['x', 'weight', 'invRms', 'dy', 'tokens', 'channels']);
  const { x, weight, invRms, dy, tokens, channels } = options;
  checks.dimension('tokens', tokens);
  checks.dimension('channels', channels, 1);
  checks.floats('x', x, tokens, channels);
  checks.floats('weight', weight, channels);
  checks.floats('invRms', invRms, tokens);
  checks.floats('dy', dy, tokens, channels);
  const dx = checks.allocate(tokens, channels);
  const dWeight = checks.allocate(channels);
  run('rmsNormBackward', x, weight, invRms, dy, tokens, channels, dx, dWeight);
  return { dx, dWeight };
}

export interface SwigluOptions {
  /** [tokens, channels] */
  gate: Float32Array;
  up: Float32Array;
  tokens: number;
  channels: number;
}

function checkSwiglu(checks: Checks, { gate, up, tokens, channels }: SwigluOptions): void {
  checks.dimension('tokens', tokens);
  checks.dimension('channels', channels);
  checks.floats('gate', gate, tokens, channels);
  checks.floats('up', up, tokens, channels);
}

/** silu(gate) · up, silu(x) = x / (1 + exp(-x)). */
export function swiglu(options: SwigluOptions): Float32Array {
  const checks = new Checks('swiglu', options, ['gate', 'up', 'tokens', 'channels']);
  checkSwiglu(checks, options);
  const { gate, up, tokens, channels } = options;
  const h = checks.allocate(tokens, channels);
  run('swiglu', gate, up, tokens, channels, h);
  return h;
}

/** Gradients of {@link swiglu} from dh, the gradient of its result. */
export function swigluBackward(options: SwigluOptions & { dh: Float32Array }): { dGate: Float32Array; dUp: Float32Array } {
  const checks = new Checks('swigluBackward', options, ['gate', 'up', 'dh', 'tokens', 'channels']);
  checkSwiglu(checks, options);
  const { gate, up, dh, tokens, channels } = options;
  checks.floats('dh', dh, tokens, channels);
  const dGate = checks.allocate(tokens, channels);
  const dUp = checks.allocate(tokens, channels);
  run('swigluBackward', gate, up, dh, tokens, channels, dGate, dUp);
  return { dGate, dUp };
}

export interface DropoutOptions {
  /** [tokens, channels] */
  x: Float32Array;
  tokens: number;
  channels: number;
  /** Probability of dropping an element, in [0, 1). */
  p: number;
  seed: number;
  /** Stream of the mask; 0 by default. */
  module?: number;
}

/**
 * x / (1 - p) where the mask keeps, else 0. The mask is a function of seed, module and place, so the gradient is the same call on dy.
 */
export function dropout(options: DropoutOptions): Float32Array {
  const checks = new Checks('dropout', options, ['x', 'tokens', 'channels', 'p', 'seed', 'module']);
  const { x, tokens, channels, p, seed, module = 0 } = options;
  checks.dimension('tokens', tokens);
  checks.dimension('channels', channels);
  checks.floats('x', x, tokens, channels);
  checks.number('p', p, 0, 1);
  checks.whole('seed', seed);
  checks.whole('module', module);
  const y = checks.allocate(tokens, channels);
  run('dropout', x, tokens, channels, p, seed, module, y);
  return y;
}
