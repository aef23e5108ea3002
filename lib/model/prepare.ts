import { z } from 'zod';
import { LowrankError, shown } from '../errors.ts';
import { call } from '../native.ts';
import { parseOptions } from '../options/parse.ts';
import { CausalLM } from './causal_lm.ts';

const schema = z.strictObject({
  useGradientCheckpointing: z.boolean().default(true).describe('Whether trainings of a quantised model checkpoint gradients.'),
});

/** Options of prepareModelForKbitTraining. */
export type KbitTrainingOptions = z.input<typeof schema>;

/**
 * Makes a model ready to be trained on, as PEFT's function of this name does: nothing of it is trainable any more, and trainings of a quantised model
 * checkpoint gradients unless `args.gradientCheckpointing` says otherwise. Returns the model.
 *
 * The rest of what PEFT does is so without it. The base of an adapter is frozen, and gradients pass through it. Norms and biases are fp32; embedding and
 * head keep their type, since a sum of their products is fp32 anyway.
 *
 * ```ts
 * const model = await CausalLM.fromPretrained('folder', { quantizationConfig: { loadIn4bit: true, bnb4bitQuantType: 'nf4' } });
 * const trainer = new LoraTrainer({ model: prepareModelForKbitTraining(model), trainDataset: 'train.jsonl', args: { outputDir: './lora_output' } });
 * ```
 *
 * @throws UNKNOWN_OPTION, INVALID_OPTION
 */
export function prepareModelForKbitTraining<Model extends CausalLM>(model: Model, options?: KbitTrainingOptions): Model {
  if (!(model instanceof CausalLM)) throw new LowrankError('INVALID_OPTION', `model: found ${shown(model)}, expected a CausalLM`);
  const { useGradientCheckpointing } = parseOptions(schema, options ?? {}, '');
  const { core } = model;
  call(() => core.native.setTrainable([]));
  if (useGradientCheckpointing && core.quantization !== undefined) core.gradientCheckpointing = true;
  return model;
}
