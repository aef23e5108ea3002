import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { CausalLM, LoraTrainer } from '../lib/index.ts';
import { native } from '../lib/native.ts';
import { llamaConfig, tokenRows } from './60.trainer.llama.ts';

describe('profileOps', () => {
  let folder: string;

  before(() => {
    folder = mkdtempSync(join(tmpdir(), 'lowrank-profile-'));
  });
  after(() => {
    native().profileOps(false);
    rmSync(folder, { recursive: true, force: true });
  });

  async function train(): Promise<number> {
    const model = await CausalLM.fromConfig(llamaConfig, { seed: 5 });
    const peftConfig = { r: 4, targetModules: 'all-linear', loraDropout: 0.1 };
    const begin = performance.now();
    await new LoraTrainer({
      model,
      trainDataset: tokenRows(8, 3),
      peftConfig,
      args: { outputDir: folder, maxSteps: 2, saveStrategy: 'no', disableTqdm: true },
    }).train();
    const seconds = (performance.now() - begin) / 1000;
    await model.dispose();
    return seconds;
  }

  it('tells the seconds of each kind of op in training steps, counting an op inside another once', async () => {
    native().profileOps(true);
    const elapsed = await train();
    const seconds = native().profileOps(false);
    const ran = Object.keys(seconds).filter((op) => seconds[op]! > 0);
    // The products, the dropout and the rest that these call are theirs.
    assert.deepEqual(ran.sort(), [
      'attention',
      'attention backward',
      'embedding',
      'head',
      'lora_linear',
      'lora_linear backward',
      'optimizer',
      'rms_norm',
      'rope',
      'swiglu',
    ]);
    const sum = Object.values(seconds).reduce((a, b) => a + b);
    assert.ok(sum < elapsed, `${sum} s of ops in ${elapsed} s`);
  });

  it('gathers nothing while it is off', async () => {
    native().profileOps(false);
    await train();
    for (const [op, seconds] of Object.entries(native().profileOps(false))) assert.equal(seconds, 0, op);
  });
});
