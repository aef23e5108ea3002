import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { availableParallelism } from 'node:os';
import { fileURLToPath } from 'node:url';

export const root = fileURLToPath(new URL('../..', import.meta.url));

/** Runs a program to its end; what it printed, after a check that it ended well. */
export function run(command: string, args: string[], cwd = root): string {
  const result = spawnSync(command, args, {
    cwd,
    encoding: 'utf8',
    timeout: 400_000,
    maxBuffer: 1 << 28,
    env: { ...process.env, UBSAN_OPTIONS: 'print_stacktrace=1' },
  });
  const output = `${result.stdout}${result.stderr}`;
  assert.equal(result.error, undefined, `${command}: ${result.error?.message}`);
  assert.equal(result.status, 0, `${command} ${args.join(' ')} ended with ${result.status ?? result.signal}\n${output.slice(-8000)}`);
  return output;
}

/** Configures `build` (from what it has been configured with before) and builds targets there. */
export function buildNative(build: string, options: string[], targets: string[]): void {
  run('cmake', ['-S', '.', '-B', build, '-DCMAKE_BUILD_TYPE=Release', '-DLOWRANK_NATIVE_TESTS=ON', ...options]);
  run('cmake', ['--build', build, '--parallel', String(availableParallelism()), '--target', ...targets]);
}
