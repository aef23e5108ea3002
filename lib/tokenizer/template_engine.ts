import { Template } from '@huggingface/jinja';

// Chat templates as Transformers renders them: @huggingface/jinja with its known differences from Python's Jinja repaired in the syntax
// tree. Runs inside the template worker only, because a template is code without any limit of its own.

/** [start, end) in UTF-16 units. */
export type Span = [start: number, end: number];

interface Rendered {
  text: string;
  /** What the template itself marks by `{% generation %}`; empty without such blocks. */
  generated: Span[];
}

export interface CompiledTemplate {
  /** The source holds `{% generation %}` blocks. */
  readonly marksGeneration: boolean;
  render(variables: Record<string, unknown>): Rendered;
}

// Noncharacters stand for the two ends of a generation block in the rendered text; conversations that hold any are refused.
const OPEN = '\uFDD0';
const CLOSE = '\uFDD1';
const GENERATION = /\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}/g;

/** Python's sandbox refuses longer ranges too. */
const MAX_RANGE = 100_000;

/** Compiles a template's source; throws the parser's error. */
export function compileTemplate(source: string): CompiledTemplate {
  const normalized = source.replace(/\r\n?/g, '\n');
  // The `if true` block keeps the tag's own trimming of the whitespace around it.
  const marked = normalized.replace(
    GENERATION,
    (_, left: string, end: string | undefined, right: string) => `{%${left} if true %}{{ "${end ? CLOSE : OPEN}" }}{% endif ${right}%}`,
  );
  const template = new Template(marked);
  template.parsed = rewrite(template.parsed) as typeof template.parsed;
  return {
    marksGeneration: marked !== normalized,
    render: (variables) => splitMarks(template.render({ py_strip: pythonStrip, py_trim: jinjaTrim, py_range: pythonRange, ...variables })),
  };
}

function splitMarks(raw: string): Rendered {
  const generated: Span[] = [];
  const open: number[] = [];
  let text = '';
  for (const piece of raw.split(/([\uFDD0\uFDD1])/)) {
    if (piece === OPEN) open.push(text.length);
    else if (piece === CLOSE) {
      const start = open.pop();
      if (start === undefined) throw new Error('endgeneration without generation');
      if (text.length > start) generated.push([start, text.length]);
    } else text += piece;
  }
  if (open.length > 0) throw new Error('generation without endgeneration');
  return { text, generated: generated.sort((a, b) => a[0] - b[0]) };
}

interface Node {
  type: string;
  [key: string]: unknown;
}

const call = (name: string, args: unknown[]): Node => ({ type: 'CallExpression', callee: { type: 'Identifier', value: name }, args });

/** Python's methods in place of jinja's: strip with its argument, `trim` over Python's whitespace, a bounded range. */
function rewrite(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(rewrite);
  if (value === null || typeof value !== 'object' || value instanceof Map) return value;
  const node = value as Node;
  for (const key of Object.keys(node)) node[key] = rewrite(node[key]);
  if (node.type === 'CallExpression') return rewriteCall(node);
  if (node.type === 'FilterExpression') return rewriteTrim(node);
  return node;
}

function rewriteCall(node: Node): Node {
  const callee = node.callee as Node;
  const args = node.args as unknown[];
  if (callee.type === 'Identifier' && callee.value === 'range') return call('py_range', args);
  if (callee.type !== 'MemberExpression' || callee.computed) return node;
  const method = (callee.property as Node).value;
  if (method !== 'strip' && method !== 'lstrip' && method !== 'rstrip') return node;
  return call('py_strip', [{ type: 'StringLiteral', value: method }, callee.object, ...args]);
}

function rewriteTrim(node: Node): Node {
  const filter = node.filter as Node;
  if (filter.type === 'Identifier' && filter.value === 'trim') return call('py_trim', [node.operand]);
  const callee = filter.type === 'CallExpression' ? (filter.callee as Node) : undefined;
  return callee?.value === 'trim' ? call('py_trim', [node.operand, ...(filter.args as unknown[])]) : node;
}

// str.isspace() of Python, which differs from JavaScript's \s in both directions.
const SPACES = new Set(
  '\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000',
);

function pythonStrip(mode: unknown, text: unknown, chars?: unknown): string {
  if (typeof text !== 'string') throw new Error(`${String(mode)}() was called on a value that is not a string`);
  if (chars !== undefined && chars !== null && typeof chars !== 'string') throw new Error(`${String(mode)}() takes a string`);
  const strip = typeof chars === 'string' ? new Set(chars) : SPACES;
  const points = [...text];
  let start = 0;
  let end = points.length;
  if (mode !== 'rstrip') while (start < end && strip.has(points[start] as string)) start++;
  if (mode !== 'lstrip') while (end > start && strip.has(points[end - 1] as string)) end--;
  return points.slice(start, end).join('');
}

function jinjaTrim(value: unknown, chars?: unknown): string {
  if (value === undefined) return '';
  return pythonStrip('strip', value === null ? 'None' : typeof value === 'number' ? String(value) : value, chars);
}

function pythonRange(...bounds: unknown[]): number[] {
  if (bounds.length < 1 || bounds.length > 3 || !bounds.every(Number.isInteger)) throw new Error('range() takes one to three integers');
  const [start, stop, step] = (bounds.length === 1 ? [0, bounds[0], 1] : [bounds[0], bounds[1], bounds[2] ?? 1]) as [
    number,
    number,
    number,
  ];
  if (step === 0) throw new Error('range() arg 3 must not be zero');
  const length = Math.max(0, Math.ceil((stop - start) / step));
  if (length > MAX_RANGE) throw new Error(`range is too large: ${length} items, at most ${MAX_RANGE}`);
  return Array.from({ length }, (_, i) => start + i * step);
}

const REASONING_FIELDS = ['reasoning_content', 'thinking', 'reasoning'];

/** Messages as Transformers hands them to a template: null fields dropped, reasoning under each of its names. */
export function normalizeMessages(messages: readonly Record<string, unknown>[]): Record<string, unknown>[] {
  return messages.map((message) => {
    const kept = Object.fromEntries(Object.entries(message).filter(([, value]) => value !== null && value !== undefined));
    const reasoning = REASONING_FIELDS.map((field) => kept[field]).find((value) => value !== undefined);
    return reasoning === undefined ? kept : { thinking: reasoning, ...kept, reasoning_content: reasoning };
  });
}
