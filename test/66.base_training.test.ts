// Native training of the model itself: gradients, types, what may be done with a tensor once it is trained.
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { CausalLM } from '../lib/model/causal_lm.ts';
import { getPeftModel } from '../lib/model/peft_model.ts';
import { call, type NativeModel, type NativeOptimizer, type NativeSession, type NativeTrainBatch, native } from '../lib/native.ts';
import { systemInfo } from '../lib/system.ts';
import { assertFails, deleteTemporaryFolders, largestDifference, temporaryFolder, tinyConfig } from './support/tiny_models.ts';

const batch: NativeTrainBatch = {
  ids: Int32Array.from({ length: 21 }, (_, i) => (i * 11 + 3) % 37),
  positions: Int32Array.from({ length: 21 }, (_, i) => (i < 13 ? i : i - 13)),
  starts: Int32Array.of(0, 13, 21),
  targets: Int32Array.from({ length: 21 }, (_, i) => (i % 5 === 0 ? -100 : (i * 7 + 2) % 37)),
};
const supervised = batch.targets.filter((target) => target >= 0).length;
const step = { gradScale: 1 / supervised, seed: 3, step: 0, micro: 0 };
const update = { learningRate: 0.01, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weightDecay: 0.01, maxGradNorm: 1 };

function session(model: NativeModel): NativeSession {
  return call(() => native().createSession(model, { maxTokens: 21, keep: { mode: 'inputs', every: 2 }, noDecay: [] }));
}

const namesOf = (model: NativeModel) => model.parameters().map(({ name }) => name);

/** Nearest bf16, towards zero: the value itself where it is one. */
function rounded(value: number): number {
  const bits = new Uint32Array(Float32Array.of(value).buffer);
  bits[0] = (bits[0] as number) & 0xffff0000;
  return new Float32Array(bits.buffer)[0] as number;
}

/** Of trained parameters in the types they have, each on a boundary of 128 bytes. */
function gradientBytes(model: NativeModel): number {
  return model
    .parameters()
    .filter(({ trainable }) => trainable)
    .reduce((sum, { shape, dtype }) => sum + Math.ceil((shape.reduce((a, b) => a * b, 1) * (dtype === 'BF16' ? 2 : 4)) / 128) * 128, 0);
}

async function meanLoss(model: NativeModel): Promise<number> {
  return (await model.evaluate(batch)).nllSum / supervised;
}

