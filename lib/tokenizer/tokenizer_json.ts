import { createHash } from 'node:crypto';
import { LowrankError, shown } from '../errors.ts';
import { isSafePattern } from './regex_policy.ts';

// tokenizer.json, the file of the tokenizers library. It comes from anywhere, and some of what it can hold makes the native library abort
// the process; so everything that is dangerous there is checked here first.

export interface AddedToken {
  id: number;
  content: string;
  single_word: boolean;
  lstrip: boolean;
  rstrip: boolean;
  normalized: boolean;
  special: boolean;
}

interface TokenizerModel {
  type?: string;
  /** Token → id; Unigram: [token, score] pairs in order of id. */
  vocab: Record<string, number> | [string, number][];
  [key: string]: unknown;
}

export interface TokenizerJson {
  added_tokens: AddedToken[];
  model: TokenizerModel;
  normalizer: unknown;
  pre_tokenizer: unknown;
  post_processor: unknown;
  decoder: unknown;
  [key: string]: unknown;
}

/** Files larger than this are refused; the largest published ones have 35 MB. */
export const MAX_TOKENIZER_BYTES = 256 << 20;
/** Ids index tables, so a hostile one must not make them huge. */
const MAX_ID = 1 << 24;
const MAX_DEPTH = 24;
const MODELS = ['BPE', 'Unigram', 'WordPiece', 'WordLevel'];

/** SHA-256 of the normalization tables that sentencepiece ships; others could read out of bounds. */
const KNOWN_CHARSMAPS = new Set([
  '1e2c7b43d3ee9755ceaa2ac335e253d8703604e0249ee1e81156c92b46423844',
  '2c03512e62f9ed965ec90d85314211b63b5b8aa0395311ea2147eec9ff738907',
  '7e46d9e08af4b6a37991b04fb8388644c1595a0abcd0f26d6a5d575e2a3663ea',
  'd8dfef3d6db0eef0742f8b55a73aee7fce6c1e21d26a09b8d3d4b52c42a791cb',
]);

type JsonObject = Record<string, unknown>;

export const isObject = (value: unknown): value is JsonObject => value !== null && typeof value === 'object' && !Array.isArray(value);

export function invalidTokenizer(where: string, problem: string, cause?: unknown): LowrankError {
  return new LowrankError('INVALID_TOKENIZER', `${where}: ${problem}`, cause === undefined ? undefined : { cause });
}

/** Parses and checks tokenizer.json; `where` names it in errors. Truncation, padding and BPE dropout are taken out: the caller decides those. */
export function parseTokenizerJson(text: string, where: string): TokenizerJson {
  let json: unknown;
  try {
    json = JSON.parse(text.charCodeAt(0) === 0xfeff ? text.slice(1) : text);
  } catch (cause) {
    throw invalidTokenizer(where, `not JSON (${(cause as Error).message})`, cause);
  }
  if (!isObject(json)) throw invalidTokenizer(where, `expected an object, found ${shown(json)}`);
  const { model } = json;
  if (!isObject(model)) throw invalidTokenizer(where, `expected "model" to be an object, found ${shown(model)}`);
  if (model.type !== undefined && !MODELS.includes(model.type as string)) {
    throw invalidTokenizer(where, `model type ${shown(model.type)} is not one of ${MODELS.join(', ')}`);
  }
  checkVocabulary(model.vocab, where);
  const added = checkAddedTokens(json.added_tokens ?? [], where);
  for (const part of ['normalizer', 'pre_tokenizer', 'post_processor', 'decoder']) checkPart(json[part], `${where}: ${part}`, 0);
  const checked: TokenizerModel = { ...model, vocab: model.vocab as TokenizerModel['vocab'] };
  if ('dropout' in model) checked.dropout = null;
  return {
    ...json,
    normalizer: json.normalizer ?? null,
    pre_tokenizer: json.pre_tokenizer ?? null,
    post_processor: json.post_processor ?? null,
    decoder: json.decoder ?? null,
    added_tokens: added,
    model: checked,
    truncation: null,
    padding: null,
  };
}

function checkVocabulary(vocab: unknown, where: string): void {
  if (Array.isArray(vocab)) {
    if (vocab.length > MAX_ID) throw invalidTokenizer(where, `the vocabulary has ${vocab.length} tokens, more than ${MAX_ID}`);
    const bad = vocab.findIndex((entry) => !Array.isArray(entry) || typeof entry[0] !== 'string' || typeof entry[1] !== 'number');
    if (bad >= 0) throw invalidTokenizer(where, `vocabulary entry ${bad} is ${shown(vocab[bad])}, expected [token, score]`);
    return;
  }
  if (!isObject(vocab)) throw invalidTokenizer(where, `expected "model.vocab" to map tokens to ids, found ${shown(vocab)}`);
  for (const token in vocab) checkId(vocab[token], token, where);
}

