import { shown } from '../errors.ts';
import type { Message } from '../types.ts';
import { IGNORED } from './batch.ts';

// What rows may look like, and each of them turned into one of four kinds of example.

export type DatasetFormat = 'messages' | 'prompt-completion' | 'text' | 'alpaca' | 'sharegpt' | 'tokens';

/** A row, understood. */
export type Example =
  | {
      kind: 'chat';
      messages: Message[];
      tools?: unknown[] /** Answers before this message belong to the prompt. */;
      supervisedFrom: number;
    }
  | { kind: 'completion'; prompt: string; completion: string }
  | { kind: 'text'; text: string }
  | { kind: 'tokens'; inputIds: Int32Array; labels: Int32Array | undefined };

export type Row = Record<string, unknown>;

/** A row that cannot be used; the message says why. */
export class BadRow extends Error {}

interface FormatReader {
  /** For messages: what such a row looks like. */
  shape: string;
  matches(row: Row): boolean;
  read(row: Row, hasTemplate: boolean): Example;
}

const has = (row: Row, ...keys: string[]) => keys.every((key) => row[key] !== undefined && row[key] !== null);

// In the order in which they are tried.
const READERS: Record<DatasetFormat, FormatReader> = {
  tokens: { shape: '{ inputIds, labels? }', matches: (row) => has(row, 'inputIds') || has(row, 'input_ids'), read: readTokens },
  messages: {
    shape: '{ messages: [{ role, content }] }',
    matches: (row) => has(row, 'messages') || isRoleList(row.conversations),
    read: (row) => ({
      kind: 'chat',
      messages: messageList(row.messages ?? row.conversations, 'messages'),
      tools: toolList(row.tools),
      supervisedFrom: 0,
    }),
  },
  sharegpt: { shape: '{ conversations: [{ from, value }] }', matches: (row) => has(row, 'conversations'), read: readShareGpt },
  'prompt-completion': { shape: '{ prompt, completion }', matches: (row) => has(row, 'prompt', 'completion'), read: readCompletion },
  alpaca: { shape: '{ instruction, input?, output }', matches: (row) => has(row, 'instruction', 'output'), read: readAlpaca },
  text: { shape: '{ text }', matches: (row) => has(row, 'text'), read: (row) => ({ kind: 'text', text: string(row.text, 'text') }) },
};

export const FORMATS = Object.keys(READERS) as [DatasetFormat, ...DatasetFormat[]];

/** The format of a row by the keys that it has; throws {@link BadRow} when it fits none. */
export function detectFormat(row: Row): DatasetFormat {
  const format = FORMATS.find((name) => READERS[name].matches(row));
  if (format) return format;
  const shapes = FORMATS.map((name) => READERS[name].shape);
  throw new BadRow(`${foundKeys(row)}; expected one of ${shapes.join(', ')} (other names can be given by the option mapping)`);
}

/** Reads a row of a known format; throws {@link BadRow}. `hasTemplate`: the tokenizer can render conversations. */
export function readExample(row: Row, format: DatasetFormat, hasTemplate: boolean): Example {
  const reader = READERS[format];
  if (!reader.matches(row)) throw new BadRow(`${foundKeys(row)}; expected ${reader.shape}, the shape of this data set`);
  return reader.read(row, hasTemplate);
}

/** An object with its columns under the names that formats know: mapping is { name here: name in the data }. */
export function asRow(value: unknown, mapping: Record<string, string> | undefined): Row {
  if (typeof value === 'string') return { text: value };
  if (value === null || typeof value !== 'object' || Array.isArray(value)) throw new BadRow(`found ${shown(value)}, expected an object`);
  const row = value as Row;
  if (!mapping) return row;
  const mapped: Row = { ...row };
  for (const [name, column] of Object.entries(mapping)) {
    if (!(column in row)) throw new BadRow(`${foundKeys(row)}; mapping takes ${name} from "${column}", which is not there`);
    mapped[name] = row[column];
  }
  return mapped;
}

function foundKeys(row: Row): string {
  const keys = Object.keys(row);
  const list = keys.slice(0, 12).map((key) => shown(key));
  return keys.length === 0 ? 'found no keys' : `found keys ${list.join(', ')}${keys.length > 12 ? ', …' : ''}`;
}

function string(value: unknown, name: string): string {
  if (typeof value !== 'string') throw new BadRow(`${name} is ${shown(value)}, expected a string`);
  return value;
}

const isRoleList = (value: unknown) => Array.isArray(value) && value.length > 0 && typeof (value[0] as Row | null)?.role === 'string';

function messageList(value: unknown, name: string): Message[] {
  if (!Array.isArray(value) || value.length === 0)
    throw new BadRow(`${name} is ${shown(value)}, expected a list of messages { role, content }`);
  for (const [i, message] of value.entries()) {
    const { role, content } = (message ?? {}) as Row;
    if (typeof role !== 'string') throw new BadRow(`${name}[${i}] is ${shown(message)}, expected { role, content }`);
    const fine = content === undefined || content === null || typeof content === 'string' || isPartList(content);
    if (!fine) throw new BadRow(`${name}[${i}].content is ${shown(content)}, expected text`);
  }
  return value as Message[];
}

const isPartList = (value: unknown) => Array.isArray(value) && value.every((part) => typeof (part as Row | null)?.type === 'string');

