import { shown } from '../errors.ts';
import { call, type GgufValue, native } from '../native.ts';
import { GPT4O_SPLIT, LLAMA3_SPLIT, QWEN2_SPLIT, QWEN35_SPLIT, TEKKEN_SPLIT } from './regex_policy.ts';
import type { TokenizerSettings } from './tokenizer_folder.ts';
import { type AddedToken, invalidTokenizer, type TokenizerJson } from './tokenizer_json.ts';

// A GGUF file has no tokenizer.json but the vocabulary, the merges or scores and the name of a pre-tokenizer, under llama.cpp's keys. From
// these the tokenizer.json is rebuilt that the model's own repository would have.

export type GgufMetadata = Record<string, GgufValue>;

// llama.cpp's llama_token_type.
const UNKNOWN = 2;
const CONTROL = 3;
const USER_DEFINED = 4;
const BYTE = 6;

const WHERE = 'GGUF tokenizer';

interface PreTokenizer {
  /** Splits text before byte-level BPE; undefined: GPT-2's own split. */
  split?: string;
  /** Every digit by itself, then GPT-2's split. */
  digits?: boolean;
  nfc?: boolean;
  /** A word that is a token is never cut, whatever the merges say. */
  ignoreMerges?: boolean;
}

const LLAMA3: PreTokenizer = { split: LLAMA3_SPLIT, ignoreMerges: true };
const QWEN2: PreTokenizer = { split: QWEN2_SPLIT };
const GPT4O: PreTokenizer = { split: GPT4O_SPLIT };
const DIGITS: PreTokenizer = { digits: true };

/** tokenizer.ggml.pre → how text is split before BPE. */
const PRE_TOKENIZERS: Record<string, PreTokenizer> = {
  default: {},
  'gpt-2': {},
  gpt2: {},
  'phi-2': {},
  smollm: DIGITS,
  starcoder: DIGITS,
  refact: DIGITS,
  codeshell: DIGITS,
  'llama-bpe': LLAMA3,
  'llama-v3': LLAMA3,
  llama3: LLAMA3,
  falcon3: { split: LLAMA3_SPLIT },
  'falcon-h1': { split: LLAMA3_SPLIT },
  pixtral: { split: LLAMA3_SPLIT },
  'midm-2.0': { split: LLAMA3_SPLIT },
  lfm2: { split: LLAMA3_SPLIT },
  dbrx: { split: LLAMA3_SPLIT },
  'smaug-bpe': { split: LLAMA3_SPLIT },
  qwen2: { ...QWEN2, nfc: true },
  'deepseek-r1-qwen': QWEN2,
  kormo: QWEN2,
  megrez: QWEN2,
  qwen35: { split: QWEN35_SPLIT, nfc: true },
  tekken: { split: TEKKEN_SPLIT, ignoreMerges: true },
  'gpt-4o': GPT4O,
  llama4: GPT4O,
  kanana2: GPT4O,
  'minimax-m2': GPT4O,
};

/** Whether llama.cpp puts BOS before text when the file does not say. */
function addsBosByDefault(metadata: GgufMetadata): boolean {
  return metadata['tokenizer.ggml.model'] === 'llama' || PRE_TOKENIZERS[String(metadata['tokenizer.ggml.pre'])] === LLAMA3;
}

/** The list of tokens, checked. */
function ggufTokens(metadata: GgufMetadata): string[] {
  const tokens = metadata['tokenizer.ggml.tokens'];
  if (!Array.isArray(tokens) || tokens.length === 0 || !tokens.every((token) => typeof token === 'string')) {
    throw invalidTokenizer(WHERE, `tokenizer.ggml.tokens is ${shown(tokens)}, expected a list of strings`);
  }
  return tokens as string[];
}

/** All metadata of a GGUF file. Takes a while: a vocabulary is a list of many strings. */
export function readGgufMetadata(path: string): GgufMetadata {
  return call(() => {
    const file = native().openTensorFile(path);
    try {
      return file.metadata();
    } finally {
      file.close();
    }
  });
}

/** Rebuilds tokenizer.json. Throws INVALID_TOKENIZER for a kind or pre-tokenizer that is not known, and for lists that do not fit together. */
export function ggufTokenizerJson(metadata: GgufMetadata): TokenizerJson {
  const tokens = ggufTokens(metadata);
  const types = numberList(metadata, 'tokenizer.ggml.token_type', tokens.length);
  const kind = metadata['tokenizer.ggml.model'];
  if (kind === 'gpt2') return byteLevelBpe(metadata, tokens, types);
  if (kind === 'llama') return sentencePiece(metadata, tokens, types);
  throw invalidTokenizer(WHERE, `tokenizer.ggml.model is ${shown(kind)}, expected "gpt2" or "llama"`);
}

