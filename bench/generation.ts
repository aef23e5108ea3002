// Generation from one GGUF, ours and llama.cpp's, each in a process of its own. They take turns, block by block, and never run at once.
import { fileURLToPath } from 'node:url';
import { BenchChild } from './child.ts';
import { startLlama } from './llama.ts';

export interface GenerationOptions {
  /** SmolLM2-135M, Q4_1. */
  gguf: string;
  threads: number;
  /** The level that we run at. */
  isa: string;
  /** Whether this level computes in bf16, which long prompts gain by. */
  bf16: boolean;
  /** With llama.cpp. */
  peers: boolean;
  /** Turns of each. */
  blocks?: number;
}

/** Of the best block. */
export interface GenerationResult {
  name: string;
  /** A prompt of 512 tokens, up to its first new token. */
  promptTokensPerSecond: number;
  /** One row, greedy: 127 tokens after the first. */
  decodeTokensPerSecond: number;
  /** The same in 16 rows at once, of all of them together. */
  decode16TokensPerSecond: number;
  peakMemoryBytes: number;
  versions?: Record<string, string>;
}

interface Block {
  prompt_tokens_per_second: number;
  decode_tokens_per_second: number;
  batch_tokens_per_second: number;
  peak_rss_bytes: number;
}

const kBlocks = 3;
const kRoundsOfBlock = 2;

function startOurs(gguf: string, threads: number, compute: 'f32' | 'bf16'): BenchChild<Block> {
  const compiled = fileURLToPath(new URL('../dist/index.js', import.meta.url));
  const script = fileURLToPath(new URL('./generate_ours.mjs', import.meta.url));
  return new BenchChild(`lowrank ${compute}`, process.execPath, [script, compiled, gguf, compute], {
    ...process.env,
    LOWRANK_THREADS: String(threads),
  });
}

function summary(name: string, blocks: Block[], versions?: Record<string, string>): GenerationResult {
  const best = (of: (block: Block) => number) => Math.max(...blocks.map(of));
  return {
    name,
    promptTokensPerSecond: best((block) => block.prompt_tokens_per_second),
    decodeTokensPerSecond: best((block) => block.decode_tokens_per_second),
    decode16TokensPerSecond: best((block) => block.batch_tokens_per_second),
    peakMemoryBytes: best((block) => block.peak_rss_bytes),
    ...(versions && { versions }),
  };
}

/** Prompts, decoding and batched decoding: ours by compute type and, where `peers`, llama.cpp's. */
export async function generation({ gguf, threads, isa, bf16, peers, blocks = kBlocks }: GenerationOptions): Promise<GenerationResult[]> {
  const children = [startOurs(gguf, threads, 'f32')];
  if (bf16) children.push(startOurs(gguf, threads, 'bf16'));
  if (peers) children.push(startLlama<Block>({ gguf, threads, isa }));
  try {
    const versions: (Record<string, string> | undefined)[] = [];
    for (const child of children) versions.push((await child.ready()).versions as Record<string, string> | undefined);
    const results: Block[][] = children.map(() => []);
    for (let block = 0; block < blocks; block++) {
      for (const [i, child] of children.entries()) results[i]!.push(await child.run(kRoundsOfBlock));
    }
    return children.map((child, i) => summary(child.name, results[i]!, versions[i]));
  } finally {
    for (const child of children) child.close();
  }
}
