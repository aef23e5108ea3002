import { LowrankError } from '../errors.ts';
import type { Encoded, Tokenizer } from '../tokenizer/tokenizer.ts';
import type { TokenRow } from '../types.ts';
import { BadRow, type Example } from './formats.ts';
import { labelsOfSpans } from './truncation.ts';

/** true: only completions and answers are trained on; false: all; 'auto': completions and answers where rows tell them apart. */
export type CompletionOnlyLoss = 'auto' | boolean;

interface Prepared {
  text: string;
  /** Template text says itself where BOS goes. */
  addSpecialTokens: boolean;
  /** EOS is put after the text. */
  endsSequence: boolean;
  /** What is trained on; undefined: all of it. */
  spans: readonly (readonly [number, number])[] | undefined;
}

/** Turns examples into ids and labels, each by one tokenisation of its full text. A row that fails gives its error. */
export async function encodeExamples(
  examples: readonly Example[],
  tokenizer: Tokenizer | undefined,
  completionOnlyLoss: CompletionOnlyLoss,
): Promise<(TokenRow | Error)[]> {
  const rows = new Array<TokenRow | Error>(examples.length);
  const prepared = new Map<number, Prepared>();
  const chats: number[] = [];
  examples.forEach((example, i) => {
    if (example.kind === 'tokens') rows[i] = tokenRow(example, tokenizer);
    else if (example.kind === 'chat') chats.push(i);
    else prepared.set(i, prepareText(example, completionOnlyLoss));
  });
  for (const [i, result] of await renderChats(chats, examples, tokenizer, completionOnlyLoss)) {
    if (result instanceof Error) rows[i] = result;
    else prepared.set(i, result);
  }
  for (const addSpecialTokens of [true, false]) {
    const entries = [...prepared].filter(([, item]) => item.addSpecialTokens === addSpecialTokens);
    if (entries.length === 0) continue;
    const texts = entries.map(([, item]) => item.text);
    const offsets = entries.some(([, item]) => item.spans !== undefined);
    const encoded = await needed(tokenizer).encodeBatch(texts, { addSpecialTokens, offsets });
    entries.forEach(([i, item], e) => {
      rows[i] = labelled(encoded[e] as Encoded, item, needed(tokenizer).eosId);
    });
  }
  return rows;
}

function needed(tokenizer: Tokenizer | undefined): Tokenizer {
  if (!tokenizer) throw new LowrankError('INVALID_OPTION', 'tokenizer is needed for rows that are not token ids');
  return tokenizer;
}

function tokenRow(example: Example & { kind: 'tokens' }, tokenizer: Tokenizer | undefined): TokenRow | Error {
  const { inputIds, labels } = example;
  if (inputIds.length === 0) return new BadRow('inputIds is empty');
  const beyond = tokenizer ? inputIds.find((id) => id >= tokenizer.vocabSize) : undefined;
  if (beyond !== undefined) return new BadRow(`inputIds holds ${beyond}, but the vocabulary has ${tokenizer?.vocabSize} tokens`);
  return { inputIds, labels: labels ?? inputIds };
}

function prepareText(example: Example & { kind: 'text' | 'completion' }, completionOnlyLoss: CompletionOnlyLoss): Prepared {
  const common = { addSpecialTokens: true, endsSequence: true };
  if (example.kind === 'text') return { ...common, text: example.text, spans: undefined };
  const text = example.prompt + example.completion;
  return { ...common, text, spans: completionOnlyLoss === false ? undefined : [[example.prompt.length, text.length]] };
}

async function renderChats(
  chats: readonly number[],
  examples: readonly Example[],
  tokenizer: Tokenizer | undefined,
  completionOnlyLoss: CompletionOnlyLoss,
): Promise<[number, Prepared | Error][]> {
  if (chats.length === 0) return [];
  const spans = completionOnlyLoss !== false;
  const conversations = chats.map((i) => examples[i] as Example & { kind: 'chat' });
  const rendered = await needed(tokenizer).template().renderForTraining(conversations, { spans });
  return chats.map((i, c) => {
    const result = rendered[c] as (typeof rendered)[number];
    if (result instanceof Error) return [i, result];
    return [i, { text: result.text, addSpecialTokens: false, endsSequence: false, spans: spans ? result.spans : undefined }];
  });
}

function labelled({ ids, offsets }: Encoded, { endsSequence, spans }: Prepared, eosId: number | undefined): TokenRow {
  const ends = endsSequence && eosId !== undefined;
  let inputIds = ids;
  if (ends && ids[ids.length - 1] !== eosId) {
    inputIds = new Int32Array(ids.length + 1);
    inputIds.set(ids);
    inputIds[ids.length] = eosId;
  }
  if (spans === undefined) return { inputIds, labels: inputIds };
  const labels = new Int32Array(inputIds.length).fill(-100);
  labels.set(labelsOfSpans(ids, offsets, spans));
  // The row's own end is always a label, also where pad is the same token.
  if (ends) labels[labels.length - 1] = eosId;
  return { inputIds, labels };
}
