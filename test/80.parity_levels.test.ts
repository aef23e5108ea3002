import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { systemInfo } from '../lib/index.ts';

const folder = fileURLToPath(new URL('.', import.meta.url));
const suites = ['80.parity_logits.test.ts', '80.parity_adapters.test.ts', '80.parity_training.test.ts'];
const mocha = join(dirname(createRequire(import.meta.url).resolve('mocha/package.json')), 'bin', 'mocha.js');

/** Runs the parity suites in a process of their own: the level is chosen when the library is loaded. */
function runSuites(level: string): Promise<{ code: number | null; output: string }> {
  const args = [
    mocha,
    '--no-config',
    '--node-option',
    'import=tsx',
    '--reporter',
    'dot',
    '--timeout',
    '120000',
    ...suites.map((suite) => join(folder, suite)),
  ];
  const child = spawn(process.execPath, args, { env: { ...process.env, LOWRANK_ISA: level }, stdio: ['ignore', 'pipe', 'pipe'] });
  let output = '';
  const keep = (chunk: Buffer) => {
    output += chunk.toString();
  };
  child.stdout.on('data', keep);
  child.stderr.on('data', keep);
  return new Promise((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (code) => resolve({ code, output }));
  });
}

describe('parity under every instruction-set level of this machine', function () {
  this.timeout(600_000);
  for (const level of ['generic', 'avx2', 'avx512', 'avx512_bf16', 'amx', 'neon']) {
    it(`holds under LOWRANK_ISA=${level}`, async function () {
      const { isa, isaLevels } = systemInfo();
      // The level in use is what the suites themselves run under.
      if (level === isa || !isaLevels.includes(level)) this.skip();
      const { code, output } = await runSuites(level);
      assert.match(output, /\d+ passing/, output);
      assert.equal(code, 0, output);
    });
  }
});
