import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { CausalLM, type QuantizationConfig } from '../lib/index.ts';
import { pythonFloat } from '../lib/model/bitsandbytes_files.ts';
import { type NativeTensorInfo, native } from '../lib/native.ts';
import { describeWithPython } from './support/real_peft.ts';
import { deleteTemporaryFolders, temporaryFolder, tinyConfig } from './support/tiny_models.ts';

const fixtures = 'test/fixtures/qlora';
const kinds: Record<string, QuantizationConfig> = {
  nf4: { loadIn4bit: true, bnb4bitQuantType: 'nf4', bnb4bitUseDoubleQuant: true },
  'nf4, fp32 magnitudes': { loadIn4bit: true, bnb4bitQuantType: 'nf4' },
  'fp4, modules left out': { loadIn4bit: true, llmInt8SkipModules: ['v_proj'] },
  int8: { loadIn8bit: true, llmInt8Threshold: 5 },
};

type Stored = Pick<NativeTensorInfo, 'dtype' | 'shape'> & { bytes: Buffer };

/** Every tensor of a folder. */
function tensorsOf(folder: string): Map<string, Stored> {
  const tensors = new Map<string, Stored>();
  for (const name of readdirSync(folder).filter((entry) => entry.endsWith('.safetensors'))) {
    const file = native().openTensorFile(join(folder, name));
    for (const { name: tensor, dtype, shape } of file.tensors()) {
      tensors.set(tensor, { dtype, shape, bytes: Buffer.from(file.readRaw(tensor)) });
    }
    file.close();
  }
  return tensors;
}

function assertSameTensors(got: Map<string, Stored>, want: Map<string, Stored>): void {
  assert.deepEqual([...got.keys()].sort(), [...want.keys()].sort());
  for (const [name, tensor] of want) assert.deepEqual(got.get(name), tensor, name);
}

const configOf = (folder: string) => JSON.parse(readFileSync(join(folder, 'config.json'), 'utf8')) as Record<string, unknown>;

async function saved(source: string, options?: object, saveOptions?: object): Promise<string> {
  const folder = temporaryFolder();
  await using model = await CausalLM.fromPretrained(source, options);
  await model.savePretrained(folder, saveOptions);
  return folder;
}

