import { createHash } from 'node:crypto';
import * as nodeFileSystem from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { LowrankError } from '../errors.ts';

/** The calls that saving and resuming make, so that a test can let the nth one fail. node:fs/promises is one. */
export type FileSystem = Pick<
  typeof nodeFileSystem,
  'open' | 'mkdir' | 'readdir' | 'readFile' | 'rename' | 'rm' | 'link' | 'stat' | 'appendFile'
>;

export const nodeFiles: FileSystem = nodeFileSystem;

const HASH_CHUNK_BYTES = 1 << 20;

/**
 * A failure of the file system as IO_ERROR naming the file and the cause; LowrankErrors keep their code. Files in `staging`, a folder that the
 * user never sees, are named as in `path`, whose place it was to take.
 */
export function ioError(action: string, path: string, cause: unknown, staging?: string): LowrankError {
  const shownPath = (text: string) => (staging === undefined ? text : text.replaceAll(staging, path));
  if (cause instanceof LowrankError)
    return staging === undefined ? cause : new LowrankError(cause.code, shownPath(cause.message), { cause });
  const { code, message, path: failing } = cause as NodeJS.ErrnoException;
  const reason = code ? (REASONS[code] ?? code) : (message ?? String(cause));
  return new LowrankError('IO_ERROR', `${action} ${shownPath(failing ?? path)} failed: ${reason}`, { cause });
}

const REASONS: Readonly<Record<string, string>> = {
  ENOSPC: 'no space left on the device (ENOSPC)',
  EDQUOT: 'the disk quota is used up (EDQUOT)',
  EIO: 'input/output error (EIO)',
  EROFS: 'the file system is read-only (EROFS)',
  EACCES: 'permission denied (EACCES)',
  EPERM: 'operation not permitted (EPERM)',
  EMFILE: 'too many open files (EMFILE)',
  ENOTDIR: 'a part of the path is not a folder (ENOTDIR)',
  ENOENT: 'no such file or folder (ENOENT)',
};

export function hasCode(error: unknown, ...codes: string[]): boolean {
  return codes.includes((error as NodeJS.ErrnoException | undefined)?.code ?? '');
}

/**
 * Makes a folder and those above it. Node's own `recursive` never returns where a folder takes none, such as /proc, and calls a read-only
 * file system a missing file.
 */
export async function makeFolder(path: string, files: FileSystem): Promise<void> {
  try {
    await files.mkdir(path);
  } catch (error) {
    if (await isFolder(path, files)) return;
    const parent = dirname(path);
    if (!hasCode(error, 'ENOENT') || (await isFolder(parent, files))) throw error;
    await makeFolder(parent, files);
    await makeFolder(path, files);
  }
}

async function isFolder(path: string, files: FileSystem): Promise<boolean> {
  try {
    return (await files.stat(path)).isDirectory();
  } catch {
    return false;
  }
}

/** Writes a file and waits until it lies on the disk. */
export async function writeFileSynced(path: string, data: string | Uint8Array, files: FileSystem): Promise<void> {
  try {
    const handle = await files.open(path, 'w');
    try {
      await handle.writeFile(data);
      await handle.sync();
    } finally {
      await handle.close();
    }
  } catch (error) {
    throw ioError('writing', path, error);
  }
}

/** Waits until a file's content, or a folder's list of names, lies on the disk. */
export async function syncPath(path: string, files: FileSystem): Promise<void> {
  try {
    const handle = await files.open(path, 'r');
    try {
      await handle.sync();
    } finally {
      await handle.close();
    }
  } catch (error) {
    // Windows cannot sync folders; its renames are in the journal anyway.
    if (process.platform === 'win32' && hasCode(error, 'EPERM', 'EISDIR', 'EACCES')) return;
    throw ioError('syncing', path, error);
  }
}

/** Every file under `folder`, as paths relative to it with '/', sorted. Symbolic links are not followed. */
export async function listFiles(folder: string, files: FileSystem): Promise<string[]> {
  const entries = await files.readdir(folder, { withFileTypes: true });
  const lists = await Promise.all(
    entries.map(async (entry) => {
      if (entry.isDirectory()) return (await listFiles(join(folder, entry.name), files)).map((name) => `${entry.name}/${name}`);
      return entry.isFile() ? [entry.name] : [];
    }),
  );
  return lists.flat().sort();
}

/** Size and SHA-256 of a file, read in pieces. */
export async function checksum(path: string, files: FileSystem): Promise<{ bytes: number; sha256: string }> {
  const hash = createHash('sha256');
  const handle = await files.open(path, 'r');
  try {
    const chunk = Buffer.allocUnsafe(HASH_CHUNK_BYTES);
    let bytes = 0;
    for (;;) {
      const { bytesRead } = await handle.read(chunk, 0, chunk.length, null);
      if (bytesRead === 0) break;
      hash.update(chunk.subarray(0, bytesRead));
      bytes += bytesRead;
    }
    return { bytes, sha256: hash.digest('hex') };
  } finally {
    await handle.close();
  }
}
