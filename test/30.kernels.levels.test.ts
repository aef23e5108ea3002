import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { native } from '../lib/native.ts';

const execute = promisify(execFile);
const path = (relative: string) => fileURLToPath(new URL(relative, import.meta.url));
const SUITE = ['linear', 'attention', 'elementwise', 'head', 'optimizer'].map((part) => path(`30.kernels.${part}.test.ts`));

async function node(args: string[], environment: Record<string, string>): Promise<string> {
  const { stdout } = await execute(process.execPath, args, { env: { ...process.env, ...environment } });
  return stdout;
}

/** This file's suite under one instruction-set level; the run that is under way has the best one. */
describe('lowrank/kernels: every instruction-set level', () => {
  const { isa, isaLevels } = native().systemInfo();

  for (const level of isaLevels) {
    it(`gives the same bits with 1, 2 and 3 threads (${level})`, async () => {
      const digest = (threads: string) =>
        node(['--import', 'tsx', path('kernels/digest.ts')], { LOWRANK_ISA: level, LOWRANK_THREADS: threads });
      const single = await digest('1');
      assert.match(single, /^[0-9a-f]{64}\n$/);
      assert.equal(await digest('2'), single);
      assert.equal(await digest('3'), single);
    });

    if (level === isa) continue;
    it(`passes the parity suite (${level})`, async () => {
      const mocha = createRequire(import.meta.url).resolve('mocha/bin/mocha.js');
      const args = ['--import', 'tsx', mocha, '--no-config', '--reporter', 'dot', '--timeout', '60000', ...SUITE];
      try {
        await node(args, { LOWRANK_ISA: level, LOWRANK_THREADS: '2' });
      } catch (failure) {
        assert.fail(String((failure as { stdout?: string }).stdout ?? failure));
      }
    });
  }

  it('refuses a level that does not exist', async () => {
    const script = "import('./lib/native.ts').then(({ native }) => native())";
    const run = execute(process.execPath, ['--import', 'tsx', '-e', script], {
      cwd: path('..'),
      env: { ...process.env, LOWRANK_ISA: 'avx9000' },
    });
    await assert.rejects(run, /avx9000/);
  });
});
