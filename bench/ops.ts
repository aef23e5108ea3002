// Every op of a training step at SmolLM2-135M's shapes, against its floor on this machine: the longer of its arithmetic at the peak of
// its number format and of a pass that only moves its bytes, from whichever cache holds them.
import { type NativeComputeType, type NativeTimedOp, native } from '../lib/native.ts';
import { levelOf, type Machine } from './machine.ts';
import { kSmolLm2 as model } from './smollm2.ts';

export interface OpResult {
  op: string;
  shape: string;
  compute: NativeComputeType;
  /** Best of several, all threads. */
  milliseconds: number;
  /** What bounds it: arithmetic, or moving bytes between the cores and this level ('bytes' where the caches' sizes are unknown). */
  bound: 'flops' | 'L2' | 'L3' | 'memory' | 'bytes';
  floorMilliseconds: number;
  /** Of the floor's speed. */
  share: number;
  gflops?: number;
  gbytes: number;
  /** The same product in OpenBLAS; undefined where it is not installed. */
  openblasMilliseconds?: number;
}

interface OpCase {
  call: NativeTimedOp;
  shape: string;
  flops?: number;
  /** Bytes that are only read, only written, and updated in place. */
  read?: number;
  written?: number;
  updated?: number;
}

const kTokens = 1024;
const kRank = 16;

function gemmCases(): OpCase[] {
  const { hidden, ffn, kvHeads, headDim } = model;
  const shapes = [
    [ffn, hidden],
    [hidden, ffn],
    [hidden, hidden],
    [kvHeads * headDim, hidden],
  ] as const;
  const gemm = (op: string, n: number, k: number, weight: string, weightBytes: number): OpCase => ({
    call: { op, tokens: kTokens, in: k, out: n, weight },
    shape: `${kTokens}x${n}x${k}, ${weight}`,
    flops: 2 * kTokens * n * k,
    read: 4 * kTokens * (op === 'gemm' ? k : n) + weightBytes * n * k,
    written: 4 * kTokens * (op === 'gemm' ? n : k),
  });
  return [
    ...shapes.flatMap(([n, k]) => [gemm('gemm', n, k, 'BF16', 2), gemm('gemm backward', n, k, 'BF16', 2)]),
    gemm('gemm', ffn, hidden, 'Q4_1', 0.625),
    gemm('gemm backward', ffn, hidden, 'Q4_1', 0.625),
  ];
}

/** Gate and up: two projections of one input. */
function loraCases(): OpCase[] {
  const { hidden, ffn } = model;
  const base = 2 * kTokens * 2 * ffn * hidden;
  const lora = 2 * kTokens * 2 * kRank * (hidden + ffn);
  const [x, y, weights] = [4 * kTokens * hidden, 4 * kTokens * 2 * ffn, 2 * 2 * ffn * hidden];
  const sizes = { tokens: kTokens, in: hidden, out: ffn, group: 2, rank: kRank };
  const shape = `${kTokens}x2·${ffn}x${hidden}, r=${kRank}`;
  return [
    { call: { op: 'lora_linear', ...sizes }, shape, flops: base + lora, read: x + weights, written: y },
    { call: { op: 'lora_linear backward', ...sizes }, shape, flops: base + 2 * lora, read: x + y + weights, written: x },
  ];
}

/** Activations and gradients are stored in the compute type. */
function attentionCases(compute: NativeComputeType): OpCase[] {
  const { heads, kvHeads, headDim } = model;
  const bytes = compute === 'bf16' ? 2 : 4;
  return [
    [4, 256],
    [1, 2048],
  ].flatMap(([sequences, tokens]) => {
    const pairs = (sequences! * tokens! * (tokens! + 1)) / 2;
    const [q, kv] = [heads, kvHeads].map((count) => sequences! * tokens! * count * headDim) as [number, number];
    const sizes = { sequences, tokens, heads, kvHeads, headDim };
    const shape = `${sequences}x${tokens}, ${heads}/${kvHeads} heads of ${headDim}`;
    return [
      { call: { op: 'attention', ...sizes }, shape, flops: 4 * pairs * heads * headDim, read: bytes * (q + 2 * kv), written: bytes * q },
      {
        call: { op: 'attention backward', ...sizes },
        shape,
        flops: 10 * pairs * heads * headDim,
        read: bytes * (3 * q + 2 * kv),
        written: bytes * (q + 2 * kv),
      },
    ];
  });
}

