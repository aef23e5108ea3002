import type { Dataset } from '../data/dataset.ts';

/** A file, a glob, rows (text, or tokens `{ inputIds, labels? }`), an iterable or async iterable of rows, or a Dataset. */
export type DataSource = string | readonly object[] | Iterable<object> | AsyncIterable<object> | Dataset;

export function isDataSource(value: unknown): value is DataSource {
  if (typeof value === 'string') return value !== '';
  return typeof value === 'object' && value !== null && (Symbol.iterator in value || Symbol.asyncIterator in value);
}
