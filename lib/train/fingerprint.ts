import { createHash } from 'node:crypto';
import { setImmediate } from 'node:timers/promises';
import { shown } from '../errors.ts';
import type { TokenRow } from '../types.ts';

/** A part of a fingerprint: names to JSON values. */
export type FingerprintPart = Record<string, unknown>;

/** What a checkpoint was made with. Another value of the first kind would make a resumed training another training. */
export interface Fingerprint {
  required: {
    data: FingerprintPart;
    base: FingerprintPart;
    adapter: FingerprintPart;
    batch: FingerprintPart;
    length: FingerprintPart;
    seed: FingerprintPart;
  };
  /** Differences here are worth a word only. */
  noted: { schedule: FingerprintPart; machine: FingerprintPart };
}

/** Key of `base` under which a few numbers that the base computes lie; equal but for rounding. */
export const PROBE = 'probe';
const PROBE_TOLERANCE = 1e-3;

const HASH_SLICE_BYTES = 1 << 20;

/** SHA-256 over the token ids and labels of all rows, in order; gives way to the event loop between slices. */
export async function hashRows(rows: Iterable<TokenRow>): Promise<string> {
  const hash = createHash('sha256');
  let pending = 0;
  for (const { inputIds, labels } of rows) {
    hash.update(new Uint32Array([inputIds.length]));
    hash.update(bytesOf(inputIds));
    hash.update(bytesOf(labels));
    pending += inputIds.byteLength + labels.byteLength;
    if (pending > HASH_SLICE_BYTES) {
      await setImmediate();
      pending = 0;
    }
  }
  return hash.digest('hex');
}

export function hashJson(value: unknown): string {
  return createHash('sha256').update(JSON.stringify(value)).digest('hex');
}

/** What differs, as texts such as `batch.perDeviceTrainBatchSize was 4 and is 8`. */
export function differences(then: Fingerprint, now: Fingerprint): { required: string[]; noted: string[] } {
  return { required: compareParts(then.required, now.required), noted: compareParts(then.noted, now.noted) };
}

function compareParts(then: Record<string, FingerprintPart>, now: Record<string, FingerprintPart>): string[] {
  return Object.entries(now).flatMap(([part, values]) => {
    const former = then[part] ?? {};
    const keys = new Set([...Object.keys(former), ...Object.keys(values)]);
    return [...keys]
      .filter((key) => !same(key, former[key], values[key]))
      .map((key) => `${part}.${key} was ${shown(former[key])} and is ${shown(values[key])}`);
  });
}

function same(key: string, then: unknown, now: unknown): boolean {
  if (key === PROBE && Array.isArray(then) && Array.isArray(now)) return isClose(then as number[], now as number[]);
  return JSON.stringify(then) === JSON.stringify(now);
}

/** Another instruction set rounds otherwise; another base is far away. */
function isClose(then: readonly number[], now: readonly number[]): boolean {
  if (then.length !== now.length) return false;
  const squares = (values: readonly number[]) => values.reduce((sum, value) => sum + value * value, 0);
  const distance = squares(then.map((value, index) => value - (now[index] as number)));
  return distance <= PROBE_TOLERANCE ** 2 * Math.max(squares(then), Number.MIN_VALUE);
}

function bytesOf(values: Int32Array): Uint8Array {
  return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
}
