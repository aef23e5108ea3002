// Seeded input, comparison with a reference, and gradients by finite differences: what the tests of the kernels share.
import assert from 'node:assert/strict';

/** LOWRANK_TEST_SEED, or a fixed one; every failure names it. */
const SEED = Number(process.env.LOWRANK_TEST_SEED ?? 20240607);

/** mulberry32: small, seedable, the same everywhere. */
export class Random {
  #state: number;

  constructor(seed = SEED) {
    this.#state = seed >>> 0;
  }

  uniform(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let t = this.#state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  }

  below(n: number): number {
    return Math.floor(this.uniform() * n);
  }

  coin(): boolean {
    return this.uniform() < 0.5;
  }

  normals(length: number, scale = 1): Float32Array {
    return Float32Array.from({ length }, () => {
      const radius = Math.sqrt(-2 * Math.log(1 - this.uniform()));
      return scale * radius * Math.cos(2 * Math.PI * this.uniform());
    });
  }

  bytes(length: number, below = 256): Uint8Array {
    return Uint8Array.from({ length }, () => this.below(below));
  }

  ints(length: number, below: number): Int32Array {
    return Int32Array.from({ length }, () => this.below(below));
  }
}

/** Doubles of any list of numbers: the references compute in them. */
export const doubles = (values: ArrayLike<number>): Float64Array => Float64Array.from(values);

/** Each element within `relative` of the largest magnitude wanted, which `floor` bounds from below. */
export function assertClose(got: ArrayLike<number>, want: ArrayLike<number>, relative: number, what: string, floor = 1e-3): void {
  assert.equal(got.length, want.length, `${what}: length`);
  let largest = floor;
  for (let i = 0; i < want.length; i++) largest = Math.max(largest, Math.abs(want[i]!));
  for (let i = 0; i < want.length; i++) {
    const difference = Math.abs(got[i]! - want[i]!);
    if (!(difference <= relative * largest)) {
      assert.fail(`${what} [${i}]: ${got[i]} instead of ${want[i]} (tolerance ${relative * largest}; LOWRANK_TEST_SEED=${SEED})`);
    }
  }
}

/**
 * Compares gradients with central differences of `loss`, which computes in double precision, at some elements of each input. The
 * tolerance, of the largest element but at least of 1, covers the fp32 rounding of the gradient; the differences are good to about 1e-8.
 */
export function assertGradients<K extends string>(
  what: string,
  inputs: Record<K, ArrayLike<number>>,
  gradients: Record<K, ArrayLike<number>>,
  loss: (inputs: Record<K, Float64Array>) => number,
  relative = 2e-5,
): void {
  const random = new Random(SEED + 1);
  const step = 1e-6;
  for (const name of Object.keys(gradients) as K[]) {
    const moved = Object.fromEntries(Object.entries<ArrayLike<number>>(inputs).map(([key, value]) => [key, doubles(value)])) as Record<
      K,
      Float64Array
    >;
    const values = moved[name];
    const gradient = gradients[name];
    assert.equal(gradient.length, values.length, `${what} d${name}: length`);
    let largest = 1;
    for (let i = 0; i < gradient.length; i++) largest = Math.max(largest, Math.abs(gradient[i]!));
    for (let n = 0; n < Math.min(12, values.length); n++) {
      const i = values.length <= 12 ? n : random.below(values.length);
      const original = values[i]!;
      values[i] = original + step;
      const above = loss(moved);
      values[i] = original - step;
      const below = loss(moved);
      values[i] = original;
      const want = (above - below) / (2 * step);
      if (!(Math.abs(gradient[i]! - want) <= relative * largest)) {
        assert.fail(`${what} d${name}[${i}]: ${gradient[i]} instead of ${want} by differences (LOWRANK_TEST_SEED=${SEED})`);
      }
    }
  }
}

/** Σ a·b: the loss whose gradient by `a` is `b`. */
export function dot(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i]! * b[i]!;
  return sum;
}

/** Expects a LowrankError of `code` whose message names `words`. */
export function assertRefused(run: () => unknown, code: string, ...words: string[]): void {
  assert.throws(run, (error: Error & { code?: string }) => {
    assert.equal(error.name, 'LowrankError', error.stack);
    assert.equal(error.code, code, error.message);
    for (const word of words) assert.ok(error.message.includes(word), `'${error.message}' does not name '${word}'`);
    return true;
  });
}
