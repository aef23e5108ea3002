import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Decoder } from 'tokenizers';
import { type ErrorCode, LowrankError, shown } from '../errors.ts';
import { WorkerFailure, WorkerThread } from '../threads/worker_thread.ts';
import type { Message } from '../types.ts';
import { ChatTemplate } from './chat_template.ts';
import type { GgufMetadata } from './gguf_tokenizer.ts';
import {
  type ChatTemplateOptions,
  type DecodeOptions,
  type EncodeOptions,
  parseChatTemplateOptions,
  parseDecodeOptions,
  parseEncodeOptions,
} from './options.ts';
import { StreamDecoder } from './stream_decoder.ts';
import type { EncodeReply, LoadReply, LoadRequest, TextRequest } from './text_worker.ts';
import { locateTokenizer, readTokenizerSettings, type TokenizerSettings } from './tokenizer_folder.ts';

/** One text's tokens. */
export interface Encoded {
  ids: Int32Array;
  /** Start and end of each token by turns, in UTF-16 units of the text; empty unless asked for. */
  offsets: Int32Array;
}

type Request = TextRequest extends infer R ? (R extends unknown ? Omit<R, 'id'> : never) : never;

const HEAP_MEGABYTES = 4096;

const worker = new WorkerThread('tokenizer/text_worker', { heapMegabytes: HEAP_MEGABYTES });
const forgotten = new FinalizationRegistry<number>((tokenizer) => worker.notify({ operation: 'release', tokenizer, id: 0 }));
/** Numbers of tokenizers: never used twice, so that one of a thread that died cannot mean another. */
let nextHandle = 1;

async function ask<T>(request: Request): Promise<T> {
  try {
    return await worker.request<T>({ ...request });
  } catch (error) {
    if (!(error instanceof WorkerFailure)) throw error;
    const code: ErrorCode = error.kind === 'heap' ? 'OUT_OF_MEMORY' : error.kind === 'died' ? 'IO_ERROR' : (error.kind as ErrorCode);
    throw new LowrankError(code, error.message, { cause: error });
  }
}

/**
 * Text to ids and back, with ids identical to those of the Python library.
 *
 * ```ts
 * const tokenizer = await Tokenizer.fromFile('model-folder');
 * const ids = await tokenizer.encode('Hello');
 * tokenizer.decode(ids); // 'Hello'
 * ```
 */
export class Tokenizer {
  /** Text before this id's begins; undefined when the tokenizer has none. */
  readonly bosId: number | undefined;
  /** The first of {@link eosIds}. */
  readonly eosId: number | undefined;
  /** Every id that ends generation. */
  readonly eosIds: readonly number[];
  readonly padId: number | undefined;
  readonly unkId: number | undefined;
  /** One more than the largest id. */
  readonly vocabSize: number;
  /** Source of the chat template. */
  readonly chatTemplate: string | undefined;
  /** Ids of special tokens, which decode() can skip. */
  readonly specialIds: ReadonlySet<number>;
  readonly #handle: number;
  readonly #table: LoadReply['table'];
  readonly #decoder: Decoder | null;
  readonly #settings: TokenizerSettings;
  readonly #template: ChatTemplate | undefined;

