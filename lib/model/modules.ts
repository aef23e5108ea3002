import { LowrankError } from '../errors.ts';
import type { NativeModel } from '../native.ts';

/** A module that owns tensors. */
export interface ModelModule {
  /** As Transformers names it: model.layers.0.self_attn.q_proj */
  name: string;
  kind: 'linear' | 'embedding' | 'norm' | 'head';
  /** Slots of the native model. */
  weight: string;
  bias: string | undefined;
  /** [out, in], or [size] of a norm. */
  shape: number[];
}

/** The modules that own the model's tensors, in Transformers' order. */
export function modulesOf(model: NativeModel): ModelModule[] {
  const shapes = new Map(model.slots().map((slot) => [slot.name, slot.shape]));
  const modules = [...shapes]
    .filter(([name]) => name.endsWith('.weight'))
    .map(([weight, shape]): ModelModule => {
      const name = weight.slice(0, -'.weight'.length);
      const bias = `${name}.bias`;
      return { name, kind: kindOf(name), weight, bias: shapes.has(bias) ? bias : undefined, shape };
    });
  return modules.sort((a, b) => orderOf(a.name) - orderOf(b.name));
}

/** Every module name that PEFT's patterns can meet: those that own tensors, and those that hold others. */
export function allModuleNames(modules: readonly ModelModule[]): string[] {
  const names = new Set<string>();
  for (const { name } of modules) {
    const parts = name.split('.');
    for (let length = 1; length <= parts.length; ++length) names.add(parts.slice(0, length).join('.'));
    if (name.endsWith('.mlp.down_proj')) names.add(name.replace(/down_proj$/, 'act_fn'));
  }
  names.add('model.rotary_emb');
  return [...names];
}

function kindOf(name: string): ModelModule['kind'] {
  if (name === 'lm_head') return 'head';
  if (name === 'model.embed_tokens') return 'embedding';
  return name.endsWith('norm') ? 'norm' : 'linear';
}

const kLayerParts = [
  'q_proj',
  'k_proj',
  'v_proj',
  'o_proj',
  'gate_proj',
  'up_proj',
  'down_proj',
  'input_layernorm',
  'post_attention_layernorm',
];

function orderOf(name: string): number {
  const [, layer, part = ''] = /^model\.layers\.(\d+)\.(?:\w+\.)?(\w+)$/.exec(name) ?? [];
  if (layer !== undefined) return 1 + Number(layer) + kLayerParts.indexOf(part) / 16;
  return name === 'model.embed_tokens' ? 0 : Number.MAX_SAFE_INTEGER + (name === 'lm_head' ? 0 : -1);
}

/** The names among `known` whose last parts are nearest to `name`, for messages. */
function nearestNames(name: string, known: readonly string[]): string[] {
  const ends = [...new Set(known.map((full) => full.split('.').at(-1) as string).filter((end) => !/^\d+$/.test(end)))];
  const wanted = name.split('.').at(-1)?.toLowerCase() ?? '';
  const shared = (end: string) => [...bigrams(end)].filter((pair) => bigrams(wanted).has(pair)).length / Math.max(1, end.length);
  return ends.sort((a, b) => shared(b) - shared(a)).slice(0, 7);
}

function bigrams(text: string): Set<string> {
  return new Set(Array.from({ length: Math.max(0, text.length - 1) }, (_, i) => text.slice(i, i + 2)));
}

export function nothingMatched(option: string, found: string, names: readonly string[]): LowrankError {
  return new LowrankError(
    'INVALID_OPTION',
    `${option}: found ${found}, which matches no module; the nearest are ${nearestNames(found.replace(/['"[\]]/g, ''), names).join(', ')}`,
  );
}
