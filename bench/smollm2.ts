// The model that everything here is measured on.

/** SmolLM2-135M's sizes. */
export const kSmolLm2 = {
  layers: 30,
  hidden: 576,
  ffn: 1536,
  heads: 9,
  kvHeads: 3,
  headDim: 64,
  vocabulary: 49152,
  /** LoRA of rank 16 on all seven linear layers. */
  loraParameters: 4_884_480,
} as const;

/** Flop that one token of a training step takes at least (frozen weights, LoRA r=16), in sequences of `length`. */
export function flopsPerToken(length: number): { dense: number; attention: number } {
  const { layers, hidden, ffn, heads, kvHeads, headDim, vocabulary, loraParameters } = kSmolLm2;
  const linear = layers * (2 * hidden * heads * headDim + 2 * hidden * kvHeads * headDim + 3 * hidden * ffn);
  // Forward and dX of the frozen weights, the same and dW of the adapters, logits and dH of the head.
  const dense = 4 * linear + 6 * loraParameters + 4 * hidden * vocabulary;
  // Two products forward and five backward over the visible pairs.
  const attention = (14 * layers * heads * headDim * (length + 1)) / 2;
  return { dense, attention };
}
