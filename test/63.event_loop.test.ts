import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fetchSmolLm2 } from '../lib/hub/smollm2.ts';
import { CausalLM, type Dataset, getPeftModel, LoraTrainer, loadDataset, type PeftModel } from '../lib/index.ts';
import { canMeasureHolds, longestHolds } from './support/event_loop.ts';
import { deleteTemporaryFolders, temporaryFolder, tinyConfig } from './support/tiny_models.ts';

/** The event loop is never held longer, in milliseconds. */
const kBound = 20;
/** What the machine does once (the kernel's work on a page, say) it does not do each time; a hold of ours comes back. */
const kAttempts = 3;
const kRows = 2000;

describe('the event loop is never held longer than 20 ms on SmolLM2-135M', function () {
  this.timeout(600_000);
  let folder: string;
  let model: CausalLM;
  let peft: PeftModel;
  let dataset: Dataset;

  async function within(run: () => Promise<unknown>): Promise<void> {
    const found: string[] = [];
    while (found.length < kAttempts) {
      const { computing } = await longestHolds(run);
      if (computing <= kBound) return;
      found.push(computing.toFixed(1));
    }
    assert.fail(`the main thread computed for ${found.join(', ')} ms without a turn of the event loop, in ${kAttempts} attempts`);
  }

  before(async function () {
    if (!canMeasureHolds) this.skip();
    folder = temporaryFolder();
    await fetchSmolLm2();
  });
  after(async () => {
    await model?.dispose();
    deleteTemporaryFolders();
  });

  it('sees a hold', async () => {
    const { computing } = await longestHolds(async () => {
      const start = process.cpuUsage();
      while (process.cpuUsage(start).user < 3e4);
    });
    assert.ok(computing > kBound, `${computing.toFixed(1)} ms`);
  });

  it('while a GGUF file is loaded', async () => {
    const path = await fetchSmolLm2();
    await within(async () => {
      await model?.dispose();
      model = await CausalLM.fromPretrained(path);
    });
  });

  it('while rows are read, rendered and tokenised', async () => {
    const path = join(folder, 'rows.jsonl');
    const row = (i: number) => ({
      messages: [
        { role: 'user', content: `What is ${i} plus 1? `.repeat(1 + (i % 40)) },
        { role: 'assistant', content: `It is ${i + 1}.` },
      ],
    });
    writeFileSync(path, Array.from({ length: kRows }, (_, i) => `${JSON.stringify(row(i))}\n`).join(''));
    await within(async () => {
      dataset = await loadDataset(path, { tokenizer: model.tokenizer, maxSeqLength: 64, truncation: 'left', onWarning: () => undefined });
    });
    assert.equal(dataset.length, kRows);
  });

  it('while an adapter is made', () =>
    within(async () => {
      peft = await getPeftModel(model, { r: 16, targetModules: 'all-linear' });
    }));

  it('in 20 steps of training with evaluations and checkpoints, and while one is resumed', async () => {
    const args = { outputDir: join(folder, 'output'), perDeviceTrainBatchSize: 1, disableTqdm: true, loggingStrategy: 'no' } as const;
    await within(async () => {
      const trainer = new LoraTrainer({
        model: peft,
        trainDataset: dataset,
        evalDataset: dataset.select([0, 1, 2, 3]),
        args: { ...args, maxSteps: 20, evalStrategy: 'steps', evalSteps: 10, saveStrategy: 'steps', saveSteps: 10 },
      });
      assert.equal((await trainer.train()).globalStep, 20);
    });
    await within(async () => {
      const trainer = new LoraTrainer({
        model: peft,
        trainDataset: dataset,
        args: { ...args, maxSteps: 21, saveStrategy: 'no', resumeFromCheckpoint: true },
      });
      assert.equal((await trainer.train()).globalStep, 21);
    });
  });

  it('while text is generated', () => within(() => peft.generate([{ role: 'user', content: 'Tell me a story.' }], { maxNewTokens: 24 })));

  it('while an adapter is saved and loaded', async () => {
    await within(() => peft.savePretrained(join(folder, 'adapter')));
    let loads = 0;
    await within(() => peft.loadAdapter(join(folder, 'adapter'), `loaded${++loads}`));
  });

  it('while the whole model is saved, and loaded from safetensors and in another type', async () => {
    await within(() => model.savePretrained(join(folder, 'model')));
    for (const options of [{}, { dtype: 'float32' }] as const) {
      await within(async () => {
        await using loaded = await CausalLM.fromPretrained(join(folder, 'model'), options);
        assert.ok(loaded.numParameters() > 0);
      });
    }
  });

  it('by a model that is made while another one computes', async () => {
    const inputIds = [Array.from({ length: 512 }, (_, i) => i)];
    const shares: number[] = [];
    while (shares.length < kAttempts) {
      const start = performance.now();
      const loss = model.loss({ inputIds, labels: inputIds });
      const { blocked } = await longestHolds(async () => {
        const tiny = await CausalLM.fromConfig(tinyConfig({}));
        const other = await getPeftModel(tiny, { r: 4, targetModules: ['q_proj'], modulesToSave: ['lm_head'] });
        await other.dispose();
        await loss;
      });
      const share = blocked / (performance.now() - start);
      // Collections of garbage wait for their helpers on a busy machine; to wait for the other model would take nearly all of the time.
      if (share < 0.3) return;
      shares.push(share);
    }
    assert.fail(`the main thread slept for these shares of the time: ${shares.map((share) => share.toFixed(2)).join(', ')}`);
  });
});
