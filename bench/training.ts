// Whole training steps, ours and the peers'.
import type { NativeComputeType } from '../lib/native.ts';
import { startOurs } from './child.ts';
import { type Entry, type TrainingResult, timeInterleaved } from './interleaved.ts';
import { computeTypes, type Machine } from './machine.ts';
import { startHuggingFace } from './peers.ts';
import { flopsPerToken } from './smollm2.ts';

export interface Weights {
  /** Q4_1. */
  gguf: string;
  /** The same as bf16 safetensors. */
  folder: string;
}

export interface LengthResult {
  length: number;
  compute: NativeComputeType;
  tokensPerSecond: number;
  peakMemoryBytes: number;
  /** Flop of a token, here against the shortest length: what an equally efficient step would slow down by. */
  flopsPerToken: number;
}

export interface SharesResult {
  compute: NativeComputeType;
  stepMilliseconds: number;
  /** Of the step's time, by kind of op; with 'other' they add up to 1. */
  shares: Record<string, number>;
}

const kProfiledSteps = 3;
const kLengths = [256, 1024, 4096, 16384];

function computeFlags(compute: NativeComputeType): string[] {
  return compute === 'bf16' ? ['--bf16'] : [];
}

export interface TrainingOptions {
  machine: Machine;
  weights: Weights;
  peers: boolean;
  blocks: number;
  steps: number;
}

/** 4×256 tokens a step: by weights, compute type, threads, and PEFT's where `peers`. */
export async function timeTraining({ machine, weights, peers, blocks, steps }: TrainingOptions): Promise<TrainingResult[]> {
  const { threads, isa } = machine;
  const ours = (name: string, compute: NativeComputeType, model: string, count: number, ...flags: string[]): Entry => ({
    name,
    compute,
    threads: count,
    start: () => startOurs(name, 'train_ours.mjs', count, [model, ...computeFlags(compute), ...flags]),
  });
  const entries: Entry[] = [
    ...computeTypes(machine).flatMap((compute) => [
      ours('lowrank, bf16 weights', compute, weights.folder, threads),
      ours('lowrank, GGUF Q4_1 weights', compute, weights.gguf, threads),
      ...(threads > 1 ? [ours('lowrank, bf16 weights', compute, weights.folder, 1)] : []),
    ]),
    ours('lowrank, GGUF Q4_1 weights, checkpointing', machine.compute, weights.gguf, threads, '--checkpointing'),
  ];
  if (peers) {
    // Without instructions for it bf16 is emulated.
    for (const dtype of machine.bf16 ? (['fp32', 'bf16'] as const) : (['fp32'] as const)) {
      for (const compile of [false, true]) {
        entries.push({
          name: `PEFT${compile ? ' + torch.compile' : ''}`,
          compute: dtype === 'fp32' ? 'f32' : 'bf16',
          threads,
          start: () =>
            startHuggingFace({ gguf: weights.gguf, threads, dtype, compile, isa, method: 'lora', optim: 'adamw', checkpointing: false }),
        });
      }
    }
  }
  return timeInterleaved(entries, blocks, steps);
}

/** Where the time of a 4×256 step on bf16 weights goes, by compute type. */
export async function timeShares(machine: Machine, weights: Weights): Promise<SharesResult[]> {
  const results: SharesResult[] = [];
  for (const compute of computeTypes(machine)) {
    const child = startOurs(`lowrank ${compute}`, 'train_ours.mjs', machine.threads, [weights.folder, ...computeFlags(compute)]);
    await child.ready();
    const { seconds, ops } = await child.profile(kProfiledSteps);
    child.close();
    const shares: Record<string, number> = {};
    for (const [op, spent] of Object.entries(ops).sort(([, a], [, b]) => b - a)) if (spent > 0) shares[op] = spent / seconds;
    shares.other = 1 - Object.values(shares).reduce((sum, share) => sum + share, 0);
    results.push({ compute, stepMilliseconds: (1000 * seconds) / kProfiledSteps, shares });
  }
  return results;
}

/** One sequence of each length a step, in the compute type that training takes by itself. */
export async function timeLengths(machine: Machine, weights: Weights): Promise<LengthResult[]> {
  const { compute } = machine;
  const results: LengthResult[] = [];
  for (const length of kLengths) {
    const flags = ['--batch', '1', '--length', String(length), '--warmup-length', '256', ...computeFlags(compute)];
    process.stderr.write(`1×${length} ${compute}\n`);
    const child = startOurs(`lowrank, 1×${length}`, 'train_ours.mjs', machine.threads, [weights.folder, ...flags]);
    await child.ready();
    // As many steps as take some seconds; a step of the longest takes a minute by itself.
    const block = await child.run(Math.max(1, Math.floor(4096 / length)));
    child.close();
    const { dense, attention } = flopsPerToken(length);
    results.push({
      length,
      compute,
      tokensPerSecond: block.tokens_per_second,
      peakMemoryBytes: block.peak_rss_bytes,
      flopsPerToken: dense + attention,
    });
  }
  return results;
}
