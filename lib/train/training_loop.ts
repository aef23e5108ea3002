import { LowrankError } from '../errors.ts';
import type { NativeTrainBatch } from '../native.ts';
import type { ResolvedTrainingArguments } from '../options/training_arguments.ts';
import { notify, type TrainerControl, type TrainingStep } from './callbacks.ts';
import type { DataPosition } from './checkpoint.ts';
import { type MilestoneContext, Milestones, type StepFigures } from './milestones.ts';
import { momentumOf } from './optimizer.ts';
import { learningRateAt, type ScheduleOptions, warmupLength } from './schedulers.ts';
import { microBatches, type StepPlan } from './step_plan.ts';
import type { StopReason } from './stop_request.ts';
import type { TrainingData } from './trainable.ts';

/** So many steps in a row that are not finite end the training: it will not recover by itself. */
const MOST_SKIPPED_IN_A_ROW = 10;
const IGNORED = -100;

export interface LoopContext extends MilestoneContext {
  args: ResolvedTrainingArguments;
  data: TrainingData;
  plan: StepPlan;
  /** Where to begin, and whether the checkpoint of this step is on disk already. */
  start: { position: DataPosition; isSaved: boolean };
}

/** The step at hand: its place, and what it is made of. */
interface StepWork {
  batches: NativeTrainBatch[];
  tokens: number;
  supervised: number;
}

/**
 * Runs the steps of a training. The loss of a step, and its gradient, are means over the supervised tokens of all its micro-batches.
 * Everything drawn is a function of the seed and the place (step and micro-batch for dropout, pass for the order of the data), so a
 * resumed training needs no generator's state.
 */
