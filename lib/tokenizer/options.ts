import { z } from 'zod';
import { parseOptions } from '../options/parse.ts';

const encodeSchema = z.strictObject({
  addSpecialTokens: z.boolean().default(true).describe('Adds BOS and EOS where the tokenizer does so.'),
  offsets: z.boolean().default(false).describe('The characters that each token stands for are wanted too (encodeBatch).'),
});

const decodeSchema = z.strictObject({ skipSpecialTokens: z.boolean().optional().describe('Leaves special tokens out.') });

const templateSchema = z.strictObject({
  addGenerationPrompt: z.boolean().default(false).describe('Ends with the header of the answer to come.'),
  tools: z.array(z.unknown()).optional().describe('JSON schemas of functions that the assistant may call.'),
  tokenize: z.boolean().default(true).describe('Ids rather than text.'),
  chatTemplateKwargs: z
    .record(z.string(), z.unknown())
    .optional()
    .describe("More variables for the template, under the template's own names (e.g. enable_thinking)."),
});

export type EncodeOptions = z.input<typeof encodeSchema>;
export type DecodeOptions = z.input<typeof decodeSchema>;
export type ChatTemplateOptions = z.input<typeof templateSchema>;

// Each throws UNKNOWN_OPTION or INVALID_OPTION.
export const parseEncodeOptions = (options: unknown) => parseOptions(encodeSchema, options, '');
export const parseDecodeOptions = (options: unknown) => parseOptions(decodeSchema, options, '');
export const parseChatTemplateOptions = (options: unknown) => parseOptions(templateSchema, options, '');
