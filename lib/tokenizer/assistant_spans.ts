import type { Span } from './template_engine.ts';

// Which part of a rendered conversation the assistant is to learn, for templates that do not say so by {% generation %}: the text from the
// end of the generation prompt to the end-of-turn token. Every message's content is wrapped in noncharacters, the conversation is
// rendered again, and the marks are accepted only if that text without them equals the plain render: so positions are exact whatever
// the template does with the content. Templates that look at the content's own first characters fail this and are rendered turn by turn.

export interface TemplateMessage {
  role?: unknown;
  content?: unknown;
  [key: string]: unknown;
}

export interface SpanContext {
  /** Renders messages with the template. */
  render(messages: TemplateMessage[], addGenerationPrompt: boolean): string;
  /** Texts of the tokens that end generation. */
  endTokens: string[];
  /** Texts of all special tokens. */
  specialTokens: string[];
}

export interface AssistantSpan {
  /** Index of the message. */
  message: number;
  span: Span;
}

interface Mark {
  kind: 'open' | 'close';
  message: number;
  position: number;
}

const MARK_OPEN = '\uFDD2';
const MARK_CLOSE = '\uFDD3';
const MARK = /([\uFDD2\uFDD3])([\uFDE0-\uFDE9]+)/g;
const RESERVED = /[\uFDD0-\uFDEF]/;

/** Whether any string in a conversation holds the characters that marks are made of. */
export function holdsReserved(value: unknown): boolean {
  if (typeof value === 'string') return RESERVED.test(value);
  if (value === null || typeof value !== 'object') return false;
  return Object.entries(value).some(([key, item]) => RESERVED.test(key) || holdsReserved(item));
}

/** Spans of the assistant's turns in `text`, the plain render of `messages`; throws when a turn cannot be located. */
export function deriveAssistantSpans(context: SpanContext, messages: TemplateMessage[], text: string): AssistantSpan[] {
  const header = generationPrompt(context, messages);
  for (const markable of [() => true, isAssistant]) {
    const marks = renderMarked(context, messages, text, markable);
    if (!marks) continue;
    const spans = spansFromMarks(context, messages, text, marks, header);
    if (spans) return spans;
  }
  return spansFromPrefixes(context, messages, text);
}

const isAssistant = (message: TemplateMessage) => message.role === 'assistant';

/** What addGenerationPrompt appends, seen where the first answer is to come; '' when the template has none. */
function generationPrompt(context: SpanContext, messages: TemplateMessage[]): string {
  const first = messages.findIndex(isAssistant);
  if (first <= 0) return '';
  try {
    const without = context.render(messages.slice(0, first), false);
    const withPrompt = context.render(messages.slice(0, first), true);
    return withPrompt.startsWith(without) ? withPrompt.slice(without.length) : '';
  } catch {
    return ''; // some templates refuse a conversation without an answer
  }
}

function renderMarked(
  context: SpanContext,
  messages: TemplateMessage[],
  text: string,
  markable: (message: TemplateMessage) => boolean,
): Mark[] | undefined {
  const marked = messages.map((message, i) => (markable(message) ? { ...message, content: markContent(message.content, i) } : message));
  for (const message of marked) if (message.content === undefined) delete message.content;
  let rendered: string;
  try {
    rendered = context.render(marked, false);
  } catch {
    return undefined; // the template looks into the content
  }
  const marks: Mark[] = [];
  let removed = 0;
  const stripped = rendered.replace(MARK, (mark: string, kind: string, digits: string, offset: number) => {
    const message = Number([...digits].map((digit) => digit.charCodeAt(0) - 0xfde0).join(''));
    marks.push({ kind: kind === MARK_OPEN ? 'open' : 'close', message, position: offset - removed });
    removed += mark.length;
    return '';
  });
  return stripped === text ? marks : undefined;
}

/** Marks around the text between its outer whitespace, which templates like to trim. */
function markContent(content: unknown, index: number): unknown {
  const digits = [...String(index)].map((digit) => String.fromCharCode(0xfde0 + Number(digit))).join('');
  if (typeof content === 'string') {
    const core = content.trim();
    const start = content.indexOf(core);
    if (core === '') return content;
    return `${content.slice(0, start)}${MARK_OPEN}${digits}${core}${MARK_CLOSE}${digits}${content.slice(start + core.length)}`;
  }
  if (!Array.isArray(content)) return content;
  return content.map((part: unknown) => {
    const text = (part as { text?: unknown } | null)?.text;
    return typeof text === 'string' ? { ...(part as object), text: markContent(text, index) } : part;
  });
}

