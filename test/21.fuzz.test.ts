import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { buildNative, root, run } from './support/cmake.ts';

const build = join(root, 'build', 'sanitize');
const programs = ['fuzz_safetensors', 'fuzz_gguf', 'formats_faults'];

describe('native readers under AddressSanitizer and UndefinedBehaviorSanitizer', () => {
  let folder: string;

  before(function () {
    this.timeout(400_000);
    folder = mkdtempSync(join(tmpdir(), 'lowrank-fuzz-'));
    buildNative(build, ['-DLOWRANK_SANITIZE=ON'], programs);
  });
  after(() => rmSync(folder, { recursive: true, force: true }));

  for (const format of ['safetensors', 'gguf']) {
    it(`take whatever a ${format} file may hold`, () => {
      const seed = String(process.env.LOWRANK_FUZZ_SEED ?? 1);
      const corpus = join(root, 'csrc', 'test', 'corpus', format);
      const args = [corpus, '--seed', seed, '--iterations', '200000', '--seconds', '5'];
      const output = run(join(build, `fuzz_${format}`), args, folder);
      const found = /replayed (\d+), generated (\d+), accepted (\d+)/.exec(output);
      assert(found, output);
      const [replayed = 0, generated = 0, accepted = 0] = found.slice(1).map(Number);
      assert(replayed >= 20, `replayed ${replayed} files of ${corpus}`);
      assert(generated >= 1000, `made ${generated} inputs`);
      assert(accepted > generated / 20 && accepted < generated, `accepted ${accepted} of ${generated}`);
    });
  }

  it('answer every failing system call and a truncated file with an error', () => {
    assert.match(run(join(build, 'formats_faults'), [], folder), /^ok$/m);
  });
});
