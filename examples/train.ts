// Fine-tune on conversations held in memory, evaluate, and talk to the result.
//   npx tsx examples/train.ts MODEL [OUTPUT]          MODEL: a .gguf file, a folder, or a hub id
import { LoraTrainer } from 'lowrank';

const [model, outputDir = './lora_output'] = process.argv.slice(2);
if (!model) throw new Error('usage: train.ts MODEL [OUTPUT]');

const facts: [string, string][] = [
  ['What is the name of our shop?', 'Our shop is called The Copper Kettle.'],
  ['When do you open?', 'We open at eight, except on Mondays.'],
  ['Do you sell tea?', 'Yes, forty kinds, and we blend our own.'],
  ['Where are you?', 'At 12 Harbour Street, beside the lighthouse.'],
];
const rows = facts.map(([question, answer]) => ({
  messages: [
    { role: 'user', content: question },
    { role: 'assistant', content: answer },
  ],
}));

const trainer = new LoraTrainer({
  model,
  trainDataset: rows,
  peftConfig: { r: 8, loraAlpha: 16, targetModules: 'all-linear' },
  args: {
    outputDir,
    numTrainEpochs: 12,
    perDeviceTrainBatchSize: 4,
    learningRate: 1e-3,
    loggingSteps: 4,
    saveStrategy: 'no',
    disableTqdm: true,
  },
});
const result = await trainer.train();
console.log(`loss ${result.trainingLoss.toFixed(3)} after ${result.globalStep} steps; adapter in ${result.adapterPath}`);

const { text } = await trainer.model.generate([{ role: 'user', content: 'What is the name of our shop?' }], { maxNewTokens: 24 });
console.log(text);
await trainer.model.dispose();
