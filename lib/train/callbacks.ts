import type { EvaluationMetrics } from './evaluation.ts';
import type { LogEntry, TrainerState } from './trainer_state.ts';

/** What a callback may ask for; set a flag to true, or to false to call off what was due. */
export interface TrainerControl {
  shouldTrainingStop: boolean;
  shouldEpochStop: boolean;
  shouldSave: boolean;
  shouldEvaluate: boolean;
  shouldLog: boolean;
}

/** One update of the weights, as steps() yields it. */
export interface TrainingStep {
  /** Counted from 1. */
  step: number;
  /** Passes over the data so far, with fraction. */
  epoch: number;
  /** Mean over the step's supervised tokens. */
  loss: number;
  /** Norm of the gradient before clipping. */
  gradNorm: number;
  learningRate: number;
  tokensPerSecond: number;
  /** Most bytes that this process has held so far. */
  peakMemory: number;
  /** The loss or the gradient was not finite, and the weights were left as they were. */
  skipped: boolean;
}

type Event<Extra extends unknown[] = []> = (
  state: Readonly<TrainerState>,
  control: TrainerControl,
  ...extra: Extra
) => void | Promise<void>;

/** Functions called while training; the training waits for them. Named and timed as in Transformers' TrainerCallback. */
export interface TrainerCallback {
  onTrainBegin?: Event;
  onEpochBegin?: Event;
  onStepBegin?: Event;
  onStepEnd?: Event<[step: TrainingStep]>;
  onLog?: Event<[logs: LogEntry]>;
  onEvaluate?: Event<[metrics: EvaluationMetrics]>;
  /** `folder`: the checkpoint written. */
  onSave?: Event<[folder: string]>;
  onEpochEnd?: Event;
  onTrainEnd?: Event;
}

/** Calls an event of every callback in turn. An error of a callback ends the training. */
export async function notify<Name extends keyof TrainerCallback>(
  callbacks: readonly TrainerCallback[],
  name: Name,
  ...args: Parameters<NonNullable<TrainerCallback[Name]>>
): Promise<void> {
  for (const callback of callbacks) {
    const handler = callback[name] as ((...values: unknown[]) => void | Promise<void>) | undefined;
    await handler?.apply(callback, args);
  }
}
