import { LowrankError } from '../errors.ts';

/** Best-fit decreasing: each length goes into the fullest group that still has room. Gives groups of indices; no length is cut. */
export function packLengths(lengths: ArrayLike<number>, capacity: number): number[][] {
  if (!Number.isInteger(capacity) || capacity < 1)
    throw new LowrankError('INVALID_OPTION', `maxSeqLength is ${capacity}, expected a positive integer`);
  const order = Array.from({ length: lengths.length }, (_, i) => i).sort(
    (a, b) => (lengths[b] as number) - (lengths[a] as number) || a - b,
  );
  const groups: number[][] = [];
  const open = new RoomIndex(capacity);
  for (const index of order) {
    const length = lengths[index] as number;
    if (length > capacity)
      throw new LowrankError('INVALID_OPTION', `row ${index} has ${length} tokens, more than maxSeqLength ${capacity}`);
    const found = open.take(length);
    const group = found?.group ?? groups.push([]) - 1;
    (groups[group] as number[]).push(index);
    open.put((found?.room ?? capacity) - length, group);
  }
  return groups;
}

/** Groups by the room that is left in them; one bit for each room that some group has. */
class RoomIndex {
  readonly #groups: number[][];
  readonly #bits: Uint32Array;

  constructor(capacity: number) {
    this.#groups = Array.from({ length: capacity + 1 }, () => []);
    this.#bits = new Uint32Array((capacity >> 5) + 1);
  }

  put(room: number, group: number): void {
    if (room === 0) return;
    (this.#groups[room] as number[]).push(group);
    this.#bits[room >> 5] = (this.#bits[room >> 5] as number) | (1 << (room & 31));
  }

  /** Takes out a group with the least room of at least `length`. */
  take(length: number): { room: number; group: number } | undefined {
    let word = length >> 5;
    let bits = (this.#bits[word] ?? 0) & (-1 << (length & 31));
    while (bits === 0 && ++word < this.#bits.length) bits = this.#bits[word] as number;
    if (bits === 0) return undefined;
    const room = word * 32 + (31 - Math.clz32(bits & -bits));
    const groups = this.#groups[room] as number[];
    const group = groups.pop() as number;
    if (groups.length === 0) this.#bits[word] = (this.#bits[word] as number) & ~(1 << (room & 31));
    return { room, group };
  }
}
