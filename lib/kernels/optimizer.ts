import { Checks, run } from './checks.ts';

/** The norm of all gradients taken together, summed in double precision. */
export function gradNorm(gradients: readonly Float32Array[]): number {
  const checks = new Checks('gradNorm', {}, []);
  const native = checks.list('gradients', gradients, (gradient, name) => {
    checks.floats(name, gradient, gradient?.length ?? 0);
    return [gradient, gradient.length];
  });
  const norm = new Float64Array(1);
  run('gradNorm', native, norm);
  return norm[0] as number;
}

export interface AdamWOptions {
  /** Parameters and their two moments: changed in place. */
  p: Float32Array;
  m: Float32Array;
  v: Float32Array;
  /** Gradient. */
  g: Float32Array;
  /** Number of this update; the first is 1. */
  step: number;
  learningRate: number;
  /** 0.9 by default. */
  beta1?: number;
  /** 0.999 by default. */
  beta2?: number;
  /** 1e-8 by default. */
  epsilon?: number;
  /** 0 by default. */
  weightDecay?: number;
  /** Multiplies g first, for clipping; 1 by default. */
  gradScale?: number;
}

/** One update of AdamW with decoupled weight decay, as torch.optim.AdamW orders it. Changes p, m and v. */
export function adamW(options: AdamWOptions): void {
  const checks = new Checks('adamW', options, [
    'p',
    'm',
    'v',
    'g',
    'step',
    'learningRate',
    'beta1',
    'beta2',
    'epsilon',
    'weightDecay',
    'gradScale',
  ]);
  const { p, m, v, g, step, learningRate, beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8, weightDecay = 0, gradScale = 1 } = options;
  checks.floats('p', p, p?.length ?? 0);
  checks.floats('m', m, p.length);
  checks.floats('v', v, p.length);
  checks.floats('g', g, p.length);
  checks.whole('step', step, 1);
  checks.number('learningRate', learningRate, 0);
  checks.number('beta1', beta1, 0, 1);
  checks.number('beta2', beta2, 0, 1);
  checks.number('epsilon', epsilon, 0);
  checks.number('weightDecay', weightDecay, 0);
  checks.number('gradScale', gradScale);
  run('adamW', learningRate, beta1, beta2, epsilon, weightDecay, step, gradScale, p.length, g, p, m, v);
}
