import { closest, distance } from 'fastest-levenshtein';

/** Stable codes of {@link LowrankError}; docs/errors.md says what each means. */
export type ErrorCode =
  | 'INVALID_OPTION'
  | 'UNKNOWN_OPTION'
  | 'FILE_NOT_FOUND'
  | 'INVALID_SAFETENSORS'
  | 'INVALID_GGUF'
  | 'INVALID_CONFIG'
  | 'INVALID_TOKENIZER'
  | 'INVALID_TEMPLATE'
  | 'INVALID_ADAPTER'
  | 'ADAPTER_MISMATCH'
  | 'INVALID_DATASET'
  | 'UNSUPPORTED_MODEL'
  | 'UNSUPPORTED_QUANTIZATION'
  | 'SHAPE_MISMATCH'
  | 'OUT_OF_MEMORY'
  | 'NON_FINITE'
  | 'DEVICE_UNAVAILABLE'
  | 'CHECKPOINT_CORRUPT'
  | 'IO_ERROR'
  | 'ABORTED'
  | 'NATIVE_NOT_FOUND';

/** The one error class of this package: `code` is stable, `message` names the thing, what was found and what was expected. */
export class LowrankError extends Error {
  readonly code: ErrorCode;

  constructor(code: ErrorCode, message: string, options?: { cause?: unknown }) {
    super(message, options);
    this.name = 'LowrankError';
    this.code = code;
  }
}

/** The name among `known` that `name` was probably meant to be, or undefined when none is near. Case and underscores do not count. */
export function suggestion(name: string, known: readonly string[]): string | undefined {
  if (known.length === 0) return undefined;
  const fold = (text: string) => text.toLowerCase().replace(/[_-]/g, '');
  const folded = fold(name);
  const best = known.find((candidate) => fold(candidate) === folded) ?? closest(name, [...known]);
  const limit = Math.max(2, Math.floor(best.length / 3));
  return fold(best) === folded || distance(folded, fold(best)) <= limit ? best : undefined;
}

/** Throws ABORTED when `signal` has fired. */
export function throwIfAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted) throw new LowrankError('ABORTED', 'the operation was aborted', { cause: signal.reason });
}

/** `value` as a short text for a message: strings quoted, long ones cut. */
export function shown(value: unknown): string {
  if (typeof value === 'bigint' || typeof value === 'function' || value === undefined) return String(value);
  let text: string;
  try {
    text = JSON.stringify(value) ?? String(value);
  } catch {
    text = Object.prototype.toString.call(value);
  }
  if (typeof value === 'number') text = String(value);
  return text.length > 80 ? `${text.slice(0, 77)}...` : text;
}
