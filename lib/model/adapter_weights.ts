import type { NativeLoraModule, NativeModel } from '../native.ts';
import { normalValues, uniformValues } from './random.ts';

/**
 * Initial A and B, the same for the same seed: true: A uniform within 1 / sqrt(in) (Kaiming with a = sqrt(5)), B zero; 'gaussian': A normal with
 * deviation 1 / r, B zero; false: both uniform.
 */
export async function initialiseLora(
  model: NativeModel,
  adapter: string,
  modules: readonly NativeLoraModule[],
  kind: boolean | 'gaussian',
  seed: number,
): Promise<void> {
  const shapes = new Map(model.parameters().map((parameter) => [parameter.name, parameter.shape]));
  const uniform = (module: string, part: string) => {
    const [rows = 0, columns = 0] = shapes.get(`${module}.${part}.${adapter}`) ?? [];
    return uniformValues(seed, `${module}.${part}`, rows * columns, 1 / Math.sqrt(columns));
  };
  for (const { module, r } of modules) {
    const [, inputs = 0] = shapes.get(`${module}.lora_A.${adapter}`) ?? [];
    const a = kind === 'gaussian' ? await normalValues(seed, `${module}.lora_A`, r * inputs, 1 / r) : await uniform(module, 'lora_A');
    await model.writeParameter(`${module}.lora_A.${adapter}`, a);
    if (kind === false) await model.writeParameter(`${module}.lora_B.${adapter}`, await uniform(module, 'lora_B'));
  }
}
