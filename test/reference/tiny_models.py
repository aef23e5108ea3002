"""Random tiny causal language models: one per family, head layout, rope kind and storage type worth telling apart.

Every weight is drawn here (norms and biases too, which Transformers would leave at 1 and 0), rounded to the storage type and saved by
Transformers, so that what the tests load is what Transformers computes with.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib

import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM

IGNORED = -100


@dataclasses.dataclass(frozen=True)
class TinyModel:
    name: str
    about: str
    family: type
    config: dict
    dtype: torch.dtype = torch.float32
    length: int = 19
    shard_size: str = "1GB"
    # config.json as Transformers 4 wrote it: rope_theta and rope_scaling for rope_parameters, torch_dtype for dtype, no layer_types.
    older_config: bool = False


FAMILIES = {
    LlamaForCausalLM: LlamaConfig,
    MistralForCausalLM: MistralConfig,
    Qwen2ForCausalLM: Qwen2Config,
}


def rope(kind: str, theta: float = 10000.0, **values) -> dict:
    return {"rope_type": kind, "rope_theta": theta, **values}


TINY_MODELS = [
    TinyModel(
        "llama_tied",
        "odd number of heads, tied head, default rope",
        LlamaForCausalLM,
        dict(vocab_size=53, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=3,
             tie_word_embeddings=True, rope_parameters=rope("default")),
    ),
    TinyModel(
        "llama_bias",
        "biases on every linear layer, grouped queries, heads wider than hidden_size / heads, linear rope, bf16 storage",
        LlamaForCausalLM,
        dict(vocab_size=61, hidden_size=30, intermediate_size=44, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2,
             head_dim=10, attention_bias=True, mlp_bias=True, rms_norm_eps=1e-5, rope_parameters=rope("linear", factor=2.5)),
        dtype=torch.bfloat16,
    ),
    TinyModel(
        "llama_multi_query",
        "one key head for five query heads, three layers, Llama 3 rope in the older config keys, f16 storage",
        LlamaForCausalLM,
        dict(vocab_size=47, hidden_size=20, intermediate_size=36, num_hidden_layers=3, num_attention_heads=5, num_key_value_heads=1,
             head_dim=6, max_position_embeddings=64,
             rope_parameters=rope("llama3", theta=50.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                  original_max_position_embeddings=16)),
        dtype=torch.float16,
        length=31,
        older_config=True,
    ),
    TinyModel(
        "llama_yarn",
        "YaRN with everything derived, past the original length",
        LlamaForCausalLM,
        dict(vocab_size=41, hidden_size=24, intermediate_size=33, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1,
             head_dim=16, max_position_embeddings=64, rope_parameters=rope("yarn", factor=4.0, original_max_position_embeddings=16)),
        length=37,
    ),
    TinyModel(
        "llama_yarn_mscale",
        "YaRN with mscale, its own betas and bounds not rounded",
        LlamaForCausalLM,
        dict(vocab_size=41, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
             head_dim=20, max_position_embeddings=80,
             rope_parameters=rope("yarn", theta=500.0, factor=8.0, original_max_position_embeddings=10, beta_fast=20.0, beta_slow=2.0,
                                  mscale=0.8, mscale_all_dim=0.5, truncate=False)),
        length=29,
        older_config=True,
    ),
    TinyModel(
        "llama_dynamic",
        "dynamic NTK rope, rows longer than max_position_embeddings and shorter",
        LlamaForCausalLM,
        dict(vocab_size=41, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
             head_dim=12, max_position_embeddings=16, rope_parameters=rope("dynamic", factor=3.0)),
        length=27,
    ),
    TinyModel(
        "llama_smallest",
        "one layer, one head of two channels, vocabulary of seven",
        LlamaForCausalLM,
        dict(vocab_size=7, hidden_size=5, intermediate_size=3, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1,
             head_dim=2, rope_parameters=rope("default", theta=100.0)),
        length=5,
    ),
    TinyModel(
        "mistral_window",
        "sliding window of five in every layer, shards with an index, bf16 storage",
        MistralForCausalLM,
        dict(vocab_size=59, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             head_dim=8, sliding_window=5, rope_parameters=rope("default", theta=1000.0)),
        dtype=torch.bfloat16,
        length=23,
        shard_size="9KB",
    ),
    TinyModel(
        "mistral_full",
        "no window, seven query heads on one key head",
        MistralForCausalLM,
        dict(vocab_size=43, hidden_size=21, intermediate_size=30, num_hidden_layers=1, num_attention_heads=7, num_key_value_heads=1,
             head_dim=4, sliding_window=None, rope_parameters=rope("default")),
    ),
    TinyModel(
        "qwen2_window",
        "bias on q, k and v; a window of four in the first and the last of three layers; tied head",
        Qwen2ForCausalLM,
        dict(vocab_size=53, hidden_size=24, intermediate_size=36, num_hidden_layers=3, num_attention_heads=3, num_key_value_heads=1,
             use_sliding_window=True, sliding_window=4, layer_types=["sliding_attention", "full_attention", "sliding_attention"],
             tie_word_embeddings=True, rope_parameters=rope("default", theta=1e6)),
        length=21,
    ),
    TinyModel(
        "qwen2_older_config",
        "max_window_layers says that the first layer sees everything and the second a window of three",
        Qwen2ForCausalLM,
        dict(vocab_size=31, hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
             use_sliding_window=True, sliding_window=3, max_window_layers=1, rope_parameters=rope("default", theta=1e6)),
        length=14,
        older_config=True,
    ),
    TinyModel(
        "qwen2_full",
        "a sliding_window that use_sliding_window=false turns off, untied head; a low theta, so that key biases have a gradient to speak of",
        Qwen2ForCausalLM,
        dict(vocab_size=37, hidden_size=20, intermediate_size=28, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
             use_sliding_window=False, sliding_window=4, max_window_layers=1, tie_word_embeddings=False,
             rope_parameters=rope("default", theta=100.0)),
    ),
]


def draw_weights(model: torch.nn.Module, generator: torch.Generator) -> None:
    """Every parameter at random: matrices of unit gain, norms around 1, biases well off 0."""
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("bias"):
            values = 0.2 * noise
        elif parameter.ndim == 1:
            values = 1.0 + 0.3 * noise
        elif "embed_tokens" in name:
            values = 0.7 * noise
        else:
            values = noise / math.sqrt(parameter.shape[1])
        parameter.data.copy_(values)


def save_model(spec: TinyModel, folder: pathlib.Path, seed: int) -> None:
    model = spec.family(FAMILIES[spec.family](**spec.config))
    draw_weights(model, torch.Generator().manual_seed(seed))
    if spec.config.get("tie_word_embeddings"):
        model.tie_weights()
    model.to(spec.dtype).save_pretrained(folder, max_shard_size=spec.shard_size)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if spec.older_config:
        rewrite_older_config(folder / "config.json")


def rewrite_older_config(path: pathlib.Path) -> None:
    config = json.loads(path.read_text())
    parameters = config.pop("rope_parameters")
    config["rope_theta"] = parameters.pop("rope_theta")
    config["rope_scaling"] = parameters
    config["torch_dtype"] = config.pop("dtype", "float32")
    config.pop("layer_types", None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def load_model(spec: TinyModel, folder: pathlib.Path, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """Fresh for every use: dynamic rope remembers the longest row a model has seen."""
    return spec.family.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()


def positions_of(mask: torch.Tensor) -> torch.Tensor:
    """Positions count a row's own tokens, as Transformers' generate() makes them."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def make_batches(spec: TinyModel, seed: int) -> dict[str, dict]:
    """Three batches: full rows with all tokens supervised, rows padded on the right, rows padded on the left; the latter two with holes
    of -100. A row's first real token is never a label: nothing precedes it."""
    generator = torch.Generator().manual_seed(seed)
    vocabulary, length = spec.config["vocab_size"], spec.length

    def ids(rows: int) -> torch.Tensor:
        return torch.randint(vocabulary, (rows, length), generator=generator)

    plain = ids(2)
    batches = {"plain": batch_of(plain, torch.ones_like(plain), plain.clone())}
    lengths = [length, max(2, length // 3), max(2, length - 2)]
    for side in ("right", "left"):
        rows = ids(len(lengths))
        mask = torch.zeros_like(rows)
        for row, count in enumerate(lengths):
            mask[row, :count] = 1
        if side == "left":
            mask = mask.flip(-1)
        supervised = (torch.rand(rows.shape, generator=generator) < 0.6) & (mask == 1) & (positions_of(mask) > 0)
        batches[side] = batch_of(rows, mask, torch.where(supervised, rows, IGNORED))
    return batches


def batch_of(ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> dict:
    return {"inputIds": ids.tolist(), "attentionMask": mask.tolist(), "labels": labels.tolist()}


def run_batch(model: torch.nn.Module, batch: dict):
    """Transformers' output (logits and loss) for one of make_batches' batches."""
    mask = torch.tensor(batch["attentionMask"])
    return model(
        input_ids=torch.tensor(batch["inputIds"]),
        attention_mask=mask,
        position_ids=positions_of(mask),
        labels=torch.tensor(batch["labels"]),
        use_cache=False,
    )


def supervised_tokens(batch: dict) -> int:
    return sum(label != IGNORED for row in batch["labels"] for label in row[1:])