describe('savePretrained of a quantised model', () => {
  after(deleteTemporaryFolders);

  for (const name of ['nf4', 'fp4', 'int8']) {
    it(`writes what bitsandbytes wrote, byte for byte: ${name}`, async () => {
      const source = join(fixtures, name);
      const folder = await saved(source);
      assertSameTensors(withoutNorms(tensorsOf(folder)), withoutNorms(tensorsOf(source)));
      assert.deepEqual(configOf(folder).quantization_config, configOf(source).quantization_config);
    });
  }

  it('writes weights quantised here so that they load as they are', async () => {
    for (const [name, quantizationConfig] of Object.entries(kinds)) {
      await using model = await CausalLM.fromPretrained(join(fixtures, 'base'), { quantizationConfig });
      const folder = temporaryFolder();
      await model.savePretrained(folder, { maxShardSize: '20KB' });
      assert.ok(readdirSync(folder).filter((entry) => entry.endsWith('.safetensors')).length > 1);
      const index = JSON.parse(readFileSync(join(folder, 'model.safetensors.index.json'), 'utf8')) as { metadata: { total_size: number } };
      const bytes = [...tensorsOf(folder).values()].reduce((sum, tensor) => sum + tensor.bytes.length, 0);
      assert.equal(index.metadata.total_size, bytes);
      await using again = await CausalLM.fromPretrained(folder);
      assert.deepEqual(again.parameters(), model.parameters(), name);
      for (const { name: parameter, dtype } of model.parameters()) {
        assert.deepEqual(await again.core.native.readParameter(parameter), await model.core.native.readParameter(parameter), parameter);
        if (!/^(NF4|FP4|INT8)$/.test(dtype)) continue;
        const [own, theirs] = [model, again].map(({ core }) => native().readQuantizedTensor(core.native, parameter));
        assert.deepEqual(await theirs, await own, parameter);
      }
    }
  });

  it('keeps the codes of magnitudes of any block size', async () => {
    const folder = temporaryFolder();
    await using model = await CausalLM.fromConfig(
      tinyConfig({ hidden_size: 128, intermediate_size: 192, num_attention_heads: 4, num_key_value_heads: 2 }),
      { seed: 5 },
    );
    await model.savePretrained(folder);
    const file = native().openTensorFile(join(folder, 'model.safetensors'));
    const slot = 'model.layers.0.mlp.gate_proj.weight';
    for (const blockSize of [64, 128, 256, 1024, 4096]) {
      const options = { type: 'NF4', blockSize, nested: true, source: 'F32' } as const;
      await native().quantizeTensor(model.core.native, slot, file, slot, 0, options);
      const values = await model.core.native.readParameter(slot);
      const { absmax: _, ...quantized } = await native().readQuantizedTensor(model.core.native, slot);
      assert.equal(quantized.nested?.codes.length, (192 * 128) / blockSize);
      await native().setQuantizedTensor(model.core.native, slot, quantized);
      assert.deepEqual(await model.core.native.readParameter(slot), values, String(blockSize));
      const { absmax: __, ...again } = await native().readQuantizedTensor(model.core.native, slot);
      assert.deepEqual(again, quantized, String(blockSize));
    }
  });

  it('writes floats where dtype asks for them', async () => {
    const folder = await saved(join(fixtures, 'nf4'), {}, { dtype: 'bfloat16' });
    assert.equal(configOf(folder).quantization_config, undefined);
    await using plain = await CausalLM.fromPretrained(folder);
    assert.ok(plain.parameters().every(({ dtype }) => dtype === 'BF16' || dtype === 'F32'));
  });

  it("writes numbers as Python's json does", () => {
    const cases = {
      0.5: '0.5',
      1e-4: '0.0001',
      9.5e-5: '9.5e-05',
      1.25e-10: '1.25e-10',
      3: '3.0',
      1e16: '1e+16',
      123456789: '123456789.0',
    };
    for (const [value, text] of Object.entries(cases)) assert.equal(pythonFloat(Number(value)), text);
    assert.equal(pythonFloat(-0), '-0.0');
    assert.equal(pythonFloat(-2.5e-7), '-2.5e-07');
  });
});

/** Norms are fp32 once they are loaded. */
function withoutNorms(tensors: Map<string, Stored>): Map<string, Stored> {
  return new Map([...tensors].filter(([name]) => !name.endsWith('norm.weight')));
}

describeWithPython('models saved here, loaded by bitsandbytes', ['bitsandbytes', 'torch', 'transformers'], (python) => {
  after(deleteTemporaryFolders);

  it('are what was written, and saved again have the same bytes', async () => {
    const requests = await Promise.all(
      Object.values(kinds).map(async (quantizationConfig) => {
        return { model: await saved(join(fixtures, 'base'), { quantizationConfig }), output: join(temporaryFolder(), 'model.safetensors') };
      }),
    );
    const answers = runBitsandbytes(python, requests);
    assert.deepEqual(answers, [
      { linear4bit: 14, linear8bit: 0, linear: 1 },
      { linear4bit: 14, linear8bit: 0, linear: 1 },
      { linear4bit: 12, linear8bit: 0, linear: 3 },
      { linear4bit: 0, linear8bit: 14, linear: 1 },
    ]);
    for (const { model, output } of requests) assertSameTensors(tensorsOf(dirname(output)), tensorsOf(model));
  });
});

function runBitsandbytes(command: string, requests: { model: string; output: string }[]): unknown[] {
  const input = requests.map((request) => `${JSON.stringify(request)}\n`).join('');
  const script = 'test/reference/save_with_bitsandbytes.py';
  const env = { ...process.env, PYTHONDONTWRITEBYTECODE: '1' };
  const { status, stdout, stderr } = spawnSync(command, [script], { input, encoding: 'utf8', env, maxBuffer: 2 ** 26 });
  assert.equal(status, 0, stderr);
  return stdout
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as unknown);
}
