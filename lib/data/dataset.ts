import { LowrankError, shown } from '../errors.ts';
import type { Tokenizer } from '../tokenizer/tokenizer.ts';
import type { TokenRow } from '../types.ts';
import { supervisedTokens } from './batch.ts';
import { explainRow } from './explain.ts';
import { parseSplitOptions, type SplitOptions } from './load_options.ts';
import { permutation } from './shuffle.ts';

/** What loading found. */
export interface DatasetStats {
  rows: number;
  tokens: number;
  /** Tokens that are something's target. */
  supervisedTokens: number;
  /** Tokens of the longest row. */
  longest: number;
  /** Malformed rows that onBadRow: 'skip' left out. */
  skippedRows: number;
  /** The first of them, named. */
  skipped: string[];
  /** Rows longer than maxSeqLength, and the supervised tokens they lost. */
  truncatedRows: number;
  lostTokens: number;
  /** Rows in which nothing was left to train on. */
  droppedRows: number;
}

/** What came of loading beside the rows. */
export type DatasetReport = Pick<DatasetStats, 'skippedRows' | 'skipped' | 'truncatedRows' | 'lostTokens' | 'droppedRows'>;

/**
 * Tokenised rows, in memory as 32-bit ids.
 *
 * ```ts
 * const dataset = await loadDataset('train.jsonl', { tokenizer, maxSeqLength: 1024 });
 * console.log(dataset.length, dataset.stats().supervisedTokens);
 * console.log(dataset.explain(0));
 * ```
 */
export class Dataset {
  readonly #rows: readonly TokenRow[];
  /** What the rows were tokenised with. */
  readonly tokenizer: Tokenizer | undefined;
  readonly #report: DatasetReport;

  constructor(rows: readonly TokenRow[], tokenizer: Tokenizer | undefined, report: DatasetReport) {
    this.#rows = rows;
    this.tokenizer = tokenizer;
    this.#report = report;
  }

  /** Rows. */
  get length(): number {
    return this.#rows.length;
  }

  /** Ids and labels of a row; not to be written to. */
  row(index: number): TokenRow {
    const row = this.#rows[index];
    if (!row) throw new LowrankError('INVALID_OPTION', `row ${index} does not exist: there are ${this.length}, counted from 0`);
    return row;
  }

  stats(): DatasetStats {
    const stats = { rows: this.length, tokens: 0, supervisedTokens: 0, longest: 0 };
    for (const { inputIds, labels } of this.#rows) {
      stats.tokens += inputIds.length;
      stats.supervisedTokens += supervisedTokens(labels);
      stats.longest = Math.max(stats.longest, inputIds.length);
    }
    return { ...stats, ...this.#report, skipped: [...this.#report.skipped] };
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<{ inputIds: number[]; labels: number[] }> {
    for (const { inputIds, labels } of this.#rows) yield { inputIds: Array.from(inputIds), labels: Array.from(labels) };
  }

  /** A row's tokens as text, those that are trained on marked; a row by its number, or as the iterator gives it. */
  explain(row: number | { inputIds: ArrayLike<number>; labels: ArrayLike<number> }): string {
    if (typeof row === 'number') return explainRow(this.row(row), this.tokenizer);
    if (typeof row !== 'object' || row === null || !row.inputIds || row.inputIds.length !== row.labels?.length)
      throw new LowrankError('INVALID_OPTION', `explain: found ${shown(row)}, expected a row's number or { inputIds, labels }`);
    return explainRow({ inputIds: Int32Array.from(row.inputIds), labels: Int32Array.from(row.labels) }, this.tokenizer);
  }

  /** The rows at these indices, in this order. */
  select(indices: ArrayLike<number>): Dataset {
    const rows = Array.from(indices, (index) => this.row(index));
    return new Dataset(rows, this.tokenizer, { skippedRows: 0, skipped: [], truncatedRows: 0, lostTokens: 0, droppedRows: 0 });
  }
}

/**
 * Two data sets that share no row, drawn by `seed`: `testSize` is a share of the rows (below 1) or their number. Rows keep their order.
 * Throws INVALID_OPTION when one of the two would be empty.
 */
export function splitDataset(dataset: Dataset, options: SplitOptions): { train: Dataset; test: Dataset } {
  const { testSize, seed } = parseSplitOptions(options);
  const count = testSize < 1 ? Math.ceil(testSize * dataset.length) : testSize;
  if (!Number.isInteger(count) || count < 1 || count >= dataset.length) {
    throw new LowrankError(
      'INVALID_OPTION',
      `testSize is ${testSize}; expected a share or a number that leaves rows on both sides of ${dataset.length}`,
    );
  }
  const order = permutation(dataset.length, seed, 0);
  return { train: dataset.select(order.slice(count).sort()), test: dataset.select(order.slice(0, count).sort()) };
}
