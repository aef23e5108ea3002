// Ends worker threads at different moments of a training and prints how many; test/60.trainer.model.test.ts runs it.
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads';
import { CausalLM } from '../lib/model/causal_lm.ts';
import { LoraTrainer } from '../lib/train/trainer.ts';
import { llamaConfig, tokenRows } from './60.trainer.llama.ts';

const DELAYS_MILLISECONDS = [0, 1, 2, 3, 5, 8, 13, 21];

async function trainForever(outputDir: string): Promise<void> {
  const model = await CausalLM.fromConfig(llamaConfig, { seed: 5 });
  const args = { outputDir, maxSteps: 1e6, saveStrategy: 'no', logLevel: 'error' } as const;
  for await (const { step } of new LoraTrainer({ model, trainDataset: tokenRows(24, 3), args }).steps())
    if (step === 2) parentPort?.postMessage('training');
}

async function endWorkers(parent: string): Promise<void> {
  const loader = createRequire(import.meta.url).resolve('tsx/cjs/api');
  const code = `require(${JSON.stringify(loader)}).register(); require(${JSON.stringify(fileURLToPath(import.meta.url))});`;
  for (const delay of DELAYS_MILLISECONDS) {
    const worker = new Worker(code, { eval: true, workerData: join(parent, String(delay)) });
    await new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject));
    await new Promise((resolve) => setTimeout(resolve, delay));
    await worker.terminate();
  }
  process.stdout.write(`${DELAYS_MILLISECONDS.length} ended`);
}

void (isMainThread ? endWorkers(process.argv[2] ?? '') : trainForever(workerData as string));
