import { copyFile, mkdir, rename, rm, stat, symlink, writeFile } from 'node:fs/promises';
import { dirname, join, relative } from 'node:path';
import { LowrankError, throwIfAborted } from '../errors.ts';
import { downloadBlob } from './download_blob.ts';
import { cachedSnapshot, hubToken, hubUrl, isCommit, isOffline, repositoryFolder } from './hub_cache.ts';
import type { DownloadProgress } from './user_cache.ts';

export interface HubOptions {
  /** Branch, tag or commit; default main. */
  revision?: string;
  /** Default: Hugging Face's cache (HF_HUB_CACHE, HF_HOME). */
  cacheDir?: string;
  /** Ask no server; HF_HUB_OFFLINE=1 does the same. */
  localFilesOnly?: boolean;
  /** Default: HF_TOKEN, or the token that the hub's command line saved. */
  token?: string;
  onProgress?: (progress: DownloadProgress) => void;
  signal?: AbortSignal;
}

/** A file of a repository, as the hub lists it. */
interface HubFile {
  path: string;
  size: number;
  oid?: string;
  xetHash?: string;
  lfs?: { oid: string; size: number };
}

/** Which files of a repository are needed; throws where one is missing that must be there. */
type Choose = (id: string, files: HubFile[]) => HubFile[];

const kTokenizerFiles = ['tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json', 'chat_template.jinja', 'chat_template.json'];
const kModelFiles = ['config.json', 'generation_config.json', ...kTokenizerFiles];

/** Folder of a model of the hub in the cache: configuration, tokenizer and safetensors, downloaded where they are not there yet. */
export function fetchModel(id: string, options: HubOptions = {}): Promise<string> {
  return fetchSnapshot(id, options, chooseModelFiles, ['config.json']);
}

/** Folder with at least the config.json of a model of the hub. */
export function fetchModelConfig(id: string, options: HubOptions = {}): Promise<string> {
  const chooseConfig: Choose = (_, files) => {
    requireFile(id, files, 'config.json');
    return files.filter((file) => file.path === 'config.json');
  };
  return fetchSnapshot(id, options, chooseConfig, ['config.json']);
}

/** Folder of an adapter of the hub in the cache. */
export function fetchAdapter(id: string, options: HubOptions = {}): Promise<string> {
  return fetchSnapshot(id, options, chooseAdapterFiles, ['adapter_config.json', 'adapter_model.safetensors']);
}

const chooseModelFiles: Choose = (id, files) => {
  const small = files.filter((file) => kModelFiles.includes(file.path));
  const whole = files.filter((file) => file.path === 'model.safetensors');
  const shards = files.filter((file) => file.path === 'model.safetensors.index.json' || /^model-\d+-of-\d+\.safetensors$/.test(file.path));
  const weights = whole.length > 0 ? whole : shards;
  requireFile(id, small, 'config.json');
  if (weights.length === 0) {
    const others = files.filter((file) => /\.(bin|pt|pth|gguf)$/.test(file.path)).map((file) => file.path);
    const advice =
      others.length > 0
        ? `; it has ${others.slice(0, 3).join(', ')}: download a .gguf and give its path, or convert a pickle in Python with save_pretrained`
        : '';
    throw new LowrankError('FILE_NOT_FOUND', `${id} has no safetensors on the hub${advice}`);
  }
  return [...small, ...weights];
};

const chooseAdapterFiles: Choose = (id, files) => {
  const wanted = ['adapter_config.json', 'adapter_model.safetensors'];
  for (const name of wanted) requireFile(id, files, name);
  return files.filter((file) => wanted.includes(file.path) || kTokenizerFiles.includes(file.path));
};

function requireFile(id: string, files: HubFile[], name: string): void {
  if (!files.some((file) => file.path === name)) throw new LowrankError('FILE_NOT_FOUND', `${id} has no ${name} on the hub`);
}

async function fetchSnapshot(id: string, options: HubOptions, choose: Choose, required: string[]): Promise<string> {
  const revision = options.revision ?? 'main';
  if (!/^[\w][\w./-]*$/.test(revision) || revision.split('/').includes('..')) {
    throw new LowrankError('INVALID_OPTION', `revision: found '${revision}', expected a branch, tag or commit`);
  }
  const repository = repositoryFolder(id, options.cacheDir);
  const cached = await usableSnapshot(repository, revision, required);
  if (options.localFilesOnly || isOffline()) {
    if (cached) return cached;
    throw new LowrankError(
      'FILE_NOT_FOUND',
      `${id} (${revision}) is not in the cache at ${repository}, and no server may be asked; unset HF_HUB_OFFLINE and localFilesOnly to download it`,
    );
  }
  try {
    return await download(id, revision, repository, options, choose);
  } catch (error) {
    // Without a network, what was downloaded before is what there is.
    if (cached && isNetworkFailure(error)) return cached;
    throw typedError(error, id, revision, options.signal);
  }
}

