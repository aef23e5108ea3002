import { existsSync } from 'node:fs';
import { styleText } from 'node:util';
import { LowrankError } from '../errors.ts';
import { fetchChitchat } from '../hub/chitchat.ts';
import { fetchSmolLm2 } from '../hub/smollm2.ts';
import type { DownloadProgress } from '../hub/user_cache.ts';
import { CausalLM, type Dataset, LoraTrainer, loadDataset, splitDataset } from '../index.ts';
import { lossChart } from './loss_chart.ts';

export interface QuickstartOptions {
  /** The user's own data set; without it, human small talk from PyPI's chitchat-dataset (MIT). */
  data?: string;
  output: string;
  steps: number;
  seed: number;
}

const kMaxSeqLength = 256;
// Eight rows a step, four at a time: half the memory of eight at once.
const kRowsAtOnce = 4;
const kMicroBatches = 2;
const kPrompts = ['Hi! How are you today?', 'What did you do last weekend?', 'Do you have any pets?'];

const heading = (text: string) => process.stdout.write(`\n${styleText('bold', text)}\n`);
const line = (text: string) => process.stdout.write(`${text}\n`);

/** Says once per file that it is being fetched, and how large it is. */
function downloadLine(): (progress: DownloadProgress) => void {
  const seen = new Set<string>();
  return ({ file, total }) => {
    if (seen.has(file)) return;
    seen.add(file);
    line(`fetching ${file}${total > 0 ? ` (${Math.round(total / 1e6)} MB)` : ''} …`);
  };
}

async function answers(model: CausalLM): Promise<string[]> {
  const texts: string[] = [];
  for (const prompt of kPrompts) {
    const { text } = await model.generate([{ role: 'user', content: prompt }], { maxNewTokens: 48 });
    texts.push(text.trim().replace(/\s+/g, ' '));
  }
  return texts;
}

/** Enough rows for the run and the held-out set, so that the first step comes within seconds also on a large file. */
async function quickstartData(options: QuickstartOptions, model: CausalLM): Promise<{ train: Dataset; heldOut: Dataset }> {
  const source = options.data ?? (await fetchChitchat({ onProgress: downloadLine() }));
  const dataset = await loadDataset(source, { tokenizer: model.tokenizer, maxSeqLength: kMaxSeqLength, truncation: 'split' });
  const heldOutRows = Math.min(64, Math.floor(dataset.length / 10));
  if (heldOutRows === 0) {
    throw new LowrankError(
      'INVALID_DATASET',
      `${source} has ${dataset.length} rows; the quickstart needs at least 10, to keep some for the test`,
    );
  }
  const { train, test } = splitDataset(dataset, { testSize: heldOutRows, seed: options.seed });
  return { train, heldOut: test };
}

/** `npm run quickstart`: fetches a real model and real data, trains an adapter, shows what it changed and where it lies. */
export async function quickstart(options: QuickstartOptions): Promise<void> {
  if (options.data !== undefined && !existsSync(options.data)) {
    throw new LowrankError('FILE_NOT_FOUND', `--data: there is no file ${options.data}`);
  }
  heading('1. A real model: SmolLM2-135M-Instruct');
  const path = await fetchSmolLm2({ onProgress: downloadLine() });
  line(path);
  const base = await CausalLM.fromPretrained(path);

  heading('2. Its answers before training');
  const before = await answers(base);
  for (const [i, prompt] of kPrompts.entries()) line(`  ${prompt}\n    ${styleText('dim', before[i] ?? '')}`);

  heading(`3. LoRA on ${options.data ?? 'human small talk (chitchat-dataset)'}, ${options.steps} steps`);
  const { train, heldOut } = await quickstartData(options, base);
  const trainer = new LoraTrainer({
    model: base,
    trainDataset: train,
    evalDataset: heldOut,
    peftConfig: { r: 16, loraAlpha: 32, targetModules: 'all-linear' },
    args: {
      outputDir: options.output,
      maxSteps: options.steps,
      perDeviceTrainBatchSize: kRowsAtOnce,
      gradientAccumulationSteps: kMicroBatches,
      learningRate: 1e-3,
      lrSchedulerType: 'cosine',
      warmupSteps: 5,
      loggingSteps: 2,
      saveStrategy: 'no',
      maxSeqLength: kMaxSeqLength,
      seed: options.seed,
    },
  });
  const lossBefore = (await trainer.evaluate()).loss;
  const result = await trainer.train();
  const lossAfter = (await trainer.evaluate()).loss;

  heading('4. What changed');
  line(lossChart(result.logHistory));
  line(`held-out loss: ${lossBefore.toFixed(3)} before, ${lossAfter.toFixed(3)} after (${heldOut.length} rows the training never saw)`);
  line(
    `${result.tokens} tokens at ${Math.round(result.tokensPerSecond)} tokens/s, peak memory ${(result.peakMemory / 2 ** 30).toFixed(2)} GiB`,
  );
  const after = await answers(trainer.model);
  for (const [i, prompt] of kPrompts.entries()) {
    line(`  ${prompt}\n    before: ${styleText('dim', before[i] ?? '')}\n    after:  ${styleText('green', after[i] ?? '')}`);
  }

  heading('5. What next');
  line(`The adapter is in ${result.adapterPath}, in PEFT's format. Use it:`);
  line(`
  import { PeftModel } from 'lowrank';
  const model = await PeftModel.fromPretrained('${path}', '${result.adapterPath}');
  console.log((await model.generate([{ role: 'user', content: 'Hello!' }])).text);
`);
  line('In Python: peft.PeftModel.from_pretrained(base, folder). On your own data: npm run quickstart -- --data your.jsonl');
  await trainer.model.dispose();
}
