import { RE2JS } from 're2js';
import { LowrankError, shown } from '../errors.ts';

// PEFT's regular expressions are Python's. They are run by an engine of linear time, because adapter_config.json comes from strangers
// and a backtracking engine can be made to hang.

/** Letters that Python's re gives a meaning after a backslash; others are errors there, though not in RE2. */
const kPythonEscapes = 'AbBdDsSwWZafnrtvxuU0123456789';

/** Compiling takes time and memory in proportion to the length; no pattern for modules comes near this. */
const kMaxLength = 10_000;

/** A Python regular expression. */
export interface PythonPattern {
  /** re.fullmatch */
  matchesAll(text: string): boolean;
  /** re.match(pattern, text): at the beginning; returns the groups by name, or undefined. */
  matchStart(text: string): Record<string, string> | undefined;
}

/** Throws INVALID_OPTION naming `option` where the expression is invalid, or needs what an engine of linear time cannot do. */
export function compilePythonPattern(pattern: string, option: string): PythonPattern {
  const compiled = compile(pattern, option);
  return {
    matchesAll: (text) => compiled.matches(text),
    matchStart(text) {
      const matcher = compiled.matcher(text);
      if (!matcher.lookingAt()) return undefined;
      const names = Object.keys(compiled.namedGroups());
      return Object.fromEntries(names.map((name) => [name, matcher.group(name) ?? '']));
    },
  };
}

function compile(pattern: string, option: string): RE2JS {
  const refuse = (reason: string) =>
    new LowrankError('INVALID_OPTION', `${option}: found the regular expression ${shown(pattern)}, expected another: ${reason}`);
  if (pattern.length > kMaxLength) throw refuse(`it has ${pattern.length} characters, more than ${kMaxLength}`);
  if (/\(\?(<?[=!])/.test(pattern)) throw refuse('lookahead and lookbehind are not supported');
  if (/\(\?P=/.test(pattern)) throw refuse('backreferences are not supported');
  const translated = pattern.replace(/\\(.)/gs, (sequence, letter: string) => {
    if (/[A-Za-z0-9]/.test(letter) && !kPythonEscapes.includes(letter)) throw refuse(`${sequence} has no meaning in Python`);
    if (/[1-9]/.test(letter)) throw refuse('backreferences are not supported');
    return letter === 'Z' ? '\\z' : sequence;
  });
  try {
    return RE2JS.compile(translated);
  } catch (cause) {
    throw refuse((cause as Error).message);
  }
}
