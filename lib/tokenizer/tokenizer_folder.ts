import { readFile, stat } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { LowrankError, shown } from '../errors.ts';
import { invalidTokenizer, isObject } from './tokenizer_json.ts';

type JsonObject = Record<string, unknown>;

/** What the files beside tokenizer.json say. */
export interface TokenizerSettings {
  /** tokenizer_config.json, to be saved as it was. */
  config: JsonObject;
  /** bos_token, eos_token, pad_token, … → the token. */
  named: Record<string, string>;
  /** Special tokens without such a name. */
  additional: string[];
  addBos: boolean | undefined;
  addEos: boolean | undefined;
  chatTemplate: string | undefined;
  /** Ids that end generation, of generation_config.json and config.json. */
  eosIds: number[];
}

const NAMES = ['bos_token', 'eos_token', 'unk_token', 'sep_token', 'pad_token', 'cls_token', 'mask_token'];
const MAX_CONFIG_BYTES = 64 << 20;

/** The tokenizer.json that `path` (a folder or the file) means. */
export async function locateTokenizer(path: string): Promise<string> {
  const found = await stat(path).catch(() => undefined);
  if (!found) throw new LowrankError('FILE_NOT_FOUND', `${path}: no such file or folder`);
  const file = found.isDirectory() ? join(path, 'tokenizer.json') : path;
  if (found.isDirectory() && !(await stat(file).catch(() => undefined))) {
    throw new LowrankError('FILE_NOT_FOUND', `${path}: the folder holds no tokenizer.json`);
  }
  return file;
}

/** Reads the files beside a tokenizer.json. */
export async function readTokenizerSettings(tokenizerFile: string): Promise<TokenizerSettings> {
  const folder = dirname(tokenizerFile);
  const config = await readJson(join(folder, 'tokenizer_config.json'));
  const map = await readJson(join(folder, 'special_tokens_map.json'));
  const tokens = { ...map, ...config };
  const named: Record<string, string> = {};
  for (const name of NAMES) {
    const token = tokenText(tokens[name], name, tokenizerFile);
    if (token !== undefined) named[name] = token;
  }
  return {
    config,
    named,
    additional: [...tokenList(tokens.additional_special_tokens), ...tokenList(tokens.extra_special_tokens)],
    addBos: flag(config.add_bos_token),
    addEos: flag(config.add_eos_token),
    chatTemplate: await readTemplate(folder, config),
    eosIds: [...idList(await readJson(join(folder, 'generation_config.json'))), ...idList(await readJson(join(folder, 'config.json')))],
  };
}

const flag = (value: unknown) => (typeof value === 'boolean' ? value : undefined);

function tokenText(value: unknown, name: string, where: string): string | undefined {
  if (value === undefined || value === null) return undefined;
  const text = isObject(value) ? value.content : value;
  if (typeof text !== 'string') throw invalidTokenizer(where, `${name} is ${shown(value)}, expected a string`);
  return text;
}

function tokenList(value: unknown): string[] {
  if (!Array.isArray(value)) return [];
  return value.map((token: unknown) => (isObject(token) ? token.content : token)).filter((token) => typeof token === 'string');
}

function idList(config: JsonObject): number[] {
  const ids: unknown[] = Array.isArray(config.eos_token_id) ? config.eos_token_id : [config.eos_token_id];
  return ids.filter((id) => Number.isInteger(id)) as number[];
}

async function readTemplate(folder: string, config: JsonObject): Promise<string | undefined> {
  const jinja = await readText(join(folder, 'chat_template.jinja'));
  if (jinja !== undefined) return jinja;
  const { chat_template: single } = await readJson(join(folder, 'chat_template.json'));
  return templateText(single) ?? templateText(config.chat_template);
}

/** A template, or the default one of a list of named ones. */
function templateText(value: unknown): string | undefined {
  if (typeof value === 'string') return value;
  if (!Array.isArray(value)) return undefined;
  const named = value.filter(isObject);
  const chosen = named.find(({ name }) => name === 'default') ?? named[0];
  return typeof chosen?.template === 'string' ? chosen.template : undefined;
}

async function readText(path: string): Promise<string | undefined> {
  try {
    const { size } = await stat(path);
    if (size > MAX_CONFIG_BYTES) throw invalidTokenizer(path, `${size} bytes are too many`);
    return await readFile(path, 'utf8');
  } catch (cause) {
    const code = (cause as { code?: unknown }).code;
    if (code === 'ENOENT' || code === 'ENOTDIR') return undefined;
    if (cause instanceof LowrankError) throw cause;
    throw new LowrankError('IO_ERROR', `${path}: ${(cause as Error).message}`, { cause });
  }
}

/** The JSON object in a file; {} when there is no such file. */
async function readJson(path: string): Promise<JsonObject> {
  const text = await readText(path);
  if (text === undefined) return {};
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw invalidTokenizer(path, `not JSON (${(cause as Error).message})`, cause);
  }
  if (!isObject(value)) throw invalidTokenizer(path, `expected an object in ${basename(path)}, found ${shown(value)}`);
  return value;
}
