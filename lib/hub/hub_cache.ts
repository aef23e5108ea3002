import { readFile, stat } from 'node:fs/promises';
import { homedir } from 'node:os';
import { join } from 'node:path';

// Hugging Face's cache, as huggingface_hub lays it out, so that Python and lowrank use each other's files:
//
//   <cache>/models--owner--name/refs/<revision>             the commit it means
//                               blobs/<etag>                contents
//                               snapshots/<commit>/<file>   links to blobs

type Environment = NodeJS.ProcessEnv;

function home(environment: Environment): string {
  return environment.HF_HOME ?? join(environment.XDG_CACHE_HOME ?? join(homedir(), '.cache'), 'huggingface');
}

/** Folder of a repository in the cache. */
export function repositoryFolder(id: string, cacheDir: string | undefined, environment: Environment = process.env): string {
  const cache = cacheDir ?? environment.HF_HUB_CACHE ?? environment.HUGGINGFACE_HUB_CACHE ?? join(home(environment), 'hub');
  return join(cache, `models--${id.replaceAll('/', '--')}`);
}

/** The token to use: the option, HF_TOKEN, or the one that the hub's command line saved. */
export async function hubToken(option: string | undefined, environment: Environment = process.env): Promise<string | undefined> {
  const given = option ?? environment.HF_TOKEN ?? environment.HUGGING_FACE_HUB_TOKEN;
  if (given) return given.trim();
  const saved = await readFile(environment.HF_TOKEN_PATH ?? join(home(environment), 'token'), 'utf8').catch(() => '');
  return saved.trim() || undefined;
}

/** Whether no server may be asked. */
export function isOffline(environment: Environment = process.env): boolean {
  return /^(1|on|yes|true)$/i.test(environment.HF_HUB_OFFLINE ?? '');
}

export function hubUrl(environment: Environment = process.env): string {
  return (environment.HF_ENDPOINT ?? 'https://huggingface.co').replace(/\/+$/, '');
}

/** A full commit hash. */
export function isCommit(revision: string): boolean {
  return /^[0-9a-f]{40}$/.test(revision);
}

/** The cached snapshot of a revision, where it is there. */
export async function cachedSnapshot(repository: string, revision: string): Promise<string | undefined> {
  const commit = isCommit(revision) ? revision : (await readFile(join(repository, 'refs', revision), 'utf8').catch(() => '')).trim();
  if (!isCommit(commit)) return undefined;
  const folder = join(repository, 'snapshots', commit);
  return (await stat(folder).catch(() => undefined))?.isDirectory() ? folder : undefined;
}
