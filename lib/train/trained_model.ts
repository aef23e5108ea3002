import { createHash } from 'node:crypto';
import { LowrankError } from '../errors.ts';
import type { CausalLM } from '../model/causal_lm.ts';
import { saveModel } from '../model/save_model.ts';
import { elementCount } from '../model/tensor.ts';
import { listed, openSafetensorsFolder, type TensorLocation } from '../model/tensor_source.ts';
import { trainedTensors } from '../model/trained_tensors.ts';
import type { NativeModel } from '../native.ts';
import type { TrainedLayers } from '../options/trained_layers.ts';
import { cannotTrainQuantized } from '../options/trainer_options.ts';
import { type FingerprintPart, hashJson } from './fingerprint.ts';
import type { TrainedWeights } from './trained_weights.ts';

/** What weights are trained in. */
type WeightType = 'F32' | 'BF16';

/** Of an earlier training's adapter, which Transformers would load in the place of the model. */
const ADAPTER_FILES = /^adapter_(config\.json|model\.safetensors)$/;
/** Of each frozen tensor as much as tells it from another model's. */
const COMPARED_BYTES = 4096;

/** The weights of a model itself, all of them or some. */
export class TrainedModel implements TrainedWeights {
  readonly model: CausalLM;
  readonly notes: readonly string[];
  readonly #names: readonly string[];
  readonly #type: WeightType;

  private constructor(model: CausalLM, names: readonly string[], type: WeightType, notes: readonly string[]) {
    this.model = model;
    this.#names = names;
    this.#type = type;
    this.notes = notes;
  }

  /**
   * Brings the model's weights into the type that they are trained in, in memory where they can be changed.
   *
   * @throws INVALID_OPTION, UNSUPPORTED_QUANTIZATION
   */
  static async create(model: CausalLM, layers: TrainedLayers): Promise<TrainedModel> {
    const { core } = model;
    if (core.quantization) throw cannotTrainQuantized('model');
    return await core.run(async (native) => {
      refuseAdapters(native);
      const names = trainedTensors(native, layers);
      const type = weightType(native, core.dtype === 'float32');
      const trained = new TrainedModel(model, names, type, notesOn(native, type));
      // First, so that the model is never in memory in two types.
      await native.trainBase(names, type);
      for (const { name } of otherwiseStored(native, type)) await native.convert(name, type);
      return trained;
    });
  }

  async activate(): Promise<void> {
    await this.model.core.run((native) => native.trainBase([...this.#names], this.#type));
  }

  names(): string[] {
    return [...this.#names];
  }

  count(): { trainable: number; all: number } {
    const counts = { trainable: 0, all: 0 };
    for (const { shape, trainable } of this.model.core.native.parameters()) {
      counts.all += elementCount(shape);
      if (trainable) counts.trainable += elementCount(shape);
    }
    return counts;
  }

  /** Weights have the type that they are trained in, norms and biases are float32: what is read again is what was written. */
  save(folder: string): Promise<void> {
    return saveModel(this.model.core, folder, {}, (name) => ADAPTER_FILES.test(name));
  }

  folder(folder: string): string {
    return folder;
  }

  /** @throws CHECKPOINT_CORRUPT where a tensor is missing or has another shape */
  async load(folder: string): Promise<void> {
    const tensors = await openSafetensorsFolder(folder);
    try {
      await this.model.core.run(async (native) => {
        const shapes = new Map(native.slots().map(({ name, shape }) => [name, shape]));
        const unfit = this.#names.filter((name) => String(tensors.get(name)?.info.shape) !== String(shapes.get(name)));
        if (unfit.length > 0) {
          throw new LowrankError(
            'CHECKPOINT_CORRUPT',
            `${folder}: the weights lack ${listed(unfit)}, or have them in other shapes than the model`,
          );
        }
        for (const name of this.#names) await native.loadParameter(name, (tensors.get(name) as TensorLocation).file, name);
      });
    } finally {
      for (const file of new Set([...tensors.values()].map((location) => location.file))) file.close();
    }
  }

  /** A resume sets what is trained from the checkpoint, so that only what is frozen has to be the same. */
  async identity(): Promise<{ base: FingerprintPart; adapter: FingerprintPart }> {
    return await this.model.core.run((native) => {
      const trained = new Set(this.#names);
      const parameters = native.parameters();
      const frozen = parameters.filter(({ name }) => !trained.has(name));
      const hash = createHash('sha256');
      for (const { name } of frozen) hash.update(native.readBytes(name, 0, COMPARED_BYTES));
      const shapes = parameters.filter(({ name }) => trained.has(name)).map(({ name, shape, dtype }) => [name, shape, dtype]);
      return {
        base: { config: hashJson(native.config), frozen: hash.digest('hex') },
        adapter: { none: true, weights: this.#type, trainedTensors: shapes.length, parameters: hashJson(shapes) },
      };
    });
  }
}

/** A CausalLM computes with the adapters of the PeftModels around it. */
function refuseAdapters(native: NativeModel): void {
  const slots = new Set(native.slots().map(({ name }) => name));
  const others = native.parameters().filter(({ name }) => !slots.has(name));
  if (others.length === 0) return;
  throw new LowrankError(
    'INVALID_OPTION',
    `model: found a model with an adapter on it (${others[0]?.name}), expected one without to train the whole model; delete the adapter or load the base again`,
  );
}

/** bfloat16 unless all weights are float32, or were asked to be. */
function weightType(native: NativeModel, asFloat32: boolean): WeightType {
  return asFloat32 || native.parameters().every(({ dtype }) => dtype === 'F32') ? 'F32' : 'BF16';
}

/** Matrices that are neither float32 nor in `type`. */
function otherwiseStored(native: NativeModel, type: WeightType): { name: string; dtype: string }[] {
  return native.parameters().filter(({ dtype }) => dtype !== 'F32' && dtype !== type);
}

function notesOn(native: NativeModel, type: WeightType): string[] {
  const others = [...new Set(otherwiseStored(native, type).map(({ dtype }) => dtype))];
  const from = others.length > 0 ? `, decoded from ${others.join(', ')}` : '';
  return [`weights: ${type === 'F32' ? 'float32' : 'bfloat16, updated with stochastic rounding'}${from}`];
}
