// Generation from one GGUF, ours and llama.cpp's, each in a process of its own. They take turns, block by block, and never run at once.
import { startOurs } from './child.ts';
import { startLlama } from './llama.ts';
import { computeTypes, type Machine } from './machine.ts';

export interface GenerationOptions {
  machine: Machine;
  /** SmolLM2-135M, Q4_1. */
  gguf: string;
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
export async function timeGeneration({ machine, gguf, peers, blocks = kBlocks }: GenerationOptions): Promise<GenerationResult[]> {
  const { threads, isa } = machine;
  const children = computeTypes(machine).map((compute) =>
    startOurs<Block>(`lowrank ${compute}`, 'generate_ours.mjs', threads, [gguf, compute]),
  );
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
