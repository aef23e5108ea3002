import assert from 'node:assert/strict';
import { cpSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { permutation } from '../lib/data/shuffle.ts';
import {
  CausalLM,
  getPeftModel,
  LoraTrainer,
  PeftModel,
  prepareModelForKbitTraining,
  type QuantizationConfig,
  type TrainingArguments,
} from '../lib/index.ts';
import { int8VectorwiseQuant } from '../lib/kernels.ts';
import { native } from '../lib/native.ts';
import { rewriteSafetensors } from './support/rewrite_safetensors.ts';
import { assertFails, deleteTemporaryFolders, largestDifference, temporaryFolder, tinyConfig } from './support/tiny_models.ts';

// A tiny model in bfloat16, and as bitsandbytes has it in 4 and 8 bits: test/reference/make_qlora_fixture.py.
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
const readTraining = (name: string) => JSON.parse(readFileSync(join(folder, name), 'utf8')) as Training;
const training = readTraining('training.json');
const int8 = readTraining('int8.json') as Pick<Training, 'losses' | 'logits'>;

const typesOf = (model: CausalLM) => new Map(model.parameters().map(({ name, dtype }) => [name, dtype]));
const logitsOf = async (model: CausalLM) => (await model.forward({ inputIds: [training.rows[0]!] })).data;

/** A copy of a fixture's folder with other tensors or another state of the first weight. */
async function changed(change: Parameters<typeof rewriteSafetensors>[1], name = 'nf4'): Promise<string> {
  const copy = temporaryFolder();
  cpSync(join(folder, name), copy, { recursive: true });
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

  it('has the bytes of LLM.int8() for rows in 8 bits', async () => {
    await using own = await CausalLM.fromPretrained(base, { quantizationConfig: { loadIn8bit: true } });
    await using theirs = await CausalLM.fromPretrained(join(folder, 'int8'));
    assert.deepEqual(typesOf(own), typesOf(theirs));
    for (const [name, dtype] of typesOf(own)) {
      assert.equal(dtype, /_proj\.weight$/.test(name) ? 'INT8' : name.endsWith('norm.weight') ? 'F32' : 'BF16', name);
      assert.deepEqual(await own.core.native.readParameter(name), await theirs.core.native.readParameter(name), name);
      if (dtype !== 'INT8') continue;
      const [codes, expected] = [own, theirs].map((model) => native().readQuantizedTensor(model.core.native, name));
      assert.deepEqual(await codes, await expected, name);
    }
  });

  it('rounds weights to float16 before it quantises them to 8 bits, as bitsandbytes does', async () => {
    const [single, half] = [temporaryFolder(), temporaryFolder()];
    await using random = await CausalLM.fromConfig(tinyConfig({ hidden_size: 64, intermediate_size: 64, num_attention_heads: 4 }), {
      seed: 3,
    });
    await random.savePretrained(single);
    await random.savePretrained(half, { dtype: 'float16' });
    const name = 'model.layers.0.self_attn.q_proj.weight';
    const file = native().openTensorFile(join(half, 'model.safetensors'));
    const [rows = 0, columns = 0] = file.tensors().find((tensor) => tensor.name === name)!.shape;
    const expected = int8VectorwiseQuant({ dtype: 'F16', data: file.readRaw(name) }, { rows, columns });
    const plain = int8VectorwiseQuant(await random.core.native.readParameter(name), { rows, columns });
    assert.notDeepEqual(plain.quantized, expected.quantized);
    await using model = await CausalLM.fromPretrained(single, { quantizationConfig: { loadIn8bit: true } });
    const { codes, absmax } = await native().readQuantizedTensor(model.core.native, name);
    assert.deepEqual(new Int8Array(codes.buffer), expected.quantized);
    assert.deepEqual(absmax, expected.absmax);
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
    for (const [name, expected] of [['nf4', training.logits] as const, ['int8', int8.logits] as const]) {
      await using model = await CausalLM.fromPretrained(join(folder, name), { dtype: 'float32' });
      const logits = await logitsOf(model);
      const largest = Math.max(...expected.map(Math.abs));
      assert.ok(largestDifference(logits, expected) <= 2e-5 * largest, name);
    }
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

  for (const [name, losses] of [['nf4', training.losses] as const, ['int8', int8.losses] as const]) {
    it(`trains on ${name}: the losses of PEFT on bitsandbytes over 20 steps`, async () => {
      const peft = await PeftModel.fromPretrained(await CausalLM.fromPretrained(join(folder, name)), join(folder, 'adapter'), {
        isTrainable: true,
      });
      const own = await trainOn(peft);
      await peft.dispose();
      own.forEach((loss, step) => {
        const expected = losses[step]!;
        assert.ok(Math.abs(loss - expected) <= 1e-5 * expected, `step ${step + 1}: ${loss} instead of ${expected}`);
      });
    });
  }

  it('is an option of the trainer, whose log names it', async () => {
    const logOf = async (quantizationConfig: object, type: string) => {
      const lines: string[] = [];
      const write = process.stderr.write;
      process.stderr.write = (chunk: string | Uint8Array) => lines.push(String(chunk)) > 0;
      try {
        const trainer = new LoraTrainer({
          model: base,
          trainDataset: training.rows.map((inputIds) => ({ inputIds })),
          quantizationConfig,
          args: { outputDir: temporaryFolder(), maxSteps: 1, saveStrategy: 'no', disableTqdm: true, bf16: false },
        });
        await trainer.train();
        assert.equal(typesOf(trainer.model).get('model.layers.0.self_attn.q_proj.weight'), type);
        await trainer.dispose();
      } finally {
        process.stderr.write = write;
      }
      return lines.join('\n');
    };
    assert.match(await logOf(nf4, 'NF4'), /base weights: 4 bits \(nf4, double quantisation\)/);
    assert.match(await logOf({ loadIn8bit: true }, 'INT8'), /base weights: 8 bits \(int8, a magnitude for each row\)/);
  });

  it('names what it cannot do', async () => {
    const load = (quantizationConfig: object, source = base) => CausalLM.fromPretrained(source, { quantizationConfig });
    await assertFails(() => load({}), 'INVALID_OPTION', /loadIn4bit/, /loadIn8bit/);
    await assertFails(() => load({ loadIn4bit: true, loadIn8bit: true }), 'INVALID_OPTION', /loadIn4bit/, /loadIn8bit/);
    await assertFails(() => load({ loadIn8bit: true, llmInt8Threshold: -1 }), 'INVALID_OPTION', /llmInt8Threshold/);
    await assertFails(() => load({ loadIn4Bit: true }), 'UNKNOWN_OPTION', /loadIn4bit/);
    await assertFails(() => load({ ...nf4, bnb4bitQuantType: 'int4' }), 'INVALID_OPTION', /bnb4bitQuantType/, /int4/);
    await assertFails(() => load({ ...nf4, bnb4bitQuantStorage: 'bfloat16' }), 'INVALID_OPTION', /bnb4bitQuantStorage/);
    await assertFails(() => load({ ...nf4, llmInt8SkipModules: ['('] }), 'INVALID_OPTION', /llmInt8SkipModules/);
    const narrow = temporaryFolder();
    await using random = await CausalLM.fromConfig(tinyConfig());
    await random.savePretrained(narrow);
    for (const config of [nf4, { loadIn8bit: true }]) {
      await assertFails(() => load(config, narrow), 'UNSUPPORTED_QUANTIZATION', /model\.layers\.0\.self_attn\.q_proj\.weight/, /24/, /64/);
    }
  });
});

describe('prepareModelForKbitTraining', () => {
  after(deleteTemporaryFolders);

  const load = (quantizationConfig?: QuantizationConfig) => CausalLM.fromPretrained(base, { quantizationConfig });
  const same = (model: CausalLM) => model;
  /** Bytes that a training of the model holds. */
  async function held(
    config: QuantizationConfig | undefined,
    prepare: (model: CausalLM) => CausalLM,
    checkpointing?: boolean,
  ): Promise<number> {
    await using model = await load(config);
    assert.equal(prepare(model), model);
    const trainer = new LoraTrainer({
      model,
      trainDataset: training.rows.map((inputIds) => ({ inputIds })),
      args: { outputDir: temporaryFolder(), maxSteps: 1, gradientCheckpointing: checkpointing },
    });
    return Object.values(await trainer.plan()).reduce((sum, bytes) => sum + bytes);
  }

  it('checkpoints gradients of a quantised model unless it or args say otherwise', async () => {
    for (const config of [nf4, { loadIn8bit: true }]) {
      const [kept, checkpointed] = [await held(config, same), await held(config, same, true)];
      assert.ok(checkpointed < kept);
      const without = (model: CausalLM) => prepareModelForKbitTraining(model, { useGradientCheckpointing: false });
      assert.equal(await held(config, without), kept);
      assert.equal(await held(config, prepareModelForKbitTraining), checkpointed);
      assert.equal(await held(config, prepareModelForKbitTraining, false), kept);
    }
    assert.equal(await held(undefined, prepareModelForKbitTraining), await held(undefined, same));
  });

  it('freezes everything', async () => {
    await using model = await getPeftModel(await load(nf4), { r: 2, targetModules: ['q_proj'] });
    assert.ok(model.numParameters({ onlyTrainable: true }) > 0);
    assert.equal(prepareModelForKbitTraining(model).numParameters({ onlyTrainable: true }), 0);
  });

  it('names what is wrong with its arguments', async () => {
    await assertFails(() => prepareModelForKbitTraining('folder' as never), 'INVALID_OPTION', /model/, /folder/);
    await using model = await load(nf4);
    await assertFails(
      () => prepareModelForKbitTraining(model, { useGradientCheckpoint: true } as never),
      'UNKNOWN_OPTION',
      /useGradientCheckpointing/,
    );
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

  it('in 8 bits are refused likewise, and in the layouts of old GPUs', async () => {
    const module = 'model.layers.0.mlp.up_proj';
    const load = async (change: Parameters<typeof rewriteSafetensors>[1]) => CausalLM.fromPretrained(await changed(change, 'int8'));
    const replaced = (name: string, tensor: object) =>
      load((tensors) => tensors.map((old) => (old.name === `${module}.${name}` ? { ...old, ...tensor } : old)));
    await assertFails(() => load((tensors) => tensors.filter(({ name }) => name !== `${module}.weight`)), 'INVALID_SAFETENSORS', /up_proj/);
    const scales = { shape: [64], data: new Float32Array(64) };
    await assertFails(() => replaced('SCB', scales), 'INVALID_SAFETENSORS', /up_proj\.SCB/, /64/, /128/);
    const wide = { dtype: 'F32', data: new Float32Array(128 * 64) };
    await assertFails(() => replaced('weight', wide), 'INVALID_SAFETENSORS', /up_proj\.weight/, /I8/);
    await assertFails(() => replaced('weight_format', { data: new Uint8Array([2]) }), 'UNSUPPORTED_QUANTIZATION', /weight_format/);
    await using model = await load((tensors) => tensors.filter(({ name }) => !name.endsWith('weight_format')));
    assert.equal(typesOf(model).get(`${module}.weight`), 'INT8');
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

describe('8-bit AdamW', () => {
  after(deleteTemporaryFolders);

  /** test/reference/make_adamw8bit_fixture.py */
  interface Curve {
    rank: number;
    amplitude: number;
    learningRate: number;
    epochs: number;
    losses: number[];
    losses32: number[];
  }

  /** The adapter whose values the script writes down as a formula. */
  async function adapted({ rank, amplitude }: Curve): Promise<PeftModel> {
    const model = await getPeftModel(await CausalLM.fromPretrained(base, { dtype: 'float32' }), {
      r: rank,
      loraAlpha: rank,
      targetModules: 'all-linear',
      loraDropout: 0,
    });
    const adapter = model.core.native.parameters().filter(({ name }) => name.includes('.lora_'));
    adapter.sort((a, b) => (a.name < b.name ? -1 : 1));
    for (const [j, { name, shape }] of adapter.entries()) {
      const values = Float32Array.from({ length: shape[0]! * shape[1]! }, (_, i) => amplitude * Math.sin(i + 100 * j));
      await model.core.native.writeParameter(name, values);
    }
    return model;
  }

  // bitsandbytes takes a code near the nearest, by a table of 65,536 places, and moves what it should not: up to 9e-4 from torch's AdamW here.
  it("follows the loss of bitsandbytes' AdamW8bit over 60 steps to 2e-3, and of torch's AdamW in 32 bits to 1e-5", async () => {
    const curve = JSON.parse(readFileSync(join(folder, 'adamw_8bit.json'), 'utf8')) as Curve;
    const rows = Array.from({ length: curve.epochs }, () => training.rows).flat();
    for (const [optim, expected, tolerance] of [
      ['adamw_8bit', curve.losses, 2e-3],
      ['paged_adamw_8bit', curve.losses, 2e-3],
      ['adamw_torch', curve.losses32, 1e-5],
    ] as const) {
      const model = await adapted(curve);
      const { learningRate } = curve;
      const losses = await trainOn(model, rows, { optim, learningRate, weightDecay: 0, maxGradNorm: 0, lrSchedulerType: 'constant' });
      await model.dispose();
      assert.equal(losses.length, expected.length);
      losses.forEach((loss, step) => {
        const allowed = tolerance * (tolerance < 1e-4 ? expected[step]! : 1);
        assert.ok(Math.abs(loss - expected[step]!) <= allowed, `${optim}, step ${step + 1}: ${loss} instead of ${expected[step]}`);
      });
      assert.ok(losses.at(-1)! < 0.75 * losses[0]!, `${optim} learns nothing`);
    }
  });
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

/** A step for each four rows of the fixture, in their order. */
async function trainOn(model: PeftModel, rows = training.rows, args: Partial<TrainingArguments> = training.options): Promise<number[]> {
  const trainer = new LoraTrainer({
    model,
    trainDataset: unshuffled(rows).map((inputIds) => ({ inputIds })),
    args: {
      ...args,
      seed: kSeed,
      bf16: false,
      outputDir: temporaryFolder(),
      perDeviceTrainBatchSize: training.rowsPerStep,
      maxSteps: rows.length / training.rowsPerStep,
      saveStrategy: 'no',
      loggingStrategy: 'no',
      disableTqdm: true,
    },
  });
  const losses: number[] = [];
  for await (const step of trainer.steps()) losses.push(step.loss);
  return losses;
}