  private constructor(handle: number, reply: LoadReply, decoder: Decoder | null) {
    const { settings } = reply;
    const idOf = new Map(reply.special.map(({ id, token }) => [token, id]));
    const id = (name: string) => idOf.get(settings.named[name] ?? '');
    this.#handle = handle;
    this.#table = reply.table;
    this.#decoder = decoder;
    this.#settings = settings;
    this.bosId = id('bos_token');
    const eos = [id('eos_token'), ...settings.eosIds].filter((value) => value !== undefined);
    this.eosIds = [...new Set(eos)];
    this.eosId = this.eosIds[0];
    this.padId = id('pad_token');
    this.unkId = id('unk_token');
    this.vocabSize = reply.table.present.length;
    this.specialIds = new Set(reply.special.map((token) => token.id));
    this.chatTemplate = settings.chatTemplate;
    if (settings.chatTemplate !== undefined) {
      this.#template = new ChatTemplate(settings.chatTemplate, {
        named: settings.named,
        endTokens: this.eosIds.map((eosId) => this.idToToken(eosId) ?? '').filter((token) => token !== ''),
        specialTokens: reply.special.map(({ token }) => token).filter((token) => token !== ''),
      });
    }
    forgotten.register(this, handle, this);
  }

  /**
   * Reads a folder with tokenizer.json (or that file) and the configuration beside it: tokenizer_config.json, special_tokens_map.json,
   * chat_template.jinja, generation_config.json. Throws FILE_NOT_FOUND or INVALID_TOKENIZER.
   */
  static async fromFile(path: string): Promise<Tokenizer> {
    const file = await locateTokenizer(path);
    const settings = await readTokenizerSettings(file);
    return Tokenizer.#load({ file, settings });
  }

  /**
   * Builds the tokenizer that a GGUF file's metadata describes: of the file at a path, which is read on the tokenizers' thread, or as it was
   * read already. Throws INVALID_TOKENIZER.
   */
  static async fromGguf(source: string | GgufMetadata): Promise<Tokenizer> {
    return Tokenizer.#load({ gguf: source });
  }

  static async #load(source: LoadRequest['source']): Promise<Tokenizer> {
    const tokenizer = nextHandle++;
    const reply = await ask<LoadReply>({ operation: 'load', tokenizer, source });
    const { Tokenizer: NativeTokenizer } = await import('tokenizers');
    return new Tokenizer(tokenizer, reply, NativeTokenizer.fromString(reply.decoder).getDecoder());
  }

  /** Ids of a text. BOS is never doubled: a text that starts with it gets no other. */
  async encode(text: string, options: EncodeOptions = {}): Promise<number[]> {
    const [encoded] = await this.encodeBatch([text], options);
    return Array.from((encoded as Encoded).ids);
  }

  /** Ids of many texts, with the characters that each token stands for when `offsets` is set. */
  async encodeBatch(texts: readonly string[], options: EncodeOptions = {}): Promise<Encoded[]> {
    const { addSpecialTokens, offsets } = parseEncodeOptions(options);
    const bad = texts.findIndex((text) => typeof text !== 'string');
    if (bad >= 0) throw new LowrankError('INVALID_OPTION', `encode takes text, found ${shown(texts[bad])}`);
    if (texts.length === 0) return [];
    const reply = await ask<EncodeReply>({ operation: 'encode', tokenizer: this.#handle, texts: [...texts], addSpecialTokens, offsets });
    let at = 0;
    return texts.map((_, i) => {
      const end = at + (reply.lengths[i] as number);
      const encoded = { ids: reply.ids.subarray(at, end), offsets: offsets ? reply.offsets.subarray(2 * at, 2 * end) : reply.offsets };
      at = end;
      return encoded;
    });
  }

  /** Text of ids; ids without a token (a model's padding of its vocabulary) give nothing. Default: special tokens are kept. */
  decode(ids: ArrayLike<number>, options: DecodeOptions = {}): string {
    const { skipSpecialTokens = false } = parseDecodeOptions(options);
    return this.#text(ids, skipSpecialTokens);
  }

  #text(ids: ArrayLike<number>, skipSpecialTokens: boolean): string {
    const tokens: string[] = [];
    for (let i = 0; i < ids.length; i++) {
      const id = ids[i] as number;
      if (!Number.isInteger(id) || id < 0) throw new LowrankError('INVALID_OPTION', `decode takes token ids, found ${shown(id)}`);
      const token = skipSpecialTokens && this.specialIds.has(id) ? undefined : this.idToToken(id);
      if (token !== undefined) tokens.push(token);
    }
    return this.#decoder ? this.#decoder.decode(tokens) : tokens.join(' ');
  }

  /** A decoder for ids that come one by one. Default: special tokens are skipped. */
  streamDecoder(options: DecodeOptions = {}): StreamDecoder {
    const { skipSpecialTokens = true } = parseDecodeOptions(options);
    return new StreamDecoder((ids) => this.#text(ids, skipSpecialTokens));
  }

  /** The token of an id as the vocabulary spells it, undefined when there is none. */
  idToToken(id: number): string | undefined {
    const { bytes, starts, present } = this.#table;
    if (!present[id]) return undefined;
    return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('utf8', starts[id], starts[id + 1]);
  }

  /** The conversation as the model was taught to read it: ids, or text with `tokenize: false`. Throws INVALID_TEMPLATE. */
  applyChatTemplate(messages: readonly Message[], options: ChatTemplateOptions & { tokenize: false }): Promise<string>;
  applyChatTemplate(messages: readonly Message[], options?: ChatTemplateOptions & { tokenize?: true }): Promise<number[]>;
  applyChatTemplate(messages: readonly Message[], options?: ChatTemplateOptions): Promise<string | number[]>;
  async applyChatTemplate(messages: readonly Message[], options: ChatTemplateOptions = {}): Promise<string | number[]> {
    const { addGenerationPrompt, tools, tokenize, chatTemplateKwargs: variables } = parseChatTemplateOptions(options);
    checkMessages(messages);
    const text = await this.template().render({ messages, tools }, { addGenerationPrompt, variables });
    return tokenize ? this.encode(text, { addSpecialTokens: false }) : text;
  }

  /** The chat template; throws INVALID_TEMPLATE when the tokenizer has none. */
  template(): ChatTemplate {
    if (!this.#template) {
      throw new LowrankError(
        'INVALID_TEMPLATE',
        'the tokenizer has no chat template; give one as chat_template.jinja beside tokenizer.json',
      );
    }
    return this.#template;
  }

  /** Writes tokenizer.json, tokenizer_config.json and chat_template.jinja, as Transformers' AutoTokenizer loads them. */
  async save(folder: string): Promise<void> {
    try {
      await mkdir(folder, { recursive: true });
      await ask({ operation: 'save', tokenizer: this.#handle, path: join(folder, 'tokenizer.json') });
      const { chat_template: _, ...config } = this.#settings.config;
      await writeFile(join(folder, 'tokenizer_config.json'), `${JSON.stringify(config, null, 2)}\n`);
      if (this.chatTemplate !== undefined) await writeFile(join(folder, 'chat_template.jinja'), this.chatTemplate);
    } catch (cause) {
      if (cause instanceof LowrankError && cause.code !== 'IO_ERROR') throw cause;
      throw new LowrankError('IO_ERROR', `${folder}: the tokenizer cannot be saved (${(cause as Error).message})`, { cause });
    }
  }

  /** Frees the native tokenizer now; the garbage collector does it too. */
  dispose(): void {
    forgotten.unregister(this);
    worker.notify({ operation: 'release', tokenizer: this.#handle, id: 0 });
  }
}

/** Throws INVALID_OPTION unless `messages` is a list of objects with a role, not empty. */
function checkMessages(messages: unknown): asserts messages is Message[] {
  if (!Array.isArray(messages) || messages.length === 0) {
    throw new LowrankError('INVALID_OPTION', `expected a list of messages { role, content }, found ${shown(messages)}`);
  }
  const bad = messages.findIndex((message: unknown) => typeof (message as { role?: unknown } | null)?.role !== 'string');
  if (bad >= 0) throw new LowrankError('INVALID_OPTION', `message ${bad} is ${shown(messages[bad])}, expected { role, content }`);
}
