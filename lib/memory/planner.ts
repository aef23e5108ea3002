import { kPrefillTokens } from '../model/generation.ts';
import { quantizedTypeOf } from '../model/quantize.ts';
import { call, type NativeComputeType, type NativeModel, native } from '../native.ts';
import type { ResolvedLoraConfig } from '../options/lora_config.ts';
import type { ResolvedQuantizationConfig } from '../options/quantization_config.ts';
import type { TrainedLayers } from '../options/trained_layers.ts';
import type { ResolvedTrainingArguments } from '../options/training_arguments.ts';
import { computeTypeName } from '../system.ts';
import { retentionName, retentionOf } from '../train/checkpointing.ts';
import { optimizerOf } from '../train/optimizer.ts';
import { cheapestChanges } from './changes.ts';
import { type DescribedModel, planningModel } from './described_model.ts';
import type { MemoryDevice } from './device.ts';
import { MEMORY_COMPONENTS, type MemoryComponent, type MemoryPlan, type MemorySettings, totalBytes } from './plan.ts';
import { processMemory } from './process_memory.ts';

/** What decides how much memory is held. */
export interface Arrangement {
  args: ResolvedTrainingArguments;
  quantizationConfig: ResolvedQuantizationConfig | undefined;
}

export interface PlanRequest extends Arrangement {
  described: DescribedModel;
  /** null: full fine-tuning. */
  peftConfig: ResolvedLoraConfig | null | undefined;
  layers: TrainedLayers;
  task: MemorySettings['task'];
  device: MemoryDevice;
  /** Most tokens of a micro-batch of so many rows of at most so many tokens. */
  tokensOf: (batchSize: number, sequenceLength: number) => number;
  /** Tokens of the data in memory. */
  dataTokens: number;
}

type Components = Record<MemoryComponent, number>;

/** The plan of a request, with the cheapest changes that make it fit where it does not. */
export async function planMemory(request: PlanRequest): Promise<MemoryPlan> {
  const { device, task } = request;
  const computeType = computeTypeFor(request);
  const model = await modelFor(request, request, computeType);
  const components = componentsOf(request, request, model);
  const total = totalBytes(components);
  const fits = total <= device.memory;
  const totalOf = async (arrangement: Arrangement) =>
    totalBytes(componentsOf(request, arrangement, await modelFor(request, arrangement, computeType)));
  return {
    components,
    total,
    device,
    fits,
    changes: fits ? [] : await cheapestChanges(request, totalOf),
    settings: settingsOf(request, model, computeType),
    notes: [
      ...(device.kind === 'cuda' ? ['The CUDA backend is not there yet: these are the bytes of the same layout as on the CPU.'] : []),
      ...(task === 'train' && computeType === 'f32' ? ['Activations are planned in fp32, as this machine would compute them.'] : []),
    ],
  };
}

function computeTypeFor({ described, args, device }: PlanRequest): NativeComputeType {
  const { bf16, computeType } = native().systemInfo();
  if (args.bf16 === 'auto') return device.kind === 'cuda' && bf16 ? 'bf16' : (described.computeType ?? computeType);
  return args.bf16 && bf16 ? 'bf16' : 'f32';
}

function modelFor(request: PlanRequest, { quantizationConfig }: Arrangement, computeType: NativeComputeType): Promise<NativeModel> {
  return planningModel(request.described, { peftConfig: request.peftConfig, layers: request.layers, quantizationConfig, computeType });
}

function componentsOf(request: PlanRequest, { args }: Arrangement, model: NativeModel): Components {
  const none = Object.fromEntries(Object.keys(MEMORY_COMPONENTS).map((name) => [name, 0])) as Components;
  return { ...none, ...nativeComponents(request, args, model), process: processBytes(request) };
}

function nativeComponents(request: PlanRequest, args: ResolvedTrainingArguments, model: NativeModel): Record<string, number> {
  const { perDeviceTrainBatchSize: rows, maxSeqLength: length } = args;
  const tokens = request.tokensOf(rows, length);
  switch (request.task) {
    case 'train': {
      const optimizer = optimizerOf(args);
      const plan = (keep: ReturnType<typeof keepOf>) => call(() => native().planSession(model, { maxTokens: tokens, keep, optimizer }));
      return plan(keepOf(request, args, model));
    }
    case 'evaluate':
      return call(() => native().planEvaluation(model, tokens));
    case 'generate':
      return call(() => native().planGeneration(model, rows, length, rows * Math.min(length, kPrefillTokens)));
  }
}

function keepOf(request: PlanRequest, args: ResolvedTrainingArguments, model: NativeModel) {
  const maxTokens = request.tokensOf(args.perDeviceTrainBatchSize, args.maxSeqLength);
  return retentionOf({
    wanted: args.gradientCheckpointing ?? request.described.gradientCheckpointing,
    model,
    optimizer: optimizerOf(args),
    maxTokens,
    length: maxTokens / args.perDeviceTrainBatchSize,
    folder: args.outputDir,
    processBytes: processBytes(request),
  });
}

/** A GPU's memory holds nothing of the process. */
function processBytes({ described, device, dataTokens }: PlanRequest): number {
  if (device.kind === 'cuda') return 0;
  return processMemory({ vocabSize: described.config.vocabSize, hasTokenizer: described.hasTokenizer ?? true, dataTokens });
}

function settingsOf(request: PlanRequest, model: NativeModel, computeType: NativeComputeType): MemorySettings {
  const { args, task, quantizationConfig, described } = request;
  const { perDeviceTrainBatchSize: batchSize, maxSeqLength: sequenceLength } = args;
  const parameters = model.parameters();
  const count = (shapes: { shape: number[] }[]) =>
    shapes.reduce((sum, { shape }) => sum + shape.reduce((product, size) => product * size, 1), 0);
  const slots = model.slots().filter(({ name }) => !(name === 'lm_head.weight' && described.config.tiedHead));
  const types = new Set(slots.filter(({ shape }) => shape.length > 1).map(({ name }) => described.types.get(name) ?? 'F32'));
  return {
    task,
    batchSize,
    sequenceLength,
    tokens: request.tokensOf(batchSize, sequenceLength),
    weights: `${[...types].join(', ')}${quantizationConfig ? `, linear layers quantised to ${quantizedTypeOf(quantizationConfig)}` : ''}`,
    parameters: count(slots),
    trainableParameters: count(parameters.filter(({ trainable }) => trainable)),
    computeType: computeTypeName(computeType),
    gradientCheckpointing: task === 'train' ? retentionName(keepOf(request, args, model)) : 'none',
    optim: args.optim,
  };
}
