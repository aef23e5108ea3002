import { call, type NativeFloatType, type NativeModel } from '../native.ts';
import { normalValues } from './random.ts';
import { elementCount } from './tensor.ts';

/**
 * Fills a model with Transformers' initial weights: linear layers and embeddings normal with deviation initializer_range, norms one,
 * biases zero, and the embedding of the padding token zero. Every tensor depends on the seed and its own name alone.
 */
export async function initialiseWeights(
  model: NativeModel,
  config: Record<string, unknown>,
  seed: number,
  dtype: NativeFloatType,
): Promise<void> {
  const deviation = typeof config.initializer_range === 'number' ? config.initializer_range : 0.02;
  for (const { name, shape } of model.slots()) {
    if (name === 'lm_head.weight' && model.config.tiedHead) continue;
    const values = await initialValues(name, shape, deviation, seed, config.pad_token_id);
    await call(() => model.setTensor(name, values, dtype));
  }
  call(() => model.ready());
}

async function initialValues(name: string, shape: number[], deviation: number, seed: number, padId: unknown): Promise<Float32Array> {
  const count = elementCount(shape);
  if (shape.length === 1) return new Float32Array(count).fill(name.endsWith('.bias') ? 0 : 1);
  const values = await normalValues(seed, name, count, deviation);
  const [, width = 0] = shape;
  if (name === 'model.embed_tokens.weight' && typeof padId === 'number') values.fill(0, padId * width, (padId + 1) * width);
  return values;
}
