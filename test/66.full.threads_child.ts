// Fine-tunes a small Llama whole with LOWRANK_THREADS threads and prints the hash of the model; test/66.full_finetuning.test.ts runs it.
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { CausalLM } from '../lib/model/causal_lm.ts';
import { LoraTrainer } from '../lib/train/trainer.ts';
import { llamaConfig, tokenRows } from './60.trainer.llama.ts';

const [outputDir = '', dtype = 'float32'] = process.argv.slice(2);
const model = await CausalLM.fromConfig({ ...llamaConfig, attention_bias: true }, { seed: 5, dtype: dtype as 'float32' | 'bfloat16' });
await new LoraTrainer({
  model,
  trainDataset: tokenRows(24, 3),
  peftConfig: null,
  args: { outputDir, maxSteps: 6, learningRate: 0.01, saveStrategy: 'no', disableTqdm: true },
}).train();
process.stdout.write(
  createHash('sha256')
    .update(readFileSync(join(outputDir, 'model.safetensors')))
    .digest('hex'),
);