async function usableSnapshot(repository: string, revision: string, required: string[]): Promise<string | undefined> {
  const folder = await cachedSnapshot(repository, revision);
  if (folder === undefined) return undefined;
  const found = await Promise.all(required.map((name) => stat(join(folder, name)).catch(() => undefined)));
  return found.every((file) => file?.isFile()) ? folder : undefined;
}

async function download(id: string, revision: string, repository: string, options: HubOptions, choose: Choose): Promise<string> {
  const { listFiles, modelInfo } = await import('@huggingface/hub');
  const token = await hubToken(options.token);
  const access = { hubUrl: hubUrl(), fetch: abortableFetch(options.signal), ...(token ? { accessToken: token } : {}) };
  // All files of one commit, so that they belong together and lie in one snapshot.
  const { sha: commit } = await modelInfo({ ...access, name: id, revision, additionalFields: ['sha'] });
  if (typeof commit !== 'string' || !isCommit(commit)) throw new LowrankError('IO_ERROR', `the hub gave no commit for ${id} (${revision})`);
  const listed: HubFile[] = [];
  for await (const file of listFiles({ ...access, repo: { type: 'model', name: id }, revision: commit })) {
    if (file.type === 'file' && !/[/\\]/.test(file.path)) listed.push(file);
  }
  const snapshot = join(repository, 'snapshots', commit);
  for (const file of choose(id, listed)) await place(id, commit, file, repository, snapshot, token, options);
  if (!isCommit(revision)) await writeReference(join(repository, 'refs', revision), commit);
  return snapshot;
}

/** Downloads a file's content where it is missing, and links it into the snapshot. */
async function place(
  id: string,
  commit: string,
  file: HubFile,
  repository: string,
  snapshot: string,
  token: string | undefined,
  options: HubOptions,
): Promise<void> {
  throwIfAborted(options.signal);
  const pointer = join(snapshot, file.path);
  if (await stat(pointer).catch(() => undefined)) return;
  const digest = file.lfs?.oid ?? file.oid ?? '';
  const name = file.lfs?.oid ?? file.xetHash ?? file.oid ?? '';
  const bytes = file.lfs?.size ?? file.size;
  if (!/^[0-9a-f]{40,64}$/.test(digest) || !/^[0-9a-f]+$/.test(name))
    throw new LowrankError('IO_ERROR', `the hub gave no checksum for ${file.path} of ${id}`);
  const blob = join(repository, 'blobs', name);
  if ((await stat(blob).catch(() => undefined))?.size !== bytes) {
    const onBytes = (loaded: number) => options.onProgress?.({ file: file.path, loaded, total: bytes });
    onBytes(0);
    await downloadBlob({
      url: `${hubUrl()}/${id}/resolve/${commit}/${encodeURIComponent(file.path)}`,
      target: blob,
      bytes,
      digest,
      token,
      onBytes,
      signal: options.signal,
    });
  }
  await mkdir(snapshot, { recursive: true });
  await rm(pointer, { force: true });
  // Windows lets not everyone make links.
  await symlink(relative(dirname(pointer), blob), pointer).catch(() => copyFile(blob, pointer));
}

async function writeReference(path: string, commit: string): Promise<void> {
  await mkdir(dirname(path), { recursive: true });
  await writeFile(`${path}.tmp`, commit);
  await rename(`${path}.tmp`, path);
}

function abortableFetch(signal: AbortSignal | undefined): typeof fetch {
  return (input, init) => fetch(input, { ...init, ...(signal ? { signal } : {}) });
}

/** fetch() reports every failure below HTTP as a TypeError. */
function isNetworkFailure(error: unknown): boolean {
  return error instanceof TypeError && error.message === 'fetch failed';
}

function typedError(error: unknown, id: string, revision: string, signal: AbortSignal | undefined): unknown {
  if (error instanceof LowrankError) return error;
  if (signal?.aborted) return new LowrankError('ABORTED', 'the operation was aborted', { cause: signal.reason });
  const status = (error as { statusCode?: unknown }).statusCode;
  if (status === 401 || status === 403) {
    return new LowrankError(
      'IO_ERROR',
      `the hub refuses ${id} (${status}): it does not exist, or it is private or gated; set HF_TOKEN to a token that may read it`,
      { cause: error },
    );
  }
  if (status === 404)
    return new LowrankError(
      'FILE_NOT_FOUND',
      `the hub has no model ${id} with a revision ${revision}; a path to a folder or .gguf file must exist`,
      { cause: error },
    );
  const reason = isNetworkFailure(error)
    ? String(((error as Error).cause as Error | undefined)?.message ?? error)
    : (error as Error).message;
  return new LowrankError(
    'IO_ERROR',
    `${id} could not be fetched from ${hubUrl()}: ${reason}; check the network, or give the path of a folder or .gguf file`,
    { cause: error },
  );
}
