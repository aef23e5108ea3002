import { Readable } from 'node:stream';
import type { CsvError, Info } from 'csv-parse';
import { LowrankError } from '../errors.ts';
import type { SourceRow } from './source.ts';

/** Rows of a CSV file with a header line; all values are strings. */
export async function* readCsv(bytes: AsyncIterable<Uint8Array>, path: string, delimiter: string): AsyncGenerator<SourceRow> {
  const { parse } = await import('csv-parse');
  const parser = parse({ bom: true, columns: true, delimiter, info: true, skip_empty_lines: true, skip_records_with_empty_values: true });
  const input = Readable.from(bytes);
  input.on('error', (error) => parser.destroy(error));
  input.pipe(parser);
  try {
    for await (const { record, info } of parser as AsyncIterable<{ record: Record<string, string>; info: Info }>) {
      yield { where: `${path}:${info.lines}`, value: record };
    }
  } catch (error) {
    const { code, lines } = error as CsvError & { lines?: number };
    if (!code?.startsWith('CSV_')) throw error;
    throw new LowrankError('INVALID_DATASET', `${path}:${lines ?? '?'}: ${(error as Error).message}`, { cause: error });
  }
}
