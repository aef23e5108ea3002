import { Dataset } from '../data/dataset.ts';
import { loadDataset } from '../data/load.ts';
import { prepareToRender } from '../data/prepare_to_render.ts';
import { LowrankError } from '../errors.ts';
import { describeSource } from '../memory/described_model.ts';
import { thisMachine } from '../memory/device.ts';
import type { MemoryPlan } from '../memory/plan.ts';
import { planMemory } from '../memory/planner.ts';
import { processMemory } from '../memory/process_memory.ts';
import { CausalLM } from '../model/causal_lm.ts';
import { getPeftModel, PeftModel } from '../model/peft_model.ts';
import { quantizationName } from '../model/quantize.ts';
import { type NativeComputeType, type NativeLoss, type NativeRetention, type NativeTrainBatch, native } from '../native.ts';
import { withCommas } from '../numbers.ts';
import type { DataSource } from '../options/data_source.ts';
import { parseTrainerOptions, type ResolvedTrainerOptions, type TrainerOptions } from '../options/trainer_options.ts';
import type { TrainingStep } from './callbacks.ts';
import { retentionName, retentionOf } from './checkpointing.ts';
import { type EvaluationMetrics, evaluateBatches } from './evaluation.ts';
import { NativeTrainable } from './native_trainable.ts';
import { optimizerOf } from './optimizer.ts';
import { createProgress, type Progress } from './progress.ts';
import { TrainedAdapter } from './trained_adapter.ts';
import { TrainedModel } from './trained_model.ts';
import type { TrainedWeights } from './trained_weights.ts';
import { UnitData } from './training_data.ts';
import { type FullTrainResult, runTraining, type TrainResult } from './training_run.ts';

/** Of a training whose `peftConfig` is null, and of others. */
type ModelOf<Full> = [Full] extends [null] ? CausalLM : PeftModel;
type ResultOf<Full> = [Full] extends [null] ? FullTrainResult : TrainResult;

interface Prepared {
  weights: TrainedWeights;
  train: UnitData;
  held: UnitData | undefined;
  /** Most tokens of a micro-batch. */
  maxTokens: number;
}

/**
 * Fine-tunes a model with LoRA, or with `peftConfig: null` the model itself.
 *
 * ```ts
 * const trainer = new LoraTrainer({ model: 'model.gguf', trainDataset: 'train.jsonl', args: { outputDir: './lora_output' } });
 * const { trainingLoss, adapterPath } = await trainer.train();
 * ```
 *
 * ```ts
 * const trainer = new LoraTrainer({ model: 'HuggingFaceTB/SmolLM2-135M', trainDataset: 'train.jsonl', peftConfig: null });
 * const { modelPath } = await trainer.train();
 * ```
 *
 * The loss is the mean over the supervised tokens of all micro-batches of a step. The same seed gives the same bits, whatever the number of
 * threads, and whether or not the training was interrupted.
 */
export class LoraTrainer<Full extends null | undefined = undefined> {
  readonly #options: ResolvedTrainerOptions;
  readonly #progress: Progress;
  #prepared: Promise<Prepared> | undefined;
  #weights: TrainedWeights | undefined;
  #isRunning = false;

  /** @throws UNKNOWN_OPTION, INVALID_OPTION, UNSUPPORTED_QUANTIZATION */
  constructor(options: TrainerOptions<Full>) {
    this.#options = parseTrainerOptions(options);
    const { model } = this.#options;
    if (typeof model !== 'string' && !(model instanceof CausalLM)) {
      throw new LowrankError('INVALID_OPTION', 'model: found an object of another kind, expected a CausalLM or a PeftModel');
    }
    this.#progress = createProgress(this.#options.args.logLevel, this.#options.args.disableTqdm);
  }

  /**
   * Trains to the end and writes the adapter, or the model, into args.outputDir. The signal and SIGINT end it early, with a checkpoint: `stopped` says so.
   *
   * @throws INVALID_DATASET, NON_FINITE, IO_ERROR, CHECKPOINT_CORRUPT, …
   */
  async train(): Promise<ResultOf<Full>> {
    const steps = this.steps();
    for (;;) {
      const next = await steps.next();
      if (next.done) return next.value;
    }
  }

