import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { availableParallelism, tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
const build = join(root, 'build', 'sanitize');
const programs = ['fuzz_safetensors', 'fuzz_gguf', 'formats_faults'];

/** Runs a program to its end; what it printed, after a check that it ended well. */
function run(command: string, args: string[], cwd = root): string {
  const result = spawnSync(command, args, {
    cwd,
    encoding: 'utf8',
    timeout: 240_000,
    env: { ...process.env, UBSAN_OPTIONS: 'print_stacktrace=1' },
  });
  const output = `${result.stdout}${result.stderr}`;
  assert.equal(result.error, undefined, `${command}: ${result.error?.message}`);
  assert.equal(result.status, 0, `${command} ${args.join(' ')} ended with ${result.status ?? result.signal}\n${output.slice(-8000)}`);
  return output;
}

describe('native readers under AddressSanitizer and UndefinedBehaviorSanitizer', () => {
  let folder: string;

  before(function () {
    this.timeout(300_000);
    folder = mkdtempSync(join(tmpdir(), 'lowrank-fuzz-'));
    run('cmake', ['-S', '.', '-B', build, '-DCMAKE_BUILD_TYPE=Release', '-DLOWRANK_NATIVE_TESTS=ON', '-DLOWRANK_SANITIZE=ON']);
    run('cmake', ['--build', build, '--parallel', String(availableParallelism()), '--target', ...programs]);
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
