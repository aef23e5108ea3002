import { LowrankError, shown } from '../errors.ts';
import { nothingMatched } from './modules.ts';
import { compilePythonPattern } from './python_pattern.ts';

/** More than the modules of any model; each is tried on each module. */
const kMaxPatterns = 4096;

/** PEFT's rank_pattern or alpha_pattern: values by regular expressions for the ends of module names (peft/utils/other.py, get_pattern_key). */
export class NamePatterns {
  readonly #option: string;
  readonly #patterns: { source: string; value: number; matches(name: string): boolean }[];

  /** Throws INVALID_OPTION naming `option`. */
  constructor(values: Record<string, number>, option: string) {
    const entries = Object.entries(values);
    if (entries.length > kMaxPatterns) {
      throw new LowrankError('INVALID_OPTION', `${option}: found ${entries.length} patterns, expected at most ${kMaxPatterns}`);
    }
    this.#option = option;
    this.#patterns = entries.map(([source, value]) => {
      const compiled = compilePythonPattern(`(.*\\.)?(${source})$`, option);
      return { source, value, matches: (name) => compiled.matchStart(name) !== undefined };
    });
  }

  /** The value of the first pattern that matches. */
  valueFor(name: string): number | undefined {
    return this.#patterns.find((pattern) => pattern.matches(name))?.value;
  }

  /** Throws INVALID_OPTION for a pattern that matches none of the names. */
  requireMatches(names: readonly string[]): void {
    const lost = this.#patterns.find((pattern) => !names.some((name) => pattern.matches(name)));
    if (lost) throw nothingMatched(this.#option, shown(lost.source), names);
  }
}
