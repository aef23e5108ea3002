// npm run bench [-- --peers] [--compile] [--json FILE] [--blocks N] [--skip-ops]
// Prints every op's share of its floor on this machine, then training tokens/s and peak memory; with --peers, PEFT's on the same
// work, interleaved block by block. Figures are the best of several: these machines are shared.
import { mkdirSync, writeFileSync } from 'node:fs';
import { cpus } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { fetchSmolLm2 } from '../lib/hub/smollm2.ts';
import { userCacheFolder } from '../lib/hub/user_cache.ts';
import { CausalLM } from '../lib/index.ts';
import { native } from '../lib/native.ts';
import { BenchChild, type BlockResult } from './child.ts';
import { OpBench, type OpResult } from './ops.ts';
import { startPeft } from './peers.ts';

const { values } = parseArgs({
  options: {
    peers: { type: 'boolean', default: false },
    compile: { type: 'boolean', default: false },
    'skip-ops': { type: 'boolean', default: false },
    json: { type: 'string' },
    blocks: { type: 'string', default: '4' },
    steps: { type: 'string', default: '3' },
  },
});

interface TrainingResult {
  name: string;
  /** Of the best block and of the median one. */
  tokensPerSecond: number;
  medianTokensPerSecond: number;
  bestStepMilliseconds: number;
  peakMemoryBytes: number;
}

/** SmolLM2's weights as bf16 safetensors, made once from the GGUF. */
async function bf16Model(gguf: string): Promise<string> {
  const folder = join(userCacheFolder(), 'models', 'SmolLM2-135M-Instruct-bf16');
  const model = await CausalLM.fromPretrained(gguf);
  await model.savePretrained(folder, { dtype: 'bfloat16' });
  await model.dispose();
  return folder;
}

function summary(name: string, blocks: BlockResult[]): TrainingResult {
  const rates = blocks.map((block) => block.tokens_per_second).sort((a, b) => b - a);
  return {
    name,
    tokensPerSecond: rates[0]!,
    medianTokensPerSecond: rates[Math.floor(rates.length / 2)]!,
    bestStepMilliseconds: Math.min(...blocks.map((block) => block.step_ms.best)),
    peakMemoryBytes: Math.max(...blocks.map((block) => block.peak_rss_bytes)),
  };
}

async function training(): Promise<TrainingResult[]> {
  const gguf = await fetchSmolLm2();
  const { threads, isa, bf16 } = native().systemInfo();
  const compiled = fileURLToPath(new URL('../dist/index.js', import.meta.url));
  const script = fileURLToPath(new URL('./train_ours.mjs', import.meta.url));
  const ours = (name: string, model: string, ...flags: string[]) =>
    new BenchChild(name, process.execPath, [script, compiled, model, ...flags]);
  const folder = await bf16Model(gguf);
  const children = [
    ours('lowrank, bf16 weights', folder),
    ...(bf16 ? [ours('lowrank bf16, bf16 weights', folder, '--bf16')] : []),
    ours('lowrank, GGUF Q4_1 weights', gguf),
    ours('lowrank, GGUF Q4_1, checkpointing', gguf, '--checkpointing'),
  ];
  if (values.peers) {
    children.push(
      startPeft({ gguf, threads, dtype: 'fp32', compile: false, isa }),
      startPeft({ gguf, threads, dtype: 'bf16', compile: false, isa }),
    );
    if (values.compile) children.push(startPeft({ gguf, threads, dtype: 'fp32', compile: true, isa }));
  }
  // One after the other, so that none warms up beside another's.
  const blocks = new Map<BenchChild, BlockResult[]>();
  for (const child of children) {
    await child.ready();
    blocks.set(child, []);
  }
  for (let block = 0; block < Number(values.blocks); block++) {
    for (const child of children) blocks.get(child)!.push(await child.run(Number(values.steps)));
  }
  for (const child of children) child.close();
  return children.map((child) => summary(child.name, blocks.get(child)!));
}

function printOp(result: OpResult): void {
  const rate = result.gflops ? `${result.gflops.toFixed(0)} GFLOP/s` : `${result.gbytes!.toFixed(1)} GB/s`;
  const peer = result.openblasMilliseconds ? `  OpenBLAS ${result.openblasMilliseconds.toFixed(2)} ms` : '';
  const share = `${Math.round(100 * result.share)} % of ${result.bound === 'flops' ? 'peak FLOP/s' : 'memory speed'}`;
  console.log(
    `${result.op.padEnd(30)} ${result.shape.padEnd(26)} ${result.milliseconds.toFixed(3).padStart(9)} ms  ${rate.padStart(13)}  ${share}${peer}`,
  );
}

function printTraining(results: TrainingResult[]): void {
  console.log(
    '\n| training: 4×256 tokens, LoRA r=16 on all linears, SmolLM2-135M | tokens/s (best block; median) | peak memory | ours against it |',
  );
  console.log('| --- | ---: | ---: | ---: |');
  const reference = results[0]!;
  for (const result of results) {
    const rate = `${Math.round(result.tokensPerSecond)}; ${Math.round(result.medianTokensPerSecond)}`;
    const ratio = (reference.tokensPerSecond / result.tokensPerSecond).toFixed(2);
    console.log(`| ${result.name} | ${rate} | ${(result.peakMemoryBytes / 2 ** 30).toFixed(2)} GiB | ${ratio}× |`);
  }
}

const { isa, threads } = native().systemInfo();
const peaks = await native().measurePeaks();
console.log(
  `${cpus()[0]?.model}, ${threads} threads, ${isa}: ${(peaks.flopsPerSecond / 1e9).toFixed(0)} GFLOP/s fp32, ${(peaks.bytesPerSecond / 1e9).toFixed(0)} GB/s\n`,
);
const ops: OpResult[] = [];
if (!values['skip-ops']) {
  await new OpBench(peaks, (result) => {
    ops.push(result);
    printOp(result);
  }).all();
}
const trainings = await training();
printTraining(trainings);
if (values.json) {
  mkdirSync(dirname(values.json), { recursive: true });
  const machine = { cpu: cpus()[0]?.model, threads, isa, node: process.versions.node, peaks };
  writeFileSync(values.json, `${JSON.stringify({ date: new Date().toISOString(), machine, ops, training: trainings }, null, 2)}\n`);
}
