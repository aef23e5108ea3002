import { z } from 'zod';
import { LowrankError } from '../errors.ts';
import { parseOptions, unsupported } from './parse.ts';

const text = z.string().min(1);
const texts = z.array(text);
const rank = z.int().min(1).max(65536);

/** What PEFT can start A and B from and this package cannot yet. */
const OTHER_INITIALISATIONS = ['pissa', 'olora', 'eva', 'corda', 'loftq', 'orthogonal', 'lora_ga', 'mica'];

const initLoraWeights = z.union([z.boolean(), z.literal('gaussian')], {
  error: (issue) =>
    typeof issue.input === 'string' && OTHER_INITIALISATIONS.some((name) => (issue.input as string).startsWith(name))
      ? "true, false or 'gaussian' (PEFT's other initialisations are not supported yet)"
      : "true, false or 'gaussian'",
});

/** PEFT's LoraConfig: names in camelCase, values and defaults PEFT's own except taskType. */
export const loraConfigSchema = z.strictObject({
  peftType: z
    .literal('LORA', { error: "'LORA' (the other methods of PEFT are not supported yet)" })
    .default('LORA')
    .describe('The method.'),
  taskType: z.literal('CAUSAL_LM').nullable().default('CAUSAL_LM').describe('What the model is for; null: not said, as in PEFT.'),
  r: rank.default(8).describe('Rank of the update: A is [r, in], B is [out, r].'),
  loraAlpha: z.number().positive().default(8).describe('The update is scaled by alpha / r, with rsLoRA by alpha / sqrt(r).'),
  targetModules: z
    .union([z.array(text).min(1), text])
    .optional()
    .describe(
      "Modules that get an update: a list of names or ends of names, a regular expression for the whole name, or 'all-linear'; left out: the family's default in PEFT.",
    ),
  excludeModules: z
    .union([texts, text])
    .optional()
    .describe('Modules left out of targetModules: a list of names, or a regular expression.'),
  loraDropout: z.number().min(0).lt(1).default(0).describe("Share of the update's inputs dropped in training."),
  bias: z.enum(['none', 'all', 'lora_only']).default('none').describe("Which of the base's biases are trained."),
  useRslora: z.boolean().default(false).describe('Rank-stabilised scale, alpha / sqrt(r) (arXiv:2312.03732).'),
  layersToTransform: z
    .union([z.int().min(0), z.array(z.int().min(0)).min(1)])
    .optional()
    .describe('Numbers of the layers that get an update; left out: all.'),
  layersPattern: z
    .union([texts, text])
    .optional()
    .describe("Name of the list of layers, where layersToTransform is given and it is not 'layers'."),
  rankPattern: z.record(text, rank).default({}).describe('Other ranks for some modules, by name or regular expression.'),
  alphaPattern: z.record(text, z.number().positive()).default({}).describe('Other alphas for some modules, by name or regular expression.'),
  initLoraWeights: initLoraWeights
    .default(true)
    .describe("true: A uniform (Kaiming), B zero; 'gaussian': A normal with deviation 1 / r, B zero; false: both random, for tests."),
  modulesToSave: texts.optional().describe('Modules trained and saved whole beside the updates, such as embed_tokens or lm_head.'),
  inferenceMode: z.boolean().default(false).describe('Loaded for use, not for training.'),
  baseModelNameOrPath: z.string().optional().describe('The base model, as written into adapter_config.json.'),
  revision: z.string().optional().describe("The base model's revision on the hub."),
  fanInFanOut: unsupported(false, 'a base with transposed weights'),
  useDora: unsupported(false, 'DoRA'),
  useQalora: unsupported(false, 'QALoRA'),
  useBdlora: unsupported(false, 'BD-LoRA'),
  loraBias: unsupported(false, 'a bias on B'),
  layerReplication: unsupported(null, 'replication of layers'),
  trainableTokenIndices: unsupported(null, 'training single rows of the embedding'),
  targetParameters: unsupported(null, 'targeting parameters'),
  ensureWeightTying: unsupported(false, 'keeping tied weights tied in modulesToSave'),
  loftqConfig: unsupported({}, 'LoftQ'),
  evaConfig: unsupported(null, 'EVA'),
  cordaConfig: unsupported(null, 'CorDA'),
  loraGaConfig: unsupported(null, 'LoRA-GA'),
  veloraConfig: unsupported(null, 'VeLoRA'),
  kasaConfig: unsupported(null, 'KaSA'),
  montecloraConfig: unsupported(null, 'MonteCLoRA'),
  arrowConfig: unsupported(null, 'Arrow routing'),
  megatronConfig: unsupported(null, 'Megatron'),
  aloraInvocationTokens: unsupported(null, 'activated LoRA'),
});

/** Options of LoRA, as a user writes them. Everything has a default. */
export type LoraConfig = z.input<typeof loraConfigSchema>;
/** A LoraConfig with its defaults filled in. */
export type ResolvedLoraConfig = z.output<typeof loraConfigSchema>;

/**
 * Checks a LoraConfig and fills in PEFT's defaults.
 *
 * @throws UNKNOWN_OPTION, INVALID_OPTION
 */
export function parseLoraConfig(config: unknown, name = 'peftConfig'): ResolvedLoraConfig {
  const parsed = parseOptions(loraConfigSchema, config, name);
  if (parsed.layersPattern !== undefined && parsed.layersToTransform === undefined) {
    throw new LowrankError('INVALID_OPTION', `${name}.layersPattern: found without ${name}.layersToTransform, expected both`);
  }
  if (typeof parsed.targetModules === 'string' && parsed.targetModules !== 'all-linear' && parsed.layersToTransform !== undefined) {
    throw new LowrankError(
      'INVALID_OPTION',
      `${name}.layersToTransform: found beside a regular expression in ${name}.targetModules, expected a list of modules or the layers in the expression`,
    );
  }
  return parsed;
}
