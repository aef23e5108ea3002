// What both sides of the generation benchmark are asked, and what they answer. peers/llama runs a copy of it
// beside its own packages.
import { answerCommands } from './protocol.mjs';

/** SmolLM2's, without the special tokens at its beginning. */
const kFirstWord = 17;
const kVocabulary = 49152;

export const kPromptTokens = 512;
export const kShortPrompt = 8;
export const kNewTokens = 128;
export const kBatch = 16;

/** Random ids, the same on both sides. */
export function randomIds(count, seed) {
  let state = seed;
  return Array.from({ length: count }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return kFirstWord + Math.floor((state / 2 ** 32) * (kVocabulary - kFirstWord));
  });
}

export const longPrompt = () => randomIds(kPromptTokens, 12345);
export const shortPrompts = (count) => Array.from({ length: count }, (_, row) => randomIds(kShortPrompt, 777 + row));

/**
 * Answers each line `run K` with the best of K rounds. `first(prompt)` gives the seconds up to a prompt's first new
 * token, `decode(prompts)` those from the first new token to the last of kNewTokens.
 */
export async function serve({ first, decode, about }) {
  const prompt = longPrompt();
  const round = async () => ({
    prompt: kPromptTokens / (await first(prompt)),
    decode: (kNewTokens - 1) / (await decode(shortPrompts(1))),
    batch: (kBatch * (kNewTokens - 1)) / (await decode(shortPrompts(kBatch))),
  });
  await round();
  await answerCommands(about, {
    async run(count) {
      const rounds = [];
      for (let i = 0; i < count; i++) rounds.push(await round());
      const best = (name) => Math.max(...rounds.map((result) => result[name]));
      return {
        prompt_tokens_per_second: best('prompt'),
        decode_tokens_per_second: best('decode'),
        batch_tokens_per_second: best('batch'),
        peak_rss_bytes: process.resourceUsage().maxRSS * 1024,
      };
    },
  });
}
