import type { Dataset } from '../data/dataset.ts';
import type { RowSource } from '../data/source.ts';

/** A file, a glob, rows (text, or tokens `{ inputIds, labels? }`), an iterable or async iterable of rows, or a Dataset. */
export type DataSource = RowSource | Dataset;

export function isDataSource(value: unknown): value is DataSource {
  if (typeof value === 'string') return value !== '';
  if (typeof value !== 'object' || value === null) return false;
  return value instanceof URL || Symbol.iterator in value || Symbol.asyncIterator in value;
}
