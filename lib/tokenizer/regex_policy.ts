// The regular expressions of tokenizer.json run inside the native tokenizers library on a backtracking engine, where an evil one does
// not throw but aborts the process. So a pattern is accepted only when it cannot backtrack, or when it is one of the alternatives that
// the published tokenizers are made of.

const CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
const UPPER = '[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]';
const LOWER = '[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]';
const LEAD = '[^\\r\\n\\p{L}\\p{N}]?';

/** GPT-2, OLMo, MPT and others; what the ByteLevel pre-tokenizer does by itself. */
const GPT2_SPLIT = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
export const LLAMA3_SPLIT = `${CONTRACTIONS}|${LEAD}\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+`;
export const QWEN2_SPLIT = `${CONTRACTIONS}|${LEAD}\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+`;
export const QWEN35_SPLIT = `${CONTRACTIONS}|${LEAD}[\\p{L}\\p{M}]+|\\p{N}| ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+`;
export const TEKKEN_SPLIT = `${LEAD}${UPPER}*${LOWER}+|${LEAD}${UPPER}+${LOWER}*|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+`;
export const GPT4O_SPLIT = `${LEAD}${UPPER}*${LOWER}+${CONTRACTIONS}?|${LEAD}${UPPER}+${LOWER}*${CONTRACTIONS}?|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+`;

/** Alternatives that look back a little, but in linear time on any text that their pattern splits. */
const KNOWN_ALTERNATIVES = new Set([
  ...[GPT2_SPLIT, LLAMA3_SPLIT, QWEN2_SPLIT, QWEN35_SPLIT, TEKKEN_SPLIT, GPT4O_SPLIT].flatMap((pattern) => alternatives(pattern) ?? []),
  "(?:'s|'t|'re|'ve|'m|'ll|'d)",
  "'(?i:[sdmt]|ll|ve|re)",
  '\\s*[\\r\\n]',
  '\\s*[\\r\\n/]+',
  '\\s+(?=\\S)',
]);

const MAX_PATTERN_LENGTH = 4096;

/** Whether a pattern of tokenizer.json is sure to run in linear time. */
export function isSafePattern(pattern: string): boolean {
  if (pattern === '' || pattern.length > MAX_PATTERN_LENGTH) return false;
  const parts = alternatives(pattern);
  return parts?.every((part) => KNOWN_ALTERNATIVES.has(part) || cannotBacktrack(part)) ?? false;
}

/** The pattern cut at its top-level `|`; undefined when brackets do not match. */
function alternatives(pattern: string): string[] | undefined {
  const parts: string[] = [];
  let depth = 0;
  let start = 0;
  for (let i = 0; i < pattern.length; i++) {
    const char = pattern[i];
    if (char === '\\') i++;
    else if (char === '[') {
      const end = classEnd(pattern, i);
      if (end < 0) return undefined;
      i = end - 1;
    } else if (char === '(') depth++;
    else if (char === ')' && --depth < 0) return undefined;
    else if (char === '|' && depth === 0) {
      parts.push(pattern.slice(start, i));
      start = i + 1;
    }
  }
  parts.push(pattern.slice(start));
  return depth === 0 ? parts : undefined;
}

/** Index after the `]` that closes the class opened at `start` (classes nest in Oniguruma); -1 when none does. */
function classEnd(pattern: string, start: number): number {
  let depth = 0;
  for (let i = start; i < pattern.length; i++) {
    if (pattern[i] === '\\') i++;
    else if (pattern[i] === '[') depth++;
    else if (pattern[i] === ']' && --depth === 0) return i + 1;
  }
  return -1;
}

const ESCAPE = /^\\(?:[pP]\{\^?[A-Za-z_]+\}|[dDsSwWnrtvf]|[^A-Za-z0-9])/u;
const QUANTIFIER = /^(?:[?*+]|\{(\d{1,3})(?:(,)(\d{0,3}))?\})/;

/**
 * True for a sequence of single-character atoms in which nothing is required after an unbounded repetition: then the greedy choice is
 * always a match and the engine never goes back.
 */
function cannotBacktrack(alternative: string): boolean {
  let rest = alternative;
  let sawUnbounded = false;
  let optionalAtoms = 0;
  if (rest === '') return false;
  while (rest !== '') {
    const atom = atomLength(rest);
    if (atom === 0) return false;
    rest = rest.slice(atom);
    const quantifier = QUANTIFIER.exec(rest);
    const { unbounded, optional } = repetition(quantifier);
    rest = rest.slice(quantifier?.[0].length ?? 0);
    if (sawUnbounded && !optional) return false;
    if (optional && !unbounded && ++optionalAtoms > 4) return false;
    sawUnbounded ||= unbounded;
  }
  return true;
}

function atomLength(rest: string): number {
  const first = rest[0] as string;
  if (first === '\\') return ESCAPE.exec(rest)?.[0].length ?? 0;
  if (first === '[') return Math.max(0, classEnd(rest, 0));
  if ('()|^$?*+{}]'.includes(first)) return 0;
  return String.fromCodePoint(rest.codePointAt(0) as number).length;
}

function repetition(quantifier: RegExpExecArray | null): { unbounded: boolean; optional: boolean } {
  if (!quantifier) return { unbounded: false, optional: false };
  const [text, low, comma, high] = quantifier;
  if (low === undefined) return { unbounded: text !== '?', optional: text !== '+' };
  return { unbounded: comma !== undefined && high === '', optional: Number(low) === 0 };
}
