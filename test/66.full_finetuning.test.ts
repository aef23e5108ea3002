// peftConfig: null trains the model itself.
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync } from 'node:fs';
import { rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { CausalLM } from '../lib/model/causal_lm.ts';
import type { Dtype } from '../lib/model/compute_type.ts';
import { getPeftModel } from '../lib/model/peft_model.ts';
import { trainedTensors } from '../lib/model/trained_tensors.ts';
import { call, type NativeTensorData, native } from '../lib/native.ts';
import { OPTIMIZERS, type OptimizerName } from '../lib/options/optimizers.ts';
import type { TrainedLayers } from '../lib/options/trained_layers.ts';
import type { TrainerOptions } from '../lib/options/trainer_options.ts';
import type { TrainingArguments } from '../lib/options/training_arguments.ts';
import { TrainedModel } from '../lib/train/trained_model.ts';
import { LoraTrainer } from '../lib/train/trainer.ts';
import { llamaConfig, tokenRows } from './60.trainer.llama.ts';
import { assertClose, parityGguf, parityModel, readArrays, readJson, type Values, valuesOf } from './support/parity.ts';
import { assertFails } from './support/tiny_models.ts';

type FullOptions = TrainerOptions<null> & { peftConfig: null };

/** Lion takes steps of full size in every direction, SGD tiny ones. */
const rateOf = (optim: OptimizerName) => (optim.includes('lion') ? 1e-3 : optim === 'sgd' ? 0.3 : 5e-3);
const kTypes = ['float32', 'bfloat16'] as const;

/** To nearest, even where halfway. */
function toBf16(value: number): number {
  const bits = new Uint32Array(Float32Array.of(value).buffer);
  const word = bits[0] as number;
  bits[0] = (word + 0x7fff + ((word >>> 16) & 1)) & 0xffff0000;
  return new Float32Array(bits.buffer)[0] as number;
}

describe('full fine-tuning', () => {
  const folders: string[] = [];
  const newFolder = () => {
    folders.push(mkdtempSync(join(tmpdir(), 'lowrank-full-')));
    return folders.at(-1) as string;
  };
  after(() => Promise.all(folders.map((folder) => rm(folder, { recursive: true, force: true }))));

  const newModel = (dtype: Dtype, config: Record<string, unknown> = {}) =>
    CausalLM.fromConfig({ ...llamaConfig, ...config }, { seed: 5, dtype });
  const options = async (
    args: TrainingArguments & { outputDir: string },
    { dtype = 'float32', config, ...more }: Partial<FullOptions> & { dtype?: Dtype; config?: Record<string, unknown> } = {},
  ): Promise<FullOptions> => ({
    model: await newModel(dtype, config),
    trainDataset: tokenRows(24, 1),
    ...more,
    peftConfig: null,
    args: {
      maxSteps: 8,
      perDeviceTrainBatchSize: 4,
      gradientAccumulationSteps: 2,
      learningRate: 5e-3,
      weightDecay: 0.01,
      saveSteps: 4,
      loggingSteps: 1,
      lrSchedulerType: 'constant',
      logLevel: 'error',
      ...args,
    },
  });
  const train = async (...setup: Parameters<typeof options>) => new LoraTrainer(await options(...setup)).train();
  const weights = (folder: string) => readFileSync(join(folder, 'model.safetensors'));
  const states = (folder: string) => readFileSync(join(folder, 'optimizer.safetensors'));
  const losses = (history: { loss?: number }[]) => history.flatMap(({ loss }) => (loss === undefined ? [] : [loss]));

  for (const dtype of kTypes) {
    describe(`in ${dtype}`, () => {
      it('learns, evaluates, and writes the model that gives the same losses when loaded', async () => {
        const outputDir = newFolder();
        const trainer = new LoraTrainer(
          await options(
            { outputDir, bf16: false, maxSteps: 40, evalStrategy: 'steps', evalSteps: 20, evalOnStart: true },
            { dtype, evalDataset: tokenRows(10, 2) },
          ),
        );
        const result = await trainer.train();
        assert.equal(result.modelPath, outputDir);
        assert.ok(!('adapterPath' in result));
        const evaluations = result.logHistory.flatMap(({ evalLoss }) => (evalLoss === undefined ? [] : [evalLoss]));
        assert.equal(evaluations.length, 3);
        assert.ok((evaluations[2] as number) < 0.8 * (evaluations[0] as number), evaluations.join(', '));
        assert.equal(trainer.model.numParameters({ onlyTrainable: true }), trainer.model.numParameters());

        const loaded = await CausalLM.fromPretrained(outputDir);
        const inputIds = tokenRows(3, 7).map((row) => row.inputIds.slice(0, 3));
        const [here, there] = await Promise.all([trainer.model, loaded].map((model) => model.forward({ inputIds })));
        assert.deepEqual(here?.data, there?.data);
        const stored = dtype === 'float32' ? 'F32' : 'BF16';
        for (const { name, shape, dtype: type } of loaded.parameters()) assert.equal(type, shape.length === 1 ? 'F32' : stored, name);
        assert.ok(!readArrays(join(outputDir, 'model.safetensors')).has('lm_head.weight')); // tied
        const config = readJson(join(outputDir, 'config.json')) as Record<string, unknown>;
        assert.deepEqual([config.torch_dtype, config.tie_word_embeddings], [dtype, true]);
      });

      it('resumes bit for bit: weights, optimizer, log; also the model that was trained already', async () => {
        const whole = newFolder();
        const { logHistory } = await train({ outputDir: whole }, { dtype });
        const resumeFromCheckpoint = join(whole, 'checkpoint-4');
        const again = await options({ outputDir: newFolder(), resumeFromCheckpoint }, { dtype });
        const used = new LoraTrainer(await options({ outputDir: newFolder(), resumeFromCheckpoint }, { dtype, model: again.model }));
        for (const trainer of [new LoraTrainer(again), used]) {
          const resumed = await trainer.train();
          assert.ok(weights(resumed.modelPath).equals(weights(whole)));
          for (const file of [weights, states]) {
            assert.ok(file(join(resumed.modelPath, 'checkpoint-8')).equals(file(join(whole, 'checkpoint-8'))));
          }
          assert.deepEqual(losses(resumed.logHistory), losses(logHistory));
        }
      });

      it('gives the same bits whatever is kept for the backward, and whatever the number of threads', async () => {
        const learnt = async (gradientCheckpointing: TrainingArguments['gradientCheckpointing'], bf16: boolean) => {
          const outputDir = newFolder();
          await train(
            { outputDir, gradientCheckpointing, bf16, maxSteps: 3, saveStrategy: 'no' },
            { dtype, config: { num_hidden_layers: 3 } },
          );
          return weights(outputDir);
        };
        for (const bf16 of [false, true]) {
          const plain = await learnt(false, bf16);
          for (const kept of [true, 'selective', { every: 2 }] as const)
            assert.ok((await learnt(kept, bf16)).equals(plain), JSON.stringify({ kept, bf16 }));
        }
        const child = new URL('./66.full.threads_child.ts', import.meta.url).pathname;
        const hashes = [1, 2, 3].map((threads) => {
          const env = { ...process.env, LOWRANK_THREADS: String(threads) };
          const { stdout, stderr } = spawnSync(process.execPath, ['--import', 'tsx', child, newFolder(), dtype], { encoding: 'utf8', env });
          assert.match(stdout, /^[0-9a-f]{64}$/, stderr);
          return stdout;
        });
        assert.equal(new Set(hashes).size, 1);
      });

      it('does not move what is frozen by a bit, with weight decay and 8-bit states', async () => {
        for (const config of [{}, { tie_word_embeddings: false, attention_bias: true }]) {
          const model = await newModel(dtype, config);
          const start = newFolder();
          await model.savePretrained(start);
          const outputDir = newFolder();
          const layers: TrainedLayers = { frozen: [0, 'norm', 'lm_head', 'v_proj.bias'].slice(0, 'attention_bias' in config ? 4 : 3) };
          await train({ outputDir, optim: 'adamw_8bit', weightDecay: 0.1 }, { model, layers });
          const [before, after] = [readArrays(join(start, 'model.safetensors')), readArrays(join(outputDir, 'model.safetensors'))];
          const frozen = (name: string) =>
            /layers\.0\.|^model\.norm|^lm_head|v_proj\.bias/.test(name) || (!('attention_bias' in config) && /embed_tokens/.test(name));
          assert.deepEqual([...after.keys()].sort(), [...before.keys()].sort());
          const bits = (values: Float32Array) => new Uint32Array(values.buffer);
          for (const [name, { data }] of before) {
            const there = bits(valuesOf(after, name).data);
            assert.equal(
              bits(data).some((value, i) => value !== there[i]),
              !frozen(name),
              name,
            );
          }
        }
      });

      for (const optim of Object.keys(OPTIMIZERS) as OptimizerName[]) {
        it(`${optim} learns, and resumes bit for bit`, async () => {
          // Wide enough for matrices with 8-bit states, and to be paged.
          const setup = { dtype, config: { hidden_size: 128, intermediate_size: 256 }, trainDataset: tokenRows(8, 1) };
          const paged = OPTIMIZERS[optim].paged ? { optimizerMemory: '4MiB' as const } : {};
          const args = { optim, learningRate: rateOf(optim), gradientAccumulationSteps: 2, ...paged };
          const [whole, resumed] = [newFolder(), newFolder()];
          const all = losses((await train({ ...args, outputDir: whole }, setup)).logHistory);
          assert.ok((all[7] as number) < 0.98 * (all[0] as number), all.join(', '));
          await train({ ...args, outputDir: resumed, resumeFromCheckpoint: join(whole, 'checkpoint-4') }, setup);
          assert.ok(weights(resumed).equals(weights(whole)));
          assert.ok(states(join(resumed, 'checkpoint-8')).equals(states(join(whole, 'checkpoint-8'))));
        });
      }
    });
  }

  it('learns in bfloat16 as in float32 where rounding to nearest would stand still', async () => {
    const start = newFolder();
    await (await newModel('bfloat16')).savePretrained(start);
    const steps = 64;
    const learningRate = 5e-6;
    const learnt = async (dtype: Dtype, outputDir: string, seed: number) => {
      const model = await CausalLM.fromPretrained(start, { dtype });
      const args = {
        outputDir,
        seed,
        dataSeed: 1,
        maxSteps: steps,
        learningRate,
        weightDecay: 0,
        bf16: false,
        saveStrategy: 'no',
      } as const;
      await train(args, { model });
      return readArrays(join(outputDir, 'model.safetensors'));
    };
    const before = readArrays(join(start, 'model.safetensors'));
    const exact = await learnt('float32', newFolder(), 1);
    const matrices = [...before].filter(([, { shape }]) => shape.length === 2).map(([name]) => name);
    const all = (values: Map<string, Values>) => matrices.flatMap((name) => [...valuesOf(values, name).data]);
    const weightsBefore = all(before);
    const moves = all(exact).map((value, i) => value - (weightsBefore[i] as number));
    const still = weightsBefore.filter((value) => toBf16(value + learningRate) === value && toBf16(value - learningRate) === value);
    assert.ok(still.length > 0.9 * weightsBefore.length, `${still.length} of ${weightsBefore.length}`);

    const results = [];
    for (const seed of [1, 1, 2]) {
      const rounded = all(await learnt('bfloat16', newFolder(), seed));
      results.push(rounded.join());
      // How far it went along float32's way: 1 but for noise, which is 0.5 % with so many weights. Rounding to nearest stays below 0.1.
      const along = moves.reduce((sum, move, i) => sum + move * ((rounded[i] as number) - (weightsBefore[i] as number)), 0);
      const ratio = along / moves.reduce((sum, move) => sum + move * move, 0);
      assert.ok(Math.abs(ratio - 1) < 0.05, `${ratio} of the way with the seed ${seed}`);
    }
    assert.equal(results[1], results[0]);
    assert.notEqual(results[2], results[0]);
  });

  it('decodes float16 and block types, frozen ones too, into the type that is trained', async () => {
    const gguf = parityGguf('llama_k_quants').path;
    const half = parityModel('llama_multi_query').folder;
    for (const [source, dtype, note] of [
      [gguf, 'auto', /^weights: bfloat16, updated with stochastic rounding, decoded from .*Q4_K/],
      [gguf, 'float32', /^weights: float32, decoded from .*Q4_K/],
      [half, 'auto', /^weights: bfloat16, updated with stochastic rounding, decoded from F16$/],
      [half, 'float32', /^weights: float32$/],
    ] as const) {
      const model = await CausalLM.fromPretrained(source, { dtype });
      const layers = { trained: ['norm'] };
      const inputIds = [[1, 2, 3, 4]];
      const original = await model.forward({ inputIds });
      const { notes } = await TrainedModel.create(model, layers);
      assert.match(notes.join(), note);
      const outputDir = newFolder();
      await train(
        { outputDir, bf16: false, maxSteps: 1, learningRate: 0, weightDecay: 0 },
        { model, layers, trainDataset: [{ inputIds: [1, 2, 3, 4] }] },
      );
      const saved = await CausalLM.fromPretrained(outputDir);
      const stored = new Set(saved.parameters().flatMap(({ shape, dtype: type }) => (shape.length === 2 ? [type] : [])));
      assert.deepEqual([...stored], [dtype === 'float32' ? 'F32' : 'BF16']);
      const logits = await saved.forward({ inputIds });
      assert.deepEqual(logits.data, (await model.forward({ inputIds })).data);
      // Exact in float32 but for the order of sums; bfloat16 has 8 bits.
      assertClose(source, logits, original, dtype === 'float32' ? 1e-5 : 2e-2);
    }
  });

  it('sets what it trains, and states of its optimizer, from tensors of a file', async () => {
    const model = await newModel('float32', { tie_word_embeddings: false });
    const weights = model.core.native;
    await call(() => weights.trainBase(['lm_head.weight'], 'BF16'));
    await call(() => weights.trainBase(['lm_head.weight', 'model.norm.weight'], 'F32'));
    const path = join(newFolder(), 'values.safetensors');
    const values = Float32Array.from({ length: 97 * 32 }, (_, i) => Math.sin(i));
    const tensors: NativeTensorData[] = [
      { name: 'head', dtype: 'F32', shape: [97, 32], data: values },
      { name: 'turned', dtype: 'F32', shape: [32, 97], data: values },
      { name: 'whole', dtype: 'I32', shape: [97, 32], data: new Int32Array(97 * 32) },
      { name: 'm.model.norm.weight', dtype: 'F32', shape: [31], data: values.slice(0, 31) },
      { name: 'v.model.norm.weight', dtype: 'F32', shape: [32], data: values.slice(0, 32) },
    ];
    await native().writeSafetensors(path, tensors, {});
    const file = native().openTensorFile(path);
    const load = (name: string, tensor: string) => call(() => weights.loadParameter(name, file, tensor));
    await load('lm_head.weight', 'head');
    assert.deepEqual(await weights.readParameter('lm_head.weight'), values);
    await call(() => weights.trainBase(['lm_head.weight'], 'BF16'));
    await load('lm_head.weight', 'head');
    assert.deepEqual(await weights.readParameter('lm_head.weight'), values.map(toBf16));
    await assertFails(() => load('lm_head.weight', 'turned'), 'SHAPE_MISMATCH', /lm_head\.weight/);
    await assertFails(() => load('lm_head.weight', 'none'), 'INVALID_OPTION', /none/);
    await assertFails(() => load('lm_head.weight', 'whole'), 'UNSUPPORTED_QUANTIZATION', /whole/);
    await assertFails(() => load('model.embed_tokens.weight', 'head'), 'INVALID_OPTION', /no parameter named model\.embed_tokens\.weight/);

    await call(() => weights.trainBase(['model.norm.weight'], 'F32'));
    const session = call(() => native().createSession(weights, { maxTokens: 4, keep: { mode: 'all', every: 1 }, noDecay: [] }));
    await call(() => session.loadOptimizer('v.model.norm.weight', file));
    await assertFails(() => call(() => session.loadOptimizer('m.model.norm.weight', file)), 'SHAPE_MISMATCH', /124 bytes; expected 128/);
    const saved = join(newFolder(), 'states.safetensors');
    await call(() => session.saveOptimizer(saved, { step: '3' }));
    const states = readArrays(saved);
    assert.deepEqual([...states.keys()].sort(), ['m.model.norm.weight', 'v.model.norm.weight']);
    assert.deepEqual(valuesOf(states, 'v.model.norm.weight').data, values.slice(0, 32));
    await assertFails(() => call(() => session.saveOptimizer('/nowhere/states.safetensors', {})), 'IO_ERROR', /nowhere/);
    session.dispose();
    file.close();
  });

  it("resumes from the checkpoint's own folder as the model", async () => {
    for (const dtype of kTypes) {
      const whole = newFolder();
      const layers = { frozen: [0, 'embed_tokens'] };
      await train({ outputDir: whole, bf16: false }, { dtype, layers });
      const checkpoint = join(whole, 'checkpoint-4');
      const outputDir = newFolder();
      await train({ outputDir, bf16: false, resumeFromCheckpoint: checkpoint }, { model: checkpoint, layers });
      assert.ok(weights(outputDir).equals(weights(whole)));
    }
  });

  it('ends with the best checkpoint, keeps as many as it should, and steps one by one', async () => {
    const outputDir = newFolder();
    const best = { saveSteps: 2, evalSteps: 2, evalStrategy: 'steps', saveTotalLimit: 1, loadBestModelAtEnd: true } as const;
    // What is learnt is of no use for these rows, the surer the less.
    const evalDataset = [{ inputIds: [5, 60, 11, 90, 33, 71, 2, 48, 19] }];
    const trainer = new LoraTrainer(await options({ outputDir, maxSteps: 12, learningRate: 0.02, ...best }, { evalDataset }));
    const steps = trainer.steps();
    let next = await steps.next();
    for (let count = 1; !next.done; ++count) {
      assert.equal(next.value.step, count);
      next = await steps.next();
    }
    const evaluations = next.value.logHistory.filter((entry) => entry.evalLoss !== undefined);
    const least = evaluations.reduce((a, b) => ((b.evalLoss as number) < (a.evalLoss as number) ? b : a));
    assert.ok(least.step < 12, JSON.stringify(evaluations));
    assert.equal((await trainer.evaluate()).loss, least.evalLoss);
    assert.deepEqual(
      readdirSync(outputDir)
        .filter((name) => name.startsWith('checkpoint-'))
        .sort(),
      [`checkpoint-${least.step}`, 'checkpoint-12'].sort(),
    );
    assert.ok(weights(outputDir).equals(weights(join(outputDir, `checkpoint-${least.step}`))));
  });

  it('leaves the whole model in the checkpoint of a stopped training', async () => {
    const outputDir = newFolder();
    const controller = new AbortController();
    const onStepEnd = ({ globalStep }: { globalStep: number }) => {
      if (globalStep === 3) controller.abort();
    };
    const setup = await options({ outputDir }, { signal: controller.signal, callbacks: [{ onStepEnd }] });
    const result = await new LoraTrainer(setup).train();
    assert.equal(result.stopped, 'aborted');
    assert.equal(result.modelPath, join(outputDir, 'checkpoint-3'));
    await (await CausalLM.fromPretrained(result.modelPath)).dispose();
    const whole = newFolder();
    await train({ outputDir: whole });
    const resumed = await train({ outputDir, resumeFromCheckpoint: true });
    assert.ok(weights(resumed.modelPath).equals(weights(whole)));
  });

  it('refuses to resume where other weights are frozen, or the frozen ones are others', async () => {
    const outputDir = newFolder();
    const layers = { frozen: [0] };
    await train({ outputDir }, { layers });
    const resume = { outputDir, resumeFromCheckpoint: true };
    await assertFails(() => train(resume), 'INVALID_OPTION', /adapter\.trainedTensors was 11 and is 20/);
    await assertFails(() => train(resume, { layers: { frozen: [1] } }), 'INVALID_OPTION', /adapter\.parameters was/);
    const model = await CausalLM.fromConfig(llamaConfig, { seed: 6 });
    await assertFails(() => train(resume, { layers, model }), 'INVALID_OPTION', /base\.frozen was/);
    await assertFails(
      async () => new LoraTrainer({ ...(await options(resume)), peftConfig: { r: 4 } }).train(),
      'INVALID_OPTION',
      /adapter\.r was/,
    );
    assert.equal((await train(resume, { layers })).globalStep, 8);
  });

  it('takes the place of an adapter or of shards in its folder', async () => {
    const outputDir = newFolder();
    await writeFile(join(outputDir, 'adapter_config.json'), '{}');
    await writeFile(join(outputDir, 'adapter_model.safetensors'), '');
    await writeFile(join(outputDir, 'notes.txt'), 'mine');
    await (await newModel('float32')).savePretrained(outputDir, { maxShardSize: '20KB' });
    assert.ok(readdirSync(outputDir).includes('model.safetensors.index.json'));
    assert.ok(readdirSync(outputDir).includes('adapter_config.json'));
    await train({ outputDir, saveStrategy: 'no', loggingStrategy: 'no', maxSteps: 1 });
    const names = readdirSync(outputDir).filter((name) => name !== 'runs');
    assert.deepEqual(names.sort(), ['config.json', 'generation_config.json', 'model.safetensors', 'notes.txt']);
  });

  it('tells what layers mean', async () => {
    const tied = await newModel('float32', { num_hidden_layers: 12 });
    const untied = await newModel('float32', { num_hidden_layers: 3, tie_word_embeddings: false, attention_bias: true });
    const names = (model: CausalLM, layers: TrainedLayers) => trainedTensors(model.core.native, layers);
    const all = names(untied, {});
    assert.ok(all.includes('lm_head.weight') && all.includes('model.layers.2.self_attn.q_proj.bias'));
    assert.ok(!names(tied, {}).includes('lm_head.weight'));
    assert.deepEqual(names(untied, { trained: ['norm'] }), ['model.norm.weight']);
    assert.deepEqual(names(untied, { trained: ['embed_tokens', 'lm_head'] }), ['model.embed_tokens.weight', 'lm_head.weight']);
    assert.deepEqual(names(tied, { trained: ['lm_head'] }), ['model.embed_tokens.weight']);
    assert.ok(!names(tied, { frozen: ['lm_head'] }).includes('model.embed_tokens.weight'));
    const block = (number: number, part = '') => all.filter((name) => name.startsWith(`model.layers.${number}.${part}`));
    assert.deepEqual(names(untied, { trained: [-1] }), block(2));
    assert.deepEqual(names(untied, { trained: ['model.layers.1', 0] }), [...block(0), ...block(1)]);
    assert.deepEqual(names(untied, { trained: ['mlp'], frozen: [-3, 'layers.1'] }), block(2, 'mlp'));
    assert.deepEqual(names(untied, { trained: ['model.layers.2.mlp.up_proj.weight'] }), ['model.layers.2.mlp.up_proj.weight']);
    assert.deepEqual(
      names(untied, { trained: [1], frozen: ['weight'] }),
      block(1).filter((name) => name.endsWith('bias')),
    );
    // Whole parts: 'layers.1' is not 'layers.11'.
    assert.equal(names(tied, { trained: ['layers.1'] }).length, 9);

    await assertFails(
      () => names(untied, { frozen: ['embed_token'] }),
      'INVALID_OPTION',
      /layers\.frozen\[0\]: found "embed_token".* did you mean 'embed_tokens'\?/,
    );
    await assertFails(
      () => names(untied, { trained: [0, 'self_atn.q_proj'] }),
      'INVALID_OPTION',
      /layers\.trained\[1\].* did you mean 'self_attn\.q_proj'\?/,
    );
    await assertFails(() => names(untied, { frozen: ['experts'] }), 'INVALID_OPTION', /its parts are model, embed_tokens, /);
    await assertFails(() => names(untied, { frozen: [3] }), 'INVALID_OPTION', /layers\.frozen\[0\]: found 3, expected .* from -3 to 2/);
    await assertFails(() => names(untied, { frozen: [-4] }), 'INVALID_OPTION', /found -4/);
    await assertFails(() => names(untied, { frozen: ['model', 'lm_head'] }), 'INVALID_OPTION', /leaves nothing to train/);
    await assertFails(
      async () => train({ outputDir: newFolder() }, { layers: { frozen: ['norms'] } }),
      'INVALID_OPTION',
      /did you mean 'norm'/,
    );
  });

  it('refuses quantized models, adapters, and a PeftModel', async () => {
    const quantized = await CausalLM.fromPretrained(new URL('fixtures/qlora/base', import.meta.url).pathname, {
      quantizationConfig: { loadIn4bit: true },
    });
    await assertFails(
      () => train({ outputDir: newFolder() }, { model: quantized }),
      'UNSUPPORTED_QUANTIZATION',
      /^model: .*purely quantized/,
    );
    const model = await newModel('float32');
    const peft = await getPeftModel(model, { r: 2 });
    await assertFails(() => train({ outputDir: newFolder() }, { model: peft }), 'INVALID_OPTION', /PeftModel/);
    await assertFails(() => train({ outputDir: newFolder() }, { model }), 'INVALID_OPTION', /model: found a model with an adapter on it/);
    peft.deleteAdapter('default');
    await train({ outputDir: newFolder(), maxSteps: 1 }, { model });
    // And an adapter on the model afterwards, whose weights stay as they are.
    const before = await model.core.native.readParameter('model.norm.weight');
    await new LoraTrainer({
      model,
      trainDataset: tokenRows(8, 1),
      peftConfig: { r: 2 },
      args: { outputDir: newFolder(), maxSteps: 2, logLevel: 'error' },
    }).train();
    assert.deepEqual(await model.core.native.readParameter('model.norm.weight'), before);
  });
});
