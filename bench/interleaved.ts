// Training steps of several competitors, each in a process of its own. They take turns, block by block, and never run at once.
import type { NativeComputeType } from '../lib/native.ts';
import type { BenchChild, BlockResult } from './child.ts';

export interface Entry {
  name: string;
  compute: NativeComputeType;
  threads: number;
  start(): BenchChild;
}

export interface TrainingResult {
  name: string;
  compute: NativeComputeType;
  threads: number;
  /** Of the best block and of the median one. */
  tokensPerSecond: number;
  medianTokensPerSecond: number;
  bestStepMilliseconds: number;
  /** Of the best step's clipping and optimizer. */
  updateMilliseconds: number;
  peakMemoryBytes: number;
  versions?: Record<string, string>;
}

function summary(entry: Entry, blocks: BlockResult[], versions?: Record<string, string>): TrainingResult {
  const rates = blocks.map((block) => block.tokens_per_second).sort((a, b) => b - a);
  return {
    name: entry.name,
    compute: entry.compute,
    threads: entry.threads,
    tokensPerSecond: rates[0]!,
    medianTokensPerSecond: rates[Math.floor(rates.length / 2)]!,
    bestStepMilliseconds: Math.min(...blocks.map((block) => block.step_ms.best)),
    updateMilliseconds: Math.min(...blocks.map((block) => block.update_ms)),
    peakMemoryBytes: Math.max(...blocks.map((block) => block.peak_rss_bytes)),
    ...(versions && { versions }),
  };
}

/** `blocks` turns of `steps` steps for each; results in the order of the entries. */
export async function timeInterleaved(entries: Entry[], blocks: number, steps: number): Promise<TrainingResult[]> {
  const children: { entry: Entry; child: BenchChild; done: BlockResult[]; versions?: Record<string, string> }[] = [];
  // One after the other, so that none warms up beside another's.
  for (const entry of entries) {
    const child = entry.start();
    const { versions } = (await child.ready()) as { versions?: Record<string, string> };
    children.push({ entry, child, done: [], versions });
  }
  for (let block = 0; block < blocks; block++) {
    for (const { child, done } of children) done.push(await child.run(steps));
  }
  for (const { child } of children) child.close();
  return children.map(({ entry, done, versions }) => summary(entry, done, versions));
}
