// From `new LoraTrainer(…)` to the first optimizer step: SmolLM2-135M, a thousand rows of chat, files warm.
import { spawnSync } from 'node:child_process';
import { createReadStream, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { fetchChitchat } from '../lib/hub/chitchat.ts';
import type { Weights } from './training.ts';

/** Milliseconds, each the best of several runs. */
export interface StartupResult {
  weights: string;
  /** From `new LoraTrainer(…)` to the end of the first step, with a model's path and a file of rows. */
  whole: number;
  /** The same in parts, one after the other. */
  phases: { import: number; model: number; rows: number; prepare: number; firstStep: number; secondStep: number };
}

const kRows = 1000;
/** Of each dialogue: some hundred and fifty tokens. */
const kMessages = 6;
const kRuns = 3;

async function writeRows(path: string): Promise<void> {
  const rows: string[] = [];
  for await (const line of createInterface({ input: createReadStream(await fetchChitchat()) })) {
    const { messages } = JSON.parse(line) as { messages: unknown[] };
    rows.push(JSON.stringify({ messages: messages.slice(0, kMessages) }));
    if (rows.length === kRows) break;
  }
  writeFileSync(path, `${rows.join('\n')}\n`);
}

/** One run in a process of its own. */
function run(folder: string, model: string, mode: 'whole' | 'phases'): Record<string, number> {
  const [compiled, script] = ['../dist/index.js', './startup_ours.mjs'].map((file) => fileURLToPath(new URL(file, import.meta.url)));
  const args = [script!, compiled!, model, join(folder, 'rows.jsonl'), join(folder, 'output'), mode];
  const { stdout, status } = spawnSync(process.execPath, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'] });
  if (status !== 0) throw new Error(`${script} ended with ${status}`);
  return JSON.parse(stdout) as Record<string, number>;
}

function bestOf(runs: Record<string, number>[]): Record<string, number> {
  return Object.fromEntries(Object.keys(runs[0]!).map((name) => [name, Math.min(...runs.map((phases) => phases[name]!))]));
}

/** By weights. */
export async function timeStartup(weights: Weights): Promise<StartupResult[]> {
  const folder = mkdtempSync(join(tmpdir(), 'lowrank-startup-'));
  try {
    await writeRows(join(folder, 'rows.jsonl'));
    return [
      { name: 'GGUF Q4_1', model: weights.gguf },
      { name: 'bf16', model: weights.folder },
    ].map(({ name, model }) => {
      const runs = (mode: 'whole' | 'phases') => bestOf(Array.from({ length: kRuns }, () => run(folder, model, mode)));
      return { weights: name, whole: runs('whole').firstStep!, phases: runs('phases') as StartupResult['phases'] };
    });
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
