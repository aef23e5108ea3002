// Ways of training in little memory: quantised bases, checkpointing, 8-bit optimizers, and all weights trained instead of an adapter;
// ours and the peers' on the same work.

import { startOurs } from './child.ts';
import { type Entry, type TrainingResult, timeInterleaved } from './interleaved.ts';
import type { Machine } from './machine.ts';
import { type PeerOptions, q4KMFile, startHuggingFace } from './peers.ts';
import type { TrainingOptions } from './training.ts';

export interface MemoryResult extends TrainingResult {
  /** What the tables call it. */
  letter: string;
  method: string;
  weights: string;
  optimizer: string;
  /** 'no', 'full', or the budget that layers are chosen for. */
  checkpointing: string;
  /** Rows, by their letters, that it is compared with. */
  against: string[];
}

type Row = Omit<MemoryResult, keyof TrainingResult> & { entry: Entry };
type Setting = Pick<Row, 'letter' | 'method' | 'weights' | 'optimizer' | 'checkpointing'> & { against?: string[]; flags: string[] };

function ours(machine: Machine, model: string, { flags, against = [], ...about }: Setting): Row {
  const { threads, compute } = machine;
  const name = 'lowrank';
  const args = [model, '--optim', about.optimizer, ...flags];
  if (about.checkpointing === 'full') args.push('--checkpointing');
  if (compute === 'bf16') args.push('--bf16');
  return {
    ...about,
    against,
    entry: { name, compute, threads, start: () => startOurs(`${name} ${about.letter}`, 'train_ours.mjs', threads, args) },
  };
}

function peer(
  machine: Machine,
  gguf: string,
  name: string,
  { method, optim }: Pick<PeerOptions, 'method' | 'optim'>,
  about: Pick<Row, 'letter' | 'method' | 'weights'>,
): Row {
  const { threads, isa, bf16 } = machine;
  const start = () =>
    startHuggingFace({ gguf, threads, isa, dtype: bf16 ? 'bf16' : 'fp32', compile: false, method, optim, checkpointing: true });
  const optimizer = optim === 'adamw' ? 'adamw_torch_fused' : 'bitsandbytes AdamW8bit';
  return { ...about, optimizer, checkpointing: 'full', against: [], entry: { name, compute: bf16 ? 'bf16' : 'f32', threads, start } };
}

const kWindow = 64 * 2 ** 20;
const kBudget = 1.1 * 2 ** 30;

/** 4×256 tokens a step. */
export async function timeMemory({ machine, weights, peers, blocks, steps }: TrainingOptions): Promise<MemoryResult[]> {
  const { folder, gguf } = weights;
  const q4km = peers ? q4KMFile(gguf) : undefined;
  const full = { method: 'all weights', weights: 'bf16', optimizer: 'paged_adamw_8bit', against: peers ? ['Q', 'R'] : [] };
  const fullFlags = ['--method', 'full', '--optimizer-memory', String(kWindow)];
  const lora = { method: 'LoRA', weights: 'bf16', flags: [] as string[] };
  const rows = [
    ours(machine, folder, { ...lora, letter: 'A', optimizer: 'adamw_torch', checkpointing: 'no' }),
    ours(machine, folder, { ...lora, letter: 'B', optimizer: 'paged_adamw_8bit', checkpointing: 'no', against: ['A'] }),
    ours(machine, folder, { ...lora, letter: 'C', optimizer: 'paged_adamw_8bit', checkpointing: 'full', against: ['B'] }),
    ours(machine, gguf, {
      ...lora,
      letter: 'D',
      weights: 'GGUF Q4_1',
      optimizer: 'paged_adamw_8bit',
      checkpointing: 'full',
      against: ['C'],
    }),
    ours(machine, folder, {
      letter: 'E',
      method: 'QLoRA',
      weights: 'NF4, double quantisation',
      flags: ['--method', 'qlora'],
      optimizer: 'paged_adamw_8bit',
      checkpointing: 'full',
      against: ['C', ...(peers ? ['P'] : [])],
    }),
    ours(machine, folder, { ...full, letter: 'F', checkpointing: 'full', flags: fullFlags }),
    ours(machine, folder, {
      ...full,
      letter: 'G',
      checkpointing: 'budget of 1.1 GiB',
      flags: [...fullFlags, '--budget', String(kBudget)],
    }),
    ...(q4km
      ? [
          ours(machine, q4km, {
            ...lora,
            letter: 'H',
            weights: 'GGUF Q4_K_M',
            optimizer: 'paged_adamw_8bit',
            checkpointing: 'no',
            against: ['B'],
          }),
        ]
      : []),
  ];
  if (peers) {
    const theirs = { method: 'all weights', weights: 'bf16' };
    rows.push(
      peer(
        machine,
        gguf,
        'PEFT + bitsandbytes',
        { method: 'qlora', optim: 'adamw_8bit' },
        { letter: 'P', method: 'QLoRA', weights: 'NF4, double quantisation' },
      ),
      peer(machine, gguf, 'Transformers', { method: 'full', optim: 'adamw' }, { letter: 'Q', ...theirs }),
      peer(machine, gguf, 'Transformers', { method: 'full', optim: 'adamw_8bit' }, { letter: 'R', ...theirs }),
    );
  }
  const results = await timeInterleaved(
    rows.map(({ entry }) => entry),
    blocks,
    steps,
  );
  return rows.map(({ entry: _, ...about }, i) => ({ ...about, ...results[i]! }));
}
