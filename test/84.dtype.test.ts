import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { fetchSmolLm2 } from '../lib/hub/smollm2.ts';
import { CausalLM, LoraTrainer, systemInfo } from '../lib/index.ts';
import { tokenRows } from './60.trainer.llama.ts';
import { deleteTemporaryFolders, largestDifference, temporaryFolder, tinyConfig } from './support/tiny_models.ts';

type Dtype = 'auto' | 'float32' | 'bfloat16' | 'float16';

// Longer than what is multiplied row by row, which is fp32 in every type.
const kInput = { inputIds: [Array.from({ length: 40 }, (_, i) => (i * 7 + 1) % 37)] };
const kChanges = { hidden_size: 48, intermediate_size: 80 };

const storedTypes = (model: CausalLM) => [
  ...new Set(
    model
      .parameters()
      .filter(({ shape }) => shape.length === 2)
      .map(({ dtype }) => dtype),
  ),
];

async function logits(model: CausalLM): Promise<Float32Array> {
  return (await model.forward(kInput)).data;
}

/** What `run` gives, and the warning that it causes. */
async function warned<T>(run: () => Promise<T>): Promise<{ result: T; warning: string }> {
  const waiting = once(process, 'warning', { signal: AbortSignal.timeout(5000) });
  const result = await run();
  const [warning] = (await waiting) as [Error];
  return { result, warning: `${warning.name}: ${warning.message}` };
}

describe('dtype, of weights and arithmetic', () => {
  const { isa, bf16, computeType } = systemInfo();
  const onBf16 = bf16 ? it : it.skip;
  const where = bf16 ? '' : ` (${isa} has no bf16 products)`;
  let folder: string;

  beforeEach(async () => {
    folder = join(temporaryFolder(), 'model');
    await using model = await CausalLM.fromConfig(tinyConfig(kChanges), { seed: 5, dtype: 'auto' });
    await model.savePretrained(folder, { dtype: 'bfloat16' });
  });
  afterEach(deleteTemporaryFolders);

  /** What the log says that a training computes in. */
  async function trained(model: CausalLM, asked: boolean | 'auto' = 'auto'): Promise<string> {
    const lines: string[] = [];
    const { write } = process.stderr;
    process.stderr.write = ((text: string) => lines.push(text)) as unknown as typeof write;
    try {
      const rows = tokenRows(8, 3).map(({ inputIds }) => ({ inputIds: inputIds.map((id) => id % 37) }));
      await new LoraTrainer({
        model,
        trainDataset: rows,
        args: { outputDir: temporaryFolder(), maxSteps: 1, saveStrategy: 'no', disableTqdm: true, bf16: asked },
      }).train();
    } finally {
      process.stderr.write = write;
    }
    return /computing in (bf16|fp32) /.exec(lines.join(''))?.[1] ?? lines.join('');
  }

  it("is by default that of the file for the weights, float32 by hand, and in training what is faster ('auto')", async () => {
    await using model = await CausalLM.fromPretrained(folder);
    await using exact = await CausalLM.fromPretrained(folder, { dtype: 'float32' });
    assert.deepEqual(storedTypes(model), ['BF16']);
    assert.deepEqual(storedTypes(exact), ['F32']);
    // The weights have the same values, the arithmetic is the same.
    assert.ok(largestDifference(await logits(model), await logits(exact)) < 1e-5);
    assert.equal(await trained(model), computeType === 'bfloat16' ? 'bf16' : 'fp32');
  });

  it('float32 is what training computes in, unless it says bf16: true', async () => {
    for (const make of [
      () => CausalLM.fromPretrained(folder, { dtype: 'float32' }),
      () => CausalLM.fromConfig(tinyConfig(kChanges), { dtype: 'float32' }),
    ]) {
      await using unasked = await make();
      await using asked = await make();
      assert.equal(await trained(unasked), 'fp32');
      assert.equal(await trained(asked, true), bf16 ? 'bf16' : 'fp32');
    }
  });

  onBf16(`bfloat16 rounds the operands of products, by hand and in training unless that says bf16: false${where}`, async () => {
    await using exact = await CausalLM.fromPretrained(folder, { dtype: 'float32' });
    await using rounded = await CausalLM.fromPretrained(folder, { dtype: 'bfloat16' });
    await using made = await CausalLM.fromConfig(tinyConfig(kChanges), { seed: 5, dtype: 'bfloat16' });
    assert.deepEqual(storedTypes(rounded), ['BF16']);
    const expected = await logits(exact);
    const scale = Math.max(...expected.map(Math.abs));
    for (const model of [rounded, made]) {
      const difference = largestDifference(await logits(model), expected) / scale;
      assert.ok(difference > 1e-5 && difference < 0.05, `the largest difference is ${difference} of the largest logit`);
    }
    assert.deepEqual(await logits(made), await logits(rounded));
    assert.equal(await trained(rounded), 'bf16');
    assert.equal(await trained(made, false), 'fp32');
  });

  it('leaves weights in block types as they are', async () => {
    const gguf = await fetchSmolLm2();
    for (const dtype of ['float32', 'bfloat16'] as const) {
      await using model = await CausalLM.fromPretrained(gguf, { dtype });
      assert.ok(storedTypes(model).includes('Q4_1'), storedTypes(model).join());
    }
  });

  it('float16 is kept for the weights and answered with what the arithmetic is', async () => {
    const load = () => CausalLM.fromPretrained(folder, { dtype: 'float16' });
    const make = () => CausalLM.fromConfig(tinyConfig(kChanges), { seed: 5, dtype: 'float16' });
    for (const start of [load, make]) {
      const { result, warning } = await warned(start);
      await using model = result;
      assert.match(warning, /^LowrankWarning: dtype: .*float16.*float32 takes its place/);
      assert.deepEqual(storedTypes(model), ['F16']);
    }
    await using model = await load();
    await using exact = await CausalLM.fromPretrained(folder, { dtype: 'float32' });
    // Sixteen-bit floats of this size have three bits more than bfloat16's: the values are the same.
    assert.ok(largestDifference(await logits(model), await logits(exact)) < 1e-5);
  });

  it('bfloat16 is answered with float32 where the instruction-set level has no such products', () => {
    const program = `
      import { CausalLM } from ${JSON.stringify(new URL('../lib/index.ts', import.meta.url).href)};
      const logits = async (dtype) => (await (await CausalLM.fromPretrained(${JSON.stringify(folder)}, { dtype })).forward(${JSON.stringify(kInput)})).data;
      const [asked, exact] = [await logits('bfloat16'), await logits('auto')];
      process.stdout.write(JSON.stringify(asked.every((value, i) => value === exact[i])));`;
    const { stdout, stderr } = spawnSync(process.execPath, ['--import', 'tsx', '--input-type=module', '--eval', program], {
      encoding: 'utf8',
      env: { ...process.env, LOWRANK_ISA: 'generic' },
    });
    assert.equal(stdout, 'true', stderr);
    assert.match(stderr, /LowrankWarning: dtype: .*generic has no bfloat16 products; float32 takes their place/);
  });

  it('of another name is refused', async () => {
    await assert.rejects(CausalLM.fromPretrained(folder, { dtype: 'fp16' as Dtype }), { code: 'INVALID_OPTION' });
  });
});
