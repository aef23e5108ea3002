import { z } from 'zod';
import { parseOptions } from './parse.ts';

const generateOptionsSchema = z.strictObject({
  maxNewTokens: z.int().min(1).default(256).describe('Most tokens to add.'),
  doSample: z.boolean().default(false).describe('Draw from the distribution; false: always the most likely token.'),
  temperature: z.number().positive().max(100).default(1).describe('Below 1 sharpens the distribution, above 1 flattens it.'),
  topK: z.int().min(0).default(50).describe('Draw among the k most likely tokens; 0: all.'),
  topP: z.number().positive().max(1).default(1).describe('Draw among the fewest tokens whose probabilities reach this sum.'),
  minP: z.number().min(0).max(1).default(0).describe("Draw among tokens with at least this share of the likeliest token's probability."),
  repetitionPenalty: z.number().positive().default(1).describe('Above 1 makes tokens that were seen less likely (arXiv:1909.05858).'),
  seed: z.int().min(0).optional().describe('Same seed, same draws; left out: another each time.'),
  stop: z
    .union([z.string().min(1), z.array(z.string().min(1))])
    .optional()
    .describe('Texts at which generation ends; they are not part of the answer.'),
  signal: z.instanceof(AbortSignal, { error: 'an AbortSignal' }).optional().describe('Ends generation with what there is so far.'),
});

/** Options of generate() and stream(); without doSample the sampling options do nothing. */
export type GenerateOptions = z.input<typeof generateOptionsSchema>;
/** GenerateOptions with their defaults filled in. */
export type ResolvedGenerateOptions = z.output<typeof generateOptionsSchema>;

/**
 * Checks generate options and fills in the defaults.
 *
 * @throws UNKNOWN_OPTION, INVALID_OPTION
 */
export function parseGenerateOptions(options: unknown = {}): ResolvedGenerateOptions {
  return parseOptions(generateOptionsSchema, options, '');
}
