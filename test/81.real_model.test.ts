import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { permutation } from '../lib/data/shuffle.ts';
import { fetchSmolLm2 } from '../lib/hub/smollm2.ts';
import { CausalLM, LoraTrainer, PeftModel, systemInfo, type TrainingStep } from '../lib/index.ts';
import { native } from '../lib/native.ts';
import { linePrinted } from './support/console.ts';
import { initialAdapterTensors, kInitialAdapterConfig } from './support/initial_adapter.ts';
import { readJson } from './support/parity.ts';

const fixtures = fileURLToPath(new URL('fixtures/smollm2', import.meta.url));

interface Generation {
  newTokens: number;
  prompts: { prompt: string; rendered: string; ids: number[]; generated: number[]; text: string }[];
}

interface Logits {
  text: string;
  ids: number[];
  largest: number;
  topIds: number[][];
  topLogits: number[][];
  logSumExp: number[];
}

interface Training {
  trainableParameters: string;
  options: { learningRate: number; weightDecay: number; maxGradNorm: number; lrSchedulerType: 'constant' };
  losses: number[];
  gradNorms: number[];
  finalLossOnFirstBatch: number;
  batches: number[][][];
}

const kSeed = 7;

/** The rows in the order that the trainer's shuffle turns into the order given. */
function unshuffled<Row>(rows: Row[]): Row[] {
  const order = permutation(rows.length, kSeed, 0);
  const result: Row[] = new Array(rows.length);
  rows.forEach((row, i) => {
    result[order[i] as number] = row;
  });
  return result;
}

const read = <T>(name: string) => readJson(join(fixtures, `${name}.json`)) as T;

