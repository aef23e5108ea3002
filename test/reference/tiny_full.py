"""Full fine-tuning of the tiny models by Transformers and torch's AdamW: heads tied and not, biases, windows, frozen parts."""

from __future__ import annotations

import dataclasses

import torch


@dataclasses.dataclass(frozen=True)
class TinyFull:
    name: str
    model: str
    # `layers` of lowrank's trainer, and the tensors (by a prefix of their names) that it freezes.
    layers: dict = dataclasses.field(default_factory=dict)
    frozen: tuple[str, ...] = ()


TINY_FULL = [
    TinyFull("all", "llama_tied"),
    TinyFull("all", "llama_bias"),
    TinyFull("all", "llama_multi_query"),
    TinyFull("all", "mistral_window"),
    TinyFull("all", "mistral_full"),
    TinyFull("all", "qwen2_window"),
    TinyFull("all", "qwen2_full"),
    TinyFull("frozen_embedding_and_block", "llama_tied", {"frozen": [0, "embed_tokens"]}, ("model.layers.0.", "model.embed_tokens.")),
    TinyFull("frozen_attention", "qwen2_full", {"frozen": ["self_attn", "lm_head"]},
             ("model.layers.0.self_attn.", "model.layers.1.self_attn.", "lm_head.")),
    TinyFull("last_block_and_norm", "llama_multi_query", {"trained": [-1, "norm"]},
             ("model.embed_tokens.", "model.layers.0.", "model.layers.1.", "lm_head.")),
]


def freeze(model: torch.nn.Module, spec: TinyFull) -> torch.nn.Module:
    """All parameters trainable but the frozen ones; each prefix must mean something."""
    names = [name for name, _ in model.named_parameters()]
    for prefix in spec.frozen:
        if not any(name.startswith(prefix) for name in names):
            raise RuntimeError(f"{spec.model} {spec.name}: nothing starts with {prefix}")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(spec.frozen))
    return model
