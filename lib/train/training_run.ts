import { join, resolve } from 'node:path';
import { LowrankError, throwIfAborted } from '../errors.ts';
import { recoverFolders } from '../files/atomic_folder.ts';
import { type FileSystem, nodeFiles } from '../files/file_system.ts';
import type { ResolvedTrainingArguments } from '../options/training_arguments.ts';
import { notify, type TrainerCallback, type TrainingStep } from './callbacks.ts';
import { type Checkpoint, CheckpointStore, type DataPosition } from './checkpoint.ts';
import { differences, type Fingerprint } from './fingerprint.ts';
import { lockFolder } from './lock.ts';
import type { MilestoneContext } from './milestones.ts';
import type { Progress } from './progress.ts';
import { RunLog } from './run_log.ts';
import { planSteps, type StepPlan } from './step_plan.ts';
import { type StopReason, StopRequest } from './stop_request.ts';
import type { Trainable, TrainingData } from './trainable.ts';
import { initialState, type LogEntry, meanLoss, type TrainerState } from './trainer_state.ts';
import { peakMemory, scheduleOf, TrainingLoop } from './training_loop.ts';

interface TrainSummary {
  globalStep: number;
  /** Mean loss of all steps. */
  trainingLoss: number;
  /** Tokens in the micro-batches of all steps. */
  tokens: number;
  /** Of this run, evaluations and saves included. */
  tokensPerSecond: number;
  /** Most bytes that this process has held so far. */
  peakMemory: number;
  logHistory: LogEntry[];
  /** Steps left out because something was not finite. */
  skippedSteps: number;
  /** Why the training ended early: the signal, or SIGINT. */
  stopped?: StopReason;
}

/** What the training of an adapter gives. */
export interface TrainResult extends TrainSummary {
  /** The folder of the adapter: outputDir, or the checkpoint that a stopped training left. */
  adapterPath: string;
}

/** What full fine-tuning gives. */
export interface FullTrainResult extends TrainSummary {
  /** The folder of the model: outputDir, or the checkpoint that a stopped training left. */
  modelPath: string;
}

/** What any training gives, and the folder of what was trained. */
export interface FinishedTraining extends TrainSummary {
  folder: string;
}

export interface TrainingRequest {
  args: ResolvedTrainingArguments;
  callbacks: readonly TrainerCallback[];
  signal: AbortSignal | undefined;
  trainable: Trainable;
  data: TrainingData;
  evaluation: MilestoneContext['evaluation'];
  progress: Progress;
  files?: FileSystem;
}

/**
 * Trains, step by step, in args.outputDir, which is locked meanwhile. Returned early (by `break` in the loop that runs it), it frees the
 * folder and writes nothing more.
 */
export async function* runTraining(request: TrainingRequest): AsyncGenerator<TrainingStep, FinishedTraining> {
  const { args, signal, progress, data, files = nodeFiles } = request;
  throwIfAborted(signal);
  const plan = planSteps(data.units, args);
  const unlock = await lockFolder(args.outputDir, files);
  const stop = new StopRequest(signal);
  try {
    await recoverFolders(args.outputDir, files);
    const checkpoints = new CheckpointStore(args.outputDir, files);
    const fingerprint = await fingerprintOf(request, plan);
    const { state, start } = await beginning(request, plan, checkpoints, fingerprint);
    const runLog = new RunLog(join(args.outputDir, 'runs'), files);
    const loop = new TrainingLoop({ ...request, plan, stop, state, start, checkpoints, fingerprint, runLog });
    const before = { time: performance.now(), epoch: state.epoch, step: state.globalStep, tokens: state.numInputTokensSeen };
    progress.begin(state.maxSteps, state.globalStep);
    yield* loop.run();
    if (!loop.stopped) await finish(request, loop, state, before, checkpoints);
    await notify(request.callbacks, 'onTrainEnd', state, noControl());
    const seconds = (performance.now() - before.time) / 1000;
    return {
      globalStep: state.globalStep,
      trainingLoss: meanLoss(state.lossTotal),
      tokens: state.numInputTokensSeen,
      tokensPerSecond: (state.numInputTokensSeen - before.tokens) / seconds,
      peakMemory: peakMemory(),
      folder: request.trainable.weightsFolder(loop.stopFolder ?? args.outputDir),
      logHistory: state.logHistory,
      skippedSteps: state.skippedSteps,
      ...(loop.stopped && { stopped: loop.stopped }),
    };
  } finally {
    stop[Symbol.dispose]();
    progress.end();
    // A lock that cannot be deleted is taken over next time: its owner is gone.
    await unlock().catch(() => {});
  }
}

interface Beginning {
  state: TrainerState;
  start: { position: DataPosition; isSaved: boolean };
}

