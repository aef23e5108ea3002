import { randomBytes } from 'node:crypto';
import { basename, dirname, join } from 'node:path';
import { type FileSystem, hasCode, ioError, listFiles, makeFolder, nodeFiles, syncPath } from './file_system.ts';

// A folder appears whole or not at all: written under a hidden name beside its place, synced, renamed. A process killed at any moment
// leaves at worst such a hidden folder, which recoverFolders() puts back or clears away at the next start.
//
//   .checkpoint-40.new-1a2b3c   being written, or being deleted
//   .checkpoint-40.old-1a2b3c   the former checkpoint-40, while the new one takes its place
//   .adapter_config.json.was-…  the former files of a folder that holds others too, named after the file that marks them as whole

const HIDDEN = /^\.(.+)\.(new|old|was)-[0-9a-f]{12}$/;

/**
 * Makes the folder `target` with what `write` puts into the folder it is given; a former `target` is replaced.
 *
 * @throws IO_ERROR naming the file; `target` is then as it was.
 */
export async function writeFolder(target: string, write: (folder: string) => Promise<void>, files: FileSystem = nodeFiles): Promise<void> {
  const fresh = hiddenName(target, 'new');
  try {
    await makeFolder(dirname(target), files);
    await files.mkdir(fresh);
    await write(fresh);
    await syncTree(fresh, files);
    await putInPlace(fresh, target, files);
  } catch (error) {
    await files.rm(fresh, { recursive: true, force: true }).catch(() => {});
    throw ioError('writing', target, error, fresh);
  }
}

/**
 * Replaces files of the folder `target`, which may hold others, with those that `write` makes. `mark` is the file without which the others
 * count for nothing: the former one goes first, the new one comes last. `isReplaced` tells which other files belonged to what was there before, and go too.
 *
 * @throws IO_ERROR naming the file; the former files are then back in place.
 */
export async function writeIntoFolder(
  target: string,
  mark: string,
  write: (folder: string) => Promise<void>,
  files: FileSystem = nodeFiles,
  isReplaced: (name: string) => boolean = () => false,
): Promise<void> {
  const fresh = hiddenName(join(target, mark), 'new');
  const former = hiddenName(join(target, mark), 'was');
  try {
    await makeFolder(target, files);
    await files.mkdir(fresh);
    await write(fresh);
    await syncTree(fresh, files);
    const names = (await files.readdir(fresh)).filter((name) => name !== mark);
    const others = (await files.readdir(target)).filter((name) => isReplaced(name) && name !== mark && !names.includes(name));
    await files.mkdir(former);
    for (const name of [mark, ...others, ...names]) await renameIfThere(join(target, name), join(former, name), files);
    for (const name of [...names, mark]) await files.rename(join(fresh, name), join(target, name));
    await syncPath(target, files);
  } catch (error) {
    await putBack(former, target, mark, files).catch(() => {});
    await files.rm(fresh, { recursive: true, force: true }).catch(() => {});
    throw ioError('writing', target, error, fresh);
  }
  // What cannot be deleted now is deleted at the next start.
  await files.rm(former, { recursive: true, force: true }).catch(() => {});
  await files.rm(fresh, { recursive: true, force: true }).catch(() => {});
}

/** Deletes a folder so that it is never seen half-deleted. */
export async function deleteFolder(target: string, files: FileSystem = nodeFiles): Promise<void> {
  const doomed = hiddenName(target, 'new');
  try {
    await files.rename(target, doomed);
    await files.rm(doomed, { recursive: true, force: true });
  } catch (error) {
    throw ioError('deleting', target, error);
  }
}

/** Puts right what killed processes left in `parent`: former folders whose successor never came are put back, the rest is deleted. */
export async function recoverFolders(parent: string, files: FileSystem = nodeFiles): Promise<void> {
  try {
    const names = await files.readdir(parent);
    for (const name of names) {
      const match = HIDDEN.exec(name);
      if (!match) continue;
      const place = match[1] as string;
      const lost = !names.includes(place);
      if (match[2] === 'old' && lost) await files.rename(join(parent, name), join(parent, place));
      else if (match[2] === 'was' && lost) await putBack(join(parent, name), parent, place, files);
      else await files.rm(join(parent, name), { recursive: true, force: true });
    }
  } catch (error) {
    if (!hasCode(error, 'ENOENT')) throw ioError('reading', parent, error);
  }
}

function hiddenName(target: string, kind: 'new' | 'old' | 'was'): string {
  return join(dirname(target), `.${basename(target)}.${kind}-${randomBytes(6).toString('hex')}`);
}

async function syncTree(folder: string, files: FileSystem): Promise<void> {
  const names = await listFiles(folder, files);
  const folders = new Set(names.map((name) => dirname(join(folder, name))));
  for (const name of names) await syncPath(join(folder, name), files);
  for (const path of folders.add(folder)) await syncPath(path, files);
}

async function putInPlace(fresh: string, target: string, files: FileSystem): Promise<void> {
  const former = hiddenName(target, 'old');
  const replaced = await renameIfThere(target, former, files);
  try {
    await files.rename(fresh, target);
    await syncPath(dirname(target), files);
  } catch (error) {
    if (replaced) {
      await files.rm(target, { recursive: true, force: true }).catch(() => {});
      await files.rename(former, target).catch(() => {});
    }
    throw error;
  }
  if (replaced) await files.rm(former, { recursive: true, force: true });
}

async function renameIfThere(from: string, to: string, files: FileSystem): Promise<boolean> {
  try {
    await files.rename(from, to);
    return true;
  } catch (error) {
    if (hasCode(error, 'ENOENT')) return false;
    throw error;
  }
}

/** Moves the files in `former` back to `target`, the mark last. A file that is in both places is the former one's successor. */
async function putBack(former: string, target: string, mark: string, files: FileSystem): Promise<void> {
  const names = await files.readdir(former);
  for (const name of names.sort((a, b) => Number(a === mark) - Number(b === mark))) {
    await files.rm(join(target, name), { recursive: true, force: true });
    await files.rename(join(former, name), join(target, name));
  }
  await syncPath(target, files);
  await files.rm(former, { recursive: true, force: true });
}
