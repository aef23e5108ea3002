import { LowrankError, shown } from '../errors.ts';

/** Typed access to a config.json of somebody else's; every error is INVALID_CONFIG and names the key, what was found and what is expected. */
export class ConfigReader {
  readonly #values: Record<string, unknown>;
  readonly #name: string;

  /** `name` says where the values come from, e.g. config.json or config.json: rope_scaling. */
  constructor(values: Record<string, unknown>, name: string) {
    this.#values = values;
    this.#name = name;
  }

  /** Whether the key is there with a value other than null. */
  has(key: string): boolean {
    return this.#value(key) !== undefined;
  }

  /** An integer in [min, max]; `fallback` where the key is missing or null. */
  integer(key: string, fallback: number | undefined, min: number, max: number): number {
    const value = this.#value(key) ?? fallback;
    if (typeof value === 'number' && Number.isSafeInteger(value) && value >= min && value <= max) return value;
    throw this.#invalid(key, value, `an integer from ${min} to ${max}`);
  }

  /** A finite number in [min, max]; `fallback` where the key is missing or null. */
  number(key: string, fallback: number | undefined, min: number, max: number): number {
    const value = this.#value(key) ?? fallback;
    if (typeof value === 'number' && value >= min && value <= max) return value;
    throw this.#invalid(key, value, `a number from ${min} to ${max}`);
  }

  boolean(key: string, fallback: boolean): boolean {
    const value = this.#value(key) ?? fallback;
    if (typeof value === 'boolean') return value;
    throw this.#invalid(key, value, 'true or false');
  }

  string(key: string, fallback: string | undefined): string {
    const value = this.#value(key) ?? fallback;
    if (typeof value === 'string') return value;
    throw this.#invalid(key, value, 'a string');
  }

  /** undefined where the key is missing or null. */
  strings(key: string): string[] | undefined {
    const value = this.#value(key);
    if (value === undefined) return undefined;
    if (Array.isArray(value) && value.every((item) => typeof item === 'string')) return value;
    throw this.#invalid(key, value, 'a list of strings');
  }

  /** undefined where the key is missing or null. */
  object(key: string): ConfigReader | undefined {
    const value = this.#value(key);
    if (value === undefined) return undefined;
    if (typeof value === 'object' && !Array.isArray(value))
      return new ConfigReader(value as Record<string, unknown>, `${this.#name}: ${key}`);
    throw this.#invalid(key, value, 'an object');
  }

  keys(): string[] {
    return Object.keys(this.#values);
  }

  /** The error for a value that is of the right type and still cannot be. */
  invalid(key: string, expected: string): LowrankError {
    return this.#invalid(key, this.#value(key), expected);
  }

  #value(key: string): unknown {
    return Object.hasOwn(this.#values, key) ? (this.#values[key] ?? undefined) : undefined;
  }

  #invalid(key: string, value: unknown, expected: string): LowrankError {
    const found = value === undefined ? 'missing' : shown(value);
    return new LowrankError('INVALID_CONFIG', `${this.#name}: ${key} is ${found}; expected ${expected}`);
  }
}
