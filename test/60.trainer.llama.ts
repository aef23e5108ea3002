import { random } from './60.trainer.quadratic.ts';

/** A Llama small enough to train in a test. */
export const llamaConfig = {
  architectures: ['LlamaForCausalLM'],
  model_type: 'llama',
  vocab_size: 97,
  hidden_size: 32,
  intermediate_size: 56,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  max_position_embeddings: 128,
  rms_norm_eps: 1e-5,
  rope_theta: 10000,
  tie_word_embeddings: true,
  hidden_act: 'silu',
  bos_token_id: 1,
  eos_token_id: 2,
};

/** Rows of a language in which the next token mostly follows from the last: there is something to learn. */
export function tokenRows(count: number, seed: number): { inputIds: number[]; labels: number[] }[] {
  const next = random(seed);
  return Array.from({ length: count }, () => {
    const inputIds = [1 + Math.floor(next() * 96)];
    const length = 3 + Math.floor(next() * 20);
    while (inputIds.length < length)
      inputIds.push(next() < 0.9 ? (((inputIds.at(-1) as number) * 5 + 3) % 96) + 1 : 1 + Math.floor(next() * 96));
    return { inputIds, labels: inputIds.map((id, place) => (place > 1 && next() < 0.2 ? -100 : id)) };
  });
}
