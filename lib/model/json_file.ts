import { readFile, stat } from 'node:fs/promises';
import { type ErrorCode, LowrankError, shown } from '../errors.ts';

/** No config.json, index or adapter_config.json of a real model comes near these. */
const kMaxBytes = 100_000_000;
const kMaxDepth = 64;

/**
 * The JSON object in a file of somebody else's. Throws FILE_NOT_FOUND, IO_ERROR, or `code` where it is no JSON object, too large or
 * nested too deeply.
 */
export async function readJsonObject(path: string, code: ErrorCode): Promise<Record<string, unknown>> {
  const text = await readText(path, code);
  let value: unknown;
  try {
    value = JSON.parse(text.charCodeAt(0) === 0xfeff ? text.slice(1) : text);
  } catch (cause) {
    throw new LowrankError(code, `${path} is not valid JSON: ${(cause as Error).message}`, { cause });
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new LowrankError(code, `${path} holds ${shown(value)}; expected a JSON object`);
  }
  if (isDeeperThan(value, kMaxDepth)) throw new LowrankError(code, `${path} is nested more than ${kMaxDepth} levels deep`);
  return value as Record<string, unknown>;
}

async function readText(path: string, code: ErrorCode): Promise<string> {
  try {
    const { size } = await stat(path);
    if (size > kMaxBytes) throw new LowrankError(code, `${path} has ${size} bytes; expected at most ${kMaxBytes}`);
    return await readFile(path, 'utf8');
  } catch (cause) {
    if (cause instanceof LowrankError) throw cause;
    const missing = (cause as NodeJS.ErrnoException).code === 'ENOENT';
    if (missing) throw new LowrankError('FILE_NOT_FOUND', `${path} does not exist`, { cause });
    throw new LowrankError('IO_ERROR', `${path} could not be read: ${(cause as Error).message}`, { cause });
  }
}

function isDeeperThan(value: unknown, levels: number): boolean {
  if (typeof value !== 'object' || value === null) return false;
  return levels === 0 || Object.values(value).some((inner) => isDeeperThan(inner, levels - 1));
}
