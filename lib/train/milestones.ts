import { LowrankError } from '../errors.ts';
import type { ResolvedTrainingArguments } from '../options/training_arguments.ts';
import { notify, type TrainerCallback, type TrainerControl } from './callbacks.ts';
import type { CheckpointStore, DataPosition } from './checkpoint.ts';
import type { EvaluationMetrics } from './evaluation.ts';
import type { Fingerprint } from './fingerprint.ts';
import type { Progress } from './progress.ts';
import type { RunLog } from './run_log.ts';
import { intervalSteps } from './step_plan.ts';
import type { StopRequest } from './stop_request.ts';
import type { Trainable } from './trainable.ts';
import { type LogEntry, meanLoss, type TrainerState } from './trainer_state.ts';

export interface MilestoneContext {
  args: ResolvedTrainingArguments;
  state: TrainerState;
  trainable: Trainable;
  /** Undefined without an evalDataset. */
  evaluation: { rows: number; run(isStopped: () => boolean): Promise<EvaluationMetrics | undefined> } | undefined;
  stop: StopRequest;
  checkpoints: CheckpointStore;
  fingerprint: Fingerprint;
  callbacks: readonly TrainerCallback[];
  progress: Progress;
  runLog: RunLog;
}

/** What the step at hand adds to a log. */
export interface StepFigures {
  gradNorm: number;
  learningRate: number;
}

/** Logs, evaluates and saves when it is due, by the rules of Transformers' DefaultFlowCallback. */
export class Milestones {
  readonly #context: MilestoneContext;
  readonly #intervals: { logging: number; evaluation: number; saving: number };
  #loggedStep: number;
  #savedStep: number | undefined;
  #since = { tokens: 0, seconds: 0 };

