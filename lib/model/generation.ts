import { randomInt } from 'node:crypto';
import { LowrankError, shown } from '../errors.ts';
import type { NativeCache, NativeSampled, NativeSampling } from '../native.ts';
import type { ResolvedGenerateOptions } from '../options/generate_options.ts';
import type { StreamDecoder } from '../tokenizer/stream_decoder.ts';
import type { Message } from '../types.ts';
import { checkedId } from './batch.ts';
import type { ModelCore } from './core.ts';
import { StopStrings } from './stop_strings.ts';

/** Text as it is, token ids, or a conversation for the chat template. */
export type Prompt = string | number[] | Message[];

export interface Generated {
  /** The answer, without special tokens and without the stop string. '' where the model has no tokenizer. */
  text: string;
  /** Ids generated, with the one that ended it. */
  ids: number[];
  finishReason: 'stop' | 'length' | 'abort';
}

/** A generated token and the text that became certain with it. */
export interface StreamedToken {
  text: string;
  id: number;
  /** Under the model's own distribution, before temperature and filters. */
  logprob: number;
}

/** Tokens of a prompt run at once: bounds the workspace and how long an abort waits. */
export const kPrefillTokens = 512;

/** Ids of a prompt. Text gets a beginning-of-sequence token where the tokenizer adds one; a conversation ends with the assistant's header. */
export async function promptIds(core: ModelCore, prompt: Prompt): Promise<number[]> {
  const ids = await encodePrompt(core, prompt);
  if (ids.length === 0) throw new LowrankError('INVALID_OPTION', 'the prompt has no tokens; expected at least one');
  return ids;
}

async function encodePrompt(core: ModelCore, prompt: Prompt): Promise<number[]> {
  if (typeof prompt === 'string') return core.tokenizer.encode(prompt);
  if (!Array.isArray(prompt))
    throw new LowrankError('INVALID_OPTION', `prompt is ${shown(prompt)}; expected a string, token ids or messages`);
  if (typeof prompt[0] === 'object') return core.tokenizer.applyChatTemplate(prompt as Message[], { addGenerationPrompt: true });
  return prompt.map((id, i) => checkedId(id, core.native.config.vocabSize, `prompt[${i}]`));
}

/** A row of a batch while it grows. */
class Row {
  readonly ids: number[] = [];
  text = '';
  finishReason: Generated['finishReason'] | undefined;
  readonly #decoder: StreamDecoder | undefined;
  readonly #stops: StopStrings;
  readonly #core: ModelCore;
  readonly #maxTokens: number;

  constructor(core: ModelCore, options: ResolvedGenerateOptions) {
    this.#core = core;
    this.#decoder = core.hasTokenizer ? core.tokenizer.streamDecoder() : undefined;
    this.#stops = new StopStrings(typeof options.stop === 'string' ? [options.stop] : (options.stop ?? []));
    this.#maxTokens = options.maxNewTokens;
  }