function checkId(id: unknown, token: string, where: string): void {
  if (!Number.isInteger(id) || (id as number) < 0 || (id as number) >= MAX_ID) {
    throw invalidTokenizer(where, `the id of token ${shown(token)} is ${shown(id)}, expected an integer from 0 to ${MAX_ID - 1}`);
  }
}

function checkAddedTokens(value: unknown, where: string): AddedToken[] {
  if (!Array.isArray(value)) throw invalidTokenizer(where, `expected "added_tokens" to be a list, found ${shown(value)}`);
  return value.map((token: unknown, i) => {
    if (!isObject(token) || typeof token.content !== 'string') {
      throw invalidTokenizer(where, `added token ${i} is ${shown(token)}, expected an object with id and content`);
    }
    checkId(token.id, token.content, where);
    const flag = (name: string) => token[name] === true;
    return {
      id: token.id as number,
      content: token.content,
      single_word: flag('single_word'),
      lstrip: flag('lstrip'),
      rstrip: flag('rstrip'),
      normalized: flag('normalized'),
      special: flag('special'),
    };
  });
}

/** Walks a normalizer, pre-tokenizer, post-processor or decoder for what the native library would not survive. */
function checkPart(value: unknown, where: string, depth: number): void {
  if (depth > MAX_DEPTH) throw invalidTokenizer(where, `nested deeper than ${MAX_DEPTH} levels`);
  if (value === null || typeof value !== 'object') return;
  if (Array.isArray(value)) {
    for (const item of value) checkPart(item, where, depth + 1);
    return;
  }
  const part = value as JsonObject;
  if ('Regex' in part && !(typeof part.Regex === 'string' && isSafePattern(part.Regex))) {
    throw invalidTokenizer(where, `the pattern ${shown(part.Regex)} is none of the known ones and may run without end`);
  }
  if (isObject(part.pattern) && part.pattern.String === '') throw invalidTokenizer(where, 'an empty pattern');
  if (part.type === 'Precompiled') checkCharsmap(part.precompiled_charsmap, where);
  for (const key of Object.keys(part)) checkPart(part[key], where, depth + 1);
}

function checkCharsmap(value: unknown, where: string): void {
  const digest = typeof value === 'string' ? createHash('sha256').update(Buffer.from(value, 'base64')).digest('hex') : '';
  if (!KNOWN_CHARSMAPS.has(digest)) throw invalidTokenizer(where, 'its precompiled charsmap is none of those that sentencepiece ships');
}

/** All tokens by id: the model's and the added ones (which win). */
export function tokensById(json: TokenizerJson): Map<number, string> {
  const tokens = new Map<number, string>();
  const { vocab } = json.model;
  if (Array.isArray(vocab)) for (const [id, [token]] of vocab.entries()) tokens.set(id, token);
  else for (const token in vocab) tokens.set(vocab[token] as number, token);
  for (const { id, content } of json.added_tokens) tokens.set(id, content);
  return tokens;
}

/** Makes `names` special added tokens, as Transformers does with those that the configuration names; new ones get the next free id. */
export function withSpecialTokens(json: TokenizerJson, names: readonly string[]): TokenizerJson {
  const missing = names.filter((name, i) => name !== '' && names.indexOf(name) === i && !json.added_tokens.some((t) => t.content === name));
  if (missing.length === 0) return json;
  const tokens = tokensById(json);
  const ids = new Map([...tokens].map(([id, token]) => [token, id]));
  let next = 0;
  for (const id of tokens.keys()) next = Math.max(next, id + 1);
  const added = missing.map((content): AddedToken => {
    const id = ids.get(content) ?? next++;
    return { id, content, single_word: false, lstrip: false, rstrip: false, normalized: false, special: true };
  });
  return { ...json, added_tokens: [...json.added_tokens, ...added].sort((a, b) => a.id - b.id) };
}

/** A post-processor that adds BOS and EOS where they are given. */
export function templateProcessing(
  bos: { id: number; token: string } | undefined,
  eos: { id: number; token: string } | undefined,
): unknown {
  const special = (token: string, type: number) => ({ SpecialToken: { id: token, type_id: type } });
  const sequence = (id: 'A' | 'B', type: number) => [
    ...(bos ? [special(bos.token, type)] : []),
    { Sequence: { id, type_id: type } },
    ...(eos ? [special(eos.token, type)] : []),
  ];
  const entries = [bos, eos].filter((token) => token !== undefined);
  return {
    type: 'TemplateProcessing',
    single: sequence('A', 0),
    pair: [...sequence('A', 0), ...sequence('B', 1)],
    special_tokens: Object.fromEntries(entries.map(({ id, token }) => [token, { id: token, ids: [id], tokens: [token] }])),
  };
}
