// QLoRA on a large model: NF4 with double quantisation, quantised as it is loaded, r=16 on all linear layers, checkpointing, 8-bit paged AdamW.
// Runs the compiled package in a process of its own and prints one line of JSON: the plan, the peaks, the time of each step.
//   node bench/large_ours.mjs dist/index.js FOLDER [--length 2048] [--steps 2] [--checkpointing full] [--output FOLDER]
import { readFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { parseArgs } from 'node:util';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    length: { type: 'string', default: '2048' },
    steps: { type: 'string', default: '2' },
    checkpointing: { type: 'string', default: 'full' },
    output: { type: 'string', default: join(tmpdir(), 'lowrank-large') },
  },
});
const length = Number(values.length);
const steps = Number(values.steps);
const { LoraTrainer, systemInfo } = await import(pathToFileURL(positionals[0]).href);
const folder = positionals[1];
const { vocab_size: vocabulary } = JSON.parse(readFileSync(join(folder, 'config.json'), 'utf8'));

/** Rows of random tokens. */
let state = 12345;
const trainDataset = Array.from({ length: steps }, () => ({
  inputIds: Array.from({ length }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * vocabulary);
  }),
}));

const begin = performance.now();
const trainer = new LoraTrainer({
  model: folder,
  trainDataset,
  peftConfig: { r: 16, loraAlpha: 32, targetModules: 'all-linear' },
  quantizationConfig: { loadIn4bit: true, bnb4bitQuantType: 'nf4', bnb4bitUseDoubleQuant: true },
  args: {
    outputDir: values.output,
    perDeviceTrainBatchSize: 1,
    maxSeqLength: length,
    maxSteps: steps,
    gradientCheckpointing: values.checkpointing,
    optim: 'paged_adamw_8bit',
    optimizerMemory: '64MiB',
    saveStrategy: 'no',
    logLevel: 'error',
  },
});
const plan = await trainer.plan();
const loadSeconds = (performance.now() - begin) / 1000;
const loadPeak = systemInfo().peakMemory;
const stepSeconds = [];
const losses = [];
let last = performance.now();
for await (const { loss } of trainer.steps()) {
  stepSeconds.push((performance.now() - last) / 1000);
  losses.push(loss);
  last = performance.now();
}
const { isa, threads, peakMemory } = systemInfo();
const tokensPerSecond = length / Math.min(...stepSeconds);
const { components, total, settings } = plan;
console.log(
  JSON.stringify({ isa, threads, computeType: settings.computeType, length, loadSeconds, loadPeak, planned: total, components, peakMemory, stepSeconds, tokensPerSecond, losses }),
);