function numberList(metadata: GgufMetadata, key: string, length: number): number[] | undefined {
  const list = metadata[key];
  if (list === undefined) return undefined;
  if (!Array.isArray(list) || list.length !== length || !list.every((item) => typeof item === 'number' && Number.isFinite(item))) {
    throw invalidTokenizer(WHERE, `${key} is ${shown(list)}, expected ${length} numbers, one for each token`);
  }
  return list as number[];
}

function vocabulary(tokens: string[]): Record<string, number> {
  // No prototype: a token may be named __proto__. Of equal tokens the first is the one that text becomes.
  const vocab: Record<string, number> = Object.create(null);
  tokens.forEach((token, id) => {
    vocab[token] ??= id;
  });
  return vocab;
}

function addedTokens(tokens: string[], types: number[] | undefined): AddedToken[] {
  const added: AddedToken[] = [];
  types?.forEach((type, id) => {
    const content = tokens[id] as string;
    if ((type !== CONTROL && type !== USER_DEFINED && type !== UNKNOWN) || content === '') return;
    added.push({ id, content, single_word: false, lstrip: false, rstrip: false, normalized: false, special: type !== USER_DEFINED });
  });
  return added;
}

function byteLevelBpe(metadata: GgufMetadata, tokens: string[], types: number[] | undefined): TokenizerJson {
  const name = metadata['tokenizer.ggml.pre'] ?? 'default';
  const pre = typeof name === 'string' && Object.hasOwn(PRE_TOKENIZERS, name) ? PRE_TOKENIZERS[name] : undefined;
  if (!pre) {
    throw invalidTokenizer(
      WHERE,
      `tokenizer.ggml.pre is ${shown(name)}, which is not known here; known: ${Object.keys(PRE_TOKENIZERS).join(', ')}`,
    );
  }
  const byteLevel = (useRegex: boolean) => ({ type: 'ByteLevel', add_prefix_space: false, trim_offsets: false, use_regex: useRegex });
  const steps = [
    ...(pre.digits ? [{ type: 'Digits', individual_digits: true }] : []),
    ...(pre.split ? [{ type: 'Split', pattern: { Regex: pre.split }, behavior: 'Isolated', invert: false }] : []),
    byteLevel(pre.split === undefined),
  ];
  return {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: addedTokens(tokens, types),
    normalizer: pre.nfc ? { type: 'NFC' } : null,
    pre_tokenizer: steps.length === 1 ? steps[0] : { type: 'Sequence', pretokenizers: steps },
    post_processor: null,
    decoder: { type: 'ByteLevel', add_prefix_space: false, trim_offsets: false, use_regex: true },
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: '',
      end_of_word_suffix: '',
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: pre.ignoreMerges ?? false,
      vocab: vocabulary(tokens),
      merges: fileMerges(metadata) ?? [],
    },
  };
}

function fileMerges(metadata: GgufMetadata): [string, string][] | undefined {
  const merges = metadata['tokenizer.ggml.merges'];
  if (merges === undefined) return undefined;
  if (!Array.isArray(merges)) throw invalidTokenizer(WHERE, `tokenizer.ggml.merges is ${shown(merges)}, expected a list of strings`);
  return merges.map((merge, i) => {
    const space = typeof merge === 'string' ? merge.indexOf(' ', 1) : -1;
    if (space < 0) throw invalidTokenizer(WHERE, `merge ${i} is ${shown(merge)}, expected two tokens with a space between`);
    return [(merge as string).slice(0, space), (merge as string).slice(space + 1)];
  });
}

function sentencePiece(metadata: GgufMetadata, tokens: string[], types: number[] | undefined): TokenizerJson {
  const scores = numberList(metadata, 'tokenizer.ggml.scores', tokens.length);
  const vocab = vocabulary(tokens);
  const merges = fileMerges(metadata) ?? (scores && mergesFromScores(tokens, vocab, scores, types));
  if (!merges) throw invalidTokenizer(WHERE, 'it has neither tokenizer.ggml.scores nor tokenizer.ggml.merges');
  const unknown = metadata['tokenizer.ggml.unknown_token_id'];
  const prefix = metadata['tokenizer.ggml.add_space_prefix'] !== false;
  return {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: addedTokens(tokens, types),
    ...wordBoundaries(metadata['general.architecture'], prefix),
    post_processor: null,
    decoder: {
      type: 'Sequence',
      decoders: [
        { type: 'Replace', pattern: { String: '▁' }, content: ' ' },
        { type: 'ByteFallback' },
        { type: 'Fuse' },
        ...(prefix ? [{ type: 'Strip', content: ' ', start: 1, stop: 0 }] : []),
      ],
    },
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: typeof unknown === 'number' ? (tokens[unknown] ?? null) : null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: true,
      byte_fallback: true,
      ignore_merges: false,
      vocab,
      merges,
    },
  };
}

