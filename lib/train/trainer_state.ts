/** A line of the log: a training log, an evaluation or the closing summary. On disk its keys are Transformers' (grad_norm, eval_loss, …). */
export interface LogEntry {
  step: number;
  epoch: number;
  loss?: number;
  gradNorm?: number;
  learningRate?: number;
  tokensPerSecond?: number;
  evalLoss?: number;
  evalPerplexity?: number;
  evalAccuracy?: number;
  evalRuntime?: number;
  evalSamplesPerSecond?: number;
  trainLoss?: number;
  trainRuntime?: number;
  trainSamplesPerSecond?: number;
  trainStepsPerSecond?: number;
}

/** A sum of losses and how many there were: a mean that can be continued after a resume. */
export interface LossSum {
  sum: number;
  steps: number;
}

/** Where a training stands. Together with the weights and the optimizer it is all that a resume needs. */
export interface TrainerState {
  globalStep: number;
  epoch: number;
  maxSteps: number;
  numTrainEpochs: number;
  /** Tokens in the micro-batches so far. */
  numInputTokensSeen: number;
  logHistory: LogEntry[];
  bestMetric: number | null;
  bestGlobalStep: number | null;
  bestModelCheckpoint: string | null;
  /** Losses since the last log, and all of them. */
  lossSinceLog: LossSum;
  lossTotal: LossSum;
  /** Steps that were left out because something was not finite; and how many of them came last in a row. */
  skippedSteps: number;
  skippedInARow: number;
}

export function initialState(maxSteps: number, numTrainEpochs: number): TrainerState {
  return {
    globalStep: 0,
    epoch: 0,
    maxSteps,
    numTrainEpochs,
    numInputTokensSeen: 0,
    logHistory: [],
    bestMetric: null,
    bestGlobalStep: null,
    bestModelCheckpoint: null,
    lossSinceLog: { sum: 0, steps: 0 },
    lossTotal: { sum: 0, steps: 0 },
    skippedSteps: 0,
    skippedInARow: 0,
  };
}

export function meanLoss({ sum, steps }: LossSum): number {
  return steps > 0 ? sum / steps : Number.NaN;
}

/** A log entry with Transformers' names, as trainer_state.json and log.jsonl hold it. */
export function toDiskEntry(entry: LogEntry): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(entry).map(([key, value]) => [key.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`), value]),
  );
}

export function fromDiskEntry(entry: Record<string, unknown>): LogEntry {
  return Object.fromEntries(
    Object.entries(entry).map(([key, value]) => [key.replace(/_([a-z])/g, (_, letter: string) => letter.toUpperCase()), value]),
  ) as unknown as LogEntry;
}
