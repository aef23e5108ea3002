import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { fetchSmolLm2 } from '../lib/hub/smollm2.ts';

const root = fileURLToPath(new URL('..', import.meta.url));

/** Runs a script as a user would, against the compiled package, which `lowrank` resolves to by its own name. */
async function run(script: string, ...args: string[]): Promise<string> {
  const { stdout } = await promisify(execFile)(process.execPath, ['--import', 'tsx', script, ...args], { cwd: root, timeout: 600_000 });
  return stdout;
}

describe('examples', function () {
  this.timeout(900_000);
  let folder: string;
  let model: string;

  before(async () => {
    folder = await mkdtemp(join(tmpdir(), 'lowrank-examples-'));
    model = await fetchSmolLm2();
  });
  after(() => rm(folder, { recursive: true, force: true }));

  it('train.ts teaches a fact, adapter.ts recalls it from the saved folder', async () => {
    const adapter = join(folder, 'adapter');
    const trained = await run('examples/train.ts', model, adapter);
    assert.match(trained, /Copper Kettle/);
    const recalled = await run('examples/adapter.ts', model, adapter, 'What is the name of our shop?');
    assert.match(recalled, /trainable params: 0 \|\| all params: 13\d,\d{3},\d{3} \|\| trainable%: 0\.0000/);
    assert.match(recalled, /Copper Kettle/);
  });

  it('full.ts teaches the facts to the model itself, which answers from its folder', async () => {
    const trained = await run('examples/full.ts', model, join(folder, 'tuned'));
    assert.match(trained, /model in .*tuned/);
    assert.match(trained, /Copper Kettle/);
  });

  it('the command line answers a wrong option and a missing file in one line', async () => {
    const failure = await promisify(execFile)(process.execPath, ['dist/cli/main.js', 'quickstart', '--data', join(folder, 'none.jsonl')], {
      cwd: root,
      timeout: 120_000,
    }).then(
      () => undefined,
      (error: { code: number; stderr: string }) => error,
    );
    assert.equal(failure?.code, 1);
    assert.match(failure.stderr, /^lowrank: .*none\.jsonl.* \[FILE_NOT_FOUND\]$/m);
    const typo = await promisify(execFile)(process.execPath, ['dist/cli/main.js', 'quickstat'], { cwd: root }).then(
      () => undefined,
      (error: { code: number; stderr: string }) => error,
    );
    assert.match(typo?.stderr ?? '', /Did you mean quickstart\?/);
  });
});
