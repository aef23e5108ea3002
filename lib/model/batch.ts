import { LowrankError, shown, suggestion } from '../errors.ts';
import type { NativeBatch } from '../native.ts';
import { unknownOption } from '../options/parse.ts';

/** Rows of token ids; rows may differ in length. */
export interface InputBatch {
  inputIds: ArrayLike<number>[];
  /** 1: a token; 0: padding. Left out: all are tokens. */
  attentionMask?: ArrayLike<number>[];
}

/** Rows with their labels, as Transformers takes them: not shifted, -100 is ignored. */
export interface Batch extends InputBatch {
  labels: ArrayLike<number>[];
}

export interface PackedRows {
  native: NativeBatch;
  /** Row and column that each packed token came from. */
  rows: Int32Array;
  columns: Int32Array;
  /** Longest row. */
  width: number;
}

/** Ids that mean "predict nothing here". */
export const kIgnoredLabel = -100;

/**
 * Packs the tokens of a batch, leaving out padding. A token's position is its column, as in Transformers; with `windowed`, where windows
 * count tokens, padding between tokens is refused.
 */
export function packRows(batch: InputBatch, vocabSize: number, windowed: boolean): PackedRows {
  checkKeys(batch);
  const { inputIds, attentionMask } = batch;
  checkRows('inputIds', inputIds);
  if (attentionMask !== undefined) checkSameShape('attentionMask', attentionMask, inputIds);
  const total = inputIds.reduce((sum, row) => sum + row.length, 0);
  const ids = new Int32Array(total);
  const rows = new Int32Array(total);
  const columns = new Int32Array(total);
  const starts = [0];
  let count = 0;
  inputIds.forEach((row, r) => {
    const mask = attentionMask?.[r];
    for (let c = 0; c < row.length; ++c) {
      if (mask && !isToken(mask[c], r, c)) continue;
      if (windowed && count > (starts.at(-1) as number) && columns[count - 1] !== c - 1) {
        throw new LowrankError(
          'INVALID_OPTION',
          `attentionMask[${r}] has padding between tokens, at column ${c - 1}; a model with sliding windows takes padding at the ends only`,
        );
      }
      ids[count] = checkedId(row[c], vocabSize, `inputIds[${r}][${c}]`);
      rows[count] = r;
      columns[count++] = c;
    }
    if (count > (starts.at(-1) as number)) starts.push(count);
  });
  if (count === 0) throw new LowrankError('INVALID_OPTION', 'inputIds holds no token; expected at least one row with at least one token');
  return {
    native: { ids: ids.slice(0, count), positions: columns.slice(0, count), starts: Int32Array.from(starts) },
    rows: rows.slice(0, count),
    columns: columns.slice(0, count),
    width: Math.max(...inputIds.map((row) => row.length)),
  };
}

const BATCH_KEYS = ['inputIds', 'attentionMask', 'labels'];

/** A misspelt mask would silently be left out; what else a caller keeps beside a batch is the caller's own. */
function checkKeys(batch: unknown): void {
  if (typeof batch !== 'object' || batch === null)
    throw new LowrankError('INVALID_OPTION', `batch: found ${shown(batch)}, expected { inputIds, attentionMask?, labels? }`);
  const misspelt = Object.keys(batch).find((key) => !BATCH_KEYS.includes(key) && suggestion(key, BATCH_KEYS));
  if (misspelt !== undefined) throw unknownOption(`batch.${misspelt}`, misspelt, BATCH_KEYS);
}

/** What each packed token is to predict: the label one column on, which is how Transformers shifts. */
export function shiftedTargets(packed: PackedRows, batch: Batch, vocabSize: number): Int32Array {
  checkSameShape('labels', batch.labels, batch.inputIds);
  const targets = new Int32Array(packed.rows.length).fill(kIgnoredLabel);
  for (let i = 0; i < targets.length; ++i) {
    const row = packed.rows[i] as number;
    const column = (packed.columns[i] as number) + 1;
    const labels = batch.labels[row] as ArrayLike<number>;
    if (column >= labels.length || labels[column] === kIgnoredLabel) continue;
    targets[i] = checkedId(labels[column], vocabSize, `labels[${row}][${column}]`);
  }
  return targets;
}

/** An id of the vocabulary. */
export function checkedId(value: unknown, vocabSize: number, name: string): number {
  if (typeof value === 'number' && Number.isInteger(value) && value >= 0 && value < vocabSize) return value;
  throw new LowrankError('INVALID_OPTION', `${name} is ${shown(value)}; expected a token id from 0 to ${vocabSize - 1}`);
}

function isToken(value: number | undefined, row: number, column: number): boolean {
  if (value === 0 || value === 1) return value === 1;
  throw new LowrankError('INVALID_OPTION', `attentionMask[${row}][${column}] is ${shown(value)}; expected 0 or 1`);
}

function checkRows(name: string, rows: unknown): asserts rows is ArrayLike<number>[] {
  const isRow = (row: unknown) => Array.isArray(row) || (ArrayBuffer.isView(row) && 'length' in row);
  if (Array.isArray(rows) && rows.every(isRow)) return;
  throw new LowrankError('INVALID_OPTION', `${name} is ${shown(rows)}; expected an array of rows of numbers`);
}

function checkSameShape(name: string, rows: unknown, inputIds: ArrayLike<number>[]): void {
  checkRows(name, rows);
  if (rows.length !== inputIds.length)
    throw new LowrankError('SHAPE_MISMATCH', `${name} has ${rows.length} rows; inputIds has ${inputIds.length}`);
  rows.forEach((row, r) => {
    const expected = (inputIds[r] as ArrayLike<number>).length;
    if (row.length !== expected)
      throw new LowrankError('SHAPE_MISMATCH', `${name}[${r}] has ${row.length} columns; inputIds[${r}] has ${expected}`);
  });
}
