// Every op of a training step at SmolLM2-135M's shapes, against its floor on this machine.
import { run } from '../lib/kernels/checks.ts';
import { native } from '../lib/native.ts';

export interface OpResult {
  op: string;
  shape: string;
  /** Best of several, all threads. */
  milliseconds: number;
  /** What bounds it. */
  bound: 'flops' | 'bytes';
  gflops?: number;
  gbytes?: number;
  /** Of the measured peak of what bounds it. */
  share: number;
  /** The same product in OpenBLAS; undefined where it is not installed. */
  openblasMilliseconds?: number;
}

interface Peaks {
  flopsPerSecond: number;
  bytesPerSecond: number;
}

const kTokens = 1024;
const kHidden = 576;
const kFfn = 1536;
const kVocabulary = 49152;
const kHeads = 9;
const kKvHeads = 3;
const kHeadDim = 64;
const kRank = 16;
const kRepeats = 9;

let state = 1;
function random(length: number): Float32Array {
  const values = new Float32Array(length);
  for (let i = 0; i < length; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    values[i] = state / 2 ** 31 - 1;
  }
  return values;
}

/** bf16 bytes of random values. */
function randomBf16(length: number): Uint8Array {
  const source = new Uint16Array(random(length).buffer);
  const out = new Uint16Array(length);
  for (let i = 0; i < length; i++) out[i] = source[2 * i + 1]!;
  return new Uint8Array(out.buffer);
}

function best(call: () => void): number {
  let fastest = Number.POSITIVE_INFINITY;
  call();
  for (let i = 0; i < kRepeats; i++) {
    const begin = performance.now();
    call();
    fastest = Math.min(fastest, performance.now() - begin);
  }
  return fastest;
}

/** Times ops one by one and calls `report` with each result. */
export class OpBench {
  readonly #peaks: Peaks;
  readonly #report: (result: OpResult) => void;

  constructor(peaks: Peaks, report: (result: OpResult) => void) {
    this.#peaks = peaks;
    this.#report = report;
  }

