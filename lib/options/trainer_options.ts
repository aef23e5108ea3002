import { z } from 'zod';
import { LowrankError, shown } from '../errors.ts';
import type { CausalLM } from '../model/causal_lm.ts';
import type { TrainerCallback } from '../train/callbacks.ts';
import { type DataSource, isDataSource } from './data_source.ts';
import { type LoraConfig, loraConfigSchema, parseLoraConfig, type ResolvedLoraConfig } from './lora_config.ts';
import { OPTIMIZERS, type OptimizerName } from './optimizers.ts';
import { parseOptions, unknownOption } from './parse.ts';
import {
  checkQuantizationConfig,
  type QuantizationConfig,
  quantizationConfigSchema,
  type ResolvedQuantizationConfig,
} from './quantization_config.ts';
import { type TrainedLayers, trainedLayersSchema } from './trained_layers.ts';
import { type ResolvedTrainingArguments, type TrainingArguments, trainingArgumentsSchema } from './training_arguments.ts';

/** What LoRA is where peftConfig is left out. */
const DEFAULT_PEFT_CONFIG: LoraConfig = { r: 16, loraAlpha: 32, targetModules: 'all-linear' };

/** Peak learning rate where args.learningRate is left out and the whole model is trained; with an adapter it is the schema's. */
const FULL_LEARNING_RATE = 2e-5;

const callbackNames = [
  'onTrainBegin',
  'onEpochBegin',
  'onStepBegin',
  'onStepEnd',
  'onLog',
  'onEvaluate',
  'onSave',
  'onEpochEnd',
  'onTrainEnd',
] as const;
const callback = z.custom<TrainerCallback>((value) => isObject(value) && callbackNames.some((name) => typeof value[name] === 'function'), {
  error: `an object with some of the functions ${callbackNames.join(', ')}`,
});
const dataSource = z.custom<DataSource>(isDataSource, { error: 'a file, a glob, an array of rows, an async iterable or a Dataset' });

const trainerOptionsSchema = z.strictObject({
  model: z.custom<string | CausalLM>(
    (value) => (typeof value === 'string' ? value !== '' : isObject(value) && typeof value.generate === 'function'),
    {
      error: 'a hub id, a folder, a .gguf file, a CausalLM or a PeftModel',
    },
  ),
  trainDataset: dataSource,
  evalDataset: dataSource.optional(),
  peftConfig: loraConfigSchema.nullable().optional(),
  layers: trainedLayersSchema.optional(),
  quantizationConfig: quantizationConfigSchema,
  args: trainingArgumentsSchema.prefault({}),
  callbacks: z.array(callback).default([]),
  signal: z.instanceof(AbortSignal, { error: 'an AbortSignal' }).optional(),
});

/** What `new LoraTrainer` takes. Only `model` and `trainDataset` are required. `Full` is null where peftConfig is: the whole model is trained. */
export interface TrainerOptions<Full extends null | undefined = null | undefined> {
  /** Hub id, folder, .gguf file, CausalLM, or PeftModel (whose adapter is then trained on). */
  model: string | CausalLM;
  /** File, glob, rows (text, or tokens `{ inputIds, labels? }`), async iterable or Dataset. */
  trainDataset: DataSource;
  evalDataset?: DataSource;
  /** Left out: LoRA with r = 16 and alpha = 32 on all linear layers, or the adapter of the PeftModel. null: no adapter, the model itself is trained. */
  peftConfig?: LoraConfig | Full;
  /** With `peftConfig: null`: which parts of the model are trained, or frozen. Left out: all are trained. */
  layers?: TrainedLayers;
  /** QLoRA: how the base's weights are quantised as it is loaded. A GGUF base is trained on in its storage type as it is. */
  quantizationConfig?: QuantizationConfig | null;
  args?: TrainingArguments;
  callbacks?: TrainerCallback[];
  /** Ends the training after the micro-batch at hand, with a checkpoint. */
  signal?: AbortSignal;
}

/** TrainerOptions with their defaults filled in. */
export interface ResolvedTrainerOptions {
  model: string | CausalLM;
  trainDataset: DataSource;
  evalDataset: DataSource | undefined;
  /** The default stands here where it was left out, except with a PeftModel, which has its own. null: full fine-tuning. */
  peftConfig: ResolvedLoraConfig | null | undefined;
  layers: TrainedLayers;
  quantizationConfig: ResolvedQuantizationConfig | undefined;
  args: ResolvedTrainingArguments;
  callbacks: TrainerCallback[];
  signal: AbortSignal | undefined;
}