  /** Takes the next token; returns the text that became certain. */
  push(id: number): string {
    this.ids.push(id);
    if (this.#core.eosIds.includes(id)) return this.#end('stop');
    const { text, stopped } = this.#stops.push(this.#decoder?.push(id) ?? '');
    this.text += text;
    if (stopped) this.finishReason = 'stop';
    else if (this.ids.length >= this.#maxTokens) return text + this.#end('length');
    return text;
  }

  abort(): void {
    this.#end('abort');
  }

  #end(reason: Generated['finishReason']): string {
    this.finishReason = reason;
    const { text, stopped } = this.#stops.push(this.#decoder?.end() ?? '');
    const rest = stopped ? text : text + this.#stops.end();
    if (stopped) this.finishReason = 'stop';
    this.text += rest;
    return rest;
  }
}

interface Step {
  row: number;
  token: StreamedToken;
}

/** Grows one row for each prompt and yields every token as it is drawn; `rows` holds the outcome. */
async function* grow(core: ModelCore, prompts: number[][], rows: Row[], options: ResolvedGenerateOptions): AsyncGenerator<Step> {
  const capacity = Math.max(...prompts.map((ids) => ids.length)) + options.maxNewTokens;
  const sampling = nativeSampling(options);
  const cache = await core.run((native) => native.createCache(prompts.length, capacity));
  try {
    let drawn = await prefill(core, cache, prompts, sampling, options.signal);
    for (let step = 1; ; ++step) {
      if (options.signal?.aborted || drawn === undefined) {
        for (const row of rows) if (row.finishReason === undefined) row.abort();
        return;
      }
      for (const [r, row] of rows.entries()) {
        if (row.finishReason !== undefined) continue;
        const id = drawn.ids[r] as number;
        yield { row: r, token: { text: row.push(id), id, logprob: drawn.logprobs[r] as number } };
      }
      const next = rows.map((row) => (row.finishReason === undefined ? row.ids.slice(-1) : []));
      if (next.every((ids) => ids.length === 0)) return;
      drawn = await decode(core, cache, next, sampling, step);
    }
  } finally {
    cache.dispose();
  }
}

/** Tokens of a piece. Beyond the trained length, dynamic rotary frequencies are those of the whole prompt, for all of its tokens. */
function prefillTokens(core: ModelCore, longest: number): number {
  const { kind, maxPosition } = core.native.config.rope;
  return kind === 'dynamic' && longest > maxPosition ? longest : kPrefillTokens;
}

/** Runs the prompts in pieces. A row's first token is drawn with its last piece; undefined when aborted. */
async function prefill(
  core: ModelCore,
  cache: NativeCache,
  prompts: number[][],
  sampling: NativeSampling,
  signal?: AbortSignal,
): Promise<NativeSampled | undefined> {
  const ids = new Int32Array(prompts.length);
  const logprobs = new Float32Array(prompts.length);
  const longest = Math.max(...prompts.map((prompt) => prompt.length));
  const piece = prefillTokens(core, longest);
  for (let begin = 0; begin < longest; begin += piece) {
    if (signal?.aborted) return undefined;
    const drawn = await decode(
      core,
      cache,
      prompts.map((prompt) => prompt.slice(begin, begin + piece)),
      sampling,
      0,
    );
    prompts.forEach((prompt, r) => {
      if (prompt.length <= begin || prompt.length > begin + piece) return;
      ids[r] = drawn.ids[r] as number;
      logprobs[r] = drawn.logprobs[r] as number;
    });
  }
  return { ids, logprobs };
}

function decode(core: ModelCore, cache: NativeCache, tokens: number[][], sampling: NativeSampling, step: number) {
  const starts = new Int32Array(tokens.length + 1);
  tokens.forEach((ids, r) => {
    starts[r + 1] = (starts[r] as number) + ids.length;
  });
  return core.run(() => cache.decode(Int32Array.from(tokens.flat()), starts, sampling, step));
}

function nativeSampling(options: ResolvedGenerateOptions): NativeSampling {
  const { repetitionPenalty } = options;
  const seed = options.seed ?? randomInt(2 ** 32);
  if (!options.doSample) return { temperature: 0, topK: 0, topP: 1, minP: 0, repetitionPenalty, seed };
  return { temperature: options.temperature, topK: options.topK, topP: options.topP, minP: options.minP, repetitionPenalty, seed };
}

/** Answers to several prompts, grown together. */
export async function generateRows(core: ModelCore, prompts: number[][], options: ResolvedGenerateOptions): Promise<Generated[]> {
  if (prompts.length === 0) return [];
  requireTokenizerForStops(core, options);
  const rows = prompts.map(() => new Row(core, options));
  for await (const _ of grow(core, prompts, rows, options));
  return rows.map((row) => ({ text: row.text, ids: row.ids, finishReason: row.finishReason ?? 'length' }));
}

/** Tokens of an answer as they are drawn. */
export async function* streamRow(core: ModelCore, prompt: number[], options: ResolvedGenerateOptions): AsyncGenerator<StreamedToken> {
  requireTokenizerForStops(core, options);
  for await (const { token } of grow(core, [prompt], [new Row(core, options)], options)) yield token;
}

function requireTokenizerForStops(core: ModelCore, options: ResolvedGenerateOptions): void {
  if (options.stop !== undefined && !core.hasTokenizer) core.tokenizer; // throws, naming the model
}