  #flops(op: string, shape: string, flops: number, call: () => void, openblasMilliseconds?: number): void {
    const milliseconds = best(call);
    const gflops = flops / milliseconds / 1e6;
    this.#report({
      op,
      shape,
      milliseconds,
      bound: 'flops',
      gflops,
      share: (gflops * 1e9) / this.#peaks.flopsPerSecond,
      openblasMilliseconds,
    });
  }

  #bytes(op: string, shape: string, bytes: number, call: () => void): void {
    const milliseconds = best(call);
    const gbytes = bytes / milliseconds / 1e6;
    this.#report({ op, shape, milliseconds, bound: 'bytes', gbytes, share: (gbytes * 1e9) / this.#peaks.bytesPerSecond });
  }

  async gemm(): Promise<void> {
    for (const [n, k] of [
      [kFfn, kHidden],
      [kHidden, kFfn],
      [kHidden, kHidden],
      [192, kHidden],
    ] as const) {
      const a = random(kTokens * k);
      const c = new Float32Array(kTokens * n);
      const weight = randomBf16(n * k);
      const openblas = (await native().timeOpenblas(kTokens, n, k)) ?? undefined;
      const shape = `${kTokens}x${n}x${k}`;
      this.#flops(
        'gemm X·Wᵀ, bf16 W',
        shape,
        2 * kTokens * n * k,
        () => run('gemm', a, false, weight, 'BF16', n, k, true, kTokens, n, k, undefined, c, false),
        openblas && openblas * 1000,
      );
      const dy = random(kTokens * n);
      const dx = new Float32Array(kTokens * k);
      this.#flops('gemm dY·W, bf16 W', shape, 2 * kTokens * n * k, () =>
        run('gemm', dy, false, weight, 'BF16', n, k, false, kTokens, k, n, undefined, dx, false),
      );
    }
    const rowBytes = run('rowBytes', 'Q4_1', kHidden) as number;
    const quantized = new Uint8Array(kFfn * rowBytes);
    const a = random(kTokens * kHidden);
    const c = new Float32Array(kTokens * kFfn);
    this.#flops('gemm X·Wᵀ, Q4_1 W', `${kTokens}x${kFfn}x${kHidden}`, 2 * kTokens * kFfn * kHidden, () =>
      run('gemm', a, false, quantized, 'Q4_1', kFfn, kHidden, true, kTokens, kFfn, kHidden, undefined, c, false),
    );
  }

  loraLinear(): void {
    const weight = randomBf16(kFfn * kHidden);
    const x = random(kTokens * kHidden);
    const s = new Float32Array(kTokens * 2 * kRank);
    const dx = new Float32Array(kTokens * kHidden);
    const projection = () => {
      const lora = [random(kRank * kHidden), random(kFfn * kRank), kRank, 2, 0, 0];
      return {
        forward: [weight, 'BF16', kFfn, kHidden, undefined, [lora], new Float32Array(kTokens * kFfn)],
        backward: [
          weight,
          'BF16',
          kFfn,
          kHidden,
          undefined,
          [[...lora, new Float32Array(kRank * kHidden), new Float32Array(kFfn * kRank)]],
          random(kTokens * kFfn),
          undefined,
          undefined,
        ],
      };
    };
    const pair = [projection(), projection()];
    const shape = `${kTokens}x2·${kFfn}x${kHidden} r=${kRank}`;
    const base = 2 * kTokens * 2 * kFfn * kHidden;
    const lora = 2 * kTokens * 2 * kRank * (kHidden + kFfn);
    this.#flops('lora_linear gate, up', shape, base + lora, () =>
      run(
        'loraLinear',
        x,
        kTokens,
        kHidden,
        pair.map(({ forward }) => forward),
        s,
        0,
      ),
    );
    this.#flops('lora_linear gate, up backward', shape, base + 2 * lora, () =>
      run(
        'loraLinearBackward',
        x,
        kTokens,
        kHidden,
        pair.map(({ backward }) => backward),
        s,
        0,
        dx,
      ),
    );
  }

  attention(): void {
    for (const [rows, length] of [
      [4, 256],
      [1, 2048],
    ] as const) {
      const tokens = rows * length;
      const starts = Int32Array.from({ length: rows + 1 }, (_, row) => row * length);
      const q = random(tokens * kHeads * kHeadDim);
      const k = random(tokens * kKvHeads * kHeadDim);
      const v = random(tokens * kKvHeads * kHeadDim);
      const o = new Float32Array(q.length);
      const lse = new Float32Array(tokens * kHeads);
      const positional = [kHeads, kKvHeads, kHeadDim, 0.125, 0, starts, starts, rows, q, k, v];
      const pairs = (rows * length * (length + 1)) / 2;
      const shape = `${rows}x${length}, ${kHeads}/${kKvHeads} heads of ${kHeadDim}`;
      this.#flops('attention', shape, 4 * pairs * kHeads * kHeadDim, () => run('attention', ...positional, o, lse));
      const dO = random(q.length);
      const gradients = [new Float32Array(q.length), new Float32Array(k.length), new Float32Array(v.length)];
      this.#flops('attention backward', shape, 10 * pairs * kHeads * kHeadDim, () =>
        run('attentionBackward', ...positional, o, lse, dO, ...gradients),
      );
    }
  }

  head(): void {
    const h = random(kTokens * kHidden);
    const weight = randomBf16(kVocabulary * kHidden);
    const targets = Int32Array.from({ length: kTokens }, (_, i) => (i * 7919) % kVocabulary);
    const dh = new Float32Array(h.length);
    const loss = new Float64Array(2);
    this.#flops('head + cross-entropy + dH', `${kTokens}x${kVocabulary}x${kHidden}`, 4 * kTokens * kVocabulary * kHidden, () =>
      run('linearCrossEntropy', h, weight, 'BF16', kVocabulary, kHidden, targets, kTokens, 1, dh, undefined, loss),
    );
  }

  elementwise(): void {
    const bytes = 4 * kTokens;
    const x = random(kTokens * kHidden);
    const w = random(kHidden);
    const y = new Float32Array(x.length);
    const invRms = new Float32Array(kTokens);
    const shape = `${kTokens}x${kHidden}`;
    this.#bytes('rms_norm', shape, bytes * 2 * kHidden, () => run('rmsNorm', x, w, 1e-5, kTokens, kHidden, y, invRms));
    const dy = random(x.length);
    const dw = new Float32Array(kHidden);
    this.#bytes('rms_norm backward', shape, bytes * 3 * kHidden, () => run('rmsNormBackward', x, w, invRms, dy, kTokens, kHidden, y, dw));
    const gate = random(kTokens * kFfn);
    const up = random(kTokens * kFfn);
    const h = new Float32Array(gate.length);
    const ffn = `${kTokens}x${kFfn}`;
    this.#bytes('swiglu', ffn, bytes * 3 * kFfn, () => run('swiglu', gate, up, kTokens, kFfn, h));
    const dh = random(gate.length);
    const dGate = new Float32Array(gate.length);
    const dUp = new Float32Array(gate.length);
    this.#bytes('swiglu backward', ffn, bytes * 5 * kFfn, () => run('swigluBackward', gate, up, dh, kTokens, kFfn, dGate, dUp));
    const cos = random((kTokens * kHeadDim) / 2);
    this.#bytes('rope', `${kTokens}x${kHeads}x${kHeadDim}`, bytes * 2 * kHidden, () =>
      run('rope', y, kTokens, kHeads, kHeadDim, kHeadDim, cos, cos, false),
    );
    this.#bytes('dropout', shape, bytes * 2 * kHidden, () => run('dropout', x, kTokens, kHidden, 0.1, 1, 2, y));
  }

  optimizer(): void {
    const n = 4_884_480;
    const [g, p, m, v] = [random(n), random(n), new Float32Array(n), new Float32Array(n)];
    this.#bytes('adamw', `${n}`, 4 * 7 * n, () => run('adamW', 1e-4, 0.9, 0.999, 1e-8, 0, 1, 1, n, g, p, m, v));
    const norm = new Float64Array(1);
    this.#bytes('gradient norm', `${n}`, 4 * n, () => run('gradNorm', [[g, n]], norm));
  }

  async all(): Promise<void> {
    await this.gemm();
    this.loraLinear();
    this.attention();
    this.head();
    this.elementwise();
    this.optimizer();
  }
}
