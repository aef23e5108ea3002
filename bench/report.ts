// Results as Markdown tables: what the terminal shows and what results/<machine>.md holds.
import type { GenerationResult } from './generation.ts';
import type { TrainingResult } from './interleaved.ts';
import type { Machine } from './machine.ts';
import type { MemoryResult } from './memory.ts';
import type { OpResult } from './ops.ts';
import type { StartupResult } from './startup.ts';
import type { LengthResult, SharesResult } from './training.ts';

type Align = 'left' | 'right';

/** Aligned by spaces too, so that it reads well in a terminal. */
function table(columns: [string, Align][], rows: string[][]): string {
  const widths = columns.map(([title], i) => Math.max(title.length, 4, ...rows.map((row) => row[i]!.length)));
  const pad = (text: string, i: number) => (columns[i]![1] === 'left' ? text.padEnd(widths[i]!) : text.padStart(widths[i]!));
  const line = (cells: string[]) => `| ${cells.map(pad).join(' | ')} |`;
  const rule = columns.map(([, align], i) => (align === 'left' ? '-'.repeat(widths[i]!) : `${'-'.repeat(widths[i]! - 1)}:`));
  return [line(columns.map(([title]) => title)), line(rule), ...rows.map(line)].join('\n');
}

const percent = (share: number) => `${Math.round(100 * share)} %`;
const gibibytes = (bytes: number) => `${(bytes / 2 ** 30).toFixed(2)} GiB`;
const times = (ratio: number) => `${ratio.toFixed(2)}×`;

export function machineText(machine: Machine): string {
  const { flopsPerSecond, bf16FlopsPerSecond, bytesPerSecond } = machine.peaks;
  const speeds = [
    `${Math.round(flopsPerSecond / 1e9)} GFLOP/s fp32`,
    ...(bf16FlopsPerSecond ? [`${Math.round(bf16FlopsPerSecond / 1e9)} GFLOP/s bf16`] : []),
    ...(bytesPerSecond.level2 ? [`L2 ${Math.round(bytesPerSecond.level2 / 1e9)} GB/s`] : []),
    ...(bytesPerSecond.level3 ? [`L3 ${Math.round(bytesPerSecond.level3 / 1e9)} GB/s`] : []),
    `memory ${Math.round(bytesPerSecond.memory / 1e9)} GB/s`,
  ];
  return `${machine.cpu}, ${machine.threads} threads, ${machine.isa}. Peaks measured in this run: ${speeds.join(', ')} (reading).`;
}

export function opsTable(results: OpResult[]): string {
  const rows = results.map((result) => [
    result.op,
    result.shape,
    result.compute,
    result.milliseconds.toFixed(3),
    result.gflops ? `${Math.round(result.gflops)} GFLOP/s` : `${Math.round(result.gbytes)} GB/s`,
    result.bound,
    result.floorMilliseconds.toFixed(3),
    percent(result.share),
    result.openblasMilliseconds?.toFixed(3) ?? '',
  ]);
  return table(
    [
      ['op', 'left'],
      ['shape', 'left'],
      ['compute', 'left'],
      ['ms', 'right'],
      ['rate', 'right'],
      ['bound by', 'left'],
      ['floor, ms', 'right'],
      ['of the floor', 'right'],
      ['OpenBLAS, ms', 'right'],
    ],
    rows,
  );
}

/** Each peer's column: ours of the same compute type on bf16 weights against it. */
export function trainingTable(results: TrainingResult[]): string {
  const threads = Math.max(...results.map((result) => result.threads));
  const rows = results.map((result) => {
    const ours = results.find((other) => other.compute === result.compute && other.threads === threads)!;
    return [
      result.name,
      result.compute,
      String(result.threads),
      String(Math.round(result.tokensPerSecond)),
      String(Math.round(result.medianTokensPerSecond)),
      gibibytes(result.peakMemoryBytes),
      times(ours.tokensPerSecond / result.tokensPerSecond),
    ];
  });
  return table(
    [
      ['training, 4×256 tokens a step', 'left'],
      ['compute', 'left'],
      ['threads', 'right'],
      ['tokens/s, best block', 'right'],
      ['median', 'right'],
      ['peak memory', 'right'],
      ['lowrank, bf16 weights, against it', 'right'],
    ],
    rows,
  );
}

