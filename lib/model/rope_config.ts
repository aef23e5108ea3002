import { LowrankError, shown } from '../errors.ts';
import type { NativeRopeConfig } from '../native.ts';
import type { ConfigReader } from './config_reader.ts';

const kKinds = ['default', 'linear', 'dynamic', 'yarn', 'llama3'] as const;
const kMaxPosition = 2 ** 31 - 1;
const kMaxTheta = 1e30;

/**
 * The rotary embedding of a config.json, as Transformers' modeling_rope_utils reads it: `rope_scaling` (with `type` or `rope_type`) or
 * `rope_parameters`, with rope_theta and partial_rotary_factor in them or beside them.
 */
export function readRope(config: ConfigReader, headDim: number, maxPosition: number): NativeRopeConfig {
  const scaling = nonEmpty(config.object('rope_scaling')) ?? config.object('rope_parameters');
  const theta = (scaling?.has('rope_theta') ? scaling : config).number('rope_theta', 10000, Number.MIN_VALUE, kMaxTheta);
  const rotated = (scaling?.has('partial_rotary_factor') ? scaling : config).number('partial_rotary_factor', 1, 0, 1);
  const rotaryDim = Math.floor(headDim * rotated);
  if (rotaryDim < 2 || rotaryDim % 2 !== 0) {
    throw new LowrankError(
      'INVALID_CONFIG',
      `config.json: head_dim ${headDim} with partial_rotary_factor ${rotated} rotates ${rotaryDim} values of a head; expected an even number`,
    );
  }
  const rope: NativeRopeConfig = { kind: readKind(scaling), theta, rotaryDim, maxPosition };
  if (scaling === undefined || rope.kind === 'default') return rope;
  const original = (config.has('original_max_position_embeddings') ? config : scaling).integer(
    'original_max_position_embeddings',
    maxPosition,
    1,
    kMaxPosition,
  );
  switch (rope.kind) {
    case 'linear':
    case 'dynamic':
      return { ...rope, factor: scaling.number('factor', undefined, Number.MIN_VALUE, 1e9) };
    case 'llama3':
      return { ...rope, originalMaxPosition: original, ...readLlama3(scaling) };
    case 'yarn':
      return { ...rope, originalMaxPosition: original, ...readYarn(scaling, maxPosition / original) };
  }
}

function nonEmpty(reader: ConfigReader | undefined): ConfigReader | undefined {
  return reader && reader.keys().length > 0 ? reader : undefined;
}

function readKind(scaling: ConfigReader | undefined): NativeRopeConfig['kind'] {
  if (scaling === undefined) return 'default';
  const perLayerType = scaling.keys().filter((key) => key.endsWith('_attention'));
  if (perLayerType.length > 0) {
    throw new LowrankError(
      'UNSUPPORTED_MODEL',
      `config.json: rope_parameters differ by layer type (${perLayerType.join(', ')}); one rotary embedding for all layers is supported`,
    );
  }
  const kind = scaling.string(scaling.has('rope_type') ? 'rope_type' : 'type', 'default');
  const known = kKinds.find((candidate) => candidate === kind);
  if (known) return known;
  throw new LowrankError('UNSUPPORTED_MODEL', `config.json: rope type is ${shown(kind)}; supported are ${kKinds.join(', ')}`);
}

function readLlama3(scaling: ConfigReader): Pick<NativeRopeConfig, 'factor' | 'lowFreqFactor' | 'highFreqFactor'> {
  const lowFreqFactor = scaling.number('low_freq_factor', undefined, Number.MIN_VALUE, 1e9);
  const highFreqFactor = scaling.number('high_freq_factor', undefined, Number.MIN_VALUE, 1e9);
  if (highFreqFactor <= lowFreqFactor) throw scaling.invalid('high_freq_factor', `more than low_freq_factor ${lowFreqFactor}`);
  return { factor: scaling.number('factor', undefined, Number.MIN_VALUE, 1e9), lowFreqFactor, highFreqFactor };
}

function readYarn(scaling: ConfigReader, lengthRatio: number): Partial<NativeRopeConfig> {
  // Zero and null both stand for "not given" here, as in Transformers.
  const given = (key: string) => scaling.number(key, 0, 0, 1e9) || undefined;
  const yarn: Partial<NativeRopeConfig> = { factor: scaling.number('factor', lengthRatio, Number.MIN_VALUE, 1e9) };
  const optional = {
    betaFast: given('beta_fast'),
    betaSlow: given('beta_slow'),
    mscale: given('mscale'),
    mscaleAllDim: given('mscale_all_dim'),
  };
  for (const [key, value] of Object.entries(optional)) if (value !== undefined) Object.assign(yarn, { [key]: value });
  if (scaling.has('attention_factor')) yarn.attentionFactor = scaling.number('attention_factor', undefined, 0, 1e9);
  yarn.truncate = scaling.boolean('truncate', true);
  return yarn;
}
