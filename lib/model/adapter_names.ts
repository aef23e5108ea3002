import type { Targets } from './targets.ts';

// Names of an adapter's tensors: in adapter_model.safetensors they are PEFT's, where the adapter's own name does not occur; in the
// native model they end with it.

/** An adapter's parameter. */
export interface AdapterParameter {
  /** e.g. base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight */
  key: string;
  /** e.g. model.layers.0.self_attn.q_proj.lora_A.default */
  native: string;
  shape: number[];
}

const kPrefix = 'base_model.model.';

/** Every parameter of an adapter on a model with these slots. */
export function adapterParameters(
  adapter: string,
  targets: Targets,
  slots: readonly { name: string; shape: number[] }[],
): AdapterParameter[] {
  const shapes = new Map(slots.map((slot) => [slot.name, slot.shape]));
  const adapted = new Set(targets.lora.map((module) => module.module));
  const lora = targets.lora.flatMap(({ module, r }) => {
    const [outputs = 0, inputs = 0] = shapes.get(`${module}.weight`) ?? [];
    const parameter = (part: string, shape: number[]) => ({
      key: `${kPrefix}${module}.${part}.weight`,
      native: `${module}.${part}.${adapter}`,
      shape,
    });
    return [parameter('lora_A', [r, inputs]), parameter('lora_B', [outputs, r])];
  });
  const copy = (slot: string, key: string) => ({ key, native: `${slot}.${adapter}`, shape: shapes.get(slot) ?? [] });
  const saved = targets.saved.map((slot) => copy(slot, kPrefix + slot));
  const biases = targets.biases.map((slot) => {
    const module = slot.slice(0, -'.bias'.length);
    // PEFT puts the layer that it adapts under base_layer.
    return copy(slot, `${kPrefix}${module}${adapted.has(module) ? '.base_layer' : ''}.bias`);
  });
  return [...lora, ...saved, ...biases];
}

/** The key as PEFT writes it today, for one of an older PEFT. */
export function normalisedKey(key: string, expected: ReadonlySet<string>): string {
  if (expected.has(key) || !key.endsWith('.bias')) return key;
  const wrapped = key.replace(/\.bias$/, '.base_layer.bias');
  return expected.has(wrapped) ? wrapped : key;
}

/** Whether PEFT wrote the key beside another that says the same: `bias: 'all'` takes every bias in a module of modules_to_save by its inner name too. */
export function isRepetition(key: string, expected: ReadonlySet<string>): boolean {
  const outer = key.replace(/\.(modules_to_save|original_module)\.bias$/, '.bias');
  return outer !== key && expected.has(outer);
}
