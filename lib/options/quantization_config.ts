import { z } from 'zod';
import { LowrankError, shown } from '../errors.ts';

const schema = z.strictObject({
  loadIn4bit: z.boolean().default(false).describe('Quantise the weights of linear layers to 4 bits.'),
  loadIn8bit: z.boolean().default(false).describe('Quantise them to 8 bits, with a magnitude for each row.'),
  bnb4bitQuantType: z.enum(['fp4', 'nf4']).default('fp4').describe("'nf4' loses less; 'fp4' is the default of bitsandbytes."),
  bnb4bitUseDoubleQuant: z.boolean().default(false).describe('Quantise the magnitudes of the blocks too.'),
  bnb4bitComputeDtype: z
    .enum(['float32', 'bfloat16', 'float16'])
    .optional()
    .describe('What products are computed in; default: as dtype says, in training as args.bf16 does.'),
  bnb4bitQuantStorage: z.literal('uint8').default('uint8').describe("How bitsandbytes' files hold the codes."),
  llmInt8SkipModules: z
    .array(z.string().min(1))
    .default([])
    .describe('Modules that keep their type: beginnings of their names, regular expressions for these, or ends.'),
  llmInt8Threshold: z
    .number()
    .min(0)
    .default(6)
    .describe('Written into config.json only: bitsandbytes keeps larger activations out of its 8 bits, here none are quantised.'),
});

/** Options of quantizationConfig, by the names of Transformers' BitsAndBytesConfig. Head, embedding and norms always keep their type. */
export type QuantizationConfig = z.input<typeof schema>;
export type ResolvedQuantizationConfig = z.output<typeof schema>;

/** null, like nothing at all, quantises nothing. */
export const quantizationConfigSchema = schema.nullish();

/** A configuration with its defaults. */
export function resolveQuantizationConfig(config: QuantizationConfig): ResolvedQuantizationConfig {
  return schema.parse(config);
}

/** Throws INVALID_OPTION for a configuration that asks for nothing, or for both. */
export function checkQuantizationConfig(config: ResolvedQuantizationConfig | null | undefined): void {
  if (!config || config.loadIn4bit !== config.loadIn8bit) return;
  const expected = config.loadIn4bit ? 'false beside loadIn8bit: true' : 'true, or loadIn8bit: true (or no quantizationConfig)';
  throw new LowrankError('INVALID_OPTION', `quantizationConfig.loadIn4bit: found ${shown(config.loadIn4bit)}, expected ${expected}`);
}
