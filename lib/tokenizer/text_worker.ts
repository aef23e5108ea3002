import { readFile, stat, writeFile } from 'node:fs/promises';
import { parentPort } from 'node:worker_threads';
import { type Encoding, Tokenizer as NativeTokenizer } from 'tokenizers';
import { LowrankError } from '../errors.ts';
import type { WorkerReply } from '../threads/worker_thread.ts';
import { type GgufMetadata, ggufSettings, ggufTokenizerJson, readGgufMetadata } from './gguf_tokenizer.ts';
import { toUtf16Offsets } from './offsets.ts';
import type { TokenizerSettings } from './tokenizer_folder.ts';
import {
  invalidTokenizer,
  MAX_TOKENIZER_BYTES,
  parseTokenizerJson,
  type TokenizerJson,
  templateProcessing,
  tokensById,
  withSpecialTokens,
} from './tokenizer_json.ts';

// The thread that tokenizers live in: building one takes a hundred milliseconds and more, encoding holds whole files; neither may hold
// the event loop.

export interface LoadRequest {
  operation: 'load';
  /** Number to name it by from now on; never used before, by no earlier thread either. */
  tokenizer: number;
  /** tokenizer.json and what the files beside it say, or a GGUF file or its metadata. */
  source: { file: string; settings: TokenizerSettings } | { gguf: string | GgufMetadata };
}

interface EncodeRequest {
  operation: 'encode';
  tokenizer: number;
  texts: string[];
  addSpecialTokens: boolean;
  offsets: boolean;
}

interface SaveRequest {
  operation: 'save';
  tokenizer: number;
  path: string;
}

interface ReleaseRequest {
  operation: 'release';
  tokenizer: number;
}

export type TextRequest = (LoadRequest | EncodeRequest | SaveRequest | ReleaseRequest) & { id: number };

export interface LoadReply {
  /** Texts of all tokens one after another in UTF-8; token i is bytes starts[i] to starts[i + 1], and absent where `present[i]` is 0. */
  table: { bytes: Uint8Array; starts: Int32Array; present: Uint8Array };
  special: { id: number; token: string }[];
  settings: TokenizerSettings;
  /** tokenizer.json without its vocabulary: enough to decode by. */
  decoder: string;
}

export interface EncodeReply {
  /** Ids of all texts one after another; text i has `lengths[i]`. */
  ids: Int32Array;
  lengths: Int32Array;
  /** Start and end of every token in its text, in UTF-16 units; empty unless asked for. */
  offsets: Int32Array;
}

interface Loaded {
  native: NativeTokenizer;
  json: string;
  bosId: number | undefined;
}

const loaded = new Map<number, Loaded>();

async function readTokenizerFile(path: string): Promise<TokenizerJson> {
  try {
    const { size } = await stat(path);
    if (size > MAX_TOKENIZER_BYTES) throw invalidTokenizer(path, `${size} bytes are too many for a tokenizer`);
    return parseTokenizerJson(await readFile(path, 'utf8'), path);
  } catch (cause) {
    if (cause instanceof LowrankError) throw cause;
    const missing = (cause as { code?: unknown }).code === 'ENOENT';
    throw new LowrankError(missing ? 'FILE_NOT_FOUND' : 'IO_ERROR', `${path}: ${(cause as Error).message}`, { cause });
  }
}

interface Source {
  where: string;
  json: TokenizerJson;
  settings: TokenizerSettings;
}

async function readSource(source: LoadRequest['source']): Promise<Source> {
  if ('file' in source) return { where: source.file, json: await readTokenizerFile(source.file), settings: source.settings };
  const metadata = typeof source.gguf === 'string' ? readGgufMetadata(source.gguf) : source.gguf;
  return { where: 'GGUF tokenizer', settings: ggufSettings(metadata), json: ggufTokenizerJson(metadata) };
}

