import { createRequire } from 'node:module';
import { extname } from 'node:path';

/** A file of this package, by its path in lib, that a thread or process starts with: `.ts` when run from source, `.js` when compiled. */
export function entryUrl(name: string): URL {
  return new URL(`../${name}${extname(import.meta.url)}`, import.meta.url);
}

/** From source, what a new thread or process has to load first to read TypeScript; undefined when compiled. */
export function sourceLoader(specifier: 'tsx' | 'tsx/cjs/api'): string | undefined {
  if (extname(import.meta.url) !== '.ts') return undefined;
  return createRequire(import.meta.url).resolve(specifier);
}