describe('training the model itself', () => {
  afterEach(deleteTemporaryFolders);

  for (const tied of [false, true]) {
    it(`has the gradients of every tensor, ${tied ? 'a tied head in the embedding’s' : 'the head its own'}`, async () => {
      await using model = await CausalLM.fromConfig(tinyConfig({ tie_word_embeddings: tied, attention_bias: true }), { seed: 5 });
      const { native: weights } = model.core;
      const names = namesOf(weights);
      assert.equal(names.includes('lm_head.weight'), !tied);
      // Another way to them: an adapter with a copy of every tensor, and of the head where it is tied.
      const rows = [batch.ids.subarray(0, 13), batch.ids.subarray(13)].map((ids) => [...ids]);
      const labels = [batch.targets.subarray(0, 13), batch.targets.subarray(13)].map((targets) => [-100, ...targets.subarray(0, -1)]);
      const expected = await model.lossAndGradients({ inputIds: rows, labels });
      const targets = batch.targets.map((target, i) => (i === 12 || i === 20 ? -100 : target));
      const tokens = targets.filter((target) => target >= 0).length;
      assert.equal(expected.tokens, tokens);

      await weights.trainBase(names, 'F32');
      assert.ok(weights.parameters().every(({ trainable, dtype }) => trainable && dtype === 'F32'));
      const training = session(weights);
      const { nllSum } = await training.accumulate({ ...batch, targets }, { ...step, gradScale: 1 / tokens });
      assert.ok(Math.abs(nllSum / tokens - expected.loss) < 1e-6);
      assert.deepEqual([...expected.gradients.keys()].sort(), [...names].sort());
      for (const [name, gradient] of expected.gradients) {
        const size = Math.max(...gradient.data.map(Math.abs));
        assert.ok(size > 0, name);
        // Sums of a few dozen products in fp32, in another order.
        assert.ok(largestDifference(await training.readGradient(name), gradient.data) < 2e-6 * size + 1e-9, name);
      }
      training.dispose();
    });
  }

  it('agrees with finite differences of a tied embedding', async () => {
    await using model = await CausalLM.fromConfig(tinyConfig({ tie_word_embeddings: true }), { seed: 6 });
    const weights = model.core.native;
    const name = 'model.embed_tokens.weight';
    await weights.trainBase([name], 'F32');
    const training = session(weights);
    await training.accumulate(batch, step);
    const gradient = await training.readGradient(name);
    const values = await weights.readParameter(name);
    // Elements of tokens that are read and predicted, and of some that are only predicted.
    for (let at = 5; at < values.length; at += 97) {
      const moved = async (by: number) => {
        const changed = values.slice();
        changed[at] = (changed[at] as number) + by;
        await weights.writeParameter(name, changed);
        return meanLoss(weights);
      };
      const difference = ((await moved(0.01)) - (await moved(-0.01))) / 0.02;
      // The loss is summed in fp32 (1e-7 of about 4, over 0.02), and has a third derivative.
      assert.ok(Math.abs(difference - (gradient[at] as number)) < 2e-4, `${at}: ${gradient[at]}, not ${difference}`);
    }
  });

  for (const bf16 of systemInfo().bf16 ? [false, true] : [false]) {
    it(`has gradients in bf16 that are those of fp32, rounded${bf16 ? ', where products are bf16 too' : ''}`, async () => {
      const run = async (dtype: 'F32' | 'BF16', times: number) => {
        await using model = await CausalLM.fromConfig(tinyConfig({ tie_word_embeddings: true }), { seed: 6, dtype: 'bfloat16' });
        const weights = model.core.native;
        weights.setCompute(bf16 ? 'bf16' : 'f32');
        await weights.trainBase(namesOf(weights), dtype);
        const training = session(weights);
        for (let i = 0; i < times; ++i) await training.accumulate(batch, { ...step, micro: i });
        const gradients = new Map<string, Float32Array>();
        for (const name of namesOf(weights)) gradients.set(name, await training.readGradient(name));
        const keep = { mode: 'all', every: 1 } as const;
        assert.equal(native().planSession(weights, { maxTokens: 21, keep }).gradients, gradientBytes(weights));
        training.dispose();
        return gradients;
      };
      const exact = await run('F32', 2);
      for (const [name, gradient] of await run('BF16', 2)) {
        const wanted = exact.get(name) as Float32Array;
        const size = Math.max(...wanted.map(Math.abs));
        // Two additions of values of at most `size`, twice as many into a tied embedding, each rounded to eight bits.
        assert.ok(largestDifference(gradient, wanted) < 4 * size * 2 ** -9, name);
        assert.equal(name.endsWith('norm.weight') || gradient.every((value) => Math.fround(value) === rounded(value)), true, name);
      }
    });
  }

  it('learns with every optimizer in bf16, the same bits with the same seed, and no value that bf16 has not', async () => {
    const run = async (kind: NativeOptimizer['kind'], bits: 32 | 8, seed: number) => {
      await using model = await CausalLM.fromConfig(tinyConfig({ hidden_size: 96, tie_word_embeddings: true }), { seed: 12 });
      const weights = model.core.native;
      await weights.trainBase(namesOf(weights), 'BF16');
      const options = { maxTokens: 21, keep: { mode: 'all' as const, every: 1 }, noDecay: [], optimizer: { kind, bits }, seed };
      const training = call(() => native().createSession(weights, options));
      const losses: number[] = [];
      for (let i = 0; i < 6; ++i) {
        losses.push((await training.accumulate(batch, { ...step, step: i })).nllSum / supervised);
        const learningRate = kind === 'sgd' ? 0.1 : kind === 'lion' ? 0.001 : 0.003;
        await training.update({ ...update, learningRate, momentum: 0.9 });
      }
      training.dispose();
      return { losses, values: await weights.readParameter('model.layers.1.mlp.up_proj.weight') };
    };
    for (const [kind, bits] of [
      ['adamw', 32],
      ['adamw', 8],
      ['lion', 32],
      ['lion', 8],
      ['sgd', 32],
      ['adafactor', 32],
    ] as const) {
      const first = await run(kind, bits, 1);
      assert.ok((first.losses[5] as number) < 0.9 * (first.losses[0] as number), `${kind} ${bits}: ${first.losses}`);
      assert.ok(first.values.every((value) => value === rounded(value)));
      assert.deepEqual(await run(kind, bits, 1), first, kind);
      assert.notDeepEqual((await run(kind, bits, 2)).values, first.values, kind);
    }
  });

  it('trains the tensors that are named and no other, and lowers the loss', async () => {
    await using model = await CausalLM.fromConfig(tinyConfig(), { seed: 7 });
    const weights = model.core.native;
    const chosen = ['model.layers.1.mlp.down_proj.weight', 'model.layers.2.input_layernorm.weight', 'lm_head.weight'];
    await weights.trainBase(chosen, 'F32');
    assert.deepEqual(
      weights
        .parameters()
        .flatMap(({ name, trainable }) => (trainable ? [name] : []))
        .sort(),
      [...chosen].sort(),
    );
    const before = new Map<string, Float32Array>();
    for (const name of namesOf(weights)) before.set(name, await weights.readParameter(name));
    const first = await meanLoss(weights);
    const training = session(weights);
    for (let i = 0; i < 5; ++i) {
      await training.accumulate(batch, { ...step, step: i });
      assert.ok((await training.update(update)).gradNorm > 0);
    }
    assert.ok((await meanLoss(weights)) < 0.95 * first);
    for (const [name, values] of before) {
      assert.equal(largestDifference(await weights.readParameter(name), values) > 0, chosen.includes(name), name);
    }
    await assertFails(() => call(() => training.readGradient('model.norm.weight')), 'INVALID_OPTION', /model\.norm\.weight/);
    training.dispose();
  });

  it('moves trainability to other tensors, which stay where they are', async () => {
    await using model = await CausalLM.fromConfig(tinyConfig(), { seed: 8, dtype: 'bfloat16' });
    const weights = model.core.native;
    const [first, second] = ['model.layers.0.mlp.up_proj.weight', 'model.layers.1.mlp.up_proj.weight'] as const;
    const values = await weights.readParameter(first);
    await weights.trainBase([first], 'F32');
    const training = session(weights);
    await training.accumulate(batch, step);
    await weights.trainBase([second], 'F32');
    for (const late of [() => training.accumulate(batch, step), () => training.update(update)]) {
      await assertFails(() => call<Promise<unknown>>(late), 'INVALID_OPTION', /changed since this session was made/);
    }
    const types = new Map(weights.parameters().map(({ name, dtype, trainable }) => [name, `${dtype} ${trainable}`]));
    assert.equal(types.get(first), 'F32 false');
    assert.equal(types.get(second), 'F32 true');
    assert.equal(types.get('lm_head.weight'), 'BF16 false');
    assert.deepEqual(await weights.readParameter(first), values);
    await weights.trainBase([], 'F32');
    await assertFails(() => session(weights), 'INVALID_OPTION', /nothing is trainable/);
  });

  it('keeps the values of a file, whatever type it has, and writes them back as they are', async () => {
    const folder = join(temporaryFolder(), 'model');
    await using made = await CausalLM.fromConfig(tinyConfig(), { seed: 9 });
    await made.savePretrained(folder, { dtype: 'bfloat16' });
    for (const dtype of ['F32', 'BF16'] as const) {
      await using model = await CausalLM.fromPretrained(folder);
      const weights = model.core.native;
      const [matrix, vector] = ['model.embed_tokens.weight', 'model.norm.weight'] as const;
      const before = [await weights.readParameter(matrix), await weights.readParameter(vector)];
      await weights.trainBase([matrix, vector], dtype);
      assert.deepEqual([await weights.readParameter(matrix), await weights.readParameter(vector)], before);
      const types = weights.parameters().filter(({ trainable }) => trainable);
      assert.deepEqual(types.map(({ dtype: type }) => type).sort(), [dtype, 'F32'].sort());
      await weights.writeParameter(matrix, before[0] as Float32Array);
      assert.deepEqual(await weights.readParameter(matrix), before[0]);
    }
  });

  it('trains an adapter over tensors of the model’s own, or those in spite of an adapter', async () => {
    await using model = await CausalLM.fromConfig(tinyConfig(), { seed: 10 });
    const weights = model.core.native;
    const name = 'model.layers.0.self_attn.q_proj.weight';
    await weights.trainBase([name], 'F32');
    const peft = await getPeftModel(model, { r: 4, targetModules: ['q_proj'] });
    assert.deepEqual(
      weights.parameters().flatMap((parameter) => (parameter.trainable && !parameter.name.includes('lora') ? [parameter.name] : [])),
      [],
    );
    assert.ok(peft.trainableNames().length > 0);
    await weights.trainBase([name], 'F32');
    const training = session(weights);
    await training.accumulate(batch, step);
    assert.ok((await training.readGradient(name)).some((value) => value !== 0));
    await assertFails(
      () => call(() => training.readGradient(`${name.replace('.weight', '')}.lora_A.default`)),
      'INVALID_OPTION',
      /not trained/,
    );
  });

  it('answers names and types that cannot be', async () => {
    await using model = await CausalLM.fromConfig(tinyConfig({ tie_word_embeddings: true }), { seed: 11 });
    const weights = model.core.native;
    const name = 'model.norm.weight';
    await assertFails(() => call(() => weights.trainBase(['lm_head.weight'], 'F32')), 'INVALID_OPTION', /embed_tokens/);
    await assertFails(() => call(() => weights.trainBase(['model.nothing'], 'F32')), 'INVALID_OPTION', /model\.nothing/);
    await assertFails(() => call(() => weights.trainBase([name], 'F16' as 'F32')), 'INVALID_OPTION', /F16; expected F32 or BF16/);
    await weights.trainBase([name], 'F32');
    await assertFails(() => call(() => weights.setTensor(name, new Float32Array(24))), 'INVALID_OPTION', /is trained/);
    await assertFails(() => call(() => weights.writeParameter(name, new Float32Array(23))), 'SHAPE_MISMATCH', /24/);
  });
});
