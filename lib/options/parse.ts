import { z } from 'zod';
import { LowrankError, shown, suggestion } from '../errors.ts';

/**
 * Checks `value` against `schema` and fills in the defaults.
 *
 * @param name what the message calls the value; paths are written as `name.key` ('' for options at the top).
 * @throws UNKNOWN_OPTION naming the option that was probably meant; INVALID_OPTION naming the option, what was found and what was expected.
 */
export function parseOptions<S extends z.ZodType>(schema: S, value: unknown, name: string): z.output<S> {
  const result = schema.safeParse(value, { reportInput: true });
  if (result.success) return result.data;
  const unknown = result.error.issues.find((issue) => issue.code === 'unrecognized_keys');
  if (unknown?.code === 'unrecognized_keys') throw unknownKey(schema, name, unknown.path, unknown.keys[0] ?? '');
  throw invalidOption(name, deepest(result.error.issues[0] as z.core.$ZodIssue));
}

/** An option of this schema that PEFT or Transformers have and this version lacks: only `off` (and null) is taken. */
export function unsupported<const T>(off: T, what: string) {
  return z
    .custom<T | null>((value) => value === null || value === undefined || JSON.stringify(value) === JSON.stringify(off), {
      error: `${shown(off)} (${what} is not supported yet)`,
    })
    .optional();
}

function unknownKey(schema: z.ZodType, name: string, path: readonly PropertyKey[], key: string): LowrankError {
  const where = joined(name, path);
  return unknownOption(where === '' ? key : `${where}.${key}`, key, Object.keys(shapeAt(schema, path) ?? {}));
}

/** UNKNOWN_OPTION for `option`, whose last part is `key`, with the name among `known` that was probably meant. */
export function unknownOption(option: string, key: string, known: readonly string[]): LowrankError {
  const meant = suggestion(key, known);
  const advice = meant ? `did you mean '${meant}'?` : `the options there are ${known.join(', ')}`;
  return new LowrankError('UNKNOWN_OPTION', `${option} is not an option; ${advice}`);
}

function invalidOption(name: string, issue: z.core.$ZodIssue): LowrankError {
  const option = joined(name, issue.path) || 'options';
  const found = issue.input === undefined ? 'nothing' : shown(issue.input);
  return new LowrankError('INVALID_OPTION', `${option}: found ${found}, expected ${expected(issue)}`);
}

/** Of a union's failures the one that got farthest into the value, so that a bad element of a list is named and not the list. */
function deepest(issue: z.core.$ZodIssue): z.core.$ZodIssue {
  if (issue.code !== 'invalid_union') return issue;
  const inner = issue.errors.flat().find((candidate) => candidate.path.length > 0);
  return inner ? deepest({ ...inner, path: [...issue.path, ...inner.path] }) : issue;
}

/** zod's own messages; any other is a schema's, and says what is expected. */
const OWN_MESSAGE = /^(Invalid|Too|Unrecognized)/;

function expected(issue: z.core.$ZodIssue): string {
  if (issue.message && !OWN_MESSAGE.test(issue.message)) return issue.message;
  switch (issue.code) {
    case 'invalid_type':
      return withArticle(issue.expected);
    case 'invalid_value':
      return issue.values.length === 1 ? shown(issue.values[0]) : `one of ${issue.values.map(quoted).join(', ')}`;
    case 'too_small':
      return bound(issue.origin, issue.inclusive ? 'at least' : 'more than', issue.minimum);
    case 'too_big':
      return bound(issue.origin, issue.inclusive ? 'at most' : 'less than', issue.maximum);
    case 'invalid_union':
      return [...new Set(issue.errors.flatMap((branch) => branch.slice(0, 1).map(expected)))].join(' or ');
    default:
      return issue.message;
  }
}

function bound(origin: string, relation: string, limit: number | bigint): string {
  if (origin === 'string') return 'a text that is not empty';
  if (origin === 'array') return `${relation} ${limit} element${limit === 1 ? '' : 's'}`;
  return `${relation} ${limit}`;
}

function withArticle(type: string): string {
  if (type === 'int') return 'an integer';
  return `${/^[aeiou]/.test(type) ? 'an' : 'a'} ${type}`;
}

function quoted(value: unknown): string {
  return typeof value === 'string' ? `'${value}'` : String(value);
}

function joined(name: string, path: readonly PropertyKey[]): string {
  return path.reduce<string>((text, key) => {
    if (typeof key === 'number') return `${text}[${key}]`;
    return text === '' ? String(key) : `${text}.${String(key)}`;
  }, name);
}

/** The keys an object schema has at `path`, through optional, default and union wrappers. */
function shapeAt(schema: z.ZodType, path: readonly PropertyKey[]): Record<string, z.ZodType> | undefined {
  const shape = objectShape(schema);
  const [key, ...rest] = path;
  if (key === undefined || shape === undefined) return shape;
  const next = shape[String(key)];
  return next && shapeAt(next, rest);
}

function objectShape(schema: z.ZodType): Record<string, z.ZodType> | undefined {
  if (schema instanceof z.ZodObject) return schema.shape as Record<string, z.ZodType>;
  if (schema instanceof z.ZodUnion) {
    return schema.options.map((option) => objectShape(option as z.ZodType)).find((shape) => shape !== undefined);
  }
  if (
    schema instanceof z.ZodOptional ||
    schema instanceof z.ZodDefault ||
    schema instanceof z.ZodPrefault ||
    schema instanceof z.ZodNullable
  ) {
    return objectShape(schema.unwrap() as z.ZodType);
  }
  return undefined;
}
