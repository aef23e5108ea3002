// Load an adapter that was trained here or in PEFT onto its base, and stream an answer.
//   npx tsx examples/adapter.ts MODEL ADAPTER "a question"
import { PeftModel } from 'lowrank';

const [base, adapter, question = 'What is the name of our shop?'] = process.argv.slice(2);
if (!base || !adapter) throw new Error('usage: adapter.ts MODEL ADAPTER [QUESTION]');

const model = await PeftModel.fromPretrained(base, adapter);
model.printTrainableParameters();
for await (const { text } of model.stream([{ role: 'user', content: question }], { maxNewTokens: 48 })) process.stdout.write(text);
process.stdout.write('\n');
await model.dispose();
