import assert from 'node:assert/strict';
import { join } from 'node:path';
import { buildNative, root, run } from './support/cmake.ts';

describe('the thread pool', function () {
  this.timeout(400_000);
  const seed = String(process.env.LOWRANK_FUZZ_SEED ?? 1);

  for (const [build, options, how] of [
    ['cmake', [], 'as released'],
    ['sanitize_threads', ['-DLOWRANK_SANITIZE_THREADS=ON'], 'under ThreadSanitizer'],
  ] as const) {
    it(`runs every chunk once and hands on what was written, beside other work on all cores (${how})`, () => {
      const folder = join(root, 'build', build);
      buildNative(folder, [...options], ['core_thread_pool']);
      const output = run(join(folder, 'core_thread_pool'), [seed]);
      assert.match(output, /^ok$/m);
      assert.doesNotMatch(output, /WARNING/);
    });
  }
});