/** Each row's speed against the rows that it names. */
export function memoryTable(results: MemoryResult[]): string {
  const rows = results.map((result) => [
    result.letter,
    result.name,
    result.method,
    result.weights,
    result.optimizer,
    result.checkpointing,
    String(Math.round(result.tokensPerSecond)),
    String(Math.round(result.medianTokensPerSecond)),
    result.updateMilliseconds.toFixed(1),
    `${Math.round(result.peakMemoryBytes / 2 ** 20)} MiB`,
    result.against
      .map((letter) => `${times(result.tokensPerSecond / results.find((other) => other.letter === letter)!.tokensPerSecond)} ${letter}`)
      .join(', '),
  ]);
  return table(
    [
      ['', 'left'],
      ['4×256 tokens a step', 'left'],
      ['trained', 'left'],
      ['weights', 'left'],
      ['optimizer', 'left'],
      ['checkpointing', 'left'],
      ['tokens/s, best block', 'right'],
      ['median', 'right'],
      ['update, ms', 'right'],
      ['peak memory', 'right'],
      ['speed against', 'right'],
    ],
    rows,
  );
}

export function sharesTable(results: SharesResult[]): string {
  const ops = [...new Set(results.flatMap(({ shares }) => Object.keys(shares)))].filter((op) => op !== 'other');
  const rows = [...ops, 'other'].map((op) => [
    op,
    ...results.map(({ shares, stepMilliseconds }) => {
      const share = shares[op] ?? 0;
      return `${(share * stepMilliseconds).toFixed(1)} ms, ${(100 * share).toFixed(1)} %`;
    }),
  ]);
  return table(
    [
      ['of a step of 4×256 tokens', 'left'],
      ...results.map(({ compute, stepMilliseconds }): [string, Align] => [`${compute}: ${stepMilliseconds.toFixed(0)} ms`, 'right']),
    ],
    rows,
  );
}

export function lengthsTable(results: LengthResult[]): string {
  const reference = results.find(({ length }) => length === 1024) ?? results[0]!;
  const rows = results.map((result) => [
    String(result.length),
    result.compute,
    String(Math.round(result.tokensPerSecond)),
    times(result.tokensPerSecond / reference.tokensPerSecond),
    times(reference.flopsPerToken / result.flopsPerToken),
    `${Math.round((result.tokensPerSecond * result.flopsPerToken) / 1e9)} GFLOP/s`,
    gibibytes(result.peakMemoryBytes),
  ]);
  return table(
    [
      ['one sequence of', 'right'],
      ['compute', 'left'],
      ['tokens/s', 'right'],
      [`of the speed at ${reference.length}`, 'right'],
      ['its flop alone allow', 'right'],
      ['rate', 'right'],
      ['peak memory', 'right'],
    ],
    rows,
  );
}

export function generationTable(results: GenerationResult[]): string {
  const rows = results.map((result) => [
    result.name,
    String(Math.round(result.promptTokensPerSecond)),
    String(Math.round(result.decodeTokensPerSecond)),
    String(Math.round(result.decode16TokensPerSecond)),
    times(result.decode16TokensPerSecond / result.decodeTokensPerSecond),
    gibibytes(result.peakMemoryBytes),
  ]);
  return table(
    [
      ['tokens/s', 'left'],
      ['prompt of 512', 'right'],
      ['decoding, 1 row', 'right'],
      ['16 rows', 'right'],
      ['16 rows against 1', 'right'],
      ['peak memory', 'right'],
    ],
    rows,
  );
}

export function startupTable(results: StartupResult[]): string {
  const rows = results.map(({ weights, whole, phases }) => {
    const { import: imported, model, rows, prepare, firstStep, secondStep } = phases;
    return [weights, ...[whole, imported, model, rows, prepare, firstStep, secondStep].map((milliseconds) => milliseconds.toFixed(0))];
  });
  return table(
    [
      ['weights', 'left'],
      ['to the first step, ms', 'right'],
      ['of it or before: import', 'right'],
      ['model, tokenizer', 'right'],
      ['rows', 'right'],
      ['adapter, packing', 'right'],
      ['first step', 'right'],
      ['a later one', 'right'],
    ],
    rows,
  );
}
