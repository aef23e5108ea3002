"""Prints the recorded rows of csrc/test/ops_rope.cpp: frequencies, scale, and cosines and sines at the last position, from Transformers."""

import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

LONG = 131071  # the last position


def floats(tensor: torch.Tensor) -> str:
    texts = (f"{value:.9g}" for value in tensor.tolist())
    return ", ".join((text if "." in text or "e" in text else text + ".0") + "f" for text in texts)


def row(name: str, config: str, parameters: dict, head_dim: int = 16, max_position: int = 2048, last: int = LONG) -> None:
    llama = LlamaConfig(
        hidden_size=2 * head_dim,
        num_attention_heads=2,
        head_dim=head_dim,
        max_position_embeddings=max_position,
        rope_parameters=parameters,
    )
    rotary = LlamaRotaryEmbedding(llama)
    cos, sin = (table[0, -1, : head_dim // 2] for table in rotary(torch.zeros(1), torch.tensor([[0, 1, last]])))
    scale = f"{float(rotary.attention_scaling):.9g}"
    print(f'    {{"{name}", {config}, {last + 1},')
    print(f"     {{{floats(rotary.inv_freq)}}},\n     {scale},\n     {{{floats(cos)}}},\n     {{{floats(sin)}}}}},")


def designated(kind: str, theta: float, dim: int, factor: float, longest: int, original: int, rest: str) -> str:
    return (
        f"{{.kind = RopeKind::{kind}, .theta = {theta}, .rotary_dim = {dim}, .factor = {factor}, .max_position = {longest}, "
        f".original_max_position = {original}, {rest}}}"
    )


def yarn(theta: float, factor: float, **rest: object) -> dict:
    return {"rope_type": "yarn", "rope_theta": theta, "factor": factor, "original_max_position_embeddings": 4096, **rest}


row("default", "{RopeKind::kDefault, 10000.0, 16}", {"rope_type": "default", "rope_theta": 1e4})
row("default, theta 500000", "{RopeKind::kDefault, 500000.0, 10}", {"rope_type": "default", "rope_theta": 5e5}, 10)
row("linear", "{RopeKind::kLinear, 10000.0, 16, 3.0}", {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0})
for name, last in (("dynamic, short", 2047), ("dynamic, long", 9999)):
    parameters = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    row(name, "{RopeKind::kDynamic, 10000.0, 16, 2.0, 2048}", parameters, last=last)
llama3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "original_max_position_embeddings": 8192}
llama3 |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
row("llama3", "{RopeKind::kLlama3, 500000.0, 32, 8.0, 131072, 8192, 1.0, 4.0}", llama3, 32, 131072)
row("yarn", "{RopeKind::kYarn, 10000.0, 32, 4.0, 16384, 4096}", yarn(1e4, 4.0), 32, 16384)
config = designated("kYarn", 150000.0, 32, 32.0, 131072, 4096, ".truncate = false")
row("yarn, bounds not whole", config, yarn(150000.0, 32.0, truncate=False, beta_fast=32.0, beta_slow=1.0), 32, 131072)
rest = ".beta_fast = 16.0, .beta_slow = 2.0, .mscale = 0.707, .mscale_all_dim = 1.0"
config = designated("kYarn", 10000.0, 32, 40.0, 163840, 4096, rest)
row("yarn, mscale", config, yarn(1e4, 40.0, mscale=0.707, mscale_all_dim=1.0, beta_fast=16.0, beta_slow=2.0), 32, 163840)
config = designated("kYarn", 10000.0, 16, 4.0, 16384, 4096, ".attention_factor = 0.8")
row("yarn, attention_factor", config, yarn(1e4, 4.0, attention_factor=0.8), 16, 16384)