/** Tools as a list; some data sets hold them as JSON text. */
function toolList(value: unknown): unknown[] | undefined {
  let tools = value;
  if (typeof value === 'string' && value.trim() !== '') {
    try {
      tools = JSON.parse(value);
    } catch {
      throw new BadRow(`tools is ${shown(value)}, expected a list or its JSON text`);
    }
  }
  if (tools === undefined || tools === null || tools === '') return undefined;
  if (!Array.isArray(tools)) throw new BadRow(`tools is ${shown(tools)}, expected a list`);
  return tools.length === 0 ? undefined : tools;
}

function readCompletion(row: Row): Example {
  const { prompt, completion } = row;
  if (Array.isArray(prompt) || Array.isArray(completion)) {
    const before = messageList(prompt, 'prompt');
    const messages = [...before, ...messageList(completion, 'completion')];
    return { kind: 'chat', messages, tools: toolList(row.tools), supervisedFrom: before.length };
  }
  return { kind: 'completion', prompt: string(prompt, 'prompt'), completion: string(completion, 'completion') };
}

// The prompts of Stanford Alpaca, for models without a chat template.
const ALPACA_INPUT =
  'Below is an instruction that describes a task, paired with an input that provides further context. Write a response that appropriately completes the request.';
const ALPACA_PLAIN = 'Below is an instruction that describes a task. Write a response that appropriately completes the request.';

function readAlpaca(row: Row, hasTemplate: boolean): Example {
  const instruction = string(row.instruction, 'instruction');
  const output = string(row.output, 'output');
  const input = has(row, 'input') ? string(row.input, 'input') : '';
  const system = has(row, 'system') ? string(row.system, 'system') : '';
  if (!hasTemplate) {
    const middle = input === '' ? '' : `\n\n### Input:\n${input}`;
    const prompt = `${system || (input === '' ? ALPACA_PLAIN : ALPACA_INPUT)}\n\n### Instruction:\n${instruction}${middle}\n\n### Response:\n`;
    return { kind: 'completion', prompt, completion: output };
  }
  const messages: Message[] = system === '' ? [] : [{ role: 'system', content: system }];
  messages.push(
    { role: 'user', content: input === '' ? instruction : `${instruction}\n\n${input}` },
    { role: 'assistant', content: output },
  );
  return { kind: 'chat', messages, supervisedFrom: 0 };
}

const SHAREGPT_ROLES: Record<string, string> = {
  human: 'user',
  user: 'user',
  gpt: 'assistant',
  assistant: 'assistant',
  chatgpt: 'assistant',
  bot: 'assistant',
  model: 'assistant',
  system: 'system',
  tool: 'tool',
  observation: 'tool',
  function_response: 'tool',
};

function readShareGpt(row: Row): Example {
  const { conversations } = row;
  if (!Array.isArray(conversations) || conversations.length === 0) {
    throw new BadRow(`conversations is ${shown(conversations)}, expected a list of { from, value }`);
  }
  const messages = conversations.map((turn: unknown, i): Message => {
    const { from, value } = (turn ?? {}) as Row;
    const role = typeof from === 'string' && Object.hasOwn(SHAREGPT_ROLES, from) ? SHAREGPT_ROLES[from] : undefined;
    if (role === undefined) {
      throw new BadRow(`conversations[${i}].from is ${shown(from)}, expected one of ${Object.keys(SHAREGPT_ROLES).join(', ')}`);
    }
    return { role, content: string(value, `conversations[${i}].value`) };
  });
  if (has(row, 'system') && row.system !== '' && messages[0]?.role !== 'system') {
    messages.unshift({ role: 'system', content: string(row.system, 'system') });
  }
  return { kind: 'chat', messages, tools: toolList(row.tools), supervisedFrom: 0 };
}

const MAX_ID = 2 ** 31 - 1;

function readTokens(row: Row): Example {
  const ids = integers(row.inputIds ?? row.input_ids, 'inputIds', 0);
  const given = row.labels ?? undefined;
  const labels = given === undefined ? undefined : integers(given, 'labels', IGNORED);
  if (labels && labels.length !== ids.length) throw new BadRow(`labels has ${labels.length} entries, inputIds has ${ids.length}`);
  const wrong = labels?.find((label) => label < 0 && label !== IGNORED);
  if (wrong !== undefined) throw new BadRow(`labels holds ${wrong}; expected ids and ${IGNORED} for tokens that are not trained on`);
  return { kind: 'tokens', ...unpadded(ids, labels, row.attentionMask ?? row.attention_mask ?? undefined) };
}

function integers(value: unknown, name: string, least: number): Int32Array {
  const list =
    ArrayBuffer.isView(value) && !(value instanceof DataView) ? Array.from(value as unknown as ArrayLike<number | bigint>, Number) : value;
  if (!Array.isArray(list)) throw new BadRow(`${name} is ${shown(value)}, expected a list of token ids`);
  const bad = list.findIndex((item) => !Number.isInteger(item) || item < least || item > MAX_ID);
  if (bad >= 0) throw new BadRow(`${name}[${bad}] is ${shown(list[bad])}, expected a token id`);
  return Int32Array.from(list as number[]);
}

/** Rows of padded data sets without their padding, told by the attention mask and never by id. */
function unpadded(
  ids: Int32Array,
  labels: Int32Array | undefined,
  mask: unknown,
): { inputIds: Int32Array; labels: Int32Array | undefined } {
  if (mask === undefined) return { inputIds: ids, labels };
  const attention = integers(mask, 'attentionMask', 0);
  if (attention.length !== ids.length) throw new BadRow(`attentionMask has ${attention.length} entries, inputIds has ${ids.length}`);
  const real = (_: number, i: number) => attention[i] !== 0;
  return { inputIds: ids.filter(real), labels: labels?.filter(real) };
}
