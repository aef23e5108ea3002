import { LowrankError } from '../errors.ts';

/** How a training is divided. A unit is a row, or with packing a packed row. */
export interface StepPlan {
  microBatchesPerEpoch: number;
  /** The last step of an epoch may have fewer micro-batches than the others; it is a step of its own. */
  stepsPerEpoch: number;
  totalSteps: number;
  /** Begun, not necessarily finished. */
  epochs: number;
}

interface BatchArguments {
  perDeviceTrainBatchSize: number;
  gradientAccumulationSteps: number;
  dataloaderDropLast: boolean;
}

/** Counts steps as Transformers does: maxSteps, else ceil(numTrainEpochs · steps of an epoch). */
export function planSteps(units: number, args: BatchArguments & { maxSteps: number; numTrainEpochs: number }): StepPlan {
  const size = args.perDeviceTrainBatchSize;
  const microBatchesPerEpoch = args.dataloaderDropLast ? Math.floor(units / size) : Math.ceil(units / size);
  if (microBatchesPerEpoch === 0) {
    throw new LowrankError(
      'INVALID_DATASET',
      `trainDataset: found ${units} row${units === 1 ? '' : 's'}, expected at least ${args.dataloaderDropLast ? `a micro-batch of ${size}` : 'one'}`,
    );
  }
  const stepsPerEpoch = Math.ceil(microBatchesPerEpoch / args.gradientAccumulationSteps);
  const totalSteps = args.maxSteps > 0 ? args.maxSteps : Math.ceil(args.numTrainEpochs * stepsPerEpoch);
  return { microBatchesPerEpoch, stepsPerEpoch, totalSteps, epochs: Math.ceil(totalSteps / stepsPerEpoch) };
}

/** The units of each micro-batch of a step, from the epoch's order of units. */
export function microBatches(order: ArrayLike<number>, step: number, plan: StepPlan, args: BatchArguments): number[][] {
  const first = step * args.gradientAccumulationSteps;
  const last = Math.min(first + args.gradientAccumulationSteps, plan.microBatchesPerEpoch);
  const size = args.perDeviceTrainBatchSize;
  return Array.from(
    { length: last - first },
    (_, index) => Array.prototype.slice.call(order, (first + index) * size, (first + index + 1) * size) as number[],
  );
}

/** An interval given in steps, or below 1 as a share of all steps, in steps. */
export function intervalSteps(interval: number, totalSteps: number): number {
  return interval >= 1 ? interval : Math.max(1, Math.ceil(interval * totalSteps));
}
