import { call, type NativeModel, type NativeTrainBatch, native } from '../native.ts';
import type { ModelCore } from './core.ts';
import { Tensor } from './tensor.ts';

export interface LossAndGradients {
  /** Mean over the supervised tokens. */
  loss: number;
  tokens: number;
  /** d loss / d parameter, by the parameter's name in the safetensors files. */
  gradients: Map<string, Tensor>;
}

const kWholeModel = 'whole model';

/**
 * Loss of a batch and the gradients of the trainable parameters; where no adapter is trained, of all the model's own (each then has an fp32
 * copy for the length of the call). `tokens`: supervised tokens of the batch.
 */
export function lossAndGradients(
  core: ModelCore,
  batch: NativeTrainBatch,
  tokens: number,
  publicName: (name: string) => string,
): Promise<LossAndGradients> {
  return core.run(async (model) => {
    const trained = model.parameters().filter((parameter) => parameter.trainable);
    if (trained.length > 0) {
      const names = trained.map((parameter) => parameter.name);
      return backward(model, batch, tokens, names, publicName);
    }
    return withWholeModelTrained(model, async (names, originalName) => {
      const result = await backward(model, batch, tokens, names, originalName);
      if (model.config.tiedHead) addHeadToEmbedding(result.gradients);
      return result;
    });
  });
}

async function backward(
  model: NativeModel,
  batch: NativeTrainBatch,
  tokens: number,
  names: string[],
  publicName: (name: string) => string,
): Promise<LossAndGradients> {
  const shapes = new Map(model.parameters().map((parameter) => [parameter.name, parameter.shape]));
  const session = call(() => native().createSession(model, { maxTokens: batch.ids.length, keep: { mode: 'all', every: 1 }, noDecay: [] }));
  try {
    const { nllSum } = await session.accumulate(batch, { gradScale: 1 / tokens, seed: 0, step: 0, micro: 0 });
    const gradients = new Map<string, Tensor>();
    for (const name of names) gradients.set(publicName(name), new Tensor(shapes.get(name) ?? [], await session.readGradient(name)));
    return { loss: nllSum / tokens, tokens, gradients };
  } finally {
    session.dispose();
  }
}

/** An adapter that overrides every tensor of the base makes the whole model trainable while `run` runs. */
async function withWholeModelTrained<T>(
  model: NativeModel,
  run: (names: string[], originalName: (name: string) => string) => Promise<T>,
): Promise<T> {
  const suffix = `.${kWholeModel}`;
  await model.addAdapter(kWholeModel, []);
  try {
    for (const slot of model.slots()) await model.addOverride(kWholeModel, slot.name);
    model.setActiveAdapters([kWholeModel]);
    const names = model.slots().map((slot) => slot.name + suffix);
    model.setTrainable(names);
    return await run(names, (name) => name.slice(0, -suffix.length));
  } finally {
    model.removeAdapter(kWholeModel);
  }
}

function addHeadToEmbedding(gradients: Map<string, Tensor>): void {
  const head = gradients.get('lm_head.weight');
  const embedding = gradients.get('model.embed_tokens.weight');
  if (!head || !embedding) return;
  head.data.forEach((value, i) => {
    embedding.data[i] = (embedding.data[i] as number) + value;
  });
  gradients.delete('lm_head.weight');
}
