import { z } from 'zod';
import { LowrankError, shown } from '../errors.ts';
import { parseOptions } from '../options/parse.ts';
import { type Dtype, kDtypes } from './compute_type.ts';

const schema = z.strictObject({
  maxShardSize: z.union([z.string(), z.number()]).default('5GB').describe('Largest file; more weights go into several.'),
  dtype: z
    .enum(kDtypes)
    .default('auto')
    .describe(
      "'auto': as stored, weights in bitsandbytes' 4 or 8 bits in its layout; GGUF's block types become bfloat16. Any other: floats.",
    ),
  format: z
    .literal('safetensors', { error: "'safetensors' ('gguf' is not supported yet)" })
    .default('safetensors')
    .describe('Kind of file.'),
});

/** Options of CausalLM.savePretrained. */
export interface SaveOptions {
  /** Largest file, such as '5GB'; more weights go into several. Default 5GB. */
  maxShardSize?: number | string;
  /** Default 'auto': as stored, weights in bitsandbytes' 4 or 8 bits in its layout; GGUF's block types become bfloat16. Any other: floats. */
  dtype?: Dtype;
  /** A model is saved as 'safetensors', an adapter as 'peft'; 'gguf' is not supported yet. */
  format?: 'safetensors' | 'peft' | 'gguf';
}

/** Throws UNKNOWN_OPTION, INVALID_OPTION. */
export function parseSaveOptions(options: unknown = {}): z.output<typeof schema> {
  return parseOptions(schema, options, '');
}

/** Throws INVALID_OPTION where savePretrained() was given no folder. */
export function checkFolder(folder: unknown): void {
  if (typeof folder !== 'string' || folder === '')
    throw new LowrankError('INVALID_OPTION', `folder: found ${shown(folder)}, expected the path of a folder`);
}
