import { stat } from 'node:fs/promises';
import { startRenderer } from '../tokenizer/template_host.ts';
import type { Dataset } from './dataset.ts';
import { asRow, detectFormat, readExample } from './formats.ts';
import { type RowSource, readRows } from './source.ts';

/**
 * Starts what renders chat templates where the first row is a conversation: that takes a tenth of a second, in which a model can be
 * loaded. Rows that cannot be read are for whoever reads them all.
 */
export function prepareToRender(source: RowSource | Dataset): void {
  const prepare = async () => {
    const row = asRow(await firstRow(source), undefined);
    if (readExample(row, detectFormat(row), true).kind === 'chat') startRenderer();
  };
  prepare().catch(() => undefined);
}

/** Undefined of what can be read only once. */
async function firstRow(source: RowSource | Dataset): Promise<unknown> {
  if (Array.isArray(source)) return source[0];
  if (!(typeof source === 'string' || source instanceof URL) || !(await stat(source)).isFile()) return undefined;
  for await (const row of readRows(source)) return 'value' in row ? row.value : undefined;
  return undefined;
}
