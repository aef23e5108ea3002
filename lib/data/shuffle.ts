/** A generator of 32-bit integers from a seed and a stream number (sfc32); the same numbers for the same pair, everywhere. */
function randomUint32(seed: number, stream: number): () => number {
  let a = seed >>> 0;
  let b = Math.floor(seed / 2 ** 32) >>> 0;
  let c = stream >>> 0;
  let counter = 1;
  const next = () => {
    const result = (a + b + counter) >>> 0;
    counter = (counter + 1) >>> 0;
    a = (b ^ (b >>> 9)) >>> 0;
    b = (c + (c << 3)) >>> 0;
    c = (((c << 21) | (c >>> 11)) + result) >>> 0;
    return result;
  };
  for (let i = 0; i < 16; i++) next();
  return next;
}

/** The order of `length` things in one epoch: a permutation of 0 … length − 1 that depends on seed and epoch alone. */
export function permutation(length: number, seed: number, epoch: number): Int32Array {
  const order = Int32Array.from({ length }, (_, i) => i);
  const next = randomUint32(seed, epoch);
  for (let i = length - 1; i > 0; i--) {
    const j = below(i + 1, next);
    const held = order[i] as number;
    order[i] = order[j] as number;
    order[j] = held;
  }
  return order;
}

/** Uniform in [0, bound): draws that would favour small numbers are thrown away. */
function below(bound: number, next: () => number): number {
  const limit = 2 ** 32 - (2 ** 32 % bound);
  let value = next();
  while (value >= limit) value = next();
  return value % bound;
}
