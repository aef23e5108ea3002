import { OPTIMIZERS, type OptimizerName } from '../options/optimizers.ts';
import { resolveQuantizationConfig } from '../options/quantization_config.ts';
import type { ResolvedTrainingArguments } from '../options/training_arguments.ts';
import type { MemoryChange } from './plan.ts';
import type { Arrangement, PlanRequest } from './planner.ts';

/** One way to need less; a later level of the same kind takes the place of an earlier one. */
interface Level {
  what: string;
  args?: Partial<ResolvedTrainingArguments>;
  quantizationConfig?: { loadIn4bit: true; bnb4bitQuantType: 'nf4'; bnb4bitUseDoubleQuant: true };
}

const NF4 = { loadIn4bit: true, bnb4bitQuantType: 'nf4', bnb4bitUseDoubleQuant: true } as const;
const FLOAT_TYPES = ['F32', 'F16', 'BF16'];
const SMALL_WINDOW = 64 * 2 ** 20;
const SHORTEST_ROW = 64;

/** Kinds of change from the cheapest to the dearest, each with its levels in order. */
function ladder(request: PlanRequest): Level[][] {
  const kinds = [fourBits(request), smallerBatches(request.args), shorterRows(request.args)];
  if (request.task === 'train') kinds.unshift(checkpointing(request), optimizer(request.args), offload(request.args));
  return kinds;
}

/** Work is done again. */
function checkpointing({ args, described }: PlanRequest): Level[] {
  const now = args.gradientCheckpointing ?? described.gradientCheckpointing;
  const levels: Level[] = [
    {
      what: "keep what attention made, compute the rest again: gradientCheckpointing 'selective'",
      args: { gradientCheckpointing: 'selective' },
    },
    { what: "keep each layer's input only: gradientCheckpointing 'full'", args: { gradientCheckpointing: 'full' } },
  ];
  if (now === false) return levels;
  return now === 'selective' ? levels.slice(1) : typeof now === 'object' ? levels.slice(1) : [];
}

/** States are rounded, then wait for the disk. */
function optimizer({ optim, optimizerMemory }: ResolvedTrainingArguments): Level[] {
  const { kind, bits, paged } = OPTIMIZERS[optim];
  if (kind !== 'adamw' && kind !== 'lion') return [];
  const eight = `${kind}_8bit` as OptimizerName;
  const pagedEight = `paged_${kind}_8bit` as OptimizerName;
  const levels: Level[] = [];
  if (bits === 32) {
    const name = paged ? pagedEight : eight;
    levels.push({ what: `optimizer states of 8 bits: optim '${name}'`, args: { optim: name } });
  }
  if (!paged || optimizerMemory === undefined || optimizerMemory > SMALL_WINDOW) {
    levels.push({
      what: `all but 64 MiB of the optimizer states in a file: optim '${pagedEight}', optimizerMemory '64MiB'`,
      args: { optim: pagedEight, optimizerMemory: SMALL_WINDOW },
    });
  }
  return levels;
}

/** Every step writes the inputs of all layers and reads them. */
function offload({ gradientCheckpointing: now }: ResolvedTrainingArguments): Level[] {
  if (now === 'offload') return [];
  return [{ what: "each layer's input waits in a file: gradientCheckpointing 'offload'", args: { gradientCheckpointing: 'offload' } }];
}

/** Weights are rounded. */
function fourBits({ described, quantizationConfig, peftConfig }: PlanRequest): Level[] {
  const isFloat = [...described.types.values()].every((type) => FLOAT_TYPES.includes(type));
  if (quantizationConfig || !isFloat || (!peftConfig && !described.peft)) return [];
  return [{ what: 'a base of 4 bits: quantizationConfig with loadIn4bit', quantizationConfig: NF4 }];
}

/** Smaller products run slower; the step stays the same. */
function smallerBatches(args: ResolvedTrainingArguments): Level[] {
  const { perDeviceTrainBatchSize: rows, gradientAccumulationSteps: micro } = args;
  return halvings(rows, 1).map((less) => {
    const gradientAccumulationSteps = Math.ceil((rows * micro) / less);
    return {
      what: `micro-batches of ${less} row${less === 1 ? '' : 's'}: perDeviceTrainBatchSize ${less}, gradientAccumulationSteps ${gradientAccumulationSteps}`,
      args: { perDeviceTrainBatchSize: less, gradientAccumulationSteps },
    };
  });
}

/** Something else is learnt. */
function shorterRows({ maxSeqLength }: ResolvedTrainingArguments): Level[] {
  return halvings(maxSeqLength, SHORTEST_ROW).map((less) => ({
    what: `rows of ${less} tokens: maxSeqLength ${less}`,
    args: { maxSeqLength: less },
  }));
}

function halvings(from: number, least: number): number[] {
  const values: number[] = [];
  for (let value = Math.floor(from / 2); value >= least; value = Math.floor(value / 2)) values.push(value);
  return values;
}

/**
 * The cheapest changes that make a request fit its device: taken from the cheapest on until it fits, then those left out again that are not
 * needed, the dearest first. Empty where nothing makes it fit.
 */
export async function cheapestChanges(
  request: PlanRequest,
  totalOf: (arrangement: Arrangement) => Promise<number>,
): Promise<MemoryChange[]> {
  const kinds = ladder(request);
  const chosen = kinds.map(() => -1);
  const fits = async () => (await totalOf(arranged(request, kinds, chosen))) <= request.device.memory;
  const climb = async () => {
    for (const [kind, levels] of kinds.entries()) {
      for (let level = 0; level < levels.length; ++level) {
        chosen[kind] = level;
        if (await fits()) return true;
      }
    }
    return false;
  };
  if (!(await climb())) return [];
  for (let kind = kinds.length - 1; kind >= 0; --kind) {
    const most = chosen[kind] as number;
    for (chosen[kind] = -1; (chosen[kind] as number) < most && !(await fits()); ) chosen[kind] = (chosen[kind] as number) + 1;
  }
  return described(request, kinds, chosen, totalOf);
}

function arranged(request: PlanRequest, kinds: Level[][], chosen: number[]): Arrangement {
  const levels = kinds.flatMap((levels, kind) => levels[chosen[kind] as number] ?? []);
  const { args, quantizationConfig } = request;
  const quantized = levels.some((level) => level.quantizationConfig) ? resolveQuantizationConfig(NF4) : quantizationConfig;
  return { args: Object.assign({}, args, ...levels.map((level) => level.args)), quantizationConfig: quantized };
}

async function described(
  request: PlanRequest,
  kinds: Level[][],
  chosen: number[],
  totalOf: (arrangement: Arrangement) => Promise<number>,
): Promise<MemoryChange[]> {
  const changes: MemoryChange[] = [];
  for (const [kind, levels] of kinds.entries()) {
    const level = levels[chosen[kind] as number];
    if (!level) continue;
    const until = chosen.map((at, other) => (other <= kind ? at : -1));
    const { what, args, quantizationConfig } = level;
    const options = { ...(args && { args }), ...(quantizationConfig && { quantizationConfig }) };
    changes.push({ what, options, total: await totalOf(arranged(request, kinds, until)) });
  }
  return changes;
}
