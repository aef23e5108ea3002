import { TextDecoder } from 'node:util';
import { LowrankError } from '../errors.ts';
import { MAX_ROW_BYTES, parseRow } from './jsonl_rows.ts';
import type { SourceRow } from './source.ts';

const QUOTE = 0x22;
const BACKSLASH = 0x5c;
const OPEN_LIST = 0x5b;
const CLOSE_LIST = 0x5d;
const OPEN_OBJECT = 0x7b;
const CLOSE_OBJECT = 0x7d;
const COMMA = 0x2c;
const NEWLINE = 0x0a;
const isSpace = (unit: number) => unit === 0x20 || unit === NEWLINE || unit === 0x0d || unit === 0x09;

/**
 * Rows of a JSON file: the elements of its list, parsed one by one so that a file of any size can be read; or values one after the other
 * (JSONL under the name .json). The text is only cut here; JSON.parse judges each piece.
 */
export async function* readJson(bytes: AsyncIterable<Uint8Array>, path: string): AsyncGenerator<SourceRow> {
  const splitter = new ValueSplitter(path);
  const decoder = new TextDecoder('utf-8', { fatal: true });
  for await (const chunk of bytes) yield* splitter.push(decode(decoder, path, chunk));
  yield* splitter.push(decode(decoder, path));
  yield* splitter.end();
}

function decode(decoder: TextDecoder, path: string, chunk?: Uint8Array): string {
  try {
    return decoder.decode(chunk, { stream: chunk !== undefined });
  } catch (cause) {
    throw new LowrankError('INVALID_DATASET', `${path}: not UTF-8`, { cause });
  }
}

class ValueSplitter {
  readonly #path: string;
  #line = 1;
  #isList: boolean | undefined;
  #listClosed = false;
  #depth = 0;
  #inString = false;
  #escaped = false;
  #value = '';
  #valueLine = 1;

  constructor(path: string) {
    this.#path = path;
  }

  *push(text: string): Generator<SourceRow> {
    let start = 0;
    for (let i = 0; i < text.length; i++) {
      const unit = text.charCodeAt(i);
      if (unit === NEWLINE) this.#line++;
      if (this.#inString) {
        this.#stringUnit(unit);
        continue;
      }
      if (this.#isList === undefined && !isSpace(unit)) {
        this.#isList = unit === OPEN_LIST;
        if (this.#isList) {
          start = i + 1;
          this.#valueLine = this.#line;
          continue;
        }
      }
      if (unit === QUOTE) this.#inString = true;
      else if (unit === OPEN_LIST || unit === OPEN_OBJECT) this.#depth++;
      if (this.#endsBefore(unit)) {
        yield* this.#take(text.slice(start, i));
        start = i + 1;
        if (unit === CLOSE_LIST) this.#listClosed = true;
      } else if (unit === CLOSE_LIST || unit === CLOSE_OBJECT) {
        this.#depth--;
        if (this.#depth === 0 && this.#isList === false) {
          yield* this.#take(text.slice(start, i + 1));
          start = i + 1;
        }
      }
    }
    this.#keep(text.slice(start));
  }

  *end(): Generator<SourceRow> {
    if (this.#isList && !this.#listClosed) throw this.#broken('the list is not closed');
    yield* this.#take('');
  }

  #stringUnit(unit: number): void {
    if (this.#escaped) this.#escaped = false;
    else if (unit === BACKSLASH) this.#escaped = true;
    else if (unit === QUOTE) this.#inString = false;
  }

  /** Whether the value before this unit is complete: at a comma or the bracket of the outer list. */
  #endsBefore(unit: number): boolean {
    return this.#isList === true && this.#depth === 0 && (unit === COMMA || unit === CLOSE_LIST);
  }

  #keep(piece: string): void {
    if (this.#value === '') {
      const trimmed = piece.trimStart();
      if (trimmed === '') return;
      this.#valueLine = this.#line - newlines(trimmed);
      this.#value = trimmed;
    } else this.#value += piece;
    if (this.#value.length > MAX_ROW_BYTES) throw this.#broken(`a row has more than ${MAX_ROW_BYTES} characters`);
  }

  *#take(piece: string): Generator<SourceRow> {
    this.#keep(piece);
    const text = this.#value;
    this.#value = '';
    if (text === '') return;
    if (this.#listClosed) throw this.#broken('text after the end of the list');
    yield parseRow(text, `${this.#path}:${this.#valueLine}`);
  }

  #broken(problem: string): LowrankError {
    return new LowrankError('INVALID_DATASET', `${this.#path}:${this.#line}: ${problem}`);
  }
}

function newlines(text: string): number {
  let count = 0;
  for (let at = text.indexOf('\n'); at >= 0; at = text.indexOf('\n', at + 1)) count++;
  return count;
}
