// llama.cpp's side of the generation benchmark, by way of node-llama-cpp: a copy of this file runs in the folder where its packages are.
// Greedy, the whole prompt in one batch, flash attention as llama.cpp decides.
//   node generate.mjs MODEL THREADS
import { getLlama, LlamaLogLevel } from 'node-llama-cpp';
import { kBatch, kNewTokens, kPromptTokens, serve } from './generation_work.mjs';

const [modelPath, threads] = [process.argv[2], Number(process.argv[3])];
const llama = await getLlama({ gpu: false, build: 'never', maxThreads: threads, logLevel: LlamaLogLevel.error });
const model = await llama.loadModel({ modelPath, gpuLayers: 0 });
const context = (sequences, contextSize) => model.createContext({ contextSize, batchSize: kPromptTokens, sequences, threads });
const single = await context(1, 2 * kPromptTokens);
const batched = await context(kBatch, 2 * kNewTokens);
const alone = single.getSequence();
const together = Array.from({ length: kBatch }, () => batched.getSequence());

/** A sequence's tokens from an empty cache on, the end of text being one like any other. */
async function grown(sequence, prompt) {
  await sequence.clearHistory();
  return sequence.evaluate(prompt, { temperature: 0, yieldEogToken: true });
}

async function next(tokens) {
  const { done } = await tokens.next();
  if (done) throw new Error('generation ended early');
}

async function first(prompt) {
  const tokens = await grown(alone, prompt);
  const begin = performance.now();
  await next(tokens);
  const elapsed = (performance.now() - begin) / 1000;
  await tokens.return();
  return elapsed;
}

async function decode(prompts) {
  const sequences = prompts.length === 1 ? [alone] : together;
  const rows = await Promise.all(prompts.map((prompt, row) => grown(sequences[row], prompt)));
  await Promise.all(rows.map(next));
  const begin = performance.now();
  await Promise.all(
    rows.map(async (tokens) => {
      for (let i = 1; i < kNewTokens; i++) await next(tokens);
    }),
  );
  const elapsed = (performance.now() - begin) / 1000;
  await Promise.all(rows.map((tokens) => tokens.return()));
  return elapsed;
}

const { release } = llama.llamaCppRelease;
await serve({ first, decode, about: { threads: single.currentThreads, versions: { 'llama.cpp': release } } });
process.exit(0); // its threads would keep the process alive
