import assert from 'node:assert/strict';
import { copyFileSync, linkSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { CausalLM } from '../lib/index.ts';
import type { NativeTensorData } from '../lib/native.ts';
import { rewriteSafetensors } from './support/rewrite_safetensors.ts';
import { assertFails, deleteTemporaryFolders, largestDifference, temporaryFolder, tinyConfig } from './support/tiny_models.ts';

const kInput = { inputIds: [[1, 2, 3, 4, 5]] };

/** A saved tiny model; returns its folder and its logits. */
async function savedModel(changes: Record<string, unknown> = {}, options: Parameters<CausalLM['savePretrained']>[1] = {}) {
  const folder = join(temporaryFolder(), 'model');
  const model = await CausalLM.fromConfig(tinyConfig(changes), { seed: 5 });
  await model.savePretrained(folder, options);
  const logits = await model.forward(kInput);
  await model.dispose();
  return { folder, logits };
}

async function logitsOf(folder: string, options?: Parameters<typeof CausalLM.fromPretrained>[1]) {
  const model = await CausalLM.fromPretrained(folder, options);
  const logits = await model.forward(kInput);
  await model.dispose();
  return logits;
}

function editJson(path: string, change: (value: Record<string, unknown>) => void): void {
  const value = JSON.parse(readFileSync(path, 'utf8')) as Record<string, unknown>;
  change(value);
  writeFileSync(path, JSON.stringify(value));
}

describe('loading models from folders', () => {
  afterEach(deleteTemporaryFolders);

  it('loads what it saved, bit for bit, in one file and in shards', async () => {
    const { folder, logits } = await savedModel();
    assert.deepEqual((await logitsOf(folder)).data, logits.data);
    const sharded = await savedModel({}, { maxShardSize: '3KB' });
    const index = JSON.parse(readFileSync(join(sharded.folder, 'model.safetensors.index.json'), 'utf8')) as {
      weight_map: Record<string, string>;
    };
    assert.ok(new Set(Object.values(index.weight_map)).size > 3);
    assert.deepEqual((await logitsOf(sharded.folder)).data, logits.data);
  });

  it('saves what generation_config.json and config.json said, with the type of the weights where Transformers looks for it', async () => {
    const { folder } = await savedModel();
    writeFileSync(join(folder, 'generation_config.json'), JSON.stringify({ temperature: 0.6, top_p: 0.95, eos_token_id: [2, 4] }));
    editJson(join(folder, 'config.json'), (config) => Object.assign(config, { eos_token_id: 3, dtype: 'float32', torch_dtype: undefined }));
    const again = temporaryFolder();
    await (await CausalLM.fromPretrained(folder)).savePretrained(again, { dtype: 'bfloat16' });
    const read = (name: string) => JSON.parse(readFileSync(join(again, name), 'utf8')) as Record<string, unknown>;
    assert.deepEqual(read('generation_config.json'), { temperature: 0.6, top_p: 0.95, eos_token_id: [3, 2, 4] });
    const { dtype, torch_dtype, eos_token_id } = read('config.json');
    assert.deepEqual({ dtype, torch_dtype, eos_token_id }, { dtype: 'bfloat16', torch_dtype: undefined, eos_token_id: 3 });
  });

  it('leaves no shards of an earlier save', async () => {
    const { folder } = await savedModel({}, { maxShardSize: '3KB' });
    const model = await CausalLM.fromPretrained(folder);
    await model.savePretrained(folder);
    assert.deepEqual(readdirSync(folder).sort(), ['config.json', 'model.safetensors']);
    await model.savePretrained(folder, { maxShardSize: '3KB' });
    assert.ok(!readdirSync(folder).includes('model.safetensors'));
    assert.deepEqual((await logitsOf(folder)).data, (await model.forward(kInput)).data);
  });

  it('gives the same weights for the same seed, others for another', async () => {
    const [a, b, c] = await Promise.all(
      [7, 7, 8].map((seed) => CausalLM.fromConfig(tinyConfig(), { seed }).then((model) => model.forward(kInput))),
    );
    assert.deepEqual(a?.data, b?.data);
    assert.ok(largestDifference(a?.data ?? [], c?.data ?? []) > 0.01);
  });

  it('draws weights as Transformers does: deviation, norms of one, biases of zero, a zero row for padding', async () => {
    const model = await CausalLM.fromConfig(
      tinyConfig({ attention_bias: true, pad_token_id: 4, initializer_range: 0.1, vocab_size: 997 }),
      { seed: 1 },
    );
    const read = (name: string) => model.core.native.readParameter(name);
    const embedding = await read('model.embed_tokens.weight');
    assert.ok(embedding.subarray(4 * 24, 5 * 24).every((value) => value === 0));
    const deviation = Math.sqrt(embedding.reduce((sum, value) => sum + value * value, 0) / (embedding.length - 24));
    assert.ok(Math.abs(deviation - 0.1) < 0.003, `deviation ${deviation}`);
    assert.ok((await read('model.norm.weight')).every((value) => value === 1));
    assert.ok((await read('model.layers.0.self_attn.q_proj.bias')).every((value) => value === 0));
  });

  it('keeps bfloat16 as it is stored and converts it when float32 is asked for', async () => {
    const { folder } = await savedModel({}, { dtype: 'bfloat16' });
    const stored = await CausalLM.fromPretrained(folder);
    const converted = await CausalLM.fromPretrained(folder, { dtype: 'float32' });
    const dtypes = (model: CausalLM) =>
      new Set(
        model
          .parameters()
          .filter(({ shape }) => shape.length === 2)
          .map(({ dtype }) => dtype),
      );
    assert.deepEqual([...dtypes(stored)], ['BF16']);
    assert.deepEqual([...dtypes(converted)], ['F32']);
    const difference = largestDifference((await stored.forward(kInput)).data, (await converted.forward(kInput)).data);
    assert.ok(difference < 1e-4, `difference ${difference}`);
  });

  it('converts float32 to the 16-bit types when asked to, as saving does', async () => {
    const { folder } = await savedModel();
    for (const dtype of ['bfloat16', 'float16'] as const) {
      const converted = await CausalLM.fromPretrained(folder, { dtype });
      const saved = await savedModel({}, { dtype });
      assert.deepEqual((await converted.forward(kInput)).data, (await logitsOf(saved.folder, { dtype })).data);
      const random = await CausalLM.fromConfig(tinyConfig(), { seed: 5, dtype });
      assert.deepEqual((await random.forward(kInput)).data, (await converted.forward(kInput)).data);
      assert.ok(
        random
          .parameters()
          .every((parameter) => parameter.shape.length === 1 || parameter.dtype === (dtype === 'bfloat16' ? 'BF16' : 'F16')),
      );
    }
  });

  it('ignores the head of a tied model when it equals the embedding, and unties when it does not, as Transformers does', async () => {
    const { folder, logits } = await savedModel({ tie_word_embeddings: true });
    const weights = join(folder, 'model.safetensors');
    const withHead = (factor: number) => (tensors: NativeTensorData[]) => {
      const embedding = tensors.find((tensor) => tensor.name === 'model.embed_tokens.weight') as NativeTensorData;
      const bytes = embedding.data as Uint8Array;
      const values = Float32Array.from(new Float32Array(bytes.slice().buffer), (value) => value * factor);
      return [...tensors.filter((tensor) => tensor.name !== 'lm_head.weight'), { ...embedding, name: 'lm_head.weight', data: values }];
    };
    await rewriteSafetensors(weights, withHead(1));
    assert.deepEqual((await logitsOf(folder)).data, logits.data);
    await rewriteSafetensors(weights, withHead(2));
    const doubled = await logitsOf(folder);
    assert.ok(
      largestDifference(
        doubled.data,
        logits.data.map((value) => 2 * value),
      ) < 1e-5,
    );
    const untied = await CausalLM.fromPretrained(folder);
    const again = join(temporaryFolder(), 'again');
    await untied.savePretrained(again);
    assert.equal((JSON.parse(readFileSync(join(again, 'config.json'), 'utf8')) as Record<string, unknown>).tie_word_embeddings, false);
    assert.deepEqual((await logitsOf(again)).data, doubled.data);
  });

  it('takes the head for the embedding too where a tied model has only that', async () => {
    const { folder, logits } = await savedModel({ tie_word_embeddings: true });
    await rewriteSafetensors(join(folder, 'model.safetensors'), (tensors) =>
      tensors.map((tensor) => (tensor.name === 'model.embed_tokens.weight' ? { ...tensor, name: 'lm_head.weight' } : tensor)),
    );
    assert.deepEqual((await logitsOf(folder)).data, logits.data);
  });

  it('ignores inverse frequencies that old files hold', async () => {
    const { folder, logits } = await savedModel();
    await rewriteSafetensors(join(folder, 'model.safetensors'), (tensors) => [
      ...tensors,
      { name: 'model.layers.0.self_attn.rotary_emb.inv_freq', dtype: 'F32', shape: [4], data: new Float32Array(4) },
    ]);
    assert.deepEqual((await logitsOf(folder)).data, logits.data);
  });

  it('lists missing and unexpected tensors', async () => {
    const { folder } = await savedModel();
    await rewriteSafetensors(join(folder, 'model.safetensors'), (tensors) =>
      tensors.map((tensor) => (tensor.name === 'model.norm.weight' ? { ...tensor, name: 'model.nrom.weight' } : tensor)),
    );
    await assertFails(
      () => CausalLM.fromPretrained(folder),
      'INVALID_CONFIG',
      /lacks model\.norm\.weight/,
      /unexpected model\.nrom\.weight/,
    );
  });

  it('names a tensor of another shape, what it has and what is expected', async () => {
    const { folder } = await savedModel();
    editJson(join(folder, 'config.json'), (config) => {
      config.intermediate_size = 41;
    });
    await assertFails(
      () => CausalLM.fromPretrained(folder),
      'SHAPE_MISMATCH',
      /gate_proj\.weight has shape \[40, 24\]; expected \[41, 24\]/,
    );
  });

  it('refuses tensors that are no weights', async () => {
    const { folder } = await savedModel();
    await rewriteSafetensors(join(folder, 'model.safetensors'), (tensors) =>
      tensors.map((tensor) => (tensor.name === 'model.norm.weight' ? { ...tensor, dtype: 'I32' } : tensor)),
    );
    await assertFails(() => CausalLM.fromPretrained(folder), 'UNSUPPORTED_QUANTIZATION', /model\.norm\.weight.*I32/);
  });

  it('never opens a pickle and says how to convert it', async () => {
    const { folder } = await savedModel();
    renameSync(join(folder, 'model.safetensors'), join(folder, 'pytorch_model.bin'));
    await assertFails(() => CausalLM.fromPretrained(folder), 'UNSUPPORTED_MODEL', /pytorch_model\.bin.*pickle.*save_pretrained/);
  });

  it('says what is missing', async () => {
    const folder = temporaryFolder();
    await assertFails(() => CausalLM.fromPretrained(folder), 'FILE_NOT_FOUND', /config\.json/);
    writeFileSync(join(folder, 'config.json'), JSON.stringify(tinyConfig()));
    await assertFails(() => CausalLM.fromPretrained(folder), 'FILE_NOT_FOUND', /model\.safetensors/);
    await assertFails(() => CausalLM.fromPretrained(join(folder, 'nothing')), 'FILE_NOT_FOUND', /does not exist/);
    await assertFails(() => CausalLM.fromPretrained(join(folder, 'nothing.gguf')), 'FILE_NOT_FOUND', /does not exist/);
    await assertFails(() => CausalLM.fromPretrained(join(folder, 'config.json')), 'UNSUPPORTED_MODEL', /neither a folder nor a \.gguf/);
    await assertFails(() => CausalLM.fromPretrained(''), 'INVALID_OPTION', /source/);
  });

  for (const [what, text] of [
    ['no JSON', '{"a":'],
    ['a list', '[1]'],
    ['a number', '3'],
    ['nested deeply', `{"a":${'['.repeat(1e5)}${']'.repeat(1e5)}}`],
    ['empty', ''],
  ] as const) {
    it(`refuses a config.json that is ${what}`, async () => {
      const folder = temporaryFolder();
      writeFileSync(join(folder, 'config.json'), text);
      await assertFails(() => CausalLM.fromPretrained(folder), 'INVALID_CONFIG', /config\.json/);
    });
  }

  it('answers a misspelt option, refuses a device and a quantisation that it does not have', async () => {
    await assertFails(() => CausalLM.fromPretrained('x', { local_files_only: true } as object), 'UNKNOWN_OPTION', /localFilesOnly/);
    await assertFails(() => CausalLM.fromPretrained('x', { device: 'cuda:0' }), 'DEVICE_UNAVAILABLE', /cuda:0/);
    await assertFails(() => CausalLM.fromPretrained('x', { device: 'tpu' }), 'INVALID_OPTION', /device/);
    await assertFails(
      () => CausalLM.fromPretrained('x', { quantizationConfig: { loadIn8bit: false } }),
      'INVALID_OPTION',
      /quantizationConfig/,
    );
  });

  it('stops when its signal fires', async () => {
    const { folder } = await savedModel();
    await assertFails(() => CausalLM.fromPretrained(folder, { signal: AbortSignal.abort() }), 'ABORTED');
  });
});

describe('loading sharded models', () => {
  let folder: string;
  let index: string;
  beforeEach(async () => {
    ({ folder } = await savedModel({}, { maxShardSize: '3KB' }));
    index = join(folder, 'model.safetensors.index.json');
  });
  afterEach(deleteTemporaryFolders);

  const editMap = (change: (map: Record<string, unknown>) => void) =>
    editJson(index, (value) => change(value.weight_map as Record<string, unknown>));

  for (const shard of [
    '../model.safetensors',
    '/etc/passwd',
    'a/b.safetensors',
    '..\\x.safetensors',
    'https://host/x.safetensors',
    '..',
    '.hidden.safetensors',
    'C:x.safetensors',
    'model.bin',
    '',
    3,
    null,
    ['x'],
  ]) {
    it(`refuses ${JSON.stringify(shard)} as the name of a shard`, async () => {
      editMap((map) => {
        map['model.norm.weight'] = shard;
      });
      await assertFails(() => CausalLM.fromPretrained(folder), 'INVALID_SAFETENSORS', /model\.norm\.weight.*same folder/);
    });
  }

  it('refuses a link out of the folder, and follows one within it', async () => {
    const shard = join(folder, 'model-00001-of-00009.safetensors');
    const [name] = Object.values((JSON.parse(readFileSync(index, 'utf8')) as { weight_map: Record<string, string> }).weight_map) as [
      string,
    ];
    const first = join(folder, name);
    copyFileSync(first, shard.replace('00001-of-00009', 'inside'));
    rmSync(first);
    symlinkSync(shard.replace('00001-of-00009', 'inside'), first);
    assert.equal((await logitsOf(folder)).shape[2], 37);
    const outside = join(temporaryFolder(), 'outside.safetensors');
    copyFileSync(first, outside);
    rmSync(first);
    symlinkSync(outside, first);
    await assertFails(() => CausalLM.fromPretrained(folder), 'INVALID_SAFETENSORS', /outside its folder/);
  });

  it("follows the links of the hub's cache to the blobs of the same repository", async () => {
    const repository = temporaryFolder();
    const snapshot = join(repository, 'snapshots', 'a'.repeat(40));
    mkdirSync(snapshot, { recursive: true });
    mkdirSync(join(repository, 'blobs'));
    const { folder: whole, logits } = await savedModel();
    for (const [i, name] of ['config.json', 'model.safetensors'].entries()) {
      linkSync(join(whole, name), join(repository, 'blobs', `${i}`));
      symlinkSync(`../../blobs/${i}`, join(snapshot, name));
    }
    assert.deepEqual((await logitsOf(snapshot)).data, logits.data);
  });

  it('names a shard that is not there', async () => {
    editMap((map) => {
      map['model.norm.weight'] = 'model-99.safetensors';
    });
    await assertFails(() => CausalLM.fromPretrained(folder), 'FILE_NOT_FOUND', /model-99\.safetensors/);
  });

  it('names tensors on which index and shards disagree', async () => {
    editMap((map) => {
      delete map['model.layers.0.input_layernorm.weight'];
    });
    await assertFails(
      () => CausalLM.fromPretrained(folder),
      'INVALID_SAFETENSORS',
      /does not agree.*model\.layers\.0\.input_layernorm\.weight/,
    );
    editMap((map) => {
      map['model.layers.0.input_layernorm.weight'] = map['model.layers.0.self_attn.q_proj.weight'];
      map['model.extra.weight'] = map['lm_head.weight'];
    });
    await assertFails(() => CausalLM.fromPretrained(folder), 'INVALID_SAFETENSORS', /in no shard: model\.extra\.weight/);
  });

  it('refuses an index without a map', async () => {
    for (const map of [undefined, [], 'x', null]) {
      writeFileSync(index, JSON.stringify({ weight_map: map }));
      await assertFails(() => CausalLM.fromPretrained(folder), 'INVALID_SAFETENSORS', /weight_map/);
    }
  });
});
