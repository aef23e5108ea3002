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

export interface MuonOptions {
  rows: number;
  columns: number;
  /** Parameters [rows, columns] and their momentum: changed in place. */
  p: Float32Array;
  momentum: Float32Array;
  /** Gradient. */
  g: Float32Array;
  learningRate: number;
  /** 0.95 by default. */
  beta?: number;
  /** 0 by default. */
  weightDecay?: number;
  /** What multiplies the learning rate, torch's adjust_lr_fn: 'match_rms_adamw' by default, torch's own default is 'original'. */
  adjustLrFn?: 'original' | 'match_rms_adamw' | 'spectral_unclamped';
  /** Multiplies g first, for clipping; 1 by default. */
  gradScale?: number;
}

const MUON_RATIOS = ['original', 'match_rms_adamw', 'spectral_unclamped'] as const;

/**
 * One update of Muon with Nesterov's momentum and decoupled weight decay, as torch.optim.Muon orders it; Newton-Schulz's iteration is in fp32 where
 * torch's is in bfloat16. Changes p and momentum.
 */
export function muon(options: MuonOptions): void {
  const known = ['rows', 'columns', 'p', 'momentum', 'g', 'learningRate', 'beta', 'weightDecay', 'adjustLrFn', 'gradScale'];
  const checks = new Checks('muon', options, known);
  const { rows, columns, p, momentum, g, learningRate, beta = 0.95, weightDecay = 0, gradScale = 1 } = options;
  const { adjustLrFn = 'match_rms_adamw' } = options;
  checks.dimension('rows', rows, 1);
  checks.dimension('columns', columns, 1);
  checks.floats('p', p, rows, columns);
  checks.floats('momentum', momentum, rows, columns);
  checks.floats('g', g, rows, columns);
  checks.number('learningRate', learningRate, 0);
  checks.number('beta', beta, 0, 1);
  checks.number('weightDecay', weightDecay, 0);
  checks.number('gradScale', gradScale);
  checks.choice('adjustLrFn', adjustLrFn, MUON_RATIOS);
  run('muon', rows, columns, g, p, momentum, learningRate, weightDecay, beta, gradScale, MUON_RATIOS.indexOf(adjustLrFn));
}

export interface OptimizerUpdate8bitOptions {
  /** 'adamw' and 'adam' (the same: weight decay is decoupled, as in bitsandbytes), or 'lion'. */
  optimizer: 'adamw' | 'adam' | 'lion';
  /** Changed in place. */
  param: Float32Array;
  grad: Float32Array;
  /** Codes of the first moment, one a parameter: changed in place. */
  state1: Uint8Array;
  /** Codes of the second moment; not of 'lion'. */
  state2?: Uint8Array;
  /** Largest magnitude of each block of 256 values of the state: changed in place. */
  absmax1: Float32Array;
  absmax2?: Float32Array;
  /** The 256 values that the codes stand for, ascending. */
  qmap1: Float32Array;
  qmap2?: Float32Array;
  /** 0.9 by default. */
  beta1?: number;
  /** 0.999 by default; 'lion': 0.99. */
  beta2?: number;
  /** 1e-8 by default. */
  eps?: number;
  /** Number of this update; the first is 1. */
  step: number;
  lr: number;
  /** 0 by default. */
  weightDecay?: number;
  /** Multiplies the gradient first, for clipping; 1 by default. */
  gnormScale?: number;
}

const UPDATE_8BIT_OPTIONS = [
  'optimizer',
  'param',
  'grad',
  'state1',
  'state2',
  'absmax1',
  'absmax2',
  'qmap1',
  'qmap2',
  'beta1',
  'beta2',
  'eps',
  'step',
  'lr',
  'weightDecay',
  'gnormScale',
];

/**
 * One update with states of 8 bits in blocks of 256. A state is decoded, updated in fp32 and used, and then stored as the nearest codes,
 * halfway as the smaller. Weight decay comes first, as in torch.optim.AdamW. Changes param, the states and their absmax.
 *
 * @throws NON_FINITE where the gradient is not finite; nothing is changed then
 */
export function optimizerUpdate8bitBlockwise(options: OptimizerUpdate8bitOptions): void {
  const checks = new Checks('optimizerUpdate8bitBlockwise', options, UPDATE_8BIT_OPTIONS);
  const { optimizer, param, grad, step, lr } = options;
  checks.choice('optimizer', optimizer, ['adamw', 'adam', 'lion']);
  const isLion = optimizer === 'lion';
  const { beta1 = 0.9, beta2 = isLion ? 0.99 : 0.999, eps = 1e-8, weightDecay = 0, gnormScale = 1 } = options;
  checks.floats('param', param, param?.length ?? 0);
  checks.floats('grad', grad, param.length);
  checks.whole('step', step, 1);
  checks.number('lr', lr, 0);
  checks.number('beta1', beta1, 0, 1);
  checks.number('beta2', beta2, 0, 1);
  checks.number('eps', eps, 0);
  checks.number('weightDecay', weightDecay, 0);
  checks.number('gnormScale', gnormScale);
  const states = state8bit(checks, options, '1');
  if (!isLion) states.push(...state8bit(checks, options, '2'));
  else if (options.state2 !== undefined) checks.fail("state2 is given; expected nothing with 'lion', which has one state");
  run(isLion ? 'lionCoded' : 'adamWCoded', lr, beta1, beta2, eps, weightDecay, step, gnormScale, param.length, grad, param, ...states);
}

/** Codes, absmax and map of one state, checked. */
function state8bit(checks: Checks, options: OptimizerUpdate8bitOptions, number: '1' | '2'): unknown[] {
  const { length } = options.param;
  const codes = options[`state${number}`] as Uint8Array;
  const absmax = options[`absmax${number}`] as Float32Array;
  const map = options[`qmap${number}`] as Float32Array;
  checks.bytes(`state${number}`, codes, length);
  checks.floats(`absmax${number}`, absmax, Math.ceil(length / 256));
  checks.floats(`qmap${number}`, map, 256);
  if (!map.every((value, i) => Number.isFinite(value) && (i === 0 || value >= (map[i - 1] as number)))) {
    checks.fail(`qmap${number} does not ascend; expected 256 finite values in ascending order`);
  }
  return [codes, absmax, map];
}
