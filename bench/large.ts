// QLoRA on models with the exact shapes of Llama-3.2-1B and Llama-3.1-8B, which are written with random weights and deleted afterwards: the peak
// beside the plan, and tokens/s. The 8B takes 17 GB of disk, and some minutes a step on a few cores.
//   node --import tsx bench/large.ts llama-3.2-1b [--length 2048] [--steps 2] [--checkpointing full] [--folder FOLDER]
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { bytesText } from '../lib/memory/plan.ts';
import { kShapes, type SyntheticName, writeSyntheticModel } from './synthetic_model.ts';

interface LargeResult {
  isa: string;
  threads: number;
  computeType: string;
  length: number;
  loadSeconds: number;
  loadPeak: number;
  planned: number;
  peakMemory: number;
  stepSeconds: number[];
  tokensPerSecond: number;
}

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { length: { type: 'string' }, steps: { type: 'string' }, checkpointing: { type: 'string' }, folder: { type: 'string' } },
});
const [name = ''] = positionals;
if (!Object.hasOwn(kShapes, name)) throw new Error(`expected one of ${Object.keys(kShapes).join(', ')}`);

const folder = mkdtempSync(join(values.folder ?? tmpdir(), 'lowrank-large-'));
try {
  process.stderr.write(`writing ${name} …\n`);
  await writeSyntheticModel(kShapes[name as SyntheticName], join(folder, 'model'));
  const [script, index] = ['./large_ours.mjs', '../dist/index.js'].map((file) => fileURLToPath(new URL(file, import.meta.url)));
  const flags = (['length', 'steps', 'checkpointing'] as const).flatMap((flag) => (values[flag] ? [`--${flag}`, values[flag]] : []));
  const output = ['--output', join(folder, 'output')];
  const { stdout, status } = spawnSync(process.execPath, [script!, index!, join(folder, 'model'), ...flags, ...output], {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  if (status !== 0) throw new Error(`the training ended with ${status}`);
  const result = JSON.parse(stdout) as LargeResult;
  console.log(JSON.stringify(result, null, 2));
  console.log(
    [
      `${name}, 1 × ${result.length} tokens, ${result.computeType} on ${result.isa}, ${result.threads} threads`,
      `loaded and quantised in ${result.loadSeconds.toFixed(0)} s, at most ${bytesText(result.loadPeak)} resident`,
      `peak ${bytesText(result.peakMemory)}, planned ${bytesText(result.planned)} (${(result.peakMemory / result.planned).toFixed(3)})`,
      `${result.tokensPerSecond.toFixed(1)} tokens/s in the best step (${result.stepSeconds.map((s) => s.toFixed(1)).join(', ')} s)`,
    ].join('\n'),
  );
} finally {
  rmSync(folder, { recursive: true, force: true });
}
