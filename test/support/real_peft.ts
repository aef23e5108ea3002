import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { userCacheFolder } from '../../lib/hub/user_cache.ts';

const script = fileURLToPath(new URL('../reference/load_with_peft.py', import.meta.url));

/** A Python that has packages: LOWRANK_PYTHON, or the one of the benchmark's virtual environment; undefined where there is none. */
function pythonWith(...packages: string[]): string | undefined {
  const candidates = [process.env.LOWRANK_PYTHON, join(userCacheFolder(), 'peers-venv', 'bin', 'python')];
  const code = `import importlib.util, sys; sys.exit(not all(map(importlib.util.find_spec, ${JSON.stringify(packages)})))`;
  return candidates.find((python): python is string => {
    if (!python || (python.includes('/') && !existsSync(python))) return false;
    return spawnSync(python, ['-c', code]).status === 0;
  });
}

/** Tests that run a Python with packages, the first of which the title names; skipped where there is none. Some take minutes. */
export function describeWithPython(title: string, packages: string[], tests: (python: string) => void): void {
  const python = pythonWith(...packages);
  const state = python ? `runs: ${python}` : `not run: no Python with ${packages[0]}; set LOWRANK_PYTHON`;
  describe(`${title} (${state})`, function () {
    this.timeout(300_000);
    before(function () {
      if (!python) this.skip();
    });
    tests(python as string);
  });
}

/** The same with a folder, made before the tests and removed after them, beside real PEFT. */
export function describeWithPeft(title: string, tests: (python: string, folder: () => string) => void): void {
  describeWithPython(title, ['peft', 'torch', 'transformers'], (python) => {
    let folder: string | undefined;
    before(() => {
      folder = mkdtempSync(join(tmpdir(), 'lowrank-roundtrip-'));
    });
    after(() => {
      if (folder) rmSync(folder, { recursive: true, force: true });
    });
    tests(python, () => folder as string);
  });
}

export interface PeftRequest {
  model: string;
  /** Left out: the model alone. */
  adapter?: string;
  inputIds: number[][];
  attentionMask: number[][];
  /** safetensors file for the logits. */
  output: string;
}

/** Keys that PEFT, or Transformers, missed in the file, or did not use. */
export interface PeftAnswer {
  missing: string[];
  unexpected: string[];
}

/** Loads adapters with real PEFT and models with Transformers, all in one process, and writes their logits. */
export function runPeft(python: string, requests: PeftRequest[]): PeftAnswer[] {
  const input = requests.map((request) => `${JSON.stringify(request)}\n`).join('');
  const { status, stdout, stderr } = spawnSync(python, [script], {
    input,
    encoding: 'utf8',
    env: { ...process.env, PYTHONDONTWRITEBYTECODE: '1' },
    maxBuffer: 2 ** 26,
  });
  if (status !== 0) throw new Error(`${python} ${script} ended with ${status}:\n${stderr}`);
  return stdout
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as PeftAnswer);
}
