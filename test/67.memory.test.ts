// estimateMemory and trainer.plan(): what a training will hold, told before it is there, and held against what it did.
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { writeSyntheticModel } from '../bench/synthetic_model.ts';
import { fetchSmolLm2 } from '../lib/hub/smollm2.ts';
import {
  CausalLM,
  type EstimateOptions,
  estimateMemory,
  getPeftModel,
  LoraTrainer,
  type MemoryPlan,
  type TrainingArguments,
} from '../lib/index.ts';
import { totalBytes } from '../lib/memory/plan.ts';
import type { MeasuredTraining } from './67.memory.child.ts';
import { assertFails, deleteTemporaryFolders, temporaryFolder, tinyConfig } from './support/tiny_models.ts';

const llama8b = {
  architectures: ['LlamaForCausalLM'],
  model_type: 'llama',
  vocab_size: 128256,
  hidden_size: 4096,
  intermediate_size: 14336,
  num_hidden_layers: 32,
  num_attention_heads: 32,
  num_key_value_heads: 8,
  max_position_embeddings: 131072,
  rms_norm_eps: 1e-5,
  rope_theta: 500000,
  tie_word_embeddings: false,
  torch_dtype: 'bfloat16',
};
const nf4 = { loadIn4bit: true, bnb4bitQuantType: 'nf4', bnb4bitUseDoubleQuant: true } as const;
const kMiB = 2 ** 20;
const kGiB = 2 ** 30;

/** The options with the changes that a plan proposes. */
function withChanges(options: EstimateOptions, { changes }: MemoryPlan): EstimateOptions {
  const args = Object.assign({}, options.args, ...changes.map((change) => change.options.args)) as TrainingArguments;
  const quantizationConfig = changes.find((change) => change.options.quantizationConfig)?.options.quantizationConfig;
  return { ...options, args, ...(quantizationConfig && { quantizationConfig }) };
}