describe('the real SmolLM2-135M-Instruct from its GGUF, beside Transformers and PEFT on the same file', function () {
  this.timeout(600_000);
  let model: CausalLM;
  let folder: string;

  before(async () => {
    model = await CausalLM.fromPretrained(await fetchSmolLm2());
    folder = mkdtempSync(join(tmpdir(), 'lowrank-real-'));
  });
  after(async () => {
    await model?.dispose();
    if (folder) rmSync(folder, { recursive: true, force: true });
  });

  for (const { prompt, rendered, ids, generated, text } of read<Generation>('generation').prompts) {
    it(`answers "${prompt}" token for token`, async () => {
      const messages = [{ role: 'user', content: prompt }];
      assert.equal(await model.tokenizer.applyChatTemplate(messages, { addGenerationPrompt: true, tokenize: false }), rendered);
      assert.deepEqual([...(await model.tokenizer.encode(rendered, { addSpecialTokens: false }))], ids);
      const answer = await model.generate(messages, { maxNewTokens: read<Generation>('generation').newTokens, doSample: false });
      // Transformers keeps the token that ends the turn.
      const stopped = answer.finishReason === 'stop' && answer.ids.length === generated.length - 1;
      assert.deepEqual([...answer.ids], stopped ? generated.slice(0, -1) : generated);
      assert.equal(answer.text, text);
    });
  }

  const onBf16 = systemInfo().bf16 ? it : it.skip;
  onBf16('answers in bfloat16 token for token as in float32, or parts from it between tokens that are as likely', async () => {
    await using rounded = await CausalLM.fromPretrained(await fetchSmolLm2(), { dtype: 'bfloat16' });
    const { prompts, newTokens } = read<Generation>('generation');
    for (const { prompt, ids, generated } of prompts) {
      const { shape, data } = await model.forward({ inputIds: [[...ids, ...generated]] });
      const vocabulary = shape[2] as number;
      let at = 0;
      for await (const { id, logprob } of rounded.stream([{ role: 'user', content: prompt }], { maxNewTokens: newTokens })) {
        const begin = (ids.length - 1 + at) * vocabulary;
        const exact = logProbabilities(data.subarray(begin, begin + vocabulary));
        const expected = generated[at++] as number;
        const where = `"${prompt}", token ${at}`;
        assert.ok(
          Math.abs(logprob - (exact[id] as number)) < 0.15, // 0.01 in the mean square, 0.09 at most
          `${where}: log-probability ${logprob} of ${id}, in float32 ${exact[id]}`,
        );
        if (id === expected) continue;
        const lead = (exact[expected] as number) - (exact[id] as number);
        assert.ok(lead < 0.05, `${where}: ${id} in bfloat16; ${expected} in float32, where its log-probability is ${lead} above`);
        break;
      }
      assert.ok(at > 0, prompt);
    }
  });

  it('gives the same bits with one thread and with two, in every compute type', () => {
    const child = fileURLToPath(new URL('81.real_model.threads_child.ts', import.meta.url));
    const [one, two] = ['1', '2'].map((threads) => {
      const { stdout, stderr } = spawnSync(process.execPath, ['--import', 'tsx', child, join(folder, `threads-${threads}`)], {
        encoding: 'utf8',
        env: { ...process.env, LOWRANK_THREADS: threads },
      });
      assert.match(stdout, /"float32":"[0-9a-f]{64}"/, stderr);
      return JSON.parse(stdout) as Record<string, string>;
    });
    assert.deepEqual(two, one);
    assert.equal(new Set(Object.values(one as Record<string, string>)).size, systemInfo().bf16 ? 2 : 1);
  });

  it('gives the logits of a text', async () => {
    const expected = read<Logits>('logits');
    assert.deepEqual([...(await model.tokenizer.encode(expected.text, { addSpecialTokens: false }))], expected.ids);
    const { shape, data } = await model.forward({ inputIds: [expected.ids] });
    const vocabulary = shape[2] as number;
    const allowed = 1e-4 * expected.largest;
    expected.ids.forEach((_, position) => {
      const row = data.subarray(position * vocabulary, (position + 1) * vocabulary);
      expected.topIds[position]?.forEach((id, rank) => {
        const want = expected.topLogits[position]?.[rank] as number;
        assert.ok(Math.abs((row[id] as number) - want) <= allowed, `logit of ${id} at ${position}: ${row[id]}; expected ${want}`);
      });
      const largest = row.reduce((most, value) => Math.max(most, value), Number.NEGATIVE_INFINITY);
      const logSumExp = largest + Math.log(row.reduce((sum, value) => sum + Math.exp(value - largest), 0));
      assert.ok(Math.abs(logSumExp - (expected.logSumExp[position] as number)) <= allowed, `log-sum-exp at ${position}: ${logSumExp}`);
    });
  });

  it("has PEFT's losses in 20 steps of LoRA from the same adapter on the same batches", async () => {
    const expected = read<Training>('training');
    const adapter = join(folder, 'initial');
    mkdirSync(adapter);
    writeFileSync(join(adapter, 'adapter_config.json'), JSON.stringify(kInitialAdapterConfig));
    await native().writeSafetensors(join(adapter, 'adapter_model.safetensors'), initialAdapterTensors(model.config), { format: 'pt' });
    const peft = await PeftModel.fromPretrained(model, adapter, { isTrainable: true });
    assert.equal(
      linePrinted(() => peft.printTrainableParameters()),
      expected.trainableParameters,
    );

    const trainer = new LoraTrainer({
      model: peft,
      trainDataset: unshuffled(expected.batches.flat()).map((inputIds) => ({ inputIds })),
      args: {
        bf16: false,
        ...expected.options,
        outputDir: join(folder, 'output'),
        maxSteps: expected.losses.length,
        perDeviceTrainBatchSize: expected.batches[0]?.length as number,
        seed: kSeed,
        saveStrategy: 'no',
        loggingStrategy: 'no',
        disableTqdm: true,
      },
    });
    const steps: TrainingStep[] = [];
    for await (const step of trainer.steps()) steps.push(step);
    assert.equal(steps.length, expected.losses.length);
    steps.forEach((step, i) => {
      assertNear(`loss of step ${step.step}`, step.loss, expected.losses[i] as number, 1e-3);
      assertNear(`gradient norm of step ${step.step}`, step.gradNorm, expected.gradNorms[i] as number, 1e-3);
    });

    const firstBatch = expected.batches[0] as number[][];
    const { loss } = await trainer.model.loss({ inputIds: firstBatch, labels: firstBatch });
    assertNear('loss on the first batch afterwards', loss, expected.finalLossOnFirstBatch, 1e-3);
  });

  it('is trained itself, in bfloat16 weights decoded from its blocks, and its folder gives what it learnt', async () => {
    const batch = read<Training>('training').batches[0] as number[][];
    const outputDir = join(folder, 'tuned');
    const trainer = new LoraTrainer({
      model: await fetchSmolLm2(),
      trainDataset: batch.map((inputIds) => ({ inputIds })),
      peftConfig: null,
      args: {
        outputDir,
        bf16: false,
        maxSteps: 6,
        perDeviceTrainBatchSize: batch.length,
        lrSchedulerType: 'constant',
        optim: 'paged_adamw_8bit',
        optimizerMemory: '64MiB',
        gradientCheckpointing: true,
        saveStrategy: 'no',
        logLevel: 'error',
      },
    });
    const losses: number[] = [];
    for await (const step of trainer.steps()) losses.push(step.loss);
    assert.ok((losses[5] as number) < 0.9 * (losses[0] as number), losses.join(', '));
    await using tuned = await CausalLM.fromPretrained(outputDir);
    const labelled = { inputIds: batch, labels: batch };
    assert.equal((await tuned.loss(labelled)).loss, (await trainer.model.loss(labelled)).loss);
    await trainer.dispose();
  });
});

function logProbabilities(logits: Float32Array): Float32Array {
  const largest = logits.reduce((most, value) => Math.max(most, value), Number.NEGATIVE_INFINITY);
  const logSumExp = largest + Math.log(logits.reduce((sum, value) => sum + Math.exp(value - largest), 0));
  return logits.map((value) => value - logSumExp);
}

function assertNear(what: string, actual: number, expected: number, tolerance: number): void {
  assert.ok(Math.abs(actual - expected) <= tolerance * Math.abs(expected), `${what}: ${actual}; expected ${expected}`);
}