function headCase(): OpCase {
  const { hidden, vocabulary } = model;
  return {
    call: { op: 'head', tokens: kTokens, in: hidden, out: vocabulary },
    shape: `${kTokens}x${vocabulary}x${hidden}, with cross-entropy and dH`,
    flops: 4 * kTokens * vocabulary * hidden,
    read: 4 * kTokens * hidden + 2 * vocabulary * hidden,
    written: 4 * kTokens * hidden,
  };
}

function elementwiseCases(): OpCase[] {
  const { hidden, ffn, heads, headDim, loraParameters: n } = model;
  const [x, f] = [4 * kTokens * hidden, 4 * kTokens * ffn];
  const rows = (op: string, channels: number, read: number, written: number): OpCase => ({
    call: { op, tokens: kTokens, in: channels },
    shape: `${kTokens}x${channels}`,
    read,
    written,
  });
  return [
    rows('rms_norm', hidden, x, x),
    rows('rms_norm backward', hidden, 2 * x, x),
    rows('swiglu', ffn, 2 * f, f),
    rows('swiglu backward', ffn, 3 * f, 2 * f),
    rows('dropout', hidden, x, x),
    {
      call: { op: 'rope', tokens: kTokens, heads, headDim },
      shape: `${kTokens}x${heads}x${headDim}`,
      read: 4 * kTokens * headDim,
      updated: x,
    },
    { call: { op: 'adamw', in: n }, shape: `${n}`, read: 4 * n, updated: 3 * 4 * n },
    { call: { op: 'gradient norm', in: n }, shape: `${n}`, read: 4 * n },
  ];
}

/** Times ops one by one and calls `report` with each result. */
export async function timeOps(machine: Machine, report: (result: OpResult) => void): Promise<OpResult[]> {
  const floors = new Map<string, number>();
  async function trafficSeconds(read: number, written: number, updated: number): Promise<number> {
    const key = `${read} ${written} ${updated}`;
    const seconds = floors.get(key) ?? (await native().timeTraffic(read, written, updated));
    floors.set(key, seconds);
    return seconds;
  }
  async function time(op: OpCase, compute: NativeComputeType): Promise<OpResult> {
    const { flops = 0, read = 0, written = 0, updated = 0 } = op;
    const seconds = await native().timeOp(op.call, compute === 'bf16');
    const peak = compute === 'bf16' ? machine.peaks.bf16FlopsPerSecond! : machine.peaks.flopsPerSecond;
    const traffic = await trafficSeconds(read, written, updated);
    const floor = Math.max(flops / peak, traffic);
    const gemm = op.call.op === 'gemm' && op.call.weight === 'BF16' && compute === 'f32';
    const openblas = gemm ? await native().timeOpenblas(kTokens, op.call.out!, op.call.in!) : null;
    return {
      op: op.call.op,
      shape: op.shape,
      compute,
      milliseconds: 1000 * seconds,
      bound: flops / peak > traffic ? 'flops' : levelOf(machine, read + written + updated),
      floorMilliseconds: 1000 * floor,
      share: floor / seconds,
      ...(flops && { gflops: flops / seconds / 1e9 }),
      gbytes: (read + written + 2 * updated) / seconds / 1e9,
      ...(openblas !== null && { openblasMilliseconds: 1000 * openblas }),
    };
  }

  const computed: NativeComputeType[] = machine.peaks.bf16FlopsPerSecond ? ['f32', 'bf16'] : ['f32'];
  const cases: [OpCase, NativeComputeType][] = [
    ...computed.flatMap((compute) =>
      [...gemmCases(), ...loraCases(), headCase(), ...attentionCases(compute)].map((op): [OpCase, NativeComputeType] => [op, compute]),
    ),
    ...elementwiseCases().map((op): [OpCase, NativeComputeType] => [op, 'f32']),
  ];
  const results: OpResult[] = [];
  for (const [op, compute] of cases) {
    const result = await time(op, compute);
    results.push(result);
    report(result);
  }
  return results;
}
