import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { basename, join } from 'node:path';
import { buildNative, root, run } from './support/cmake.ts';

// Beside the addon's objects, so that only the tests themselves are compiled.
const build = join(root, 'build', 'cmake');
const programs = [
  'attention',
  'attention_bf16',
  'bf16_rows',
  'dequantize',
  'elementwise',
  'gemm',
  'gemm_bf16',
  'linear_cross_entropy',
  'lora_linear',
  'muon',
  'optimizers',
  'optimizers_bf16',
  'rope',
  'sampling',
];

describe('native ops, on every instruction-set level of this machine', () => {
  before(function () {
    this.timeout(400_000);
    buildNative(build, [], ['native_tests']);
  });

  for (const program of programs) {
    it(`${program}: double-precision reference, odd shapes, same bits on 1, 2, 3 and 7 threads`, function () {
      this.timeout(300_000);
      assert.match(run(join(build, `ops_${program}`), []), /^ok$/m);
    });
  }

  it('amx_trap: tile instructions one by one, as hardware or its twin runs and refuses them', () => {
    assert.match(run(join(build, 'ops_amx_trap'), []), /^ok$/m);
  });

  it('keep their instructions to themselves: no kernel object has a weak symbol that another level could be given', () => {
    const folder = join(build, 'CMakeFiles');
    const objects = readdirSync(folder, { recursive: true, encoding: 'utf8' })
      .filter((path) => /^kernels_.*\.o$/.test(path))
      .map((path) => join(folder, path));
    assert(objects.length >= 10, `found ${objects.length} kernel objects`);
    for (const object of objects) {
      const leaked = run('nm', ['-C', object])
        .split('\n')
        .filter((line) => /^[0-9a-f]* +[WVu] /.test(line));
      assert.deepEqual(leaked, [], `${basename(object)} of ${object}`);
    }
  });

  it('keep tile instructions to the level amx', function () {
    this.timeout(120_000);
    if (process.arch !== 'x64') this.skip();
    const folder = join(build, 'CMakeFiles');
    const withTiles = readdirSync(folder, { recursive: true, encoding: 'utf8' })
      .filter((path) => path.endsWith('.o') && !path.startsWith('ops_'))
      .filter((path) => /\t(tile|tdp|ldtilecfg|sttilecfg)/.test(run('objdump', ['-d', '--no-show-raw-insn', join(folder, path)])));
    assert(withTiles.length > 0);
    assert.deepEqual(
      withTiles.filter((path) => !path.startsWith('kernels_amx.dir')),
      [],
    );
  });
});
