import assert from 'node:assert/strict';
import { cpSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { permutation } from '../lib/data/shuffle.ts';
import { CausalLM, LoraTrainer, PeftModel, type TrainingArguments } from '../lib/index.ts';
import { rewriteSafetensors } from './support/rewrite_safetensors.ts';
import { assertFails, deleteTemporaryFolders, largestDifference, temporaryFolder, tinyConfig } from './support/tiny_models.ts';

// A tiny model in bfloat16, and as bitsandbytes has it in 4 bits: test/reference/make_qlora_fixture.py.
const folder = 'test/fixtures/qlora';
const base = join(folder, 'base');
const nf4 = { loadIn4bit: true, bnb4bitQuantType: 'nf4', bnb4bitUseDoubleQuant: true } as const;
const fp4 = { loadIn4bit: true, llmInt8SkipModules: ['v_proj'] };

interface Training {
  options: TrainingArguments;
  rows: number[][];
  rowsPerStep: number;
  losses: number[];
  logits: number[];
}
const training = JSON.parse(readFileSync(join(folder, 'training.json'), 'utf8')) as Training;

const typesOf = (model: CausalLM) => new Map(model.parameters().map(({ name, dtype }) => [name, dtype]));
const logitsOf = async (model: CausalLM) => (await model.forward({ inputIds: [training.rows[0]!] })).data;

/** A copy of a fixture's folder with other tensors or another state of the first weight. */
async function changed(change: Parameters<typeof rewriteSafetensors>[1]): Promise<string> {
  const copy = temporaryFolder();
  cpSync(join(folder, 'nf4'), copy, { recursive: true });
  await rewriteSafetensors(join(copy, 'model.safetensors'), change);
  return copy;
}

describe('quantizationConfig', () => {
  after(deleteTemporaryFolders);

  it('quantises linear layers as Transformers and bitsandbytes do, and nothing else', async () => {
    await using own = await CausalLM.fromPretrained(base, { quantizationConfig: fp4 });
    await using theirs = await CausalLM.fromPretrained(join(folder, 'fp4'));
    assert.deepEqual(typesOf(own), typesOf(theirs));
    for (const [name, dtype] of typesOf(own)) {
      const isLinear = /_proj\.weight$/.test(name) && !/v_proj/.test(name);
      assert.equal(dtype, isLinear ? 'FP4' : name.endsWith('norm.weight') ? 'F32' : 'BF16', name);
      const [values, expected] = [await own.core.native.readParameter(name), await theirs.core.native.readParameter(name)];
      assert.deepEqual(values, expected, name);
    }
  });

  it('quantises magnitudes too, up to the rounding of their mean', async () => {
    await using own = await CausalLM.fromPretrained(base, { quantizationConfig: nf4 });
    await using theirs = await CausalLM.fromPretrained(join(folder, 'nf4'));
    await using single = await CausalLM.fromPretrained(base, { quantizationConfig: { ...nf4, bnb4bitUseDoubleQuant: false } });
    const name = 'model.layers.1.mlp.down_proj.weight';
    assert.equal(typesOf(own).get(name), 'NF4');
    const [values, expected, plain] = await Promise.all([own, theirs, single].map((model) => model.core.native.readParameter(name)));
    assert.ok(largestDifference(values!, expected!) <= 2e-6);
    assert.ok(largestDifference(values!, plain!) > 1e-4, 'double quantisation changes nothing');
  });

  it('rounds weights to dtype before it quantises them', async () => {
    await using model = await CausalLM.fromPretrained(base, { quantizationConfig: fp4, dtype: 'float32' });
    await using stored = await CausalLM.fromPretrained(base, { quantizationConfig: fp4 });
    assert.equal(typesOf(model).get('lm_head.weight'), 'F32');
    assert.deepEqual(await logitsOf(model), await logitsOf(stored));
    const wide = temporaryFolder();
    await using random = await CausalLM.fromConfig(tinyConfig({ hidden_size: 64, intermediate_size: 64, num_attention_heads: 4 }), {
      seed: 3,
    });
    await random.savePretrained(wide);
    const name = 'model.layers.0.self_attn.q_proj.weight';
    const read = async (dtype: 'auto' | 'bfloat16') => {
      await using loaded = await CausalLM.fromPretrained(wide, { quantizationConfig: fp4, dtype });
      return loaded.core.native.readParameter(name);
    };
    assert.notDeepEqual(await read('auto'), await read('bfloat16'));
  });

  it('computes with the numbers that the codes of bitsandbytes stand for', async () => {
    await using model = await CausalLM.fromPretrained(join(folder, 'nf4'), { dtype: 'float32' });
    const logits = await logitsOf(model);
    const largest = Math.max(...training.logits.map(Math.abs));
    assert.ok(largestDifference(logits, training.logits) <= 2e-5 * largest);
  });

  it('generates and computes losses with the codes as with the numbers that they stand for', async () => {
    await using model = await CausalLM.fromPretrained(base, { quantizationConfig: nf4 });
    const saved = temporaryFolder();
    await model.savePretrained(saved, { dtype: 'float32' });
    assert.equal(JSON.parse(readFileSync(join(saved, 'config.json'), 'utf8')).quantization_config, undefined);
    await using plain = await CausalLM.fromPretrained(saved);
    assert.equal(typesOf(plain).get('model.layers.0.mlp.up_proj.weight'), 'F32');
    assert.ok(largestDifference(await logitsOf(model), await logitsOf(plain)) <= 1e-4);
    assert.deepEqual((await generated(model)).ids, (await generated(plain)).ids);
  });

  it('is dropped from the config.json of a saved model', async () => {
    await using model = await CausalLM.fromPretrained(join(folder, 'nf4'));
    const saved = temporaryFolder();
    await model.savePretrained(saved);
    assert.equal(JSON.parse(readFileSync(join(saved, 'config.json'), 'utf8')).quantization_config, undefined);
    await using again = await CausalLM.fromPretrained(saved);
    assert.equal(typesOf(again).get('model.layers.0.mlp.up_proj.weight'), 'BF16');
  });

  it('trains: the losses of PEFT on bitsandbytes over 20 steps', async () => {
    const peft = await PeftModel.fromPretrained(await CausalLM.fromPretrained(join(folder, 'nf4')), join(folder, 'adapter'), {
      isTrainable: true,
    });
    const losses = await trainOn(peft);
    await peft.dispose();
    losses.forEach((loss, step) => {
      const expected = training.losses[step]!;
      assert.ok(Math.abs(loss - expected) <= 1e-5 * expected, `step ${step + 1}: ${loss} instead of ${expected}`);
    });
  });

  it('is an option of the trainer, whose log names it', async () => {
    const lines: string[] = [];
    const write = process.stderr.write;
    process.stderr.write = (chunk: string | Uint8Array) => lines.push(String(chunk)) > 0;
    try {
      const trainer = new LoraTrainer({
        model: base,
        trainDataset: training.rows.map((inputIds) => ({ inputIds })),
        quantizationConfig: nf4,
        args: { outputDir: temporaryFolder(), maxSteps: 1, saveStrategy: 'no', disableTqdm: true, bf16: false },
      });
      await trainer.train();
      assert.equal(typesOf(trainer.model).get('model.layers.0.self_attn.q_proj.weight'), 'NF4');
      await trainer.dispose();
    } finally {
      process.stderr.write = write;
    }
    assert.match(lines.join('\n'), /base weights: 4 bits \(nf4, double quantisation\)/);
  });

  it('names what it cannot do', async () => {
    const load = (quantizationConfig: object, source = base) => CausalLM.fromPretrained(source, { quantizationConfig });
    await assertFails(() => load({ loadIn8bit: true }), 'UNSUPPORTED_QUANTIZATION', /loadIn8bit/);
    await assertFails(() => load({}), 'INVALID_OPTION', /loadIn4bit/);
    await assertFails(() => load({ loadIn4Bit: true }), 'UNKNOWN_OPTION', /loadIn4bit/);
    await assertFails(() => load({ ...nf4, bnb4bitQuantType: 'int4' }), 'INVALID_OPTION', /bnb4bitQuantType/, /int4/);
    await assertFails(() => load({ ...nf4, bnb4bitQuantStorage: 'bfloat16' }), 'INVALID_OPTION', /bnb4bitQuantStorage/);
    await assertFails(() => load({ ...nf4, llmInt8SkipModules: ['('] }), 'INVALID_OPTION', /llmInt8SkipModules/);
    const narrow = temporaryFolder();
    await using random = await CausalLM.fromConfig(tinyConfig());
    await random.savePretrained(narrow);
    await assertFails(() => load(nf4, narrow), 'UNSUPPORTED_QUANTIZATION', /model\.layers\.0\.self_attn\.q_proj\.weight/, /24/, /64/);
  });
});

describe('bitsandbytes checkpoints', () => {
  after(deleteTemporaryFolders);
  const weight = 'model.layers.0.mlp.up_proj.weight';
  const state = `${weight}.quant_state.bitsandbytes__nf4`;

  it('are refused where a part is missing or not what it should be', async () => {
    const fails = (change: Parameters<typeof rewriteSafetensors>[1], ...patterns: RegExp[]) =>
      assertFails(async () => CausalLM.fromPretrained(await changed(change)), 'INVALID_SAFETENSORS', ...patterns);
    for (const part of ['quant_map', 'absmax', 'nested_quant_map']) {
      await fails((tensors) => tensors.filter(({ name }) => name !== `${weight}.${part}`), new RegExp(`${weight}\\.${part}`));
    }
    await fails((tensors) => replaceState(tensors, 'not JSON'), /up_proj/, /JSON/);
    await fails((tensors) => replaceState(tensors, JSON.stringify({ quant_type: 'fp4', blocksize: 64, shape: [128, 64] })), /quant_type/);
    await fails((tensors) => replaceState(tensors, JSON.stringify({ quant_type: 'nf4', blocksize: 0, shape: [128, 64] })), /blocksize/);
    await fails((tensors) => replaceState(tensors, JSON.stringify({ quant_type: 'nf4', blocksize: 64, shape: [64, 64] })), /up_proj/);
    await fails((tensors) => replaceState(tensors, JSON.stringify({ quant_type: 'nf4', blocksize: 64, shape: [128, 64] })), /nested/);
  });

  it('are refused where their values are not those of their type', async () => {
    const copy = await changed((tensors) =>
      tensors.map((tensor) => {
        if (tensor.name !== `${weight}.quant_map`) return tensor;
        return { ...tensor, data: new Float32Array(16).fill(0.5) };
      }),
    );
    await assertFails(() => CausalLM.fromPretrained(copy), 'UNSUPPORTED_QUANTIZATION', /quant_map/, /NF4/);
  });

  type Tensors = Parameters<Parameters<typeof rewriteSafetensors>[1]>[0];
  function replaceState(tensors: Tensors, text: string): Tensors {
    const data = new TextEncoder().encode(text);
    return tensors.map((tensor) => (tensor.name === state ? { ...tensor, shape: [data.length], data } : tensor));
  }
});

async function generated(model: CausalLM) {
  return model.generate(training.rows[0]!.slice(0, 5), { maxNewTokens: 8 });
}

const kSeed = 7;

/** The rows in the order that the trainer's shuffle turns into the order given. */
function unshuffled<Row>(rows: Row[]): Row[] {
  const order = permutation(rows.length, kSeed, 0);
  const result: Row[] = new Array(rows.length);
  rows.forEach((row, i) => {
    result[order[i]!] = row;
  });
  return result;
}

/** Twenty steps over the fixture's rows, in their order. */
async function trainOn(model: PeftModel): Promise<number[]> {
  const trainer = new LoraTrainer({
    model,
    trainDataset: unshuffled(training.rows).map((inputIds) => ({ inputIds })),
    args: {
      ...training.options,
      seed: kSeed,
      bf16: false,
      outputDir: temporaryFolder(),
      perDeviceTrainBatchSize: training.rowsPerStep,
      maxSteps: training.losses.length,
      saveStrategy: 'no',
      loggingStrategy: 'no',
      disableTqdm: true,
    },
  });
  const losses: number[] = [];
  for await (const step of trainer.steps()) losses.push(step.loss);
  return losses;
}
