import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { LowrankError } from '../../lib/errors.ts';

/** A config.json small enough for a test: odd head count, grouped queries. */
export function tinyConfig(changes: Record<string, unknown> = {}): Record<string, unknown> {
  return {
    architectures: ['LlamaForCausalLM'],
    model_type: 'llama',
    vocab_size: 37,
    hidden_size: 24,
    intermediate_size: 40,
    num_hidden_layers: 3,
    num_attention_heads: 3,
    num_key_value_heads: 1,
    max_position_embeddings: 128,
    rms_norm_eps: 1e-5,
    tie_word_embeddings: false,
    initializer_range: 0.3,
    ...changes,
  };
}

const folders: string[] = [];

/** A new folder, deleted by deleteTemporaryFolders(). */
export function temporaryFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'lowrank-test-'));
  folders.push(folder);
  return folder;
}

/** For after() or afterEach(). */
export function deleteTemporaryFolders(): void {
  for (const folder of folders.splice(0)) rmSync(folder, { recursive: true, force: true });
}

/** Asserts that `run` fails with a LowrankError of this code whose message matches every pattern. */
export async function assertFails(run: () => unknown, code: string, ...patterns: RegExp[]): Promise<void> {
  let error: unknown;
  try {
    await run();
  } catch (caught) {
    error = caught;
  }
  assert.ok(error instanceof LowrankError, `expected a LowrankError ${code}, got ${error}`);
  assert.equal(error.code, code, error.message);
  for (const pattern of patterns) assert.match(error.message, pattern);
}

/** Largest absolute difference. */
export function largestDifference(a: ArrayLike<number>, b: ArrayLike<number>): number {
  assert.equal(a.length, b.length);
  let largest = 0;
  for (let i = 0; i < a.length; ++i) largest = Math.max(largest, Math.abs((a[i] as number) - (b[i] as number)));
  return largest;
}