  constructor(context: MilestoneContext, savedStep: number | undefined) {
    const { args, state } = context;
    this.#context = context;
    this.#intervals = {
      logging: intervalSteps(args.loggingSteps, state.maxSteps),
      evaluation: intervalSteps(args.evalSteps ?? args.loggingSteps, state.maxSteps),
      saving: intervalSteps(args.saveSteps, state.maxSteps),
    };
    this.#loggedStep = state.globalStep - state.lossSinceLog.steps;
    this.#savedStep = savedStep;
  }

  countWork(tokens: number, seconds: number): void {
    this.#since.tokens += tokens;
    this.#since.seconds += seconds;
  }

  dueAfterStep(control: TrainerControl): void {
    const { args, state } = this.#context;
    const step = state.globalStep;
    const isEnd = step >= state.maxSteps;
    const isDue = (strategy: string, interval: number) => strategy === 'steps' && step % interval === 0;
    control.shouldLog = (step === 1 && args.loggingFirstStep) || isDue(args.loggingStrategy, this.#intervals.logging);
    control.shouldEvaluate = isDue(args.evalStrategy, this.#intervals.evaluation) || (isEnd && args.evalStrategy === 'steps');
    control.shouldSave = isDue(args.saveStrategy, this.#intervals.saving) || (isEnd && args.saveStrategy === 'steps');
    control.shouldTrainingStop = isEnd;
  }

  dueAfterEpoch(control: TrainerControl): void {
    const { args } = this.#context;
    control.shouldLog = args.loggingStrategy === 'epoch';
    control.shouldEvaluate = args.evalStrategy === 'epoch';
    control.shouldSave = args.saveStrategy === 'epoch';
  }

  /** Does what `control` asks for. */
  async act(control: TrainerControl, figures: StepFigures, position: DataPosition): Promise<void> {
    if (control.shouldLog) await this.#logTraining(figures);
    if (control.shouldEvaluate) {
      const isBest = await this.evaluate();
      if (this.#context.args.saveStrategy === 'best') control.shouldSave = isBest;
    }
    if (control.shouldSave) await this.save(position);
    control.shouldLog = control.shouldEvaluate = control.shouldSave = false;
  }

  /** Evaluates and logs; true when it is the best so far. Left off, and not logged, when the training is to stop. */
  async evaluate(): Promise<boolean> {
    const { evaluation, callbacks, state, stop } = this.#context;
    if (!evaluation)
      throw new LowrankError(
        'INVALID_OPTION',
        'evalDataset: found nothing, expected data to evaluate on, because an evaluation was asked for',
      );
    const start = performance.now();
    const metrics = await evaluation.run(() => stop.reason !== undefined);
    if (metrics === undefined) return false;
    const seconds = (performance.now() - start) / 1000;
    await this.log({
      evalLoss: metrics.loss,
      evalPerplexity: metrics.perplexity,
      evalAccuracy: metrics.accuracy,
      evalRuntime: seconds,
      evalSamplesPerSecond: evaluation.rows / seconds,
    });
    await notify(callbacks, 'onEvaluate', state, this.#control(), metrics);
    return this.#isBest(metrics);
  }

  /** Adds a line to the log. */
  async log(figures: Omit<LogEntry, 'step' | 'epoch'>): Promise<void> {
    const { state, progress, runLog, callbacks } = this.#context;
    const entry: LogEntry = { ...figures, epoch: state.epoch, step: state.globalStep };
    state.logHistory.push(entry);
    progress.log(entry);
    await this.#tolerate(() => runLog.append(entry));
    await notify(callbacks, 'onLog', state, this.#control(), entry);
  }

  /** Writes a checkpoint unless there is one of this step, and deletes those beyond saveTotalLimit; its folder. */
  async save(position: DataPosition): Promise<string> {
    const { args, state, checkpoints, fingerprint, trainable, callbacks } = this.#context;
    const folder = checkpoints.folder(state.globalStep);
    if (this.#savedStep === state.globalStep) return folder;
    if (state.bestGlobalStep === state.globalStep) state.bestModelCheckpoint = folder;
    const extras = {
      loggingSteps: this.#intervals.logging,
      evalSteps: this.#intervals.evaluation,
      saveSteps: this.#intervals.saving,
      trainBatchSize: args.perDeviceTrainBatchSize,
    };
    await this.#tolerate(async () => {
      await checkpoints.save({ state, position, fingerprint }, extras, async (target) => {
        await trainable.saveWeights(target);
        await trainable.saveOptimizer(target);
      });
      this.#savedStep = state.globalStep;
      if (args.saveTotalLimit !== undefined) await checkpoints.rotate(args.saveTotalLimit, state.bestModelCheckpoint);
    });
    if (this.#savedStep === state.globalStep) await notify(callbacks, 'onSave', state, this.#control(), folder);
    return folder;
  }

  async #logTraining({ gradNorm, learningRate }: StepFigures): Promise<void> {
    const { state } = this.#context;
    if (state.globalStep <= this.#loggedStep) return;
    const tokensPerSecond = this.#since.tokens / this.#since.seconds;
    const loss = meanLoss(state.lossSinceLog);
    state.lossSinceLog = { sum: 0, steps: 0 };
    this.#since = { tokens: 0, seconds: 0 };
    this.#loggedStep = state.globalStep;
    await this.log({ loss, gradNorm, learningRate, tokensPerSecond });
  }

  #isBest(metrics: EvaluationMetrics): boolean {
    const { args, state } = this.#context;
    const name = args.metricForBestModel.replace(/^eval_/, '') as 'loss' | 'perplexity' | 'accuracy';
    const greaterIsBetter = args.greaterIsBetter ?? name === 'accuracy';
    const value = metrics[name];
    const isBetter = state.bestMetric === null || (greaterIsBetter ? value > state.bestMetric : value < state.bestMetric);
    if (!isBetter || !Number.isFinite(value)) return false;
    state.bestMetric = value;
    state.bestGlobalStep = state.globalStep;
    return true;
  }

  /** With onSaveError: 'warn' a full disk is a message, and the training goes on. */
  async #tolerate(write: () => Promise<void>): Promise<void> {
    try {
      await write();
    } catch (error) {
      if (this.#context.args.onSaveError === 'error') throw error;
      this.#context.progress.warn(error instanceof Error ? error.message : String(error));
    }
  }

  /** For events that are told, not asked. */
  #control(): TrainerControl {
    return { shouldTrainingStop: false, shouldEpochStop: false, shouldSave: false, shouldEvaluate: false, shouldLog: false };
  }
}
