import { baselineMemory } from '../native.ts';

// What the process holds beside the native components, measured with Node 20 on Linux: the JavaScript heap grows by some MiB while a model is
// made and trained, and a tokenizer of 49,152 entries takes 60 MiB in its thread once what it was made from is given back.
const GROWTH_BYTES = 20 * 2 ** 20;
const TOKENIZER_BYTES_PER_ENTRY = 1300;
/** An id and a label. */
const DATA_BYTES_PER_TOKEN = 8;

/** Resident bytes of the process itself at a training's peak. */
export function processMemory(with_: { vocabSize: number; hasTokenizer: boolean; dataTokens: number }): number {
  const tokenizer = with_.hasTokenizer ? TOKENIZER_BYTES_PER_ENTRY * with_.vocabSize : 0;
  return baselineMemory() + GROWTH_BYTES + tokenizer + DATA_BYTES_PER_TOKEN * with_.dataTokens;
}
