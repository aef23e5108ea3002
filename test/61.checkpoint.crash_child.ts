// Trains a small Llama, saving after each step, until it is killed; test/61.checkpoint.test.ts runs it. Arguments: folder, 'start' or 'resume'.
import { CausalLM } from '../lib/model/causal_lm.ts';
import { LoraTrainer } from '../lib/train/trainer.ts';
import { llamaConfig, tokenRows } from './60.trainer.llama.ts';

const [outputDir = '', mode] = process.argv.slice(2);
const trainer = new LoraTrainer({
  model: await CausalLM.fromConfig(llamaConfig, { seed: 5 }),
  trainDataset: tokenRows(24, 3),
  peftConfig: { r: 4, targetModules: 'all-linear', loraDropout: 0.1 },
  args: {
    outputDir,
    maxSteps: 40,
    saveSteps: 1,
    saveTotalLimit: 2,
    learningRate: 0.01,
    logLevel: 'warning',
    resumeFromCheckpoint: mode === 'resume',
  },
  callbacks: [{ onSave: () => void process.stdout.write('saved\n') }],
});
await trainer.train();
