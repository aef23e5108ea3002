// Our side of the training benchmarks: SmolLM2-135M, full rows of random tokens, all of them supervised, clipping at 1; LoRA r=16 on all
// linear layers, the same on NF4 weights with double quantisation, or all weights, as bf16. Same protocol as
// peers/huggingface_train.py: {"ready": true}, then one JSON line for each `run K`.
// Runs the compiled package, as its users do, so that memory and start-up are theirs.
//   node bench/train_ours.mjs dist/index.js MODEL [--method lora|qlora|full] [--optim NAME] [--optimizer-memory BYTES]
//     [--batch 4] [--length 256] [--checkpointing | --budget BYTES] [--bf16] [--warmup-length 256]
// `profile K` is answered by {"seconds": of all K steps, "ops": of each kind of op}.
import { tmpdir } from 'node:os';
import { pathToFileURL } from 'node:url';
import { parseArgs } from 'node:util';
import { answerCommands } from './protocol.mjs';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    method: { type: 'string', default: 'lora' },
    optim: { type: 'string', default: 'adamw_torch' },
    'optimizer-memory': { type: 'string' },
    batch: { type: 'string', default: '4' },
    length: { type: 'string', default: '256' },
    warmup: { type: 'string', default: '2' },
    'warmup-length': { type: 'string' },
    checkpointing: { type: 'boolean', default: false },
    budget: { type: 'string' },
    bf16: { type: 'boolean', default: false },
  },
});
const rows = Number(values.batch);
const length = Number(values.length);
const tokens = rows * length;

const index = pathToFileURL(positionals[0]);
const { CausalLM, getPeftModel } = await import(index.href);
const { native } = await import(new URL('./native.js', index).href);
const { OPTIMIZERS } = await import(new URL('./options/optimizers.js', index).href);
const { retentionOf } = await import(new URL('./train/checkpointing.js', index).href);
const { processMemory } = await import(new URL('./memory/process_memory.js', index).href);
const quantizationConfig = { loadIn4bit: true, bnb4bitQuantType: 'nf4', bnb4bitUseDoubleQuant: true };
const base = await CausalLM.fromPretrained(positionals[1], values.method === 'qlora' ? { quantizationConfig } : {});
const model = await trained(base);

async function trained(base) {
  if (values.method !== 'full') return getPeftModel(base, { r: 16, loraAlpha: 32, targetModules: 'all-linear', loraDropout: 0 });
  const names = base.parameters().map(({ name }) => name);
  await base.core.native.trainBase(names, 'BF16');
  return base;
}

if (values.bf16) model.core.native.setCompute('bf16');
const { kind, bits, paged } = OPTIMIZERS[values.optim];
const window = values['optimizer-memory'] ? Number(values['optimizer-memory']) : 512 * 2 ** 20;
const optimizer = { kind, bits, ...(paged && { window, folder: tmpdir() }) };
const keep = retention();
const session = native().createSession(model.core.native, { maxTokens: tokens, keep, noDecay: [], seed: 0, optimizer });

/** As the trainer chooses it. */
function retention() {
  return retentionOf({
    wanted: values.budget ? { budget: Number(values.budget) } : values.checkpointing,
    model: model.core.native,
    optimizer,
    maxTokens: tokens,
    length,
    folder: tmpdir(),
    processBytes: processMemory({ vocabSize: model.core.native.config.vocabSize, hasTokenizer: true, dataTokens: tokens }),
  });
}

const vocabulary = model.core.native.config.vocabSize;
let state = 12345;
const random = () => {
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
  return state / 2 ** 32;
};
/** Full rows of random tokens. */
function randomBatch(rows, length) {
  const ids = Int32Array.from({ length: rows * length }, () => Math.floor(random() * vocabulary));
  return {
    ids,
    positions: Int32Array.from(ids, (_, t) => t % length),
    starts: Int32Array.from({ length: rows + 1 }, (_, row) => row * length),
    targets: Int32Array.from(ids, (_, t) => (t % length === length - 1 ? -100 : ids[t + 1])),
    supervised: rows * (length - 1),
  };
}

async function step({ supervised, ...batch }) {
  const { nllSum } = await session.accumulate(batch, { gradScale: 1 / supervised, seed: 0, step: 0, micro: 0 });
  const begin = performance.now();
  await session.update({ learningRate: 2e-4, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weightDecay: 0, maxGradNorm: 1 });
  return { loss: nllSum / supervised, updateMilliseconds: performance.now() - begin };
}

const batch = randomBatch(rows, length);
async function measure(steps) {
  const milliseconds = [];
  const updates = [];
  let loss = 0;
  for (let i = 0; i < steps; i++) {
    const begin = performance.now();
    const done = await step(batch);
    milliseconds.push(performance.now() - begin);
    updates.push(done.updateMilliseconds);
    loss = done.loss;
  }
  milliseconds.sort((a, b) => a - b);
  return {
    tokens_per_second: (1000 * steps * tokens) / milliseconds.reduce((a, b) => a + b),
    step_ms: { best: milliseconds[0], median: milliseconds[Math.floor(steps / 2)] },
    update_ms: Math.min(...updates),
    loss,
    peak_rss_bytes: native().systemInfo().peakMemory,
  };
}

async function profile(steps) {
  native().profileOps(true);
  const begin = performance.now();
  for (let i = 0; i < steps; i++) await step(batch);
  return { seconds: (performance.now() - begin) / 1000, ops: native().profileOps(false) };
}

const warmup = values['warmup-length'] ? randomBatch(1, Math.min(length, Number(values['warmup-length']))) : batch;
for (let i = 0; i < Number(values.warmup); i++) await step(warmup);
const { isa, threads } = native().systemInfo();
await answerCommands({ isa, threads }, { run: measure, profile });
