import { Dataset } from '../data/dataset.ts';
import { loadDataset } from '../data/load.ts';
import { LowrankError, shown } from '../errors.ts';
import { CausalLM } from '../model/causal_lm.ts';
import type { DataSource } from '../options/data_source.ts';
import { parseTrainerOptions, type ResolvedTrainerOptions, type TrainerOptions } from '../options/trainer_options.ts';
import { Tokenizer } from '../tokenizer/tokenizer.ts';
import { UnitData } from '../train/training_data.ts';
import { type DescribedModel, describeSource } from './described_model.ts';
import { parseDevice } from './device.ts';
import type { MemoryPlan, MemorySettings } from './plan.ts';
import { planMemory } from './planner.ts';

const TASKS: readonly unknown[] = ['train', 'evaluate', 'generate'] satisfies MemorySettings['task'][];

/** What `estimateMemory` takes: LoraTrainer's options, of which only `model` is required. */
export interface EstimateOptions extends Omit<TrainerOptions, 'model' | 'trainDataset'> {
  /** As LoraTrainer takes it; or a config.json: its content, its path, or that of a folder which holds it. */
  model: TrainerOptions['model'] | Record<string, unknown>;
  /** Left out, or an async iterable: rows of args.maxSeqLength tokens. */
  trainDataset?: DataSource;
  /** 'cpu' (this machine, the default), a machine with so much memory ('8GiB'), or a GPU ('rtx-4090'). */
  device?: string | number;
  /** 'train' when left out. A generation's cache has args.perDeviceTrainBatchSize rows of args.maxSeqLength tokens. */
  task?: MemorySettings['task'];
}

/**
 * What a training will hold in memory at its peak, in bytes by component, whether that fits a device, and if not, the cheapest changes that
 * make it fit. Nothing of the size of the model is allocated or read.
 *
 * ```ts
 * const { total, fits, changes } = await estimateMemory({ model: 'config.json', args: { maxSeqLength: 4096 }, device: '8GiB' });
 * ```
 *
 * @throws what LoraTrainer throws for the same options
 */
export async function estimateMemory(options: EstimateOptions): Promise<MemoryPlan> {
  const { model, trainDataset, device, task = 'train', ...rest } = options ?? {};
  checkModel(model);
  if (!TASKS.includes(task)) {
    throw new LowrankError('INVALID_OPTION', `task: found ${shown(task)}, expected one of 'train', 'evaluate', 'generate'`);
  }
  const parsed = parseTrainerOptions({
    ...rest,
    model: model instanceof CausalLM || typeof model === 'string' ? model : 'config.json',
    trainDataset: trainDataset ?? [],
  });
  const target = parseDevice(device);
  const described = await describeSource(model);
  const data = await dataOf(parsed, trainDataset, described);
  return planMemory({
    described,
    peftConfig: task === 'train' || rest.peftConfig !== undefined ? parsed.peftConfig : undefined,
    layers: parsed.layers,
    quantizationConfig: parsed.quantizationConfig,
    args: parsed.args,
    task,
    device: target,
    tokensOf: (rows, length) => Math.min(rows * length, data?.largest(rows) ?? Number.POSITIVE_INFINITY),
    dataTokens: data?.summary.tokens ?? 0,
  });
}

function checkModel(model: unknown): asserts model is EstimateOptions['model'] {
  if ((typeof model === 'string' && model !== '') || (typeof model === 'object' && model !== null && !Array.isArray(model))) return;
  throw new LowrankError(
    'INVALID_OPTION',
    `model: found ${shown(model)}, expected a hub id, a folder, a .gguf file, a CausalLM, a PeftModel or a config.json`,
  );
}

/** The rows, where there are some that can be read again and a tokenizer for them. */
async function dataOf(
  options: ResolvedTrainerOptions,
  source: DataSource | undefined,
  described: DescribedModel,
): Promise<UnitData | undefined> {
  if (source === undefined || (typeof source === 'object' && Symbol.asyncIterator in source && !(source instanceof Dataset)))
    return undefined;
  const { maxSeqLength, packing, onBadRow, completionOnlyLoss, truncation } = options.args;
  const tokenizer = await tokenizerOf(options.model, described);
  const isReady = source instanceof Dataset && source.stats().longest <= maxSeqLength;
  if (!isReady && tokenizer === undefined && typeof source === 'string') return undefined;
  const dataset = isReady ? source : await loadDataset(source, { tokenizer, maxSeqLength, onBadRow, completionOnlyLoss, truncation });
  return await UnitData.from(dataset, packing ? maxSeqLength : undefined, 'trainDataset');
}

async function tokenizerOf(model: string | CausalLM, { hasTokenizer, path }: DescribedModel): Promise<Tokenizer | undefined> {
  if (!hasTokenizer) return undefined;
  if (typeof model !== 'string') return model.tokenizer;
  if (path === undefined) return undefined;
  return path.endsWith('.gguf') ? await Tokenizer.fromGguf(path) : await Tokenizer.fromFile(path);
}
