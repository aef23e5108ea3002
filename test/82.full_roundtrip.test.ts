import assert from 'node:assert/strict';
import { join } from 'node:path';
import { LoraTrainer } from '../lib/index.ts';
import {
  assertClose,
  maskedRows,
  type ParityBatch,
  parityModel,
  readArrays,
  trainingRows,
  type Values,
  valuesOf,
} from './support/parity.ts';
import { describeWithPeft, runPeft } from './support/real_peft.ts';

const kLogits = 1e-4;
/** Float types of files, tied heads and not, shards, biases, windows. */
const kModels = ['llama_tied', 'llama_bias', 'llama_multi_query', 'mistral_window', 'qwen2_window', 'qwen2_full'];

describeWithPeft('models fine-tuned whole here, loaded by real Transformers', (python, folder) => {
  it('give the logits that they have here, with no tensor missing or unexpected', async () => {
    const written: { name: string; model: string; batch: ParityBatch; logits: Values }[] = [];
    for (const name of kModels) {
      const { batches, folder: source } = parityModel(name);
      const batch = batches.right as ParityBatch;
      const trainer = new LoraTrainer({
        model: source,
        trainDataset: trainingRows(batch),
        peftConfig: null,
        args: { outputDir: join(folder(), name), maxSteps: 3, learningRate: 2e-3, bf16: false, saveStrategy: 'no', logLevel: 'error' },
      });
      const { modelPath } = await trainer.train();
      assert.equal(modelPath, join(folder(), name));
      written.push({ name, model: modelPath, batch, logits: maskedRows(await trainer.model.forward(batch), batch.attentionMask) });
      await trainer.model.dispose();
    }
    const requests = written.map(({ name, model, batch }) => ({
      model,
      inputIds: batch.inputIds,
      attentionMask: batch.attentionMask,
      output: join(folder(), `${name}.safetensors`),
    }));
    const answers = runPeft(python, requests);
    written.forEach(({ name, batch, logits }, i) => {
      assert.deepEqual(answers[i], { missing: [], unexpected: [] }, name);
      const theirs = readArrays(requests[i]?.output as string);
      assertClose(`${name}: logits`, logits, maskedRows(valuesOf(theirs, 'logits'), batch.attentionMask), kLogits);
    });
  });
});
