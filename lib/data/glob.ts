import { readdir } from 'node:fs/promises';
import { join, sep } from 'node:path';

export const isGlob = (path: string): boolean => /[*?[{]/.test(path);

/** Files that a pattern matches, sorted: `*` and `?` within a name, `**` over folders, `[a-z]`, `{a,b}`. */
export async function expandGlob(pattern: string): Promise<string[]> {
  const parts = pattern.split(sep === '\\' ? /[\\/]/ : '/');
  const fixed = parts.findIndex(isGlob);
  const root = parts.slice(0, fixed).join('/') || (pattern.startsWith('/') ? '/' : '.');
  const regex = new RegExp(`^${parts.slice(fixed).map(segmentRegex).join('')}$`);
  const deep = parts.length - fixed > 1;
  const entries = await readdir(root, { withFileTypes: true, recursive: deep }).catch(() => []);
  const prefix = root === '.' && !pattern.startsWith('./') ? '' : root;
  return entries
    .filter((entry) => !entry.isDirectory())
    .map((entry) => join(entry.parentPath, entry.name).split(sep).join('/'))
    .map((path) => (root === '.' ? path : path.slice(join(root, '/').length)))
    .filter((path) => regex.test(path))
    .map((path) => (prefix === '' ? path : join(prefix, path)))
    .sort();
}

function segmentRegex(segment: string, index: number, segments: string[]): string {
  const last = index === segments.length - 1;
  if (segment === '**') return last ? '.*' : '(?:[^/]+/)*';
  const body = segment.replace(
    /\{([^{}]*)\}|\[(!?)([^\]]*)\]|[*?]|[^*?{[]+|[{[]/g,
    (part, choices?: string, not?: string, set?: string) => {
      if (choices !== undefined) return `(?:${choices.split(',').map(literal).join('|')})`;
      if (set !== undefined) return `[${not ? '^' : ''}${set.replace(/[\\\]^]/g, '\\$&')}]`;
      if (part === '*') return '[^/]*';
      return part === '?' ? '[^/]' : literal(part);
    },
  );
  return last ? body : `${body}/`;
}

const literal = (text: string) => text.replace(/[.+^${}()|[\]\\/*?]/g, '\\$&');
