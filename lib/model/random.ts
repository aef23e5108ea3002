import { setImmediate } from 'node:timers/promises';

/**
 * A seeded stream of random numbers (xoshiro128**, Blackman & Vigna 2018) for initial weights. A stream belongs to a seed and a name, so that
 * a tensor's values depend on nothing else: not on the order of tensors and not on which others there are.
 */
class RandomStream {
  readonly #state: Uint32Array;
  #spare: number | undefined;

  constructor(seed: number, name: string) {
    let hash = mix((seed >>> 0) ^ 0x9e3779b9) ^ mix(Math.floor(seed / 2 ** 32) >>> 0);
    for (let i = 0; i < name.length; ++i) hash = mix(hash ^ name.charCodeAt(i));
    this.#state = Uint32Array.from([1, 2, 3, 4], (word) => mix(hash + Math.imul(word, 0x9e3779b9)));
    if (this.#state.every((word) => word === 0)) this.#state[0] = 1;
  }

  /** Uniform in [0, 1), 32 bits. */
  next(): number {
    const s = this.#state as unknown as [number, number, number, number];
    const scrambled = Math.imul(rotateLeft(Math.imul(s[1], 5), 7), 9) >>> 0;
    const shifted = s[1] << 9;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= shifted;
    s[3] = rotateLeft(s[3], 11);
    return scrambled / 2 ** 32;
  }

  /** Standard normal (Box & Muller 1958). */
  normal(): number {
    if (this.#spare !== undefined) {
      const value = this.#spare;
      this.#spare = undefined;
      return value;
    }
    const radius = Math.sqrt(-2 * Math.log(1 - this.next()));
    const angle = 2 * Math.PI * this.next();
    this.#spare = radius * Math.sin(angle);
    return radius * Math.cos(angle);
  }
}

/** `count` values uniform in [-bound, bound). */
export function uniformValues(seed: number, name: string, count: number, bound: number): Promise<Float32Array> {
  const stream = new RandomStream(seed, name);
  return draw(count, () => (2 * stream.next() - 1) * bound);
}

/** `count` normal values of mean 0. */
export function normalValues(seed: number, name: string, count: number, deviation: number): Promise<Float32Array> {
  const stream = new RandomStream(seed, name);
  return draw(count, () => stream.normal() * deviation);
}

/** Values drawn without letting the event loop turn: some milliseconds. */
const kChunk = 1 << 17;

async function draw(count: number, next: () => number): Promise<Float32Array> {
  const values = new Float32Array(count);
  for (let i = 0; i < count; ++i) {
    values[i] = next();
    if ((i + 1) % kChunk === 0) await setImmediate();
  }
  return values;
}

function rotateLeft(value: number, bits: number): number {
  return (value << bits) | (value >>> (32 - bits));
}

/** A finaliser that spreads every bit (MurmurHash3's). */
function mix(value: number): number {
  let h = value >>> 0;
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return (h ^ (h >>> 16)) >>> 0;
}
