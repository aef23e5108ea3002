// Two training steps of SmolLM2-135M and a few tokens of an answer with LOWRANK_THREADS threads, in fp32 and, where the level has it, in bf16;
// prints a hash of the adapter, the losses and the tokens for each. test/81.real_model.test.ts runs it.
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fetchSmolLm2 } from '../lib/hub/smollm2.ts';
import { CausalLM, LoraTrainer, systemInfo } from '../lib/index.ts';

const [outputDir = ''] = process.argv.slice(2);
const gguf = await fetchSmolLm2();
const hashes: Record<string, string> = {};
for (const dtype of systemInfo().bf16 ? (['float32', 'bfloat16'] as const) : (['float32'] as const)) {
  await using model = await CausalLM.fromPretrained(gguf, { dtype });
  const hash = createHash('sha256');
  // Rows of odd lengths, packed; one token of dropout's masks for each.
  const trainDataset = [61, 40, 7, 90].map((length, row) => ({
    inputIds: Array.from({ length }, (_, i) => 17 + ((i * 7919 + row * 104_729) % 49_000)),
  }));
  const trainer = new LoraTrainer({
    model,
    trainDataset,
    peftConfig: { r: 8, targetModules: 'all-linear', loraDropout: 0.1 },
    args: { outputDir, maxSteps: 2, perDeviceTrainBatchSize: 1, packing: true, maxSeqLength: 101, saveStrategy: 'no', logLevel: 'error' },
  });
  for await (const { loss, gradNorm } of trainer.steps()) hash.update(Float64Array.of(loss, gradNorm));
  hash.update(readFileSync(join(outputDir, 'adapter_model.safetensors')));
  for await (const { id, logprob } of trainer.model.stream('The capital of France is', { maxNewTokens: 4 })) {
    hash.update(Float64Array.of(id, logprob));
  }
  hashes[dtype] = hash.digest('hex');
}
process.stdout.write(JSON.stringify(hashes));