/** How spaces become ▁. Phi-3's files put one before every stretch of text, the others before the first unless it starts with a space. */
function wordBoundaries(architecture: GgufValue | undefined, prefix: boolean): { normalizer: unknown; pre_tokenizer: unknown } {
  if (architecture === 'phi3' && prefix) {
    const replace = { type: 'Replace', pattern: { String: ' ' }, content: '▁' };
    return { normalizer: { type: 'Sequence', normalizers: [{ type: 'Prepend', prepend: '▁' }, replace] }, pre_tokenizer: null };
  }
  const scheme = prefix ? 'first' : 'never';
  return { normalizer: null, pre_tokenizer: { type: 'Metaspace', replacement: '▁', prepend_scheme: scheme, split: false } };
}

/**
 * SentencePiece's BPE merges the pair whose union has the best score, so every way to cut a token into two others is a merge, ranked by
 * the token's score, then by the lengths of its parts.
 */
function mergesFromScores(
  tokens: string[],
  vocab: Record<string, number>,
  scores: number[],
  types: number[] | undefined,
): [string, string][] {
  const merges: { left: string; right: string; score: number; leftLength: number; rightLength: number }[] = [];
  const fromText = (id: number) => ![UNKNOWN, CONTROL, BYTE].includes(types?.[id] ?? 1);
  for (const [id, token] of tokens.entries()) {
    if (!fromText(id) || vocab[token] !== id) continue;
    const points = [...token];
    const cuts: typeof merges = [];
    let left = '';
    for (let i = 1; i < points.length; i++) {
      left += points[i - 1];
      const right = token.slice(left.length);
      if (vocab[left] === undefined || vocab[right] === undefined) continue;
      cuts.push({ left, right, score: scores[id] as number, leftLength: i, rightLength: points.length - i });
    }
    cuts.sort((a, b) => (vocab[a.left] as number) - (vocab[b.left] as number) || (vocab[a.right] as number) - (vocab[b.right] as number));
    merges.push(...cuts);
  }
  merges.sort((a, b) => b.score - a.score || b.leftLength - a.leftLength || b.rightLength - a.rightLength);
  return merges.map(({ left, right }) => [left, right]);
}

const GGUF_NAMES: Record<string, string> = { bos_token: 'bos', eos_token: 'eos', unk_token: 'unknown', pad_token: 'padding' };

/** What the files beside a tokenizer.json would say. */
export function ggufSettings(metadata: GgufMetadata): TokenizerSettings {
  const tokens = ggufTokens(metadata);
  const idAt = (name: string) => {
    const key = `tokenizer.ggml.${name}_token_id`;
    const id = metadata[key];
    if (id === undefined || id === 0xffffffff || id === -1) return undefined;
    if (typeof id !== 'number' || tokens[id] === undefined) {
      throw invalidTokenizer(WHERE, `${key} is ${shown(id)}, but the vocabulary has ${tokens.length} tokens`);
    }
    return id;
  };
  const named: Record<string, string> = {};
  for (const [name, key] of Object.entries(GGUF_NAMES)) {
    const id = idAt(key);
    if (id !== undefined) named[name] = tokens[id] as string;
  }
  const flag = (key: string) => metadata[`tokenizer.ggml.${key}`] as boolean | undefined;
  const addBos = flag('add_bos_token') ?? addsBosByDefault(metadata);
  const addEos = flag('add_eos_token') ?? false;
  const template = metadata['tokenizer.chat_template'];
  return {
    config: {
      tokenizer_class: 'PreTrainedTokenizerFast',
      ...named,
      add_bos_token: addBos,
      add_eos_token: addEos,
      clean_up_tokenization_spaces: false,
      model_max_length: 1e30,
    },
    named,
    additional: [],
    addBos,
    addEos,
    chatTemplate: typeof template === 'string' ? template : undefined,
    eosIds: ['eos', 'eot', 'eom'].map(idAt).filter((id) => id !== undefined),
  };
}
