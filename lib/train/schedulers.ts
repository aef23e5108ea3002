import type { SCHEDULERS } from '../options/training_arguments.ts';

// The learning rates of Transformers' optimization.py (get_scheduler), which multiplies the peak by a factor at each step.

export interface ScheduleOptions {
  type: (typeof SCHEDULERS)[number];
  /** Peak learning rate. */
  learningRate: number;
  warmupSteps: number;
  totalSteps: number;
  numCycles?: number;
  power?: number;
  lrEnd?: number;
  timescale?: number;
}

/** The learning rate of step `step`, counted from 0. */
export function learningRateAt(step: number, options: ScheduleOptions): number {
  return options.learningRate * factor(step, options);
}

/** Steps of warm-up: warmupSteps where given (below 1: a share of all steps), else warmupRatio of all steps, rounded up. */
export function warmupLength(totalSteps: number, warmupSteps: number, warmupRatio: number): number {
  if (warmupSteps >= 1) return Math.floor(warmupSteps);
  return Math.ceil(totalSteps * (warmupSteps > 0 ? warmupSteps : warmupRatio));
}

function factor(step: number, options: ScheduleOptions): number {
  const { warmupSteps, totalSteps } = options;
  if (options.type === 'constant') return 1;
  if (step < warmupSteps) return step / Math.max(1, warmupSteps);
  const progress = (step - warmupSteps) / Math.max(1, totalSteps - warmupSteps);
  switch (options.type) {
    case 'constant_with_warmup':
      return 1;
    case 'linear':
      return Math.max(0, (totalSteps - step) / Math.max(1, totalSteps - warmupSteps));
    case 'cosine':
      return Math.max(0, 0.5 * (1 + Math.cos(Math.PI * (options.numCycles ?? 0.5) * 2 * progress)));
    case 'cosine_with_restarts':
      return progress >= 1 ? 0 : Math.max(0, 0.5 * (1 + Math.cos(Math.PI * (((options.numCycles ?? 1) * progress) % 1))));
    case 'polynomial':
      return polynomial(step, options);
    case 'inverse_sqrt': {
      const timescale = options.timescale ?? (warmupSteps || 10_000);
      return 1 / Math.sqrt((step + timescale - warmupSteps) / timescale);
    }
  }
}

function polynomial(step: number, options: ScheduleOptions): number {
  const { learningRate, warmupSteps, totalSteps, power = 1, lrEnd = 1e-7 } = options;
  if (step > totalSteps || totalSteps === warmupSteps) return lrEnd / learningRate;
  const remaining = 1 - (step - warmupSteps) / (totalSteps - warmupSteps);
  return ((learningRate - lrEnd) * remaining ** power + lrEnd) / learningRate;
}