function spansFromMarks(
  context: SpanContext,
  messages: TemplateMessage[],
  text: string,
  marks: Mark[],
  header: string,
): AssistantSpan[] | undefined {
  const spans: AssistantSpan[] = [];
  let cursor = 0;
  for (const [index, message] of messages.entries()) {
    const own = marks.filter((mark) => mark.message === index);
    if (isAssistant(message)) {
      const next = marks.find((mark) => mark.message > index && mark.kind === 'open')?.position ?? text.length;
      const span = turnSpan(context, message, text, own, header, cursor, next);
      if (span === undefined) return undefined;
      if (span !== null) {
        spans.push({ message: index, span });
        cursor = span[1];
        continue;
      }
    }
    cursor = Math.max(cursor, own.at(-1)?.position ?? 0);
  }
  return spans;
}

/** One turn's span between the previous message's end and the next one's content; null: an empty turn; undefined: not to be found. */
function turnSpan(
  context: SpanContext,
  message: TemplateMessage,
  text: string,
  own: Mark[],
  header: string,
  from: number,
  to: number,
): Span | null | undefined {
  const open = own.find((mark) => mark.kind === 'open')?.position;
  const close = own.findLast((mark) => mark.kind === 'close')?.position;
  const start = turnStart(message, text, header, from, open, close ?? to);
  if (start === undefined) return isEmptyTurn(message) ? null : undefined;
  return [start, turnEnd(context, text, close ?? start, to, close === undefined || message.tool_calls !== undefined)];
}

function isEmptyTurn(message: TemplateMessage): boolean {
  const { content, tool_calls } = message;
  return tool_calls === undefined && (content === undefined || (typeof content === 'string' && content.trim() === ''));
}

function turnStart(
  message: TemplateMessage,
  text: string,
  header: string,
  from: number,
  open: number | undefined,
  to: number,
): number | undefined {
  if (header !== '') {
    const found = open === undefined ? text.indexOf(header, from) : text.lastIndexOf(header, open - header.length);
    if (found >= from && found + header.length <= to) return found + header.length;
  }
  if (open === undefined) return undefined;
  const lead = typeof message.content === 'string' ? (/^\s*/.exec(message.content)?.[0] ?? '') : '';
  return open - lead.length >= from && text.slice(open - lead.length, open) === lead ? open - lead.length : open;
}

/**
 * The end of a turn whose content ends at `close`: after the first token that ends generation, else after a special token that follows
 * at once, else at `close`. `anyText`: the turn goes on after its content (tool calls).
 */
function turnEnd(context: SpanContext, text: string, close: number, to: number, anyText: boolean): number {
  const ending = firstToken(text, context.endTokens, close, to);
  if (ending) return ending[1];
  const special = firstToken(text, context.specialTokens, close, to);
  if (special && (anyText || text.slice(close, special[0]).trim() === '')) return special[1];
  return close;
}

function firstToken(text: string, tokens: string[], from: number, to: number): Span | undefined {
  const region = text.slice(from, to);
  let best: Span | undefined;
  for (const token of tokens) {
    const at = region.indexOf(token);
    if (at < 0) continue;
    if (!best || from + at < best[0] || (from + at === best[0] && token.length > best[1] - best[0])) {
      best = [from + at, from + at + token.length];
    }
  }
  return best;
}

/** Turn by turn: each answer lies between the render of all before it (with the generation prompt) and the render including it. */
function spansFromPrefixes(context: SpanContext, messages: TemplateMessage[], text: string): AssistantSpan[] {
  const spans: AssistantSpan[] = [];
  for (const [index, message] of messages.entries()) {
    if (!isAssistant(message)) continue;
    const before = index === 0 ? '' : context.render(messages.slice(0, index), true);
    const through = context.render(messages.slice(0, index + 1), false);
    if (!text.startsWith(before) || !text.startsWith(through) || through.length < before.length) {
      throw new Error(
        `the text that the assistant is to learn in message ${index} cannot be told from the rest: the template rewrites it; mark it in the template by {% generation %} … {% endgeneration %}`,
      );
    }
    const end = lastToken(through, context.endTokens, before.length) ?? lastToken(through, context.specialTokens, before.length);
    spans.push({ message: index, span: [before.length, end ?? through.length] });
  }
  return spans;
}

/** End of the last of `tokens` in `text`, when only whitespace follows it. */
function lastToken(text: string, tokens: string[], from: number): number | undefined {
  const trimmed = text.trimEnd();
  return tokens.some((token) => trimmed.endsWith(token) && trimmed.length - token.length >= from) ? trimmed.length : undefined;
}

/** Spans of generation blocks, each lengthened by a token that ends generation right after it: a model must learn to stop. */
export function withEndTokens(spans: Span[], text: string, endTokens: string[]): Span[] {
  return spans.map(([start, end]) => {
    const token = endTokens.find((candidate) => text.startsWith(candidate, end));
    return [start, end + (token?.length ?? 0)];
  });
}
