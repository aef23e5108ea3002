import { z } from 'zod';
import { parseOptions } from '../options/parse.ts';
import { Tokenizer } from '../tokenizer/tokenizer.ts';
import { FORMATS } from './formats.ts';
import { TRUNCATIONS } from './truncation.ts';

const schema = z.strictObject({
  tokenizer: z
    .custom<Tokenizer>((value) => value instanceof Tokenizer, { error: 'a Tokenizer' })
    .optional()
    .describe('Not needed for rows that are token ids.'),
  maxSeqLength: z.int().min(2).optional().describe('Longest row, in tokens; default: no limit.'),
  format: z.enum(FORMATS).optional().describe('Default: told by the first row.'),
  mapping: z.record(z.string(), z.string()).optional().describe("Columns under other names: { prompt: 'question', completion: 'answer' }."),
  onBadRow: z.enum(['error', 'skip']).default('error').describe("'error' stops at a malformed row, 'skip' counts it and goes on."),
  completionOnlyLoss: z
    .union([z.literal('auto'), z.boolean()])
    .default('auto')
    .describe("'auto': loss on completions and on the assistant's turns where rows tell them apart, else on all."),
  truncation: z
    .enum(TRUNCATIONS)
    .default('right')
    .describe("What becomes of rows longer than maxSeqLength; 'right': what is beyond is cut off."),
  onWarning: z
    .custom<(message: string) => void>((value) => typeof value === 'function', { error: 'a function' })
    .optional()
    .describe('Told of skipped, truncated and dropped rows; default: a process warning.'),
  signal: z.instanceof(AbortSignal, { error: 'an AbortSignal' }).optional(),
});

/** Options of loadDataset. */
export type LoadDatasetOptions = z.input<typeof schema>;
export type ResolvedLoadDatasetOptions = z.output<typeof schema>;

/** Throws UNKNOWN_OPTION, INVALID_OPTION. */
export function parseLoadDatasetOptions(options: unknown): ResolvedLoadDatasetOptions {
  return parseOptions(schema, options, '');
}

const splitSchema = z.strictObject({
  testSize: z.number().positive().describe('Share of the rows (below 1) or their number.'),
  seed: z.int().min(0).default(42),
});

/** Options of splitDataset. */
export type SplitOptions = z.input<typeof splitSchema>;

/** Throws UNKNOWN_OPTION, INVALID_OPTION. */
export function parseSplitOptions(options: unknown): z.output<typeof splitSchema> {
  return parseOptions(splitSchema, options, '');
}
