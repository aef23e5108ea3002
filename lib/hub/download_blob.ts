import { createHash, type Hash } from 'node:crypto';
import { createReadStream, createWriteStream } from 'node:fs';
import { mkdir, rename, rm, stat } from 'node:fs/promises';
import { dirname } from 'node:path';
import { Transform } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { LowrankError, throwIfAborted } from '../errors.ts';

/** A file on the hub and where its content is to lie. */
export interface BlobRequest {
  url: string;
  target: string;
  bytes: number;
  /** SHA-256 of the content (Git LFS), or git's SHA-1 of it as a blob. */
  digest: string;
  token: string | undefined;
  onBytes(loaded: number): void;
  signal: AbortSignal | undefined;
}

/** How often a download that was cut goes on where it stopped. */
const kAttempts = 5;

/**
 * Downloads into `<target>.incomplete`, going on where an earlier download stopped, checks size and digest, and renames. Throws IO_ERROR and
 * ABORTED; what was received is kept for the next time unless it is wrong.
 */
export async function downloadBlob(request: BlobRequest): Promise<void> {
  const incomplete = `${request.target}.incomplete`;
  await mkdir(dirname(request.target), { recursive: true });
  let failure: unknown;
  for (let attempt = 0; attempt < kAttempts; ++attempt) {
    throwIfAborted(request.signal);
    try {
      await receive(request, incomplete);
      failure = await findFault(request, incomplete);
      if (failure === undefined) {
        await rename(incomplete, request.target);
        return;
      }
      await rm(incomplete, { force: true });
    } catch (error) {
      throwIfAborted(request.signal);
      if (error instanceof LowrankError || isFileError(error)) throw error;
      failure = error;
    }
  }
  const reason = failure instanceof Error ? (failure.cause instanceof Error ? failure.cause.message : failure.message) : failure;
  throw new LowrankError('IO_ERROR', `${request.url} could not be downloaded: ${reason}`, { cause: failure });
}

/** A full disk and the like: trying again does not help. */
function isFileError(error: unknown): boolean {
  return ['ENOSPC', 'EROFS', 'EACCES', 'EPERM', 'EDQUOT', 'EMFILE'].includes((error as NodeJS.ErrnoException).code ?? '');
}

async function receive(request: BlobRequest, incomplete: string): Promise<void> {
  let have = await sizeOf(incomplete);
  if (have >= request.bytes) return;
  const headers: Record<string, string> = {};
  if (request.token) headers.authorization = `Bearer ${request.token}`;
  if (have > 0) headers.range = `bytes=${have}-`;
  const response = await fetch(request.url, { headers, ...(request.signal ? { signal: request.signal } : {}) });
  if (!response.ok || !response.body)
    throw new LowrankError(
      'IO_ERROR',
      `${request.url} could not be downloaded: the server answered ${response.status} ${response.statusText}`,
    );
  if (response.status !== 206) have = 0;
  const count = new Transform({
    transform(chunk: Buffer, _encoding, done) {
      have += chunk.length;
      request.onBytes(have);
      // A server that sends more than the file has is not allowed to fill the disk.
      done(have > request.bytes ? new Error(`more than ${request.bytes} bytes came`) : null, chunk);
    },
  });
  await pipeline(response.body, count, createWriteStream(incomplete, { flags: have > 0 ? 'a' : 'w' }));
}

/** What is wrong with a received file, if anything. */
async function findFault(request: BlobRequest, path: string): Promise<string | undefined> {
  const bytes = await sizeOf(path);
  if (bytes !== request.bytes) return `${bytes} bytes came; expected ${request.bytes}`;
  const isSha256 = request.digest.length === 64;
  const hash: Hash = createHash(isSha256 ? 'sha256' : 'sha1');
  if (!isSha256) hash.update(`blob ${bytes}\0`);
  await pipeline(createReadStream(path), hash);
  const digest = hash.digest('hex');
  return digest === request.digest ? undefined : `its checksum is ${digest}; expected ${request.digest}`;
}

async function sizeOf(path: string): Promise<number> {
  return (await stat(path).catch(() => undefined))?.size ?? 0;
}
