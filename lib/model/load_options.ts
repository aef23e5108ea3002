import { z } from 'zod';
import { LowrankError, shown } from '../errors.ts';
import type { DownloadProgress } from '../hub/user_cache.ts';
import { parseOptions, unsupported } from '../options/parse.ts';
import { checkQuantizationConfig, quantizationConfigSchema } from '../options/quantization_config.ts';
import { Tokenizer } from '../tokenizer/tokenizer.ts';
import { kDtypes } from './compute_type.ts';

const schema = z.strictObject({
  dtype: z
    .enum(kDtypes)
    .default('auto')
    .describe(
      "Type of weights and arithmetic. 'auto': weights as stored, arithmetic in float32, in training as args.bf16 says. 'float32', 'bfloat16': both; block types such as Q4_1 stay as they are. 'float16': weights only.",
    ),
  device: z.string().default('auto').describe("'auto' or 'cpu'."),
  revision: z.string().min(1).optional().describe('Branch, tag or commit on the hub.'),
  cacheDir: z.string().min(1).optional().describe("Where hub files are kept; default: Hugging Face's cache."),
  localFilesOnly: z.boolean().default(false).describe('Ask no server.'),
  token: z.string().min(1).optional().describe('Hub token; default: HF_TOKEN, or the one the hub command line saved.'),
  onProgress: z
    .custom<(progress: DownloadProgress) => void>((value) => typeof value === 'function', { error: 'a function' })
    .optional()
    .describe('Called while files are downloaded.'),
  signal: z.instanceof(AbortSignal, { error: 'an AbortSignal' }).optional(),
  quantizationConfig: quantizationConfigSchema,
  maxMemory: unsupported(null, 'a memory limit'),
});

const fromConfigSchema = z.strictObject({
  seed: z.int().min(0).default(0).describe('Same seed, same weights.'),
  dtype: z.enum(kDtypes).default('auto').describe("As for fromPretrained; 'auto': float32 weights."),
  tokenizer: z
    .custom<Tokenizer>((value) => value instanceof Tokenizer, { error: 'a Tokenizer' })
    .optional()
    .describe('For text prompts and data.'),
});

/** Options of CausalLM.fromConfig. */
export type FromConfigOptions = z.input<typeof fromConfigSchema>;

/** Throws UNKNOWN_OPTION, INVALID_OPTION. */
export function parseFromConfigOptions(options: unknown = {}): z.output<typeof fromConfigSchema> {
  return parseOptions(fromConfigSchema, options, '');
}

/** Options of CausalLM.fromPretrained. */
export type LoadOptions = z.input<typeof schema>;
export type ResolvedLoadOptions = z.output<typeof schema>;

/** Throws UNKNOWN_OPTION, INVALID_OPTION, DEVICE_UNAVAILABLE, UNSUPPORTED_QUANTIZATION. */
export function parseLoadOptions(options: unknown = {}): ResolvedLoadOptions {
  const parsed = parseOptions(schema, options, '');
  checkQuantizationConfig(parsed.quantizationConfig);
  if (/^cuda(:\d+)?$/.test(parsed.device)) {
    throw new LowrankError(
      'DEVICE_UNAVAILABLE',
      `device: found ${shown(parsed.device)}, but this build computes on the CPU only; expected 'auto' or 'cpu'`,
    );
  }
  if (parsed.device !== 'auto' && parsed.device !== 'cpu') {
    throw new LowrankError('INVALID_OPTION', `device: found ${shown(parsed.device)}, expected 'auto', 'cpu' or 'cuda:<number>'`);
  }
  return parsed;
}
