// Fine-tune a model itself, without an adapter, in a small memory: bf16 weights, 8-bit optimizer states, activations computed again.
//   npx tsx examples/full.ts MODEL [OUTPUT]           MODEL: a .gguf file, a folder, or a hub id
import { CausalLM, LoraTrainer } from 'lowrank';

const [model, outputDir = './tuned'] = process.argv.slice(2);
if (!model) throw new Error('usage: full.ts MODEL [OUTPUT]');

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
  peftConfig: null,
  layers: { frozen: ['embed_tokens', 'norm'] }, // the embedding and the last norm stay as they are
  args: {
    outputDir,
    numTrainEpochs: 10,
    perDeviceTrainBatchSize: 4,
    learningRate: 1e-4,
    optim: 'paged_adamw_8bit',
    gradientCheckpointing: true,
    loggingSteps: 2,
    saveStrategy: 'no',
    disableTqdm: true,
  },
});
const { trainingLoss, globalStep, modelPath } = await trainer.train();
console.log(`loss ${trainingLoss.toFixed(3)} after ${globalStep} steps; model in ${modelPath}`);
await trainer.dispose();

// What was written is a model like any other, here and in Transformers.
await using tuned = await CausalLM.fromPretrained(modelPath);
const { text } = await tuned.generate([{ role: 'user', content: 'What is the name of our shop?' }], { maxNewTokens: 24 });
console.log(text);