describe('estimateMemory', () => {
  after(deleteTemporaryFolders);

  it('answers from a config.json: its content, its path, or that of its folder', async () => {
    const folder = temporaryFolder();
    writeFileSync(join(folder, 'config.json'), JSON.stringify(llama8b));
    const plan = await estimateMemory({ model: llama8b, quantizationConfig: nf4 });
    for (const model of [folder, join(folder, 'config.json')]) {
      assert.deepEqual(await estimateMemory({ model, quantizationConfig: nf4 }), plan);
    }
    const { components, settings, total } = plan;
    assert.equal(settings.parameters, 8_030_261_248);
    assert.equal(settings.trainableParameters, 41_943_040);
    // Linear layers at 4.5 bits; the head in bf16, and of the embedding the rows that are looked up; and what huge pages round up to.
    const bytes = (6_979_321_856 * 4.5) / 8 + 2 * 128256 * 4096 + 32 * kMiB;
    assert.ok(components.weights >= bytes && components.weights < 1.05 * bytes, String(components.weights / bytes));
    assert.ok(Math.abs(components.adapters / (4 * 41_943_040) - 1) < 0.01);
    assert.ok(Math.abs(components.gradients / (4 * 41_943_040) - 1) < 0.01);
    assert.ok(Math.abs(components.optimizer / (8 * 41_943_040) - 1) < 0.01);
    assert.equal(components.cache, 0);
    assert.equal(total, totalBytes(components));
  });

  it('says whether Llama-3.1-8B with QLoRA at 4,096 tokens fits 8 GiB, and what makes it fit', async () => {
    const options: EstimateOptions = {
      model: llama8b,
      quantizationConfig: nf4,
      args: { perDeviceTrainBatchSize: 1, maxSeqLength: 4096 },
      device: '8GiB',
    };
    const plan = await estimateMemory(options);
    assert.equal(plan.device.memory, 8 * kGiB);
    assert.equal(plan.fits, false);
    assert.ok(plan.changes.length > 0);
    const changed = await estimateMemory(withChanges(options, plan));
    assert.ok(changed.fits, JSON.stringify(plan.changes));
    assert.equal(changed.total, plan.changes.at(-1)?.total);
    // Each of them is needed.
    for (const left of plan.changes) {
      const others = { ...plan, changes: plan.changes.filter((change) => change !== left) };
      assert.equal((await estimateMemory(withChanges(options, others))).fits, false, left.what);
    }
  });

  it('proposes the cheapest changes first', async () => {
    const args = { perDeviceTrainBatchSize: 4, maxSeqLength: 2048 };
    const whats = async (device: string) => (await estimateMemory({ model: llama8b, args, device })).changes.map((change) => change.what);
    const { total } = await estimateMemory({ model: llama8b, args });
    assert.deepEqual(await whats(`${total}`), []);
    assert.match(String(await whats(`${total - 1}`)), /^[^,]*, [^,]*'selective'$/);
    const tight = await whats('12GiB');
    assert.ok(
      tight.some((what) => /4 bits/.test(what)),
      String(tight),
    );
    const none = await estimateMemory({ model: llama8b, args, device: '1GiB' });
    assert.deepEqual([none.fits, none.changes], [false, []]);
  });

  it('counts keys and values of a generation, and needs no gradients for an evaluation', async () => {
    const args = { perDeviceTrainBatchSize: 3, maxSeqLength: 1000 };
    const generation = await estimateMemory({ model: llama8b, args, task: 'generate' });
    assert.ok(Math.abs(generation.components.cache / (2 * 32 * 3 * 1000 * 1024 * 4) - 1) < 0.01);
    assert.equal(generation.components.adapters, 0);
    const evaluation = await estimateMemory({ model: llama8b, args, task: 'evaluate' });
    assert.deepEqual([evaluation.components.gradients, evaluation.components.optimizer, evaluation.components.cache], [0, 0, 0]);
  });

  it('needs no more for evaluating than for training at the same shape', async () => {
    for (const quantizationConfig of [null, nf4]) {
      for (const gradientCheckpointing of [false, true, 'selective', { every: 4 }] as const) {
        for (const [perDeviceTrainBatchSize, maxSeqLength] of [
          [1, 64],
          [4, 256],
          [2, 4096],
        ] as const) {
          const options = { model: llama8b, quantizationConfig, args: { gradientCheckpointing, perDeviceTrainBatchSize, maxSeqLength } };
          const train = await estimateMemory(options);
          const peftConfig = { r: 16, targetModules: 'all-linear' };
          const evaluation = await estimateMemory({ ...options, peftConfig, task: 'evaluate' });
          const forward = ({ components: { activations, workspace } }: MemoryPlan) => activations + workspace;
          assert.ok(evaluation.total < train.total && forward(evaluation) <= forward(train), JSON.stringify({ train, evaluation }));
        }
      }
    }
  });

  it('plans for GPUs by name, without the process, and says that there is no backend for them yet', async () => {
    const plan = await estimateMemory({ model: llama8b, device: 'RTX 4090' });
    assert.deepEqual(plan.device, { name: 'rtx-4090', kind: 'cuda', memory: 24 * kGiB });
    assert.equal(plan.components.process, 0);
    assert.match(plan.notes.join(), /CUDA backend is not there yet/);
  });

  it('tells the same of a loaded model as of its folder, and of an adapter as of the options that make it', async () => {
    const folder = temporaryFolder();
    await using written = await CausalLM.fromConfig(tinyConfig({ hidden_size: 64, intermediate_size: 128, num_attention_heads: 4 }));
    await written.savePretrained(folder, { dtype: 'bfloat16' });
    const peftConfig = { r: 4, targetModules: ['q_proj', 'down_proj'], modulesToSave: ['lm_head'] };
    const args = { bf16: false, maxSeqLength: 64 };
    const plan = await estimateMemory({ model: folder, peftConfig, args });
    await using model = await CausalLM.fromPretrained(folder);
    assert.deepEqual((await estimateMemory({ model, peftConfig, args })).components, { ...plan.components });
    const peft = await getPeftModel(model, peftConfig);
    assert.deepEqual((await estimateMemory({ model: peft, args })).components, { ...plan.components });
    const { settings } = plan;
    assert.equal(settings.trainableParameters, peft.countParameters().trainable);
  });

  it('is a command, whose exit code says whether it fits', () => {
    const folder = temporaryFolder();
    writeFileSync(join(folder, 'config.json'), JSON.stringify(llama8b));
    const main = fileURLToPath(new URL('../lib/cli/main.ts', import.meta.url));
    const command = (...flags: string[]) =>
      spawnSync(process.execPath, ['--import', 'tsx', main, 'estimate', folder, ...flags], { encoding: 'utf8' });
    const tight = command('--qlora', '--batch', '1', '--length', '4096', '--device', '8GiB');
    assert.equal(tight.status, 2, tight.stderr);
    assert.match(tight.stdout, /Training on 1 × 4,096 tokens/);
    assert.match(tight.stdout, /weights +4\.\d+ GiB/);
    assert.match(tight.stdout, /does not fit a machine with 8GiB \(8\.00 GiB\)/);
    assert.match(tight.stdout, /It fits with:/);
    const flags = ['--rank', '8', '--targets', 'q_proj,v_proj', '--checkpointing', 'every:4', '--optim', 'lion_8bit'];
    const json = command('--qlora', '--batch', '1', '--length', '64', '--device', '64GiB', '--json', ...flags);
    assert.equal(json.status, 0, json.stderr);
    const { settings } = JSON.parse(json.stdout) as MemoryPlan;
    assert.deepEqual(
      [settings.trainableParameters, settings.gradientCheckpointing, settings.optim],
      [3_407_872, 'every 4 layers', 'lion_8bit'],
    );
    const full = command('--full', '--length', '64', '--batch', '1', '--device', '64GiB', '--json');
    assert.equal((JSON.parse(full.stdout) as MemoryPlan).settings.trainableParameters, 8_030_261_248);
    const wrong = command('--optim', 'adam');
    assert.equal(wrong.status, 1);
    assert.match(wrong.stderr, /^lowrank: args\.optim: .*\[INVALID_OPTION\]/);
  });

  it('plans full fine-tuning: the weights themselves, their gradients and states', async () => {
    const parameters = 8_030_261_248;
    const args = { optim: 'paged_adamw_8bit', optimizerMemory: '64MiB', maxSeqLength: 64 } as const;
    const { components, settings } = await estimateMemory({ model: llama8b, peftConfig: null, args });
    assert.equal(settings.trainableParameters, parameters);
    assert.ok(Math.abs(components.weights / (2 * parameters) - 1) < 0.02, String(components.weights / parameters));
    assert.ok(Math.abs(components.gradients / (2 * parameters) - 1) < 0.02, String(components.gradients / parameters));
    assert.deepEqual([components.adapters, components.optimizer], [0, 64 * kMiB]);
    const frozen = await estimateMemory({ model: llama8b, peftConfig: null, layers: { trained: [-1, 'lm_head'] }, args });
    assert.equal(frozen.settings.trainableParameters, 128256 * 4096 + (parameters - 2 * 128256 * 4096 - 4096) / 32);
    await using model = await CausalLM.fromConfig(tinyConfig());
    const trainDataset = [{ inputIds: [1, 2, 3, 4] }];
    const options = {
      model,
      trainDataset,
      peftConfig: null,
      layers: { frozen: ['embed_tokens'] },
      args: { outputDir: temporaryFolder() },
    };
    const estimated = await estimateMemory(options);
    assert.deepEqual((await new LoraTrainer(options).plan()).components, estimated.components);
  });

  it('refuses what LoraTrainer refuses, and what it does not know', async () => {
    await assertFails(() => estimateMemory({} as EstimateOptions), 'INVALID_OPTION', /model/);
    await assertFails(() => estimateMemory({ model: llama8b, device: 'rtx-4091' }), 'INVALID_OPTION', /device/, /'rtx-4090'/);
    await assertFails(() => estimateMemory({ model: llama8b, device: 0 }), 'INVALID_OPTION', /device/);
    await assertFails(() => estimateMemory({ model: llama8b, task: 'serve' as 'train' }), 'INVALID_OPTION', /task/);
    await assertFails(() => estimateMemory({ model: llama8b, args: { maxSeqLenght: 4 } as object }), 'UNKNOWN_OPTION', /maxSeqLength/);
    await assertFails(() => estimateMemory({ model: llama8b, peftConfig: { targetModules: ['wqkv'] } }), 'INVALID_OPTION', /wqkv/);
    await assertFails(() => estimateMemory({ model: '/nowhere/at/all' }), 'FILE_NOT_FOUND', /nowhere/);
    await assertFails(() => estimateMemory({ model: { ...llama8b, hidden_size: 'wide' } }), 'INVALID_CONFIG', /hidden_size/);
    await assertFails(() => estimateMemory({ model: { ...llama8b, torch_dtype: 'int7' } }), 'INVALID_CONFIG', /int7/);
    await assertFails(() => estimateMemory({ model: { ...llama8b, architectures: ['MambaForCausalLM'] } }), 'UNSUPPORTED_MODEL', /Mamba/);
  });
});