  /** Trains like train(), step by step. Leaving the loop ends the training and writes nothing more; `model` has what was learnt. */
  async *steps(): AsyncGenerator<TrainingStep, ResultOf<Full>> {
    if (this.#isRunning) throw new LowrankError('INVALID_OPTION', 'this LoraTrainer is training already; await it first');
    this.#isRunning = true;
    try {
      const { args, callbacks, signal } = this.#options;
      const prepared = await this.#prepare();
      const keep = await this.#retention(prepared);
      this.#announce(prepared, keep);
      const trainable = await NativeTrainable.create(prepared.weights, {
        maxTokens: prepared.maxTokens,
        keep,
        optimizer: optimizerOf(args),
        computeType: this.#computeType(prepared.weights),
        seed: args.seed,
      });
      try {
        const evaluation = prepared.held && {
          rows: prepared.held.units,
          run: (isStopped: () => boolean) => this.#evaluate(prepared, isStopped, (batch) => trainable.evaluate(batch)),
        };
        const request = { args, callbacks, signal, trainable, data: prepared.train, evaluation, progress: this.#progress };
        const { folder, ...summary } = yield* runTraining(request);
        const result = this.#options.peftConfig === null ? { ...summary, modelPath: folder } : { ...summary, adapterPath: folder };
        return result as unknown as ResultOf<Full>;
      } finally {
        trainable.dispose();
      }
    } finally {
      this.#isRunning = false;
    }
  }

  /**
   * Loss on evalDataset, dropout off.
   *
   * @throws INVALID_OPTION without an evalDataset
   */
  async evaluate(): Promise<EvaluationMetrics> {
    const { signal } = this.#options;
    const metrics = await this.#evaluate(await this.#prepare(), () => signal?.aborted ?? false);
    if (metrics === undefined) throw new LowrankError('ABORTED', 'the evaluation was aborted', { cause: signal?.reason });
    return metrics;
  }

  /**
   * The model with its adapter, or in full fine-tuning the model itself, once train(), steps(), evaluate() or plan() has loaded it; not to be used while
   * training.
   */
  get model(): ModelOf<Full> {
    if (this.#weights) return this.#weights.model as ModelOf<Full>;
    throw new LowrankError('INVALID_OPTION', 'trainer.model: the model is not loaded yet; await train(), evaluate() or plan() first');
  }

  /**
   * What a training will hold in memory at its peak, in bytes by component, as `estimateMemory` tells it before there is a model. Loads the model
   * and the data, which are mapped or small (but weights that are trained themselves), and allocates nothing else.
   */
  async plan(): Promise<MemoryPlan> {
    const { args, peftConfig, layers } = this.#options;
    const { weights, train, held } = await this.#prepare();
    return await planMemory({
      described: await describeSource(weights.model),
      peftConfig: peftConfig === null ? null : undefined,
      layers,
      quantizationConfig: undefined,
      args,
      task: 'train',
      device: thisMachine(),
      tokensOf: (rows, length) => Math.min(rows * length, train.largest(rows)),
      dataTokens: train.summary.tokens + (held?.summary.tokens ?? 0),
    });
  }

  /** What a training's forward keeps. The model goes on computing in the training's type. */
  async #retention({ weights, train, held, maxTokens }: Prepared): Promise<NativeRetention> {
    const optimizer = optimizerOf(this.#options.args);
    const dataTokens = train.summary.tokens + (held?.summary.tokens ?? 0);
    const { core } = weights.model;
    return await core.run((model) => {
      model.setCompute(this.#computeType(weights));
      const { gradientCheckpointing: wanted = core.gradientCheckpointing, perDeviceTrainBatchSize, outputDir: folder } = this.#options.args;
      return retentionOf({
        wanted,
        model,
        optimizer,
        maxTokens,
        length: maxTokens / perDeviceTrainBatchSize,
        folder,
        processBytes: processMemory({ vocabSize: model.config.vocabSize, hasTokenizer: core.hasTokenizer, dataTokens }),
      });
    });
  }

  /** Frees the model if this trainer loaded it. */
  async dispose(): Promise<void> {
    await this.#prepared?.catch(() => {});
    if (typeof this.#options.model === 'string') await this.#weights?.model.dispose();
    this.#prepared = this.#weights = undefined;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose();
  }

  /** Loads once; after a failure the next call tries again. */
  #prepare(): Promise<Prepared> {
    this.#prepared ??= this.#load().catch((error: unknown) => {
      this.#prepared = undefined;
      throw error;
    });
    return this.#prepared;
  }

  async #load(): Promise<Prepared> {
    const { model, trainDataset, args, quantizationConfig, signal } = this.#options;
    prepareToRender(trainDataset);
    const base =
      this.#weights?.model ?? (typeof model === 'string' ? await CausalLM.fromPretrained(model, { quantizationConfig, signal }) : model);
    // Rows are tokenised on other threads while the weights to train are made.
    const failure = new AbortController();
    const data = this.#loadAllData(base, signal ? AbortSignal.any([signal, failure.signal]) : failure.signal);
    const settled = data.catch(() => undefined);
    try {
      this.#weights = await this.#trainedWeights(base);
    } catch (error) {
      failure.abort();
      await settled;
      if (typeof model === 'string') await base.dispose();
      throw error;
    }
    const { train, held } = await data;
    return { weights: this.#weights, train, held, maxTokens: train.largest(args.perDeviceTrainBatchSize) };
  }

  async #trainedWeights(base: CausalLM): Promise<TrainedWeights> {
    const { peftConfig, layers, args } = this.#options;
    if (peftConfig === null) return await TrainedModel.create(base, layers);
    const peft = base instanceof PeftModel ? base : await getPeftModel(base, peftConfig, 'default', { seed: args.seed });
    return new TrainedAdapter(peft);
  }

  async #loadAllData(model: CausalLM, signal: AbortSignal): Promise<Pick<Prepared, 'train' | 'held'>> {
    const { args, trainDataset, evalDataset } = this.#options;
    const train = await this.#loadData(model, trainDataset, args.packing ? args.maxSeqLength : undefined, 'trainDataset', signal);
    const held = evalDataset === undefined ? undefined : await this.#loadData(model, evalDataset, undefined, 'evalDataset', signal);
    return { train, held };
  }

