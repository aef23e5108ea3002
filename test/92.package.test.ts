import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { root, run } from './support/cmake.ts';

// What someone gets who installs the tarball: no compiler is needed, nothing of this checkout is there.
const kScript = `
const { CausalLM, systemInfo } = await import('lowrank');
const kernels = await import('lowrank/kernels');
const config = { architectures: ['LlamaForCausalLM'], model_type: 'llama', vocab_size: 32, hidden_size: 16, intermediate_size: 24, num_hidden_layers: 2,
  num_attention_heads: 2, num_key_value_heads: 1, max_position_embeddings: 64, rms_norm_eps: 1e-5, rope_theta: 10000, tie_word_embeddings: true, hidden_act: 'silu' };
const model = await CausalLM.fromConfig(config, { seed: 1 });
const { ids } = await model.generate([1, 2, 3], { maxNewTokens: 4 });
await model.dispose();
const c = kernels.gemm({ a: new Float32Array([1, 2]), b: new Float32Array([3, 4]), m: 1, n: 1, k: 2 });
console.log(JSON.stringify({ isa: systemInfo().isa, ids, c: [...c] }));
`;

describe('the package', function () {
  this.timeout(600_000);
  let folder: string;

  before(() => {
    folder = mkdtempSync(join(tmpdir(), 'lowrank-package-'));
    run('npm', ['run', '--silent', 'prebuilds']);
    const [packed] = JSON.parse(run('npm', ['pack', '--silent', '--json', '--ignore-scripts', '--pack-destination', folder])) as {
      filename: string;
      files: { path: string }[];
    }[];
    assert(packed !== undefined);
    writeFileSync(join(folder, 'package.json'), '{ "name": "consumer", "private": true, "type": "module" }');
    run('npm', ['install', '--silent', '--no-audit', '--no-fund', `./${packed.filename}`], folder);
    writeFileSync(join(folder, 'main.mjs'), kScript);
    writeFileSync(
      join(folder, 'main.cjs'),
      "const { LoraTrainer, LowrankError } = require('lowrank'); console.log(typeof LoraTrainer, new LowrankError('IO_ERROR', 'x').code);",
    );
  });
  after(() => rmSync(folder, { recursive: true, force: true }));

  it('installs from its tarball into an empty folder and runs there, from its prebuilt binary', () => {
    const output = JSON.parse(run(process.execPath, ['main.mjs'], folder)) as { isa: string; ids: number[]; c: number[] };
    assert.deepEqual(output.c, [11]);
    assert.equal(output.ids.length, 4);
  });

  it('is loaded by require() too', () => {
    assert.equal(run(process.execPath, ['main.cjs'], folder).trim(), 'function IO_ERROR');
  });

  it('says which command builds the binary where none fits', () => {
    rmSync(join(folder, 'node_modules', 'lowrank', 'prebuilds'), { recursive: true });
    const script = "import('lowrank').then(({ systemInfo }) => systemInfo()).catch((error) => console.log(error.code, error.message))";
    assert.match(run(process.execPath, ['-e', script], folder), /^NATIVE_NOT_FOUND .*npx lowrank build/);
  });

  it('builds its own binary with npx lowrank build, from the headers in its dependencies', () => {
    run('npx', ['lowrank', 'build'], folder);
    const output = JSON.parse(run(process.execPath, ['main.mjs'], folder)) as { c: number[] };
    assert.deepEqual(output.c, [11]);
  });

  it('packs no tests, no sources in TypeScript, no fixtures', () => {
    const [packed] = JSON.parse(run('npm', ['pack', '--silent', '--json', '--ignore-scripts', '--dry-run'], root)) as {
      files: { path: string }[];
    }[];
    const stray = packed!.files.map(({ path }) => path).filter((path) => /^(test|lib|bench|csrc\/test)\//.test(path));
    assert.deepEqual(stray, []);
  });
});
