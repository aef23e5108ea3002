import { setImmediate } from 'node:timers/promises';
import { makeBatch, supervisedTokens } from '../data/batch.ts';
import { packLengths } from '../data/packing.ts';
import { permutation } from '../data/shuffle.ts';
import { LowrankError } from '../errors.ts';
import type { NativeTrainBatch } from '../native.ts';
import type { TokenRow } from '../types.ts';
import { hashRows } from './fingerprint.ts';
import type { TrainingData } from './trainable.ts';

/** Rows that can be had by number, such as a Dataset. */
export interface RowList {
  readonly length: number;
  row(index: number): TokenRow;
}

/** Rows looked at before the event loop gets its turn. */
const ROWS_AT_A_TIME = 256;

/** What there is to learn from. */
export interface DataSummary {
  rows: number;
  tokens: number;
  supervised: number;
  /** Rows with nothing to learn from; they are left out. */
  empty: number;
}

/** A data set divided into units: rows, or with packing groups of rows of up to maxSeqLength tokens. */
export class UnitData implements TrainingData {
  readonly identity: { rows: number; sha256: string };
  readonly summary: DataSummary;
  readonly #rows: RowList;
  readonly #units: readonly (readonly number[])[];
  readonly #lengths: readonly number[];

  private constructor(
    rows: RowList,
    units: readonly (readonly number[])[],
    lengths: readonly number[],
    summary: DataSummary,
    sha256: string,
  ) {
    this.#rows = rows;
    this.#units = units;
    this.#lengths = lengths;
    this.summary = summary;
    this.identity = { rows: summary.rows, sha256 };
  }

  /**
   * @param packInto most tokens of a unit; undefined: every row is a unit
   * @param name the option that gave the rows, for errors
   * @throws INVALID_DATASET when no row has a supervised token
   */
  static async from(rows: RowList, packInto: number | undefined, name: string): Promise<UnitData> {
    const used: number[] = [];
    const lengths: number[] = [];
    const summary: DataSummary = { rows: 0, tokens: 0, supervised: 0, empty: 0 };
    for (let index = 0; index < rows.length; ++index) {
      if (index % ROWS_AT_A_TIME === 0) await setImmediate();
      const { inputIds, labels } = rows.row(index);
      const supervised = supervisedTokens(labels);
      if (supervised === 0) {
        summary.empty += 1;
        continue;
      }
      used.push(index);
      lengths.push(inputIds.length);
      summary.tokens += inputIds.length;
      summary.supervised += supervised;
    }
    summary.rows = used.length;
    if (used.length === 0)
      throw new LowrankError(
        'INVALID_DATASET',
        `${name}: ${rows.length === 0 ? 'there are no rows' : `none of the ${rows.length} rows has a token to learn from`}`,
      );
    const sha256 = await hashRows(pick(rows, used));
    if (packInto === undefined)
      return new UnitData(
        rows,
        used.map((index) => [index]),
        lengths,
        summary,
        sha256,
      );
    const groups = packLengths(lengths, packInto);
    const units = groups.map((group) => group.map((place) => used[place] as number));
    const unitLengths = groups.map((group) => group.reduce((sum, place) => sum + (lengths[place] as number), 0));
    return new UnitData(rows, units, unitLengths, summary, sha256);
  }

  get units(): number {
    return this.#units.length;
  }

  batch(units: readonly number[]): NativeTrainBatch {
    return makeBatch(units.flatMap((unit) => (this.#units[unit] as readonly number[]).map((row) => this.#rows.row(row))));
  }

  order(seed: number, epoch: number): Int32Array {
    return permutation(this.units, seed, epoch);
  }

  /** Most tokens that `count` units can have together. */
  largest(count: number): number {
    const sorted = Int32Array.from(this.#lengths).sort();
    return sorted.subarray(Math.max(0, sorted.length - count)).reduce((sum, length) => sum + length, 0);
  }

  /** All units in order, in batches of at most `count` units and, beyond the first unit, `maxTokens` tokens. */
  *batches(count: number, maxTokens: number): Generator<NativeTrainBatch> {
    let units: number[] = [];
    let tokens = 0;
    for (const [unit, length] of this.#lengths.entries()) {
      if (units.length > 0 && (units.length === count || tokens + length > maxTokens)) {
        yield this.batch(units);
        units = [];
        tokens = 0;
      }
      units.push(unit);
      tokens += length;
    }
    if (units.length > 0) yield this.batch(units);
  }
}

function* pick(rows: RowList, indices: readonly number[]): Generator<TokenRow> {
  for (const index of indices) yield rows.row(index);
}