/**
 * Checks the options of LoraTrainer and fills in the defaults.
 *
 * @throws UNKNOWN_OPTION, INVALID_OPTION, UNSUPPORTED_QUANTIZATION
 */
export function parseTrainerOptions(options: unknown): ResolvedTrainerOptions {
  if (isObject(options) && Array.isArray(options.callbacks)) options.callbacks.forEach(checkEvents);
  const parsed = parseOptions(trainerOptionsSchema, options, '');
  checkQuantizationConfig(parsed.quantizationConfig);
  if (parsed.quantizationConfig && typeof parsed.model !== 'string') {
    refuse('quantizationConfig', parsed.quantizationConfig, 'nothing beside a loaded model; give it to CausalLM.fromPretrained');
  }
  if (parsed.peftConfig === null) checkFullFineTuning(parsed.model, parsed.quantizationConfig);
  else if (parsed.layers)
    refuse(
      'layers',
      parsed.layers,
      'nothing beside an adapter, which has targetModules and layersToTransform (layers is for peftConfig: null)',
    );
  if (parsed.peftConfig === null && !hasLearningRate(options)) parsed.args.learningRate = FULL_LEARNING_RATE;
  checkCombinations(parsed.args, parsed.evalDataset !== undefined);
  checkScheduler(parsed.args);
  checkOptimizer(parsed.args);
  return {
    model: parsed.model,
    trainDataset: parsed.trainDataset,
    evalDataset: parsed.evalDataset,
    peftConfig: parsed.peftConfig === null ? null : adapterFor(parsed.model, parsed.peftConfig),
    layers: parsed.layers ?? {},
    quantizationConfig: parsed.quantizationConfig ?? undefined,
    args: parsed.args,
    callbacks: parsed.callbacks,
    signal: parsed.signal,
  };
}

function adapterFor(model: string | CausalLM, peftConfig: ResolvedLoraConfig | undefined): ResolvedLoraConfig | undefined {
  if (!hasAdapter(model)) return parseLoraConfig(peftConfig ?? DEFAULT_PEFT_CONFIG);
  if (peftConfig !== undefined) refuse('peftConfig', peftConfig, 'nothing beside a PeftModel, whose own adapter is trained on');
  return undefined;
}

/** A PeftModel; told by its members, as its class would bring native code with it. */
function hasAdapter(model: string | CausalLM): boolean {
  return typeof model !== 'string' && 'peftConfig' in model;
}

function checkFullFineTuning(model: string | CausalLM, quantizationConfig: ResolvedQuantizationConfig | null | undefined): void {
  if (hasAdapter(model))
    refuse('peftConfig', null, 'nothing beside a PeftModel, whose adapter is trained on; load the base again to train the whole model');
  if (quantizationConfig) throw cannotTrainQuantized('quantizationConfig');
}

/** As Transformers refuses it; `option` is the one that brings the quantised weights. */
export function cannotTrainQuantized(option: string): LowrankError {
  return new LowrankError(
    'UNSUPPORTED_QUANTIZATION',
    `${option}: the weights of a purely quantized model cannot be fine-tuned (peftConfig: null); leave peftConfig out to train an adapter on top of them (QLoRA), or load the model without quantization`,
  );
}

function hasLearningRate(options: unknown): boolean {
  return isObject(options) && isObject(options.args) && options.args.learningRate !== undefined;
}