async function load(request: LoadRequest): Promise<LoadReply> {
  const { where, json: own, settings } = await readSource(request.source);
  // What the configuration names are special tokens.
  const json = withSpecialTokens(own, [...Object.values(settings.named), ...settings.additional]);
  const tokens = tokensById(json);
  const ids = new Map([...tokens].map(([id, token]) => [token, id]));
  for (const { id, content } of json.added_tokens) ids.set(content, id);
  const named = (token: string | undefined) => {
    const id = token === undefined ? undefined : ids.get(token);
    return token === undefined || id === undefined ? undefined : { id, token };
  };
  const { addBos, addEos } = settings;
  const bos = named(settings.named.bos_token);
  // Where the configuration does not say, tokenizer.json decides.
  if (addBos !== undefined || addEos !== undefined || json.post_processor === null) {
    json.post_processor = templateProcessing(addBos ? bos : undefined, addEos ? named(settings.named.eos_token) : undefined);
  }
  const text = JSON.stringify(json);
  let native: NativeTokenizer;
  try {
    native = NativeTokenizer.fromString(text);
  } catch (cause) {
    throw invalidTokenizer(where, (cause as Error).message, cause);
  }
  loaded.set(request.tokenizer, { native, json: text, bosId: bos?.id });
  return {
    table: tokenTable(tokens),
    settings,
    special: json.added_tokens.filter(({ special }) => special).map(({ id, content }) => ({ id, token: content })),
    decoder: JSON.stringify({
      ...json,
      added_tokens: [],
      normalizer: null,
      pre_tokenizer: null,
      post_processor: null,
      model: { type: 'WordLevel', vocab: { unknown: 0 }, unk_token: 'unknown' },
    }),
  };
}

function tokenTable(tokens: Map<number, string>): LoadReply['table'] {
  let size = 0;
  for (const id of tokens.keys()) size = Math.max(size, id + 1);
  const present = new Uint8Array(size);
  const starts = new Int32Array(size + 1);
  const parts: Buffer[] = [];
  for (let id = 0; id < size; id++) {
    const token = tokens.get(id);
    const part = Buffer.from(token ?? '', 'utf8');
    present[id] = token === undefined ? 0 : 1;
    starts[id + 1] = (starts[id] as number) + part.length;
    parts.push(part);
  }
  return { bytes: new Uint8Array(Buffer.concat(parts)), starts, present };
}

async function encode(request: EncodeRequest): Promise<EncodeReply> {
  const { native, bosId } = held(request.tokenizer);
  const { texts, addSpecialTokens } = request;
  let encodings: Encoding[];
  try {
    encodings = await native.encodeBatch(texts, { addSpecialTokens });
  } catch (cause) {
    throw invalidTokenizer('the tokenizer', `cannot encode this text (${(cause as Error).message})`, cause);
  }
  const lists = encodings.map((encoding) => encoding.getIds());
  // A text that starts with BOS already (rendered by a template, say) is not given a second one.
  const skips = lists.map((ids) => Number(addSpecialTokens && bosId !== undefined && ids[0] === bosId && ids[1] === bosId));
  const lengths = Int32Array.from(lists, (ids, i) => ids.length - (skips[i] as number));
  const total = lengths.reduce((sum, length) => sum + length, 0);
  const ids = new Int32Array(total);
  const offsets = new Int32Array(request.offsets ? 2 * total : 0);
  let at = 0;
  encodings.forEach((encoding, i) => {
    const list = lists[i] as number[];
    const skip = skips[i] as number;
    for (let t = skip; t < list.length; t++) ids[at + t - skip] = list[t] as number;
    if (request.offsets) {
      const own = offsets.subarray(2 * at, 2 * (at + list.length - skip));
      encoding.getOffsets().forEach((pair, t) => {
        if (t < skip) return;
        own[2 * (t - skip)] = pair[0] as number;
        own[2 * (t - skip) + 1] = pair[1] as number;
      });
      toUtf16Offsets(texts[i] as string, own);
    }
    at += list.length - skip;
  });
  return { ids, lengths, offsets };
}

function held(handle: number): Loaded {
  const tokenizer = loaded.get(handle);
  if (!tokenizer) throw new LowrankError('INVALID_TOKENIZER', 'the tokenizer was disposed of, or the thread that held it has died');
  return tokenizer;
}

async function answer(request: TextRequest): Promise<unknown> {
  switch (request.operation) {
    case 'load':
      return load(request);
    case 'encode':
      return encode(request);
    case 'save':
      return writeFile(request.path, held(request.tokenizer).json);
    case 'release':
      return loaded.delete(request.tokenizer);
  }
}

parentPort?.on('message', (request: TextRequest) => {
  answer(request).then(
    (value) => {
      const reply: WorkerReply = { id: request.id, value };
      const encoded = request.operation === 'encode' ? (value as EncodeReply) : undefined;
      parentPort?.postMessage(
        reply,
        encoded ? [encoded.ids.buffer as ArrayBuffer, encoded.lengths.buffer as ArrayBuffer, encoded.offsets.buffer as ArrayBuffer] : [],
      );
    },
    (error: unknown) => {
      const kind = error instanceof LowrankError ? error.code : 'IO_ERROR';
      parentPort?.postMessage({ id: request.id, error: { message: (error as Error).message, kind } } satisfies WorkerReply);
    },
  );
});