export class TrainingLoop {
  readonly milestones: Milestones;
  stopped: StopReason | undefined;
  /** The checkpoint written because of a stop. */
  stopFolder: string | undefined;
  readonly #context: LoopContext;
  readonly #schedule: ScheduleOptions;
  readonly #control: TrainerControl = {
    shouldTrainingStop: false,
    shouldEpochStop: false,
    shouldSave: false,
    shouldEvaluate: false,
    shouldLog: false,
  };
  #position: DataPosition;

  constructor(context: LoopContext) {
    const { args, plan, state, start } = context;
    this.#context = context;
    this.#position = { ...start.position };
    this.milestones = new Milestones(context, start.isSaved ? state.globalStep : undefined);
    this.#schedule = scheduleOf(args, plan.totalSteps);
  }

  /** Yields after each step. What is due at the end of the training is left to the caller. */
  async *run(): AsyncGenerator<TrainingStep, void> {
    const { args, state, data, callbacks } = this.#context;
    await notify(callbacks, 'onTrainBegin', state, this.#control);
    if (args.evalOnStart && state.globalStep === 0) await this.milestones.evaluate();
    while (state.globalStep < state.maxSteps && !this.#control.shouldTrainingStop) {
      const { epoch } = this.#position;
      const order = data.order(args.dataSeed ?? args.seed, epoch);
      this.#control.shouldEpochStop = false;
      await notify(callbacks, 'onEpochBegin', state, this.#control);
      while (this.#position.epoch === epoch && !this.#control.shouldTrainingStop) {
        const step = await this.#step(order);
        if (step === undefined) return await this.#stop();
        yield step;
      }
    }
  }

  /** One update and all that is due after it; undefined when a stop was asked for before the update. */
  async #step(order: ArrayLike<number>): Promise<TrainingStep | undefined> {
    const { state, callbacks, progress } = this.#context;
    const control = this.#control;
    control.shouldLog = control.shouldEvaluate = control.shouldSave = false;
    await notify(callbacks, 'onStepBegin', state, control);
    const step = await this.#update(order);
    if (step === undefined) return undefined;

    this.milestones.dueAfterStep(control);
    await notify(callbacks, 'onStepEnd', state, control, step);
    progress.step(step);
    if (control.shouldEpochStop && this.#position.step > 0) this.#position = { epoch: this.#position.epoch + 1, step: 0 };
    const endsEpoch = this.#position.step === 0 || control.shouldTrainingStop;
    const figures: StepFigures = step;
    await this.milestones.act(control, figures, this.#position);
    if (endsEpoch) {
      this.milestones.dueAfterEpoch(control);
      await notify(callbacks, 'onEpochEnd', state, control);
      await this.milestones.act(control, figures, this.#position);
    }
    return step;
  }

  /** Forward, backward and update. A stop leaves no trace: the step's gradients so far are dropped, and a resume begins it anew. */
  async #update(order: ArrayLike<number>): Promise<TrainingStep | undefined> {
    const { trainable, state, stop } = this.#context;
    const work = this.#work(order);
    const startTime = performance.now();
    let nllSum = 0;
    for (const [micro, batch] of work.batches.entries()) {
      if (stop.reason) {
        await trainable.zeroGradients();
        return undefined;
      }
      const loss = await trainable.accumulate(batch, {
        gradScale: 1 / work.supervised,
        seed: this.#context.args.seed,
        step: state.globalStep,
        micro,
      });
      nllSum += loss.nllSum;
    }
    if (stop.reason) {
      await trainable.zeroGradients();
      return undefined;
    }
    const learningRate = learningRateAt(state.globalStep, this.#schedule);
    const loss = nllSum / work.supervised;
    const { gradNorm, skipped } = await this.#apply(loss, learningRate);
    const seconds = (performance.now() - startTime) / 1000;
    this.milestones.countWork(work.tokens, seconds);
    this.#advance(work, loss, skipped);
    this.#checkSkipped(skipped, loss, gradNorm);
    return {
      step: state.globalStep,
      epoch: state.epoch,
      loss,
      gradNorm,
      learningRate,
      tokensPerSecond: work.tokens / seconds,
      peakMemory: peakMemory(),
      skipped,
    };
  }

  #work(order: ArrayLike<number>): StepWork {
    const { data, plan, args } = this.#context;
    const batches = microBatches(order, this.#position.step, plan, args).map((units) => data.batch(units));
    const supervised = batches.reduce((sum, batch) => sum + countSupervised(batch.targets), 0);
    if (supervised === 0) {
      throw new LowrankError('INVALID_DATASET', `trainDataset: step ${this.#context.state.globalStep + 1} has no supervised token`);
    }
    return { batches, supervised, tokens: batches.reduce((sum, batch) => sum + batch.ids.length, 0) };
  }

  async #apply(loss: number, learningRate: number): Promise<{ gradNorm: number; skipped: boolean }> {
    const { trainable, args } = this.#context;
    if (!Number.isFinite(loss)) {
      await trainable.zeroGradients();
      return { gradNorm: Number.NaN, skipped: true };
    }
    return await trainable.update({
      learningRate,
      beta1: args.adamBeta1,
      beta2: args.adamBeta2,
      epsilon: args.adamEpsilon,
      weightDecay: args.weightDecay,
      maxGradNorm: args.maxGradNorm,
      momentum: momentumOf(args),
    });
  }

  #advance(work: StepWork, loss: number, skipped: boolean): void {
    const { state, plan, args } = this.#context;
    const { epoch, step } = this.#position;
    state.globalStep += 1;
    state.numInputTokensSeen += work.tokens;
    state.epoch = epoch + (step * args.gradientAccumulationSteps + work.batches.length) / plan.microBatchesPerEpoch;
    this.#position = step + 1 === plan.stepsPerEpoch ? { epoch: epoch + 1, step: 0 } : { epoch, step: step + 1 };
    state.skippedInARow = skipped ? state.skippedInARow + 1 : 0;
    if (skipped) {
      state.skippedSteps += 1;
      return;
    }
    for (const sum of [state.lossSinceLog, state.lossTotal]) {
      sum.sum += loss;
      sum.steps += 1;
    }
  }

  #checkSkipped(skipped: boolean, loss: number, gradNorm: number): void {
    if (!skipped) return;
    const { state, progress } = this.#context;
    const what = Number.isFinite(loss) ? `the norm of the gradient is ${gradNorm}` : `the loss is ${loss}`;
    if (state.skippedInARow >= MOST_SKIPPED_IN_A_ROW) {
      throw new LowrankError(
        'NON_FINITE',
        `step ${state.globalStep}: ${what}, as something was not finite in ${MOST_SKIPPED_IN_A_ROW} steps in a row; lower args.learningRate or look at the data`,
      );
    }
    progress.warn(`step ${state.globalStep}: ${what}; the step is left out (${state.skippedSteps} so far)`);
  }

  async #stop(): Promise<void> {
    this.stopped = this.#context.stop.reason;
    this.stopFolder = await this.milestones.save(this.#position);
  }
}

export function scheduleOf(args: ResolvedTrainingArguments, totalSteps: number): ScheduleOptions {
  return {
    ...args.lrSchedulerKwargs,
    type: args.lrSchedulerType,
    learningRate: args.learningRate,
    warmupSteps: warmupLength(totalSteps, args.warmupSteps, args.warmupRatio),
    totalSteps,
  };
}

/** Most bytes that this process has held so far. */
export function peakMemory(): number {
  return process.resourceUsage().maxRSS * 1024;
}

function countSupervised(targets: Int32Array): number {
  let count = 0;
  for (const target of targets) if (target !== IGNORED) count += 1;
  return count;
}