function checkCombinations(args: ResolvedTrainingArguments, hasEvalDataset: boolean): void {
  const evaluates = args.evalStrategy !== 'no';
  if ((evaluates || args.evalOnStart) && !hasEvalDataset) {
    refuse(evaluates ? 'args.evalStrategy' : 'args.evalOnStart', evaluates ? args.evalStrategy : true, 'an evalDataset beside it');
  }
  if (args.saveStrategy === 'best' && !evaluates) refuse('args.saveStrategy', 'best', "args.evalStrategy 'steps' or 'epoch' beside it");
  if (!args.loadBestModelAtEnd || args.saveStrategy === 'best') return;
  if (!evaluates || args.saveStrategy !== args.evalStrategy) {
    refuse(
      'args.loadBestModelAtEnd',
      true,
      `args.evalStrategy and args.saveStrategy to be the same (they are '${args.evalStrategy}' and '${args.saveStrategy}')`,
    );
  }
  const evalSteps = args.evalSteps ?? args.loggingSteps;
  if (args.saveStrategy === 'steps' && !isMultiple(args.saveSteps, evalSteps)) {
    refuse(
      'args.saveSteps',
      args.saveSteps,
      `a multiple of args.evalSteps (${evalSteps}), because the best checkpoint is to be loaded at the end`,
    );
  }
}

/** A misspelt event would never be called; members under other names are the callback's own. */
function checkEvents(value: unknown, index: number): void {
  for (let at: unknown = value; isObject(at) && at !== Object.prototype; at = Object.getPrototypeOf(at)) {
    const events = Object.getOwnPropertyNames(at).filter((name) => /^on[A-Z_]/.test(name));
    const unknown = events.find((name) => !callbackNames.some((known) => known === name));
    if (unknown !== undefined) throw unknownOption(`callbacks[${index}].${unknown}`, unknown, callbackNames);
  }
}

/** As Transformers: both as steps or both as shares; shares are compared in millionths to be safe from rounding. */
function isMultiple(saveSteps: number, evalSteps: number): boolean {
  if (saveSteps >= 1 !== evalSteps >= 1) return false;
  const scale = saveSteps >= 1 ? 1 : 1e6;
  return Math.round(saveSteps * scale) % Math.round(evalSteps * scale) === 0;
}

/** The scheduler's options that its type takes. */
const SCHEDULER_OPTIONS: Readonly<Record<string, readonly string[]>> = {
  cosine: ['numCycles'],
  cosine_with_restarts: ['numCycles'],
  polynomial: ['power', 'lrEnd'],
  inverse_sqrt: ['timescale'],
};

/** The optimizers that have an argument. */
const OPTIMIZER_ARGUMENTS: Record<keyof NonNullable<ResolvedTrainingArguments['optimArgs']>, readonly OptimizerName[]> = {
  momentum: ['sgd', 'muon'],
  adjustLrFn: ['muon'],
};

function checkOptimizer(args: ResolvedTrainingArguments): void {
  const { optim, optimizerMemory, optimArgs } = args;
  if (optimizerMemory !== undefined && !OPTIMIZERS[optim].paged) {
    refuse(
      'args.optimizerMemory',
      optimizerMemory,
      `nothing with the optimizer '${optim}', whose states are always in memory (it is for 'paged_adamw_8bit' and the other paged ones)`,
    );
  }
  for (const [key, optimizers] of Object.entries(OPTIMIZER_ARGUMENTS)) {
    const value = optimArgs?.[key as keyof typeof OPTIMIZER_ARGUMENTS];
    if (value === undefined || optimizers.includes(optim)) continue;
    refuse(`args.optimArgs.${key}`, value, `nothing with the optimizer '${optim}'; it is an option of '${optimizers.join("' and '")}'`);
  }
}

function checkScheduler(args: ResolvedTrainingArguments): void {
  const given = Object.entries(args.lrSchedulerKwargs ?? {}).filter(([, value]) => value !== undefined);
  const taken = SCHEDULER_OPTIONS[args.lrSchedulerType] ?? [];
  for (const [key, value] of given) {
    const what = taken.length > 0 ? `only ${taken.join(' and ')}` : 'nothing';
    if (!taken.includes(key)) refuse(`args.lrSchedulerKwargs.${key}`, value, `${what} with the scheduler '${args.lrSchedulerType}'`);
  }
  if (args.lrSchedulerType !== 'polynomial') return;
  const lrEnd = args.lrSchedulerKwargs?.lrEnd ?? 1e-7;
  if (lrEnd >= args.learningRate) refuse('args.lrSchedulerKwargs.lrEnd', lrEnd, `less than args.learningRate (${args.learningRate})`);
}

function refuse(option: string, found: unknown, expected: string): never {
  throw new LowrankError('INVALID_OPTION', `${option}: found ${shown(found)}, expected ${expected}`);
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null;
}
