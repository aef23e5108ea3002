import { LowrankError } from '../errors.ts';
import type { NativeTrainBatch } from '../native.ts';
import type { TokenRow } from '../types.ts';

/** A token that is nothing's target. */
export const IGNORED = -100;

/**
 * Lays rows one after another for the native side: positions restart with each row, and a token's target is the label of the next token
 * of the same row, so that the last token of a row has none.
 */
export function makeBatch(rows: readonly TokenRow[]): NativeTrainBatch {
  const total = rows.reduce((sum, row) => sum + row.inputIds.length, 0);
  const ids = new Int32Array(total);
  const positions = new Int32Array(total);
  const targets = new Int32Array(total).fill(IGNORED);
  const starts = new Int32Array(rows.length + 1);
  rows.forEach(({ inputIds, labels }, i) => {
    const start = starts[i] as number;
    if (inputIds.length === 0 || labels.length !== inputIds.length) {
      throw new LowrankError(
        'SHAPE_MISMATCH',
        `row ${i} has ${inputIds.length} ids and ${labels.length} labels, expected as many of each and at least one`,
      );
    }
    ids.set(inputIds, start);
    targets.set(labels.subarray(1), start);
    for (let t = 0; t < inputIds.length; t++) positions[start + t] = t;
    starts[i + 1] = start + inputIds.length;
  });
  return { ids, positions, starts, targets };
}

/** Tokens of a row that are something's target: labels from the second on. */
export function supervisedTokens(labels: Int32Array): number {
  let count = 0;
  for (let t = 1; t < labels.length; t++) if (labels[t] !== IGNORED) count++;
  return count;
}
