// Names of tensors in GGUF files and in safetensors files.

const kGlobal: Record<string, string> = {
  'token_embd.weight': 'model.embed_tokens.weight',
  'output_norm.weight': 'model.norm.weight',
  'output.weight': 'lm_head.weight',
};

const kInBlock: Record<string, string> = {
  attn_norm: 'input_layernorm',
  ffn_norm: 'post_attention_layernorm',
  attn_q: 'self_attn.q_proj',
  attn_k: 'self_attn.k_proj',
  attn_v: 'self_attn.v_proj',
  attn_output: 'self_attn.o_proj',
  ffn_gate: 'mlp.gate_proj',
  ffn_up: 'mlp.up_proj',
  ffn_down: 'mlp.down_proj',
};

/** The safetensors name of a tensor in a GGUF file, e.g. model.layers.3.self_attn.q_proj.weight for blk.3.attn_q.weight; undefined for others. */
export function fromGgufName(name: string): string | undefined {
  if (Object.hasOwn(kGlobal, name)) return kGlobal[name];
  const [, layer, module = '', kind] = /^blk\.(\d+)\.(\w+)\.(weight|bias)$/.exec(name) ?? [];
  return Object.hasOwn(kInBlock, module) ? `model.layers.${layer}.${kInBlock[module]}.${kind}` : undefined;
}
