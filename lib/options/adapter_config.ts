import { z } from 'zod';
import { LowrankError, shown } from '../errors.ts';
import { loraConfigSchema, type ResolvedLoraConfig } from './lora_config.ts';
import { parseOptions } from './parse.ts';

/** The PEFT release whose adapter_config.json this is. */
const PEFT_VERSION = '0.21.2';

/** Keys PEFT writes that have no counterpart in ResolvedLoraConfig, with PEFT's defaults. */
const PEFT_DEFAULTS: Readonly<Record<string, unknown>> = {
  alora_invocation_tokens: null,
  arrow_config: null,
  auto_mapping: null,
  corda_config: null,
  ensure_weight_tying: false,
  eva_config: null,
  fan_in_fan_out: false,
  kasa_config: null,
  layer_replication: null,
  loftq_config: {},
  lora_bias: false,
  lora_ga_config: null,
  megatron_config: null,
  megatron_core: 'megatron.core',
  monteclora_config: null,
  peft_version: PEFT_VERSION,
  qalora_group_size: 16,
  target_parameters: null,
  trainable_token_indices: null,
  use_bdlora: null,
  use_dora: false,
  use_qalora: false,
  velora_config: null,
};

/** Of these, keys whose value makes no difference to what a finished adapter computes on the families supported. */
const HARMLESS = [
  'auto_mapping',
  'corda_config',
  'eva_config',
  'fan_in_fan_out',
  'loftq_config',
  'lora_ga_config',
  'megatron_core',
  'peft_version',
  'qalora_group_size',
];

/** Initialisations that change the base's weights when PEFT attaches the adapter: A and B alone do not say what it computes. */
const BASE_CHANGING = /^(pissa|olora|corda|loftq|lora_ga)/;

/** What adapter_config.json says, and its keys that this package has no use for and keeps. */
export interface AdapterConfig {
  config: ResolvedLoraConfig;
  extra: Record<string, unknown>;
}

/**
 * The object PEFT writes as adapter_config.json, keys in PEFT's order. `extra` holds keys read from another adapter_config.json that
 * are to be kept. Give `targetModules` as resolved: PEFT writes the list that 'all-linear' stood for.
 */
export function toAdapterConfigJson(config: ResolvedLoraConfig, extra: Record<string, unknown> = {}): Record<string, unknown> {
  const own = Object.entries(supportedShape()).map(([key, { camel }]) => [key, config[camel] ?? null]);
  const merged = { ...PEFT_DEFAULTS, ...extra, ...Object.fromEntries(own), inference_mode: true };
  return Object.fromEntries(Object.entries(merged).sort(([a], [b]) => (a < b ? -1 : 1)));
}

/**
 * Reads the parsed content of an adapter_config.json.
 *
 * @param file named in errors
 * @throws INVALID_ADAPTER naming the key: a wrong type or range, another method than LoRA, or a variant of LoRA that this package does not compute.
 */
export function fromAdapterConfigJson(json: unknown, file: string): AdapterConfig {
  if (typeof json !== 'object' || json === null || Array.isArray(json)) {
    throw new LowrankError('INVALID_ADAPTER', `${file}: found ${shown(json)}, expected an object`);
  }
  const entries = Object.entries(json);
  const shape = supportedShape();
  const extra = entries.filter(([key]) => !Object.hasOwn(shape, key));
  for (const [key, value] of extra) refuseVariant(key, value, file);
  const supported = Object.fromEntries(entries.filter(([key]) => Object.hasOwn(shape, key)));
  if (supported.peft_type === undefined) throw new LowrankError('INVALID_ADAPTER', `${file}: peft_type: found nothing, expected 'LORA'`);
  supported.init_lora_weights = initialisation(supported.init_lora_weights, file);
  return { config: parseSupported(supported, file), extra: Object.fromEntries(extra) };
}

interface SupportedKey {
  camel: keyof ResolvedLoraConfig;
  schema: z.ZodType;
}

/** The keys both sides have, by PEFT's name: those of the options schema that are not refused. */
function supportedShape(): Record<string, SupportedKey> {
  const entries = Object.entries(loraConfigSchema.shape).map(([camel, schema]): [string, SupportedKey] => [
    snakeCase(camel),
    { camel: camel as keyof ResolvedLoraConfig, schema },
  ]);
  return Object.fromEntries(entries.filter(([key]) => !Object.hasOwn(PEFT_DEFAULTS, key)));
}

/** A file may hold what PEFT takes and a new adapter should not have: any finite alpha; null where PEFT's default is None. */
function fileSchema(key: string, schema: z.ZodType): z.ZodType {
  if (key === 'lora_alpha') return z.number().default(8);
  if (key === 'alpha_pattern')
    return z
      .record(z.string(), z.number())
      .nullish()
      .transform((value) => value ?? {});
  if (key === 'rank_pattern') return z.nullish(schema).transform((value) => value ?? {});
  if (schema instanceof z.ZodOptional) return z.nullish(schema.unwrap() as z.ZodType).transform((value) => value ?? undefined);
  return schema;
}

function parseSupported(supported: Record<string, unknown>, file: string): ResolvedLoraConfig {
  const shape = supportedShape();
  const schema = z.strictObject(Object.fromEntries(Object.entries(shape).map(([key, entry]) => [key, fileSchema(key, entry.schema)])));
  try {
    const parsed = parseOptions(schema, supported, '');
    return Object.fromEntries(Object.entries(shape).map(([key, { camel }]) => [camel, parsed[key]])) as ResolvedLoraConfig;
  } catch (error) {
    if (error instanceof LowrankError) throw new LowrankError('INVALID_ADAPTER', `${file}: ${error.message}`);
    throw error;
  }
}

function initialisation(value: unknown, file: string): unknown {
  if (typeof value !== 'string') return value ?? true;
  if (BASE_CHANGING.test(value)) {
    throw new LowrankError(
      'INVALID_ADAPTER',
      `${file}: init_lora_weights: found ${shown(value)}, which changes the base's weights; convert it to a plain LoRA with PEFT (save_pretrained with path_initial_model_for_weight_conversion)`,
    );
  }
  return value === 'gaussian' ? value : true;
}

function refuseVariant(key: string, value: unknown, file: string): void {
  if (HARMLESS.includes(key) || isOff(value)) return;
  const known = Object.hasOwn(PEFT_DEFAULTS, key);
  // A key of a later PEFT: by its naming, a switched-on `use_…` or a filled-in `…_config` is another computation.
  const looksLikeVariant = (/^use_/.test(key) && value === true) || (/_config$/.test(key) && typeof value === 'object');
  if (known || looksLikeVariant) {
    throw new LowrankError(
      'INVALID_ADAPTER',
      `${file}: ${key}: found ${shown(value)}, which changes what the adapter computes and is not supported yet`,
    );
  }
}

function isOff(value: unknown): boolean {
  return value === null || value === undefined || value === false || (typeof value === 'object' && Object.keys(value).length === 0);
}

function snakeCase(camel: string): string {
  return camel.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
}
