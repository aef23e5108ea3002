import { createReadStream } from 'node:fs';
import { stat } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { LowrankError, shown, throwIfAborted } from '../errors.ts';
import { decompressed } from './compression.ts';
import { readCsv } from './csv_rows.ts';
import { expandGlob, isGlob } from './glob.ts';
import { readJson } from './json_rows.ts';
import { readJsonLines } from './jsonl_rows.ts';

/** One row as it was read: a value, or why there is none. `where` names it: file and line, or place in the list. */
export type SourceRow = { where: string; value: unknown } | { where: string; problem: string };

/** A file or glob (.jsonl, .ndjson, .json, .csv, .tsv, each also .gz or .zst), rows, or an iterable of rows. */
export type RowSource = string | URL | Iterable<unknown> | AsyncIterable<unknown>;

type Reader = (bytes: AsyncIterable<Uint8Array>, path: string) => AsyncIterable<SourceRow>;

const READERS: Record<string, Reader> = {
  jsonl: readJsonLines,
  ndjson: readJsonLines,
  json: readJson,
  csv: (bytes, path) => readCsv(bytes, path, ','),
  tsv: (bytes, path) => readCsv(bytes, path, '\t'),
};

/** The rows of a source, one after the other, never the whole of a file at once. */
export async function* readRows(source: RowSource, signal?: AbortSignal): AsyncGenerator<SourceRow> {
  if (typeof source === 'string' || source instanceof URL) {
    for (const path of await files(source)) yield* readFileRows(path, signal);
    return;
  }
  if (source === null || typeof source !== 'object' || !(Symbol.iterator in source || Symbol.asyncIterator in source)) {
    throw new LowrankError('INVALID_DATASET', `expected a file, rows or an iterable of rows, found ${shown(source)}`);
  }
  let index = 0;
  for await (const value of source) {
    throwIfAborted(signal);
    yield { where: `row ${index++}`, value };
  }
}

async function files(source: string | URL): Promise<string[]> {
  const path = source instanceof URL ? fileURLToPath(source) : source;
  const found = await stat(path).catch(() => undefined);
  if (found?.isDirectory())
    throw new LowrankError('INVALID_DATASET', `${path} is a folder; name a file in it, or a pattern such as ${path}/*.jsonl`);
  if (found) return [path];
  if (!isGlob(path)) throw new LowrankError('FILE_NOT_FOUND', `${path}: no such file`);
  const matches = await expandGlob(path);
  if (matches.length === 0) throw new LowrankError('FILE_NOT_FOUND', `${path}: no file matches this pattern`);
  return matches;
}

async function* readFileRows(path: string, signal: AbortSignal | undefined): AsyncGenerator<SourceRow> {
  const match = /\.([a-z]+)(?:\.(gz|zst))?$/i.exec(path);
  const reader = READERS[match?.[1]?.toLowerCase() ?? ''];
  if (!reader) {
    const known = Object.keys(READERS).map((ending) => `.${ending}`);
    throw new LowrankError(
      'INVALID_DATASET',
      `${path}: this kind of file is not known; known: ${known.join(', ')}, each also with .gz or .zst`,
    );
  }
  const stream = createReadStream(path, { signal });
  try {
    yield* reader(decompressed(stream, match?.[2]?.toLowerCase()), path);
  } catch (error) {
    throwIfAborted(signal);
    throw fileError(error, path);
  } finally {
    stream.destroy();
  }
}

function fileError(error: unknown, path: string): unknown {
  if (error instanceof LowrankError) return error;
  const { code, message } = error as Error & { code?: unknown };
  if (code === 'ENOENT') return new LowrankError('FILE_NOT_FOUND', `${path}: no such file`, { cause: error });
  const isSystem = typeof code === 'string' && /^E[A-Z]+$/.test(code);
  return new LowrankError(isSystem ? 'IO_ERROR' : 'INVALID_DATASET', `${path}: ${message}`, { cause: error });
}
