import { LowrankError } from '../errors.ts';
import type { SourceRow } from './source.ts';

const NEWLINE = 0x0a;
/** One row may have this many bytes; without a limit a file that is no JSONL would be read into memory as one line. */
export const MAX_ROW_BYTES = 128 << 20;

/**
 * Rows of a JSONL file. Lines end at \n alone (or \r\n), so U+2028 and U+2029 stay inside a string as JSON allows. Blank lines are
 * skipped; a byte order mark is too.
 */
export async function* readJsonLines(bytes: AsyncIterable<Uint8Array>, path: string): AsyncGenerator<SourceRow> {
  let number = 0;
  for await (const line of lines(bytes, path)) {
    number++;
    const where = `${path}:${number}`;
    let text: string;
    try {
      text = decodeUtf8(line);
    } catch {
      yield { where, problem: 'not UTF-8' };
      continue;
    }
    if (text.trim() === '') continue;
    yield parseRow(text, where);
  }
}

/** A row from its JSON text. */
export function parseRow(text: string, where: string): SourceRow {
  try {
    return { where, value: JSON.parse(text) };
  } catch (error) {
    return { where, problem: `not JSON (${(error as Error).message})` };
  }
}

const decoder = new TextDecoder('utf-8', { fatal: true });

/** Text of UTF-8 bytes without a byte order mark; throws on anything else. */
const decodeUtf8 = (bytes: Uint8Array): string => decoder.decode(bytes);

async function* lines(bytes: AsyncIterable<Uint8Array>, path: string): AsyncGenerator<Uint8Array> {
  let pending: Uint8Array[] = [];
  let size = 0;
  for await (const chunk of bytes) {
    let start = 0;
    for (let end = chunk.indexOf(NEWLINE); end >= 0; end = chunk.indexOf(NEWLINE, start)) {
      const tail = chunk.subarray(start, end);
      yield size === 0 ? tail : Buffer.concat([...pending, tail]);
      pending = [];
      size = 0;
      start = end + 1;
    }
    if (start === chunk.length) continue;
    pending.push(chunk.subarray(start));
    size += chunk.length - start;
    if (size > MAX_ROW_BYTES) throw new LowrankError('INVALID_DATASET', `${path}: a line has more than ${MAX_ROW_BYTES} bytes`);
  }
  if (size > 0) yield Buffer.concat(pending);
}
