import assert from 'node:assert/strict';
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { CausalLM, getPeftModel, type LoraConfig, type PeftLoadOptions, PeftModel } from '../lib/index.ts';
import { type NativeTensorData, native } from '../lib/native.ts';
import { rewriteSafetensors } from './support/rewrite_safetensors.ts';
import { assertFails, deleteTemporaryFolders, temporaryFolder, tinyConfig } from './support/tiny_models.ts';

const kInput = { inputIds: [[1, 2, 3, 4]] };
const kKey = 'base_model.model.model.layers.0.self_attn.q_proj';

const newBase = () => CausalLM.fromConfig(tinyConfig({ attention_bias: true }), { seed: 41 });

/** An adapter that changes something, saved; its folder and logits. */
async function savedAdapter(config: LoraConfig = { r: 3, loraAlpha: 7, targetModules: ['q_proj', 'gate_proj'] }) {
  const folder = join(temporaryFolder(), 'adapter');
  const model = await getPeftModel(await newBase(), { initLoraWeights: false, ...config });
  await model.savePretrained(folder);
  return { folder, model, logits: (await model.forward(kInput)).data };
}

function rewrite(folder: string, change: (tensors: NativeTensorData[]) => NativeTensorData[]): Promise<void> {
  return rewriteSafetensors(join(folder, 'adapter_model.safetensors'), change);
}

function editConfig(folder: string, change: (config: Record<string, unknown>) => void): void {
  const path = join(folder, 'adapter_config.json');
  const config = JSON.parse(readFileSync(path, 'utf8')) as Record<string, unknown>;
  change(config);
  writeFileSync(path, JSON.stringify(config));
}

const load = async (folder: string, options?: PeftLoadOptions) => PeftModel.fromPretrained(await newBase(), folder, options);

