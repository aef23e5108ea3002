import { randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { threadId } from 'node:worker_threads';
import { LowrankError } from '../errors.ts';
import { type FileSystem, hasCode, ioError, makeFolder, nodeFiles, writeFileSynced } from '../files/file_system.ts';

const LOCK_NAME = '.lowrank.lock';
const DRAFT_NAME = /^\.lowrank\.lock(-takeover)?-[0-9a-f]{8}-[0-9a-f-]{27}$/;
/** A takeover takes milliseconds; one older than this was killed. */
const TAKEOVER_MILLISECONDS = 10_000;

interface Owner {
  pid: number;
  thread: number;
  host: string;
  /** When the process started, by the kernel's clock, so that another process of the same number is told apart. */
  started: string;
  token: string;
}

/** Locks that this thread holds: one of its number whose token is not here was left behind. */
const held = new Set<string>();

/**
 * Keeps a second trainer out of `folder` until the function returned is called. The lock of a process that is gone is taken over.
 *
 * @throws IO_ERROR naming the owner when the folder is in use
 */
export async function lockFolder(folder: string, files: FileSystem = nodeFiles): Promise<() => Promise<void>> {
  const path = join(folder, LOCK_NAME);
  const owner: Owner = { pid: process.pid, thread: threadId, host: hostname(), started: startOf(process.pid), token: randomUUID() };
  try {
    await makeFolder(folder, files);
    if (!(await create(path, owner, files))) await takeOver(path, owner, files);
    await clearDrafts(folder, files);
  } catch (error) {
    throw ioError('locking', folder, error);
  }
  held.add(owner.token);
  return async () => {
    held.delete(owner.token);
    const current = await read(path, files);
    if (current?.token === owner.token) await files.rm(path, { force: true });
  };
}

/** Makes the lock with its content in one move, so that nobody reads an empty one; false when there is one. */
async function create(path: string, owner: Owner, files: FileSystem): Promise<boolean> {
  const draft = `${path}-${owner.token}`;
  try {
    await writeFileSynced(draft, JSON.stringify(owner), files);
    await files.link(draft, path);
    return true;
  } catch (error) {
    // ENOENT: the new owner cleared our draft away.
    if (hasCode(error, 'EEXIST', 'ENOENT')) return false;
    if (hasCode(error, 'EPERM', 'ENOTSUP', 'EOPNOTSUPP', 'ENOSYS')) return await createWithoutLinks(path, owner, files);
    throw error;
  } finally {
    await files.rm(draft, { force: true }).catch(() => {});
  }
}

/** Deletes what killed processes left; called by the owner, so that nobody who still works on one could succeed. */
async function clearDrafts(folder: string, files: FileSystem): Promise<void> {
  const names = await files.readdir(folder);
  for (const name of names) if (DRAFT_NAME.test(name)) await files.rm(join(folder, name), { force: true });
}

/** For file systems without hard links. */
async function createWithoutLinks(path: string, owner: Owner, files: FileSystem): Promise<boolean> {
  try {
    const handle = await files.open(path, 'wx');
    await handle.writeFile(JSON.stringify(owner)).finally(() => handle.close());
    return true;
  } catch (error) {
    if (hasCode(error, 'EEXIST')) return false;
    throw error;
  }
}

/** Replaces the lock of a dead process. A second lock makes sure that only one of several does it. */
async function takeOver(path: string, owner: Owner, files: FileSystem): Promise<void> {
  refuseIfAlive(path, await read(path, files));
  const takeover = `${path}-takeover`;
  if (!(await create(takeover, owner, files))) {
    const age = Date.now() - (await files.stat(takeover)).mtimeMs;
    if (age > TAKEOVER_MILLISECONDS) await files.rm(takeover, { force: true });
    throw new LowrankError('IO_ERROR', `${path}: another trainer is taking over this folder; try again in a few seconds`);
  }
  try {
    refuseIfAlive(path, await read(path, files));
    await files.rm(path, { force: true });
    if (!(await create(path, owner, files))) throw inUse(path, 'which has just begun');
  } finally {
    await files.rm(takeover, { force: true });
  }
}

function refuseIfAlive(path: string, owner: Owner | undefined): void {
  if (owner === undefined || !isAlive(owner)) return;
  const where = owner.host === hostname() ? '' : ` on ${owner.host}`;
  throw inUse(path, `process ${owner.pid}${where}; if that one is gone, delete the file`);
}

function inUse(path: string, owner: string): LowrankError {
  return new LowrankError('IO_ERROR', `${path}: another trainer uses this folder (${owner})`);
}

function isAlive(owner: Owner): boolean {
  if (owner.host !== hostname()) return true;
  const ours = owner.pid === process.pid && owner.started === startOf(process.pid);
  if (ours && owner.thread === threadId) return held.has(owner.token);
  try {
    process.kill(owner.pid, 0);
  } catch (error) {
    if (hasCode(error, 'ESRCH')) return false;
  }
  return owner.started === startOf(owner.pid);
}

/** A lock that cannot be read is nobody's: locks appear with their content. */
async function read(path: string, files: FileSystem): Promise<Owner | undefined> {
  try {
    const owner = JSON.parse(await files.readFile(path, 'utf8')) as Partial<Owner> | null;
    const { pid, thread, host, started, token } = owner ?? {};
    if (
      typeof pid !== 'number' ||
      typeof thread !== 'number' ||
      typeof host !== 'string' ||
      typeof started !== 'string' ||
      typeof token !== 'string'
    )
      return undefined;
    return { pid, thread, host, started, token };
  } catch (error) {
    if (hasCode(error, 'ENOENT') || error instanceof SyntaxError) return undefined;
    throw error;
  }
}

/** Start time of a process in clock ticks since the start of the machine, on Linux; '' elsewhere. */
function startOf(pid: number): string {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    return stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19] ?? '';
  } catch {
    return '';
  }
}
