import { z } from 'zod';

const selection = z.array(
  z.union([z.int(), z.string().min(1)], { error: "a decoder block's number, or the name of a module or tensor such as 'embed_tokens'" }),
);

/**
 * What full fine-tuning changes of the model. Numbers are decoder blocks, negative ones counted from the end. Texts are whole dotted parts of the
 * names of modules and tensors: 'embed_tokens', 'mlp', 'norm', 'model.layers.3', 'self_attn.q_proj.bias'.
 */
export const trainedLayersSchema = z.strictObject({
  trained: selection.min(1).optional().describe('Train only these; left out: everything.'),
  frozen: selection.optional().describe('Leave these as they are, though trained has them.'),
});

/** `layers` of LoraTrainer, for full fine-tuning. */
export type TrainedLayers = z.input<typeof trainedLayersSchema>;