describe('adapter folders', () => {
  afterEach(deleteTemporaryFolders);

  const configs: LoraConfig[] = [
    { targetModules: 'all-linear', r: 2 },
    {},
    { targetModules: ['q_proj', 'o_proj'], bias: 'all', useRslora: true, r: 5 },
    { targetModules: ['up_proj'], modulesToSave: ['lm_head', 'embed_tokens', 'norm', 'k_proj'], bias: 'lora_only' },
    { targetModules: '.*[02]\\.mlp\\..*_proj', rankPattern: { up_proj: 6 }, alphaPattern: { '0.mlp.down_proj': 1 }, loraDropout: 0.1 },
  ];
  for (const config of configs) {
    it(`gives the same logits after saving and loading: ${JSON.stringify(config)}`, async () => {
      const { folder, logits } = await savedAdapter(config);
      const model = await load(folder);
      assert.deepEqual((await model.forward(kInput)).data, logits);
      const again = join(temporaryFolder(), 'again');
      await model.savePretrained(again);
      assert.deepEqual(readFileSync(join(again, 'adapter_model.safetensors')), readFileSync(join(folder, 'adapter_model.safetensors')));
    });
  }

  it("has PEFT's files and keys", async () => {
    const { folder } = await savedAdapter();
    assert.deepEqual(readdirSync(folder).sort(), ['README.md', 'adapter_config.json', 'adapter_model.safetensors']);
    const file = native().openTensorFile(join(folder, 'adapter_model.safetensors'));
    assert.equal(file.tensors().length, 12);
    assert.deepEqual(file.tensors().find(({ name }) => name === `${kKey}.lora_A.weight`)?.shape, [3, 24]);
    assert.deepEqual(file.metadata(), { format: 'pt' });
    const config = JSON.parse(readFileSync(join(folder, 'adapter_config.json'), 'utf8')) as Record<string, unknown>;
    assert.deepEqual(
      [config.r, config.lora_alpha, config.peft_type, config.task_type, config.inference_mode],
      [3, 7, 'LORA', 'CAUSAL_LM', true],
    );
    assert.match(readFileSync(join(folder, 'README.md'), 'utf8'), /^---\nlibrary_name: peft\n/);
  });

  it("puts adapters other than 'default' into folders of their names, and only those selected", async () => {
    const { model } = await savedAdapter();
    await getPeftModel(model, { r: 2 }, 'second');
    const folder = temporaryFolder();
    await model.savePretrained(folder, { selectedAdapters: ['second'] });
    assert.deepEqual(readdirSync(folder), ['second']);
    await model.savePretrained(folder);
    assert.ok(existsSync(join(folder, 'adapter_config.json')) && existsSync(join(folder, 'second', 'adapter_config.json')));
    await assertFails(() => model.savePretrained(folder, { selectedAdapters: ['third'] }), 'INVALID_OPTION', /third/);
    await assertFails(() => model.savePretrained(folder, { format: 'gguf' }), 'INVALID_OPTION', /gguf.*not supported yet/);
  });

  it('replaces an adapter and keeps what else is in the folder', async () => {
    const { folder } = await savedAdapter();
    writeFileSync(join(folder, 'notes.txt'), 'mine');
    mkdirSync(join(folder, 'checkpoint-3'));
    const { model, logits } = await savedAdapter({ r: 9, targetModules: ['v_proj'] });
    await model.savePretrained(folder);
    assert.deepEqual((await (await load(folder)).forward(kInput)).data, logits);
    assert.deepEqual(readdirSync(folder).sort(), [
      'README.md',
      'adapter_config.json',
      'adapter_model.safetensors',
      'checkpoint-3',
      'notes.txt',
    ]);
  });

  it('loads the former adapter after a save that was killed while it replaced the files', async () => {
    const { folder, logits } = await savedAdapter();
    const former = join(folder, '.adapter_config.json.was-0123456789ab');
    mkdirSync(former);
    for (const name of ['adapter_config.json', 'adapter_model.safetensors']) renameSync(join(folder, name), join(former, name));
    writeFileSync(join(folder, 'adapter_model.safetensors'), 'half a file');
    assert.deepEqual((await (await load(folder)).forward(kInput)).data, logits);
  });

  it('sets an adapter back to what was saved', async () => {
    const { folder, model, logits } = await savedAdapter();
    for (const name of model.trainableNames()) {
      await model.core.native.writeParameter(name, (await model.core.native.readParameter(name)).fill(0.1));
    }
    assert.notDeepEqual((await model.forward(kInput)).data, logits);
    await model.restoreAdapter('default', folder);
    assert.deepEqual((await model.forward(kInput)).data, logits);
  });

  it('lists missing and unexpected parameters, and loads what fits when strict is false', async () => {
    const { folder } = await savedAdapter();
    await rewrite(folder, (tensors) =>
      tensors.map((tensor) =>
        tensor.name.includes('layers.1.mlp') ? { ...tensor, name: tensor.name.replace('layers.1.mlp', 'layers.7.mlp') } : tensor,
      ),
    );
    await assertFails(
      () => load(folder),
      'ADAPTER_MISMATCH',
      /lacks .*layers\.1\.mlp\.gate_proj\.lora_A\.weight/,
      /it has .*layers\.7\.mlp\.gate_proj\.lora_B\.weight/,
    );
    const model = await load(folder, { strict: false });
    const b = (layer: number) => model.core.native.readParameter(`model.layers.${layer}.mlp.gate_proj.lora_B.default`);
    assert.ok((await b(1)).every((value) => value === 0));
    assert.ok((await b(0)).some((value) => value !== 0));
  });

  it("takes the biases that PEFT repeats where bias is 'all' and modulesToSave names a module with one", async () => {
    const { folder, logits } = await savedAdapter({ targetModules: ['q_proj'], bias: 'all', modulesToSave: ['k_proj'] });
    await rewrite(folder, (tensors) =>
      tensors.flatMap((tensor) => {
        if (!tensor.name.endsWith('k_proj.bias')) return [tensor];
        const module = tensor.name.slice(0, -'.bias'.length);
        const untrained = { ...tensor, name: `${module}.original_module.bias`, data: new Uint8Array(tensor.data.byteLength) };
        return [tensor, { ...tensor, name: `${module}.modules_to_save.bias` }, untrained];
      }),
    );
    assert.deepEqual((await (await load(folder)).forward(kInput)).data, logits);
  });

  it('names A without B', async () => {
    const { folder } = await savedAdapter();
    await rewrite(folder, (tensors) => tensors.filter((tensor) => tensor.name !== `${kKey}.lora_B.weight`));
    await assertFails(() => load(folder), 'INVALID_ADAPTER', /layers\.0\.self_attn\.q_proj\.lora_A\.weight without .*lora_B/);
  });

  for (const bad of [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY]) {
    it(`names a tensor that holds ${bad}`, async () => {
      const { folder } = await savedAdapter();
      await rewrite(folder, (tensors) =>
        tensors.map((tensor) =>
          tensor.name === `${kKey}.lora_A.weight` ? { ...tensor, data: new Float32Array(72).fill(bad, 50) } : tensor,
        ),
      );
      await assertFails(() => load(folder), 'INVALID_ADAPTER', /q_proj\.lora_A\.weight holds -?(NaN|Infinity) at element 50/);
    });
  }

  it('names a tensor of another shape, and one stored as integers', async () => {
    const { folder } = await savedAdapter();
    await rewrite(folder, (tensors) =>
      tensors.map((tensor) => (tensor.name === `${kKey}.lora_A.weight` ? { ...tensor, shape: [24, 3] } : tensor)),
    );
    await assertFails(() => load(folder), 'ADAPTER_MISMATCH', /q_proj\.lora_A\.weight has shape \[24, 3\].*\[3, 24\]/);
    await rewrite(folder, (tensors) =>
      tensors.map((tensor) => (tensor.name === `${kKey}.lora_A.weight` ? { ...tensor, shape: [3, 24], dtype: 'I32' } : tensor)),
    );
    await assertFails(() => load(folder), 'INVALID_ADAPTER', /q_proj\.lora_A\.weight is stored as I32/);
  });

  it('allocates nothing for a rank that the file does not have', async () => {
    const { folder } = await savedAdapter();
    editConfig(folder, (config) => {
      config.r = 65536;
    });
    const before = process.memoryUsage.rss();
    await assertFails(() => load(folder), 'ADAPTER_MISMATCH', /\[3, 24\].*\[65536, 24\]/);
    assert.ok(process.memoryUsage.rss() - before < 64 * 2 ** 20);
  });

  const hostile: [string, (config: Record<string, unknown>) => void, string, RegExp][] = [
    [
      'r = 0',
      (config) => {
        config.r = 0;
      },
      'INVALID_ADAPTER',
      /\br\b/,
    ],
    [
      'r = -3',
      (config) => {
        config.r = -3;
      },
      'INVALID_ADAPTER',
      /\br\b/,
    ],
    [
      'r as text',
      (config) => {
        config.r = '3';
      },
      'INVALID_ADAPTER',
      /\br\b/,
    ],
    [
      'an alpha that is no number',
      (config) => {
        config.lora_alpha = {};
      },
      'INVALID_ADAPTER',
      /lora_alpha/,
    ],
    [
      'another method',
      (config) => {
        config.peft_type = 'IA3';
      },
      'INVALID_ADAPTER',
      /peft_type/,
    ],
    [
      'no method',
      (config) => {
        delete config.peft_type;
      },
      'INVALID_ADAPTER',
      /peft_type/,
    ],
    [
      'DoRA',
      (config) => {
        config.use_dora = true;
      },
      'INVALID_ADAPTER',
      /use_dora/,
    ],
    [
      'targets that the base lacks',
      (config) => {
        config.target_modules = ['query_key_value'];
      },
      'ADAPTER_MISMATCH',
      /target_modules: found \["query_key_value"\]/,
    ],
    [
      'an evil expression',
      (config) => {
        config.target_modules = '(.*.*)*(.*.*)*x';
      },
      'ADAPTER_MISMATCH',
      /target_modules/,
    ],
    [
      'an expression that is not one',
      (config) => {
        config.target_modules = '((';
      },
      'ADAPTER_MISMATCH',
      /target_modules/,
    ],
  ];
  for (const [what, change, code, pattern] of hostile) {
    it(`refuses an adapter_config.json with ${what}`, async () => {
      const { folder } = await savedAdapter();
      editConfig(folder, change);
      await assertFails(() => load(folder), code, pattern);
    });
  }

  it('takes targets of other models beside those of this one', async () => {
    const { folder, logits } = await savedAdapter();
    editConfig(folder, (config) => {
      (config.target_modules as string[]).push('query_key_value', 'c_attn');
    });
    assert.deepEqual((await (await load(folder)).forward(kInput)).data, logits);
  });

  it('never opens a pickle, and says what is missing', async () => {
    const { folder } = await savedAdapter();
    renameSync(join(folder, 'adapter_model.safetensors'), join(folder, 'adapter_model.bin'));
    await assertFails(() => load(folder), 'INVALID_ADAPTER', /adapter_model\.bin.*pickle.*save_pretrained/);
    rmSync(join(folder, 'adapter_model.bin'));
    await assertFails(() => load(folder), 'FILE_NOT_FOUND', /adapter_model\.safetensors/);
    rmSync(join(folder, 'adapter_config.json'));
    await assertFails(() => load(folder), 'FILE_NOT_FOUND', /adapter_config\.json/);
    await assertFails(() => load(join(folder, 'none')), 'FILE_NOT_FOUND', /none/);
    await assertFails(() => PeftModel.fromPretrained('folder'), 'INVALID_OPTION', /adapter/);
  });

  it('leaves the base as it was when loading fails', async () => {
    const { folder } = await savedAdapter();
    await rewrite(folder, (tensors) => tensors.slice(2));
    const base = await newBase();
    const before = (await base.forward(kInput)).data;
    await assertFails(() => PeftModel.fromPretrained(base, folder), 'ADAPTER_MISMATCH');
    assert.deepEqual((await base.forward(kInput)).data, before);
    assert.ok(base.parameters().every(({ name }) => !name.includes('lora_')));
  });
});
