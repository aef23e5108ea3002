import { LowrankError, throwIfAborted } from '../errors.ts';
import type { TokenRow } from '../types.ts';
import { supervisedTokens } from './batch.ts';
import { Dataset, type DatasetReport } from './dataset.ts';
import { encodeExamples } from './encode.ts';
import { asRow, BadRow, type DatasetFormat, detectFormat, type Example, readExample } from './formats.ts';
import { type LoadDatasetOptions, parseLoadDatasetOptions, type ResolvedLoadDatasetOptions } from './load_options.ts';
import { type RowSource, readRows, type SourceRow } from './source.ts';
import { lostLabels, truncate } from './truncation.ts';

/** Rows are rendered and tokenised in groups of at most so many rows and, about, characters; so many groups are on their way at once. */
const GROUP_ROWS = 64;
const GROUP_CHARACTERS = 1 << 16;
const GROUPS_ON_THE_WAY = 4;
/** The event loop gets its turn after this many milliseconds. */
const BREATH = 5;
const SKIPPED_NAMED = 20;

interface Group {
  where: string[];
  examples: Example[];
}

/**
 * Reads rows and turns them into token ids with labels. Throws INVALID_DATASET naming file and line of a malformed row, or when nothing is
 * left to train on.
 */
export async function loadDataset(source: RowSource | Dataset, options: LoadDatasetOptions = {}): Promise<Dataset> {
  const resolved = parseLoadDatasetOptions(options);
  const tokenizer = resolved.tokenizer ?? (source instanceof Dataset ? source.tokenizer : undefined);
  return new DatasetLoader({ ...resolved, tokenizer }).load(source);
}

class DatasetLoader {
  readonly #options: ResolvedLoadDatasetOptions;
  readonly #rows: TokenRow[] = [];
  readonly #report: DatasetReport = { skippedRows: 0, skipped: [], truncatedRows: 0, lostTokens: 0, droppedRows: 0 };
  #format: DatasetFormat | undefined;
  #seen = 0;

  constructor(options: ResolvedLoadDatasetOptions) {
    this.#options = options;
    this.#format = options.format;
  }

  async load(source: RowSource | Dataset): Promise<Dataset> {
    const { tokenizer, signal, completionOnlyLoss } = this.#options;
    const onTheWay: Promise<{ group: Group; encoded: (TokenRow | Error)[] }>[] = [];
    try {
      for await (const group of this.#groups(readRows(source, signal))) {
        throwIfAborted(signal);
        const work = encodeExamples(group.examples, tokenizer, completionOnlyLoss).then((encoded) => ({ group, encoded }));
        onTheWay.push(work);
        // It is awaited in its turn; until then its failure must not count as unhandled.
        work.catch(() => undefined);
        if (onTheWay.length >= GROUPS_ON_THE_WAY) await this.#collect(onTheWay);
      }
      while (onTheWay.length > 0) await this.#collect(onTheWay);
    } finally {
      await Promise.allSettled(onTheWay);
    }
    throwIfAborted(signal);
    this.#checkRest();
    return new Dataset(this.#rows, tokenizer, this.#report);
  }

  async *#groups(rows: AsyncIterable<SourceRow>): AsyncGenerator<Group> {
    let group: Group = { where: [], examples: [] };
    let characters = 0;
    let since = performance.now();
    for await (const row of rows) {
      this.#seen++;
      const example = this.#read(row);
      if (performance.now() - since > BREATH) {
        await new Promise((resolve) => setImmediate(resolve));
        since = performance.now();
      }
      if (!example) continue;
      group.where.push(row.where);
      group.examples.push(example);
      characters += exampleCharacters(example);
      if (group.examples.length < GROUP_ROWS && characters < GROUP_CHARACTERS) continue;
      yield group;
      group = { where: [], examples: [] };
      characters = 0;
    }
    if (group.examples.length > 0) yield group;
  }

  #read(row: SourceRow): Example | undefined {
    try {
      if ('problem' in row) throw new BadRow(row.problem);
      const { mapping, tokenizer, completionOnlyLoss } = this.#options;
      const columns = asRow(row.value, mapping);
      this.#format ??= detectFormat(columns);
      if (completionOnlyLoss === true && this.#format === 'text') {
        throw new LowrankError(
          'INVALID_DATASET',
          `${row.where}: completionOnlyLoss is true, but rows of plain text have no completion; expected { prompt, completion } or { messages }`,
        );
      }
      return readExample(columns, this.#format, tokenizer?.chatTemplate !== undefined);
    } catch (error) {
      this.#bad(row.where, error);
      return undefined;
    }
  }

  /** Counts a bad row, or throws its error with its place. */
  #bad(where: string, error: unknown): void {
    const isRowError = error instanceof BadRow || (error instanceof LowrankError && error.code === 'INVALID_TEMPLATE');
    if (!isRowError) throw error;
    const message = `${where}: ${error.message}`;
    if (this.#options.onBadRow !== 'skip') {
      throw new LowrankError(error instanceof LowrankError ? error.code : 'INVALID_DATASET', message, { cause: error });
    }
    this.#report.skippedRows++;
    if (this.#report.skipped.length < SKIPPED_NAMED) this.#report.skipped.push(message);
  }

  async #collect(onTheWay: Promise<{ group: Group; encoded: (TokenRow | Error)[] }>[]): Promise<void> {
    const { group, encoded } = await (onTheWay.shift() as (typeof onTheWay)[number]);
    encoded.forEach((row, i) => {
      if (row instanceof Error) this.#bad(group.where[i] as string, row);
      else this.#keep(row);
    });
  }

  #keep(row: TokenRow): void {
    const { maxSeqLength, truncation } = this.#options;
    const pieces = truncate(row, maxSeqLength, truncation);
    if (pieces[0] !== row) {
      this.#report.truncatedRows++;
      this.#report.lostTokens += lostLabels(row, pieces);
    }
    const kept = pieces.filter((piece) => supervisedTokens(piece.labels) > 0);
    if (kept.length === 0) this.#report.droppedRows++;
    for (const piece of kept) this.#rows.push(piece);
  }

  #checkRest(): void {
    const { skippedRows, skipped, truncatedRows, lostTokens, droppedRows } = this.#report;
    const warn = this.#options.onWarning ?? ((message: string) => process.emitWarning(message, 'LowrankWarning'));
    const parts = [`${this.#seen} rows`];
    if (skippedRows > 0) parts.push(`${skippedRows} malformed and skipped (first: ${skipped[0]})`);
    if (truncatedRows > 0)
      parts.push(`${truncatedRows} longer than maxSeqLength ${this.#options.maxSeqLength} (${lostTokens} supervised tokens lost)`);
    if (droppedRows > 0) parts.push(`${droppedRows} dropped because nothing to train on was left in them`);
    if (this.#rows.length === 0) throw new LowrankError('INVALID_DATASET', `no row is left to train on: ${parts.join(', ')}`);
    if (parts.length > 1) warn(parts.join(', '));
  }
}

function exampleCharacters(example: Example): number {
  if (example.kind === 'text') return example.text.length;
  if (example.kind === 'completion') return example.prompt.length + example.completion.length;
  if (example.kind === 'tokens') return 4 * example.inputIds.length;
  return example.messages.reduce((sum, { content }) => sum + (typeof content === 'string' ? content.length : 64), 0);
}