/** The first step, or with resumeFromCheckpoint the step after the checkpoint's, weights and optimizer loaded. */
async function beginning(
  request: TrainingRequest,
  plan: StepPlan,
  checkpoints: CheckpointStore,
  fingerprint: Fingerprint,
): Promise<Beginning> {
  const { args, trainable, progress } = request;
  const { resumeFromCheckpoint } = args;
  const warn = (text: string) => progress.warn(text);
  if (resumeFromCheckpoint === undefined || resumeFromCheckpoint === false) {
    return { state: initialState(plan.totalSteps, plan.epochs), start: { position: { epoch: 0, step: 0 }, isSaved: false } };
  }
  const checkpoint = resumeFromCheckpoint === true ? await checkpoints.newest(warn) : await checkpoints.open(resumeFromCheckpoint);
  const isSame = checkFingerprint(checkpoint, fingerprint, args.resumeIgnoreMismatch, warn);
  await trainable.loadWeights(checkpoint.folder);
  await trainable.loadOptimizer(checkpoint.folder);
  const state: TrainerState = { ...checkpoint.state, maxSteps: plan.totalSteps, numTrainEpochs: plan.epochs };
  if (state.bestModelCheckpoint !== null && !(await checkpoints.exists(state.bestModelCheckpoint))) {
    warn(`the best checkpoint so far, ${state.bestModelCheckpoint}, does not exist any more`);
    state.bestModelCheckpoint = null;
  }
  progress.message(`continuing after step ${state.globalStep} from ${checkpoint.folder}`);
  const position = isSame ? checkpoint.position : positionOf(state.globalStep, plan);
  return { state, start: { position, isSaved: resolve(checkpoint.folder) === resolve(checkpoints.folder(state.globalStep)) } };
}

function positionOf(globalStep: number, plan: StepPlan): DataPosition {
  return { epoch: Math.floor(globalStep / plan.stepsPerEpoch), step: globalStep % plan.stepsPerEpoch };
}

/** True when the checkpoint was made with the same; throws or warns otherwise. */
function checkFingerprint(checkpoint: Checkpoint, now: Fingerprint, ignoreMismatch: boolean, warn: (text: string) => void): boolean {
  const { required, noted } = differences(checkpoint.fingerprint, now);
  for (const difference of noted)
    warn(`since the checkpoint ${checkpoint.folder} was made, ${difference}; the numbers will not be those of an uninterrupted training`);
  if (required.length === 0) return true;
  const text = `the checkpoint ${checkpoint.folder} belongs to another training: ${required.join('; ')}`;
  if (!ignoreMismatch)
    throw new LowrankError('INVALID_OPTION', `args.resumeFromCheckpoint: ${text}; set args.resumeIgnoreMismatch to continue all the same`);
  warn(text);
  return false;
}

async function fingerprintOf({ args, trainable, data }: TrainingRequest, plan: StepPlan): Promise<Fingerprint> {
  const { base, adapter } = await trainable.identity();
  const { perDeviceTrainBatchSize, gradientAccumulationSteps, packing, dataloaderDropLast } = args;
  const { weightDecay, adamBeta1, adamBeta2, adamEpsilon, maxGradNorm } = args;
  return {
    required: {
      data: data.identity,
      base,
      adapter,
      batch: { perDeviceTrainBatchSize, gradientAccumulationSteps, packing, dataloaderDropLast },
      length: { maxSeqLength: args.maxSeqLength },
      seed: { seed: args.seed, dataSeed: args.dataSeed ?? args.seed },
    },
    noted: {
      schedule: { ...scheduleOf(args, plan.totalSteps), weightDecay, adamBeta1, adamBeta2, adamEpsilon, maxGradNorm, ...args.optimArgs },
      machine: trainable.machine(),
    },
  };
}

async function finish(
  request: TrainingRequest,
  loop: TrainingLoop,
  state: TrainerState,
  before: { time: number; epoch: number; step: number },
  checkpoints: CheckpointStore,
): Promise<void> {
  const { args, trainable, data } = request;
  const seconds = (performance.now() - before.time) / 1000;
  await loop.milestones.log({
    trainLoss: meanLoss(state.lossTotal),
    trainRuntime: seconds,
    trainSamplesPerSecond: (data.units * (state.epoch - before.epoch)) / seconds,
    trainStepsPerSecond: (state.globalStep - before.step) / seconds,
  });
  if (args.loadBestModelAtEnd && state.bestModelCheckpoint !== null) {
    await trainable.loadWeights((await checkpoints.open(state.bestModelCheckpoint)).folder);
  }
  await trainable.saveWeights(args.outputDir);
}

function noControl() {
  return { shouldTrainingStop: false, shouldEpochStop: false, shouldSave: false, shouldEvaluate: false, shouldLog: false };
}