const onLinux = process.platform === 'linux' ? describe : describe.skip;

onLinux('the peak of a training', function () {
  this.timeout(300_000);
  let folder: string;
  const synthetic = {
    ...llama8b,
    vocab_size: 8192,
    hidden_size: 512,
    intermediate_size: 1536,
    num_hidden_layers: 8,
    num_attention_heads: 8,
    num_key_value_heads: 4,
    tie_word_embeddings: true,
  };

  before(async () => {
    folder = temporaryFolder();
    await using model = await CausalLM.fromConfig(synthetic, { seed: 3, dtype: 'bfloat16' });
    await model.savePretrained(folder);
  });
  after(deleteTemporaryFolders);

  it('is within a tenth of the plan: an embedding beside the head, of which the rows in use are in memory', async () => {
    const untied = { ...synthetic, vocab_size: 100_000, num_hidden_layers: 4, tie_word_embeddings: false };
    const model = join(temporaryFolder(), 'untied');
    await writeSyntheticModel(untied, model, 60e6); // in shards
    const embedding = 2 * untied.vocab_size * untied.hidden_size;
    const { planned, peak } = measure({ options: { model }, vocabulary: untied.vocab_size, rows: 1, length: 256 });
    assert.ok(Math.abs(peak / planned.total - 1) < 0.1, JSON.stringify({ peak, planned }));
    assert.ok(planned.components.weights < 2 * planned.settings.parameters - 0.6 * embedding, JSON.stringify(planned));
  });

  function measure(training: Partial<MeasuredTraining>): { estimated: MemoryPlan; planned: MemoryPlan; peak: number } {
    const child = fileURLToPath(new URL('67.memory.child.ts', import.meta.url));
    const { options, ...shape } = { rows: 4, length: 512, vocabulary: synthetic.vocab_size, ...training };
    const args = {
      outputDir: temporaryFolder(),
      maxSteps: 2,
      perDeviceTrainBatchSize: shape.rows,
      saveStrategy: 'no',
      logLevel: 'error',
      ...options?.args,
    };
    const request = { ...shape, options: { model: folder, ...options, args } };
    const { stdout, stderr } = spawnSync(process.execPath, ['--import', 'tsx', child, JSON.stringify(request)], { encoding: 'utf8' });
    assert.match(stdout, /^\{/, stderr);
    return JSON.parse(stdout) as ReturnType<typeof measure>;
  }

  const forms: [string, Partial<MeasuredTraining['options']>, Partial<MeasuredTraining>?][] = [
    ['LoRA on bf16 weights', {}],
    ['LoRA in fp32', { args: { bf16: false } }],
    ['LoRA with dropout', { peftConfig: { r: 64, targetModules: 'all-linear', loraDropout: 0.1 } }],
    ['QLoRA', { quantizationConfig: nf4, args: { optim: 'paged_adamw_8bit' } }],
    ['full checkpointing', { args: { gradientCheckpointing: true } }, { rows: 8 }],
    ['selective checkpointing', { args: { gradientCheckpointing: 'selective' } }, { rows: 8 }],
    ['checkpoints in a file', { args: { gradientCheckpointing: 'offload' } }, { rows: 8 }],
    ['checkpointing every third layer', { args: { gradientCheckpointing: { every: 3 } } }, { rows: 8 }],
    ['one long row', {}, { rows: 1, length: 4096 }],
    ['the model itself', { peftConfig: null, args: { gradientCheckpointing: true } }],
    [
      'the model itself, with checkpoints on the disk',
      {
        peftConfig: null,
        layers: { frozen: [0] },
        args: { optim: 'paged_adamw_8bit', optimizerMemory: '8MiB', saveStrategy: 'steps', saveSteps: 1 },
      },
    ],
  ];
  for (const [name, options, shape] of forms) {
    it(`is within a tenth of the plan: ${name}`, () => {
      const args = { ...options.args, ...(shape?.length && { maxSeqLength: shape.length }) };
      const { estimated, planned, peak } = measure({ ...shape, options: { ...options, args } as MeasuredTraining['options'] });
      const figures = () => JSON.stringify({ peak, total: planned.total, ...planned.components });
      assert.ok(Math.abs(peak / planned.total - 1) < 0.1, figures());
      assert.deepEqual(estimated.components, planned.components);
    });
  }

  it('is within a tenth of the plan: a GGUF base', async () => {
    const { planned, peak } = measure({ vocabulary: 49152, length: 256, options: { model: await fetchSmolLm2() } });
    assert.ok(Math.abs(peak / planned.total - 1) < 0.1, JSON.stringify({ peak, planned }));
  });

  it('is no higher when the training evaluates in between', () => {
    const options = (args: TrainingArguments) => ({ options: { model: folder, args } as MeasuredTraining['options'] });
    const without = measure(options({}));
    const evaluating = measure(options({ evalStrategy: 'steps', evalSteps: 1, perDeviceEvalBatchSize: 16 }));
    assert.ok(evaluating.peak < without.peak + 24 * kMiB, JSON.stringify([without.peak, evaluating.peak]));
  });
});
