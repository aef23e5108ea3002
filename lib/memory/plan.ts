import type { ComputeTypeName } from '../system.ts';
import type { MemoryDevice } from './device.ts';

/** What memory is held for, in the order in which a plan lists it. */
export const MEMORY_COMPONENTS = {
  weights: "the base model's weights, in their storage type",
  adapters: 'what is trained beside them: LoRA matrices and modulesToSave',
  gradients: 'of what is trained',
  optimizer: "the optimizer's states in memory",
  activations: 'what a forward keeps for its backward: checkpoints and activations',
  workspace: 'the working set of one block, forward and backward',
  head: 'the chunk of logits and the packed rows of the vocabulary',
  cache: 'keys and values of a generation',
  process: 'Node.js, this package, the tokenizer and the data',
} as const;

export type MemoryComponent = keyof typeof MEMORY_COMPONENTS;

/** What a plan was made for. */
export interface MemorySettings {
  task: 'train' | 'evaluate' | 'generate';
  /** Rows of a micro-batch, or that are generated together. */
  batchSize: number;
  /** Tokens of the longest row. */
  sequenceLength: number;
  /** Most tokens of a micro-batch. */
  tokens: number;
  /** Storage types of the matrices of the base. */
  weights: string;
  parameters: number;
  trainableParameters: number;
  computeType: ComputeTypeName;
  /** What a forward keeps, as the log names it. */
  gradientCheckpointing: string;
  optim: string;
}

/** A change of options that lowers what is needed. */
export interface MemoryChange {
  /** What is changed, in words. */
  what: string;
  /** The options as they are to be, as LoraTrainer takes them. */
  options: { args?: Record<string, unknown>; quantizationConfig?: Record<string, unknown> };
  /** Bytes needed with this and the changes before it. */
  total: number;
}

/** Bytes that a training (or an evaluation, or a generation) holds at its peak. */
export interface MemoryPlan {
  components: Record<MemoryComponent, number>;
  total: number;
  device: MemoryDevice;
  fits: boolean;
  /** Where it does not fit: the cheapest changes that make it fit, in the order of what they cost; empty where nothing does. */
  changes: MemoryChange[];
  settings: MemorySettings;
  /** What to know about these figures. */
  notes: string[];
}

export function totalBytes(components: Readonly<Record<string, number>>): number {
  return Object.values(components).reduce((sum, bytes) => sum + bytes, 0);
}

/** 1.5 GiB, 312 MiB, 4 KiB */
export function bytesText(bytes: number): string {
  for (const [unit, size] of [
    ['GiB', 2 ** 30],
    ['MiB', 2 ** 20],
  ] as const) {
    if (bytes >= size) return `${(bytes / size).toFixed(unit === 'GiB' ? 2 : 0)} ${unit}`;
  }
  return `${Math.ceil(bytes / 1024)} KiB`;
}
