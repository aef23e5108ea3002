// Trains a small Llama with LOWRANK_THREADS threads and prints the hash of the adapter; test/60.trainer.model.test.ts and
// test/83.bf16.test.ts run it.
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { CausalLM } from '../lib/model/causal_lm.ts';
import { LoraTrainer } from '../lib/train/trainer.ts';
import { llamaConfig, tokenRows } from './60.trainer.llama.ts';

const [outputDir = '', compute = 'auto'] = process.argv.slice(2);
const bf16 = compute === 'bf16' ? true : compute === 'fp32' ? false : 'auto';
const model = await CausalLM.fromConfig(llamaConfig, { seed: 5 });
const peftConfig = { r: 4, targetModules: 'all-linear', loraDropout: 0.1 };
await new LoraTrainer({
  model,
  trainDataset: tokenRows(24, 3),
  peftConfig,
  args: { outputDir, maxSteps: 6, learningRate: 0.01, bf16, fp16: compute === 'fp16', disableTqdm: true },
}).train();
const hash = createHash('sha256').update(readFileSync(join(outputDir, 'adapter_model.safetensors')));
process.stdout.write(hash.digest('hex'));
