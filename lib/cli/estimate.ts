import { readFile } from 'node:fs/promises';
import { LowrankError } from '../errors.ts';
import { type EstimateOptions, estimateMemory } from '../memory/estimate.ts';
import type { MemorySettings } from '../memory/plan.ts';
import { planText } from '../memory/text.ts';
import type { QuantizationConfig } from '../options/quantization_config.ts';
import type { TrainingArguments } from '../options/training_arguments.ts';

/** What the command line gives; the names are those of its flags. */
export interface EstimateFlags {
  batch?: number;
  length?: number;
  rank?: number;
  targets?: string;
  full?: boolean;
  qlora?: boolean;
  checkpointing?: string;
  optim?: string;
  optimizerMemory?: string;
  data?: string;
  device?: string;
  task?: string;
  options?: string;
  json?: boolean;
}

/** `lowrank estimate`: prints the plan of a training. The exit code says whether it fits: 0 or 2. */
export async function estimate(model: string, flags: EstimateFlags): Promise<void> {
  const plan = await estimateMemory(merged(model, flags, flags.options === undefined ? {} : await readOptions(flags.options)));
  process.stdout.write(`${flags.json ? JSON.stringify(plan, null, 2) : planText(plan)}\n`);
  if (!plan.fits) process.exitCode = 2;
}

/** The options of a file with those of the flags, which win. */
function merged(model: string, flags: EstimateFlags, options: Partial<EstimateOptions>): EstimateOptions {
  const peft = {
    ...(flags.rank !== undefined && { r: flags.rank }),
    ...(flags.targets !== undefined && { targetModules: targets(flags.targets) }),
  };
  const args = {
    ...options.args,
    ...(flags.batch !== undefined && { perDeviceTrainBatchSize: flags.batch }),
    ...(flags.length !== undefined && { maxSeqLength: flags.length }),
    ...(flags.checkpointing !== undefined && { gradientCheckpointing: checkpointing(flags.checkpointing) }),
    ...(flags.optim !== undefined && { optim: flags.optim as TrainingArguments['optim'] }),
    ...(flags.optimizerMemory !== undefined && { optimizerMemory: flags.optimizerMemory }),
  };
  const nf4: QuantizationConfig = { loadIn4bit: true, bnb4bitQuantType: 'nf4', bnb4bitUseDoubleQuant: true };
  return {
    ...options,
    model,
    args,
    ...(Object.keys(peft).length > 0 && { peftConfig: { r: 16, targetModules: 'all-linear', ...options.peftConfig, ...peft } }),
    ...(flags.full && { peftConfig: null }),
    ...(flags.qlora && { quantizationConfig: nf4 }),
    ...(flags.data !== undefined && { trainDataset: flags.data }),
    ...(flags.device !== undefined && { device: flags.device }),
    ...(flags.task !== undefined && { task: flags.task as MemorySettings['task'] }),
  };
}

function targets(text: string): string | string[] {
  return text === 'all-linear' ? text : text.split(',');
}

/** none, selective, full, offload, every:4, budget:6GiB */
function checkpointing(text: string): TrainingArguments['gradientCheckpointing'] {
  const [, name, value] = /^(every|budget)[:=](.+)$/.exec(text) ?? [];
  if (name === 'every') return { every: Number(value) };
  if (name === 'budget') return { budget: value as string };
  return text === 'none' || text === 'false' ? false : text === 'true' ? true : (text as 'full');
}

async function readOptions(path: string): Promise<Partial<EstimateOptions>> {
  const text = await readFile(path, 'utf8').catch((cause: Error) => {
    throw new LowrankError('FILE_NOT_FOUND', `--options: ${path} could not be read: ${cause.message}`, { cause });
  });
  try {
    const options: unknown = JSON.parse(text);
    if (typeof options === 'object' && options !== null && !Array.isArray(options)) return options;
  } catch (cause) {
    throw new LowrankError('INVALID_OPTION', `--options: ${path} is not valid JSON: ${(cause as Error).message}`, { cause });
  }
  throw new LowrankError('INVALID_OPTION', `--options: ${path} holds no object; expected LoraTrainer's options as JSON`);
}
