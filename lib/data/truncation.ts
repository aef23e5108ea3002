import type { TokenRow } from '../types.ts';
import { IGNORED, supervisedTokens } from './batch.ts';

/** What becomes of a row that is longer than maxSeqLength: cut on the right or left, dropped, or split into several rows. */
export type Truncation = 'right' | 'left' | 'drop' | 'split';

export const TRUNCATIONS: readonly Truncation[] = ['right', 'left', 'drop', 'split'];

/** The pieces of a row that are kept; the row itself when it is short enough. */
export function truncate(row: TokenRow, maxSeqLength: number | undefined, policy: Truncation): TokenRow[] {
  const length = row.inputIds.length;
  if (maxSeqLength === undefined || length <= maxSeqLength) return [row];
  const piece = (start: number, end: number): TokenRow => {
    const inputIds = row.inputIds.slice(start, end);
    // Where all is trained on, ids and labels are one array.
    return { inputIds, labels: row.labels === row.inputIds ? inputIds : row.labels.slice(start, end) };
  };
  if (policy === 'drop') return [];
  if (policy === 'right') return [piece(0, maxSeqLength)];
  if (policy === 'left') return [piece(length - maxSeqLength, length)];
  const pieces: TokenRow[] = [];
  for (let start = 0; start < length; start += maxSeqLength) pieces.push(piece(start, Math.min(length, start + maxSeqLength)));
  return pieces;
}

/** Labels from token spans: those of tokens that overlap a span of the text, −100 elsewhere. Offsets are start and end by turns. */
export function labelsOfSpans(ids: Int32Array, offsets: Int32Array, spans: readonly (readonly [number, number])[]): Int32Array {
  const labels = new Int32Array(ids.length).fill(IGNORED);
  let span = 0;
  for (let t = 0; t < ids.length; t++) {
    const start = offsets[2 * t] as number;
    const end = offsets[2 * t + 1] as number;
    while (span < spans.length && start >= (spans[span] as readonly [number, number])[1]) span++;
    if (span === spans.length) break;
    if (end > (spans[span] as readonly [number, number])[0]) labels[t] = ids[t] as number;
  }
  return labels;
}

/** Supervised tokens that truncation took away. */
export function lostLabels(row: TokenRow, pieces: readonly TokenRow[]): number {
  return supervisedTokens(row.labels) - pieces.reduce((sum, piece) => sum + supervisedTokens(piece.labels), 0);
}
