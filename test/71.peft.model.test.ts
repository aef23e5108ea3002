import assert from 'node:assert/strict';
import { CausalLM, getPeftModel, PeftModel } from '../lib/index.ts';
import { assertFails, deleteTemporaryFolders, largestDifference, temporaryFolder, tinyConfig } from './support/tiny_models.ts';

const kInput = { inputIds: [[1, 2, 3, 4, 5, 6]] };
const kConfig = { r: 4, loraAlpha: 8, targetModules: ['q_proj', 'down_proj'] };

function valuesOf(model: CausalLM, name: string): Promise<Float32Array> {
  return model.core.native.readParameter(name);
}

async function logitsOf(model: CausalLM): Promise<Float32Array> {
  return (await model.forward(kInput)).data;
}

/** Gives B values, so that the adapter changes something. */
async function fillB(model: PeftModel, adapter = 'default', factor = 1): Promise<void> {
  for (const { name, shape } of model.core.native.parameters()) {
    if (!name.endsWith(`.lora_B.${adapter}`)) continue;
    const values = Float32Array.from(
      { length: (shape[0] as number) * (shape[1] as number) },
      (_, i) => factor * 0.3 * Math.sin(i + name.length),
    );
    await model.core.native.writeParameter(name, values);
  }
}

describe('PeftModel', () => {
  let base: CausalLM;
  beforeEach(async () => {
    base = await CausalLM.fromConfig(tinyConfig({ attention_bias: true }), { seed: 31 });
  });
  afterEach(async () => {
    await base.dispose();
    deleteTemporaryFolders();
  });

  it('changes nothing before training: A is uniform within 1 / sqrt(in), B is zero', async () => {
    const before = await logitsOf(base);
    const model = await getPeftModel(base, { ...kConfig, r: 16 });
    assert.deepEqual(await logitsOf(model), before);
    const a = await valuesOf(model, 'model.layers.1.mlp.down_proj.lora_A.default');
    const bound = 1 / Math.sqrt(40);
    assert.ok(a.every((value) => Math.abs(value) <= bound));
    assert.ok(Math.max(...a) > 0.95 * bound && Math.min(...a) < -0.95 * bound);
    assert.ok((await valuesOf(model, 'model.layers.1.mlp.down_proj.lora_B.default')).every((value) => value === 0));
  });

  it("draws A normal with deviation 1 / r for 'gaussian', and both at random for false", async () => {
    const gaussian = await getPeftModel(base, { ...kConfig, r: 32, initLoraWeights: 'gaussian' }, 'gaussian');
    const a = await valuesOf(gaussian, 'model.layers.0.mlp.down_proj.lora_A.gaussian');
    const deviation = Math.sqrt(a.reduce((sum, value) => sum + value * value, 0) / a.length);
    assert.ok(Math.abs(deviation * 32 - 1) < 0.1, `deviation ${deviation}`);
    const random = await getPeftModel(gaussian, { ...kConfig, initLoraWeights: false }, 'random');
    const b = await valuesOf(random, 'model.layers.0.mlp.down_proj.lora_B.random');
    assert.ok(b.some((value) => value !== 0) && b.every((value) => Math.abs(value) <= 0.5));
  });

  it('draws the same weights for the same seed', async () => {
    const weights = async (seed: number) => {
      const other = await CausalLM.fromConfig(tinyConfig());
      return await valuesOf(await getPeftModel(other, kConfig, 'default', { seed }), 'model.layers.2.self_attn.q_proj.lora_A.default');
    };
    assert.deepEqual(await weights(4), await weights(4));
    assert.notDeepEqual(await weights(4), await weights(5));
  });

  it('trains nothing of the base', async () => {
    const model = await getPeftModel(base, kConfig);
    const trained = model.parameters().filter((parameter) => parameter.requiresGrad);
    assert.equal(trained.length, 12);
    assert.ok(
      trained.every(({ name }) =>
        /^base_model\.model\.model\.layers\.\d\.(self_attn\.q_proj|mlp\.down_proj)\.lora_[AB]\.weight$/.test(name),
      ),
    );
    assert.equal(model.numParameters({ onlyTrainable: true }), model.countParameters().trainable);
    assert.deepEqual(model.trainableNames().length, 12);
  });

  it('adds up active adapters, switches between them and computes without any', async () => {
    const plain = await logitsOf(base);
    const model = await getPeftModel(base, kConfig, 'one');
    await fillB(model, 'one');
    const one = await logitsOf(model);
    await getPeftModel(model, { ...kConfig, loraAlpha: 2 }, 'two');
    await fillB(model, 'two', -2);
    assert.deepEqual(model.activeAdapters, ['two']);
    const two = await logitsOf(model);
    assert.ok(largestDifference(one, plain) > 1e-2 && largestDifference(two, plain) > 1e-2 && largestDifference(one, two) > 1e-2);
    model.setAdapter('one');
    assert.deepEqual(await logitsOf(model), one);
    model.setAdapter(['one', 'two']);
    const both = await logitsOf(model);
    assert.ok(largestDifference(both, one) > 1e-3 && largestDifference(both, two) > 1e-3);
    assert.deepEqual(await model.disableAdapter(() => logitsOf(model)), plain);
    assert.deepEqual(await logitsOf(model), both);
    await assert.rejects(
      model.disableAdapter(() => Promise.reject(new Error('mine'))),
      /mine/,
    );
    assert.deepEqual(await logitsOf(model), both);
    model.deleteAdapter('two');
    assert.deepEqual(await logitsOf(model), one);
    assert.deepEqual(Object.keys(model.peftConfig), ['one']);
    model.deleteAdapter('one');
    assert.deepEqual(await logitsOf(model), plain);
  });

  it('gives the gradients of LoRA, overrides and biases that finite differences give', async () => {
    const model = await getPeftModel(base, { ...kConfig, bias: 'lora_only', modulesToSave: ['lm_head', 'model.norm'] });
    await fillB(model);
    const batch = { ...kInput, labels: kInput.inputIds };
    const { gradients } = await model.lossAndGradients(batch);
    assert.equal(gradients.size, 12 + 3 + 2);
    const natives = new Map(model.parameters().map((parameter, i) => [parameter.name, i]));
    const parameters = model.core.native.parameters();
    for (const [key, gradient] of gradients) {
      const name = parameters[natives.get(key) as number]?.name as string;
      const values = await valuesOf(model, name);
      const largest = gradient.data.reduce((best, value, i) => (Math.abs(value) > Math.abs(gradient.data[best] as number) ? i : best), 0);
      const step = 1e-2;
      const lossAt = async (value: number) => {
        const changed = values.slice();
        changed[largest] = value;
        await model.core.native.writeParameter(name, changed);
        return (await model.loss(batch)).loss;
      };
      const at = values[largest] as number;
      const slope = ((await lossAt(at + step)) - (await lossAt(at - step))) / (2 * step);
      await model.core.native.writeParameter(name, values);
      const analytic = gradient.data[largest] as number;
      assert.ok(Math.abs(slope - analytic) < 1e-4 + 0.02 * Math.abs(analytic), `${key}[${largest}]: ${analytic}, by differences ${slope}`);
    }
  });

  it('trains an adapter that was loaded only where isTrainable says so', async () => {
    const folder = temporaryFolder();
    await (await getPeftModel(base, kConfig)).savePretrained(folder);
    const other = await CausalLM.fromConfig(tinyConfig({ attention_bias: true }), { seed: 31 });
    const model = await PeftModel.fromPretrained(other, folder, { adapterName: 'fixed' });
    assert.deepEqual(model.activeAdapters, ['fixed']);
    assert.deepEqual(model.trainableNames(), []);
    await PeftModel.fromPretrained(model, folder, { adapterName: 'trained', isTrainable: true });
    assert.equal(model.trainableNames().length, 12);
  });

  it('names unknown adapters and refuses impossible names', async () => {
    const model = await getPeftModel(base, kConfig, 'french');
    assert.throws(() => model.setAdapter('frensh'), { code: 'INVALID_OPTION', message: /did you mean 'french'/ });
    assert.throws(() => model.deleteAdapter('german'), { code: 'INVALID_OPTION', message: /there are french/ });
    assert.deepEqual(model.activeAdapters, ['french']);
    for (const name of ['a.b', '', '../x', 'lora_x'])
      await assertFails(() => getPeftModel(model, kConfig, name), 'INVALID_OPTION', /adapterName/);
    await assertFails(() => getPeftModel(model, kConfig, 'french'), 'INVALID_ADAPTER', /french/);
    await assertFails(() => getPeftModel({} as CausalLM, kConfig), 'INVALID_OPTION', /model/);
    await assertFails(() => getPeftModel(base, { lora_alpha: 3 } as object), 'UNKNOWN_OPTION', /loraAlpha/);
  });
});
