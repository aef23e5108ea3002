// One training in a process of its own; prints its plan and the most that was resident. test/67.memory.test.ts runs it.
import { readFileSync } from 'node:fs';
import { type EstimateOptions, estimateMemory, LoraTrainer, type TrainerOptions } from '../lib/index.ts';

export interface MeasuredTraining {
  options: Omit<TrainerOptions, 'trainDataset'>;
  rows: number;
  length: number;
  vocabulary: number;
}

const { options, rows, length, vocabulary } = JSON.parse(process.argv[2] as string) as MeasuredTraining;
const trainDataset = Array.from({ length: 4 * rows }, (_, row) => ({
  inputIds: Array.from({ length }, (_, i) => (i * 7919 + row * 104_729) % vocabulary),
}));
const full = { ...options, trainDataset, ...(options.args?.evalStrategy && { evalDataset: trainDataset }) } as TrainerOptions;
const estimated = await estimateMemory(full as EstimateOptions);
const trainer = new LoraTrainer(full);
const planned = await trainer.plan();
for await (const _ of trainer.steps());
const [, peak] = /VmHWM:\s+(\d+) kB/.exec(readFileSync('/proc/self/status', 'utf8')) ?? [];
process.stdout.write(JSON.stringify({ estimated, planned, peak: 1024 * Number(peak) }));