  async #loadData(model: CausalLM, source: DataSource, packInto: number | undefined, name: string, signal: AbortSignal): Promise<UnitData> {
    const { maxSeqLength, onBadRow, completionOnlyLoss, truncation } = this.#options.args;
    const isReady = source instanceof Dataset && source.stats().longest <= maxSeqLength;
    const tokenizer = model.core.hasTokenizer ? model.tokenizer : undefined;
    const onWarning = (message: string) => this.#progress.warn(`${name}: ${message}`);
    const dataset = isReady
      ? source
      : await loadDataset(source, { tokenizer, maxSeqLength, onBadRow, completionOnlyLoss, truncation, onWarning, signal });
    return await UnitData.from(dataset, packInto, name);
  }

  /** `within`: how a training that runs evaluates a batch in its own memory. */
  async #evaluate(
    { weights, held, maxTokens }: Prepared,
    isStopped: () => boolean,
    within?: (batch: NativeTrainBatch) => Promise<NativeLoss>,
  ): Promise<EvaluationMetrics | undefined> {
    if (!held) throw new LowrankError('INVALID_OPTION', 'evalDataset: found nothing, expected data to evaluate on');
    // No batch is larger than training's largest, so that evaluating never takes more memory.
    const batches = held.batches(this.#options.args.perDeviceEvalBatchSize, maxTokens);
    const computeType = this.#computeType(weights);
    const evaluate = (batch: NativeTrainBatch) =>
      weights.model.core.run((model) => {
        model.setCompute(computeType);
        return model.evaluate(batch);
      });
    return await evaluateBatches(batches, within ?? evaluate, isStopped);
  }

  #computeType({ model }: TrainedWeights): NativeComputeType {
    const { bf16, computeType } = native().systemInfo();
    const wanted = this.#options.args.bf16;
    if (wanted === 'auto') return model.core.computeType ?? computeType;
    return wanted && bf16 ? 'bf16' : 'f32';
  }

  #announce({ weights, train }: Prepared, keep: NativeRetention): void {
    const { args } = this.#options;
    const { isa, threads } = native().systemInfo();
    const bf16 = this.#computeType(weights) === 'bf16';
    const { trainable, all } = weights.count();
    const { rows, tokens, supervised, empty } = train.summary;
    const lines = [
      `computing in ${bf16 ? 'bf16' : 'fp32'} with ${isa} on ${threads} thread${threads === 1 ? '' : 's'}${args.bf16 === true && !bf16 ? ` (bf16: ${isa} has no bf16 products, fp32 takes their place)` : ''}`,
      `trainable params: ${withCommas(trainable)} || all params: ${withCommas(all)} || trainable%: ${((100 * trainable) / all).toFixed(4)}`,
      `supervised tokens: ${withCommas(supervised)} of ${withCommas(tokens)} in ${withCommas(rows)} rows${args.packing ? `, packed into ${withCommas(train.units)}` : ''}`,
    ];
    lines.push(...weights.notes);
    if (keep.mode !== 'all') lines.push(`gradient checkpointing: ${retentionName(keep)}`);
    const { quantization } = weights.model.core;
    if (quantization) lines.push(`base weights: ${quantizationName(quantization)}`);
    for (const line of lines) this.#progress.message(line);
    if (args.fp16) this.#progress.warn(`fp16: there is no fp16 training on a CPU, ${bf16 ? 'bf16' : 'fp32'} takes its place`);
    if (empty > 0) this.#progress.warn(`${withCommas(empty)} rows have nothing to learn from and are left out`);
  }
}
