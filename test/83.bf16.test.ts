import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { fetchSmolLm2 } from '../lib/hub/smollm2.ts';
import { CausalLM, LoraTrainer, systemInfo } from '../lib/index.ts';
import { llamaConfig, tokenRows } from './60.trainer.llama.ts';

const kSteps = 50;
const kRowLength = 64;
const text = readFileSync(fileURLToPath(new URL('fixtures/smollm2/training_text.txt', import.meta.url)), 'utf8');
const child = fileURLToPath(new URL('60.trainer.threads_child.ts', import.meta.url));

describe('compute type bf16', function () {
  this.timeout(900_000);
  const { isa, bf16, computeType } = systemInfo();
  let folder: string;

  before(() => {
    folder = mkdtempSync(join(tmpdir(), 'lowrank-bf16-'));
  });
  after(() => {
    rmSync(folder, { recursive: true, force: true });
  });

  /** The adapter's hash and the log of a short training in a process of its own. */
  function trainSmall(
    compute: 'auto' | 'bf16' | 'fp32' | 'fp16',
    env: Record<string, string>,
  ): { hash: string; log: string; state: string } {
    const outputDir = mkdtempSync(join(folder, 'small-'));
    const { stdout, stderr } = spawnSync(process.execPath, ['--import', 'tsx', child, outputDir, compute], {
      encoding: 'utf8',
      env: { ...process.env, ...env },
    });
    assert.match(stdout, /^[0-9a-f]{64}$/, stderr);
    return { hash: stdout, log: stderr, state: readFileSync(join(outputDir, 'checkpoint-6', 'lowrank_state.json'), 'utf8') };
  }

  it('is left out, with a word in the log, where the instruction-set level has none', () => {
    const env = { LOWRANK_ISA: 'generic' };
    const asked = trainSmall('bf16', env);
    assert.ok(asked.log.includes('computing in fp32 with generic on'), asked.log);
    assert.ok(asked.log.includes('bf16: generic has no bf16 products, fp32 takes their place'), asked.log);
    assert.equal(asked.hash, trainSmall('auto', env).hash);
    assert.ok(asked.state.includes('"float32"'), asked.state);
  });

  it('takes the place of fp16 as fp32 does, with a warning that names what runs', () => {
    const env = { LOWRANK_ISA: 'generic' };
    const asked = trainSmall('fp16', env);
    assert.ok(asked.log.includes('warning: fp16: there is no fp16 training on a CPU, fp32 takes its place'), asked.log);
    assert.equal(asked.hash, trainSmall('auto', env).hash);
  });

  it('cannot be set on a native model by another name', async () => {
    const model = await CausalLM.fromConfig({
      model_type: 'llama',
      vocab_size: 32,
      hidden_size: 16,
      intermediate_size: 16,
      num_hidden_layers: 1,
      num_attention_heads: 2,
    });
    assert.throws(() => model.core.native.setCompute('fp8' as 'f32'), /compute is 'fp8'; expected f32 or bf16/);
    await model.dispose();
  });

  const onBf16 = bf16 ? it : it.skip;
  const where = bf16 ? '' : ` (${isa} has no bf16 products)`;

  onBf16(`is said in the log and the checkpoint, and gives the same bits with 1, 2 and 3 threads${where}`, () => {
    const runs = ['1', '2', '3'].map((threads) => trainSmall('bf16', { LOWRANK_THREADS: threads }));
    assert.equal(new Set(runs.map((run) => run.hash)).size, 1);
    const other = trainSmall('fp32', {});
    assert.notEqual(runs[0]?.hash, other.hash);
    assert.ok(other.log.includes(`computing in fp32 with ${isa} on`), other.log);
    // What runs where nothing is said is what systemInfo() names.
    const unasked = trainSmall('auto', {});
    assert.equal(unasked.hash, computeType === 'bfloat16' ? runs[0]?.hash : other.hash);
    assert.ok(unasked.state.includes(`"${computeType}"`), unasked.state);
    assert.ok(runs[0]?.log.includes(`computing in bf16 with ${isa} on 1 thread`), runs[0]?.log);
    assert.ok(runs[0]?.state.includes('"bfloat16"'), runs[0]?.state);
  });

  onBf16(`is part of what a checkpoint was made with: another one continues it with a word${where}`, async () => {
    const outputDir = mkdtempSync(join(folder, 'resumed-'));
    const run = (args: Record<string, unknown>) => {
      const logLines: string[] = [];
      const { write } = process.stderr;
      process.stderr.write = ((line: string) => logLines.push(line)) as unknown as typeof write;
      const trained = CausalLM.fromConfig(llamaConfig, { seed: 5 }).then((model) =>
        new LoraTrainer({ model, trainDataset: tokenRows(24, 3), args: { outputDir, saveSteps: 2, disableTqdm: true, ...args } }).train(),
      );
      return trained.finally(() => (process.stderr.write = write)).then(() => logLines.join(''));
    };
    await run({ maxSteps: 2, bf16: true });
    const same = await run({ maxSteps: 4, bf16: true, resumeFromCheckpoint: true });
    assert.ok(same.includes('continuing after step 2') && !same.includes('machine.'), same);
    const other = await run({ maxSteps: 6, bf16: false, resumeFromCheckpoint: true });
    assert.ok(other.includes('machine.computeType was "bfloat16" and is "float32"'), other);
    assert.ok(other.includes('continuing after step 4'), other);
  });

  onBf16(`follows fp32 on SmolLM2: step losses within 2e-2 over ${kSteps} steps, the held-out loss within 1 %${where}`, async () => {
    const gguf = await fetchSmolLm2();
    const train = async (useBf16: boolean) => {
      const model = await CausalLM.fromPretrained(gguf);
      const ids = [...(await model.tokenizer.encode(text))];
      const rows = Array.from({ length: Math.floor(ids.length / kRowLength) }, (_, i) => ({
        inputIds: ids.slice(i * kRowLength, (i + 1) * kRowLength),
      }));
      const trainer = new LoraTrainer({
        model,
        trainDataset: rows.slice(2, 8),
        evalDataset: rows.slice(0, 2),
        args: {
          outputDir: mkdtempSync(join(folder, 'real-')),
          maxSteps: kSteps,
          perDeviceTrainBatchSize: 2,
          bf16: useBf16,
          saveStrategy: 'no',
          logLevel: 'error',
        },
      });
      const losses: number[] = [];
      for await (const step of trainer.steps()) losses.push(step.loss);
      const { loss: evalLoss } = await trainer.evaluate();
      await model.dispose();
      return { losses, evalLoss };
    };
    const fp32 = await train(false);
    const inBf16 = await train(true);
    assert.equal(fp32.losses.length, kSteps);
    assert.notDeepEqual(inBf16.losses, fp32.losses);
    const total = (losses: number[]) => losses.reduce((sum, loss) => sum + loss, 0);
    // Three steps see all rows.
    assert.ok(total(fp32.losses.slice(-3)) < total(fp32.losses.slice(0, 3)), fp32.losses.join(' '));
    inBf16.losses.forEach((loss, i) => {
      assert.ok(Math.abs(loss - (fp32.losses[i] as number)) <= 2e-2, `step ${i + 1}: ${loss} in bf16, ${fp32.losses[i]} in fp32`);
    });
    assert.ok(Math.abs(inBf16.evalLoss - fp32.evalLoss) <= 0.01 * fp32.evalLoss, `${inBf16.evalLoss} in bf16, ${fp32.evalLoss} in fp32`);
  });
});
