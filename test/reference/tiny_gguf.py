"""Random tiny GGUF files, and Transformers' logits on the weights that the gguf package unpacks from them.

Types that the package can quantise are quantised from random weights; the K and IQ types, which it only unpacks, get random blocks (every
bit pattern of quants and sub-scales, block scales chosen for unit gain). Rows of q and k lie in the interleaved order of llama files.
The files have no tokenizer.

A file <name>.gguf has beside it <name>.json (inputIds, and the config that Transformers was given) and <name>.safetensors (logits).
"""

from __future__ import annotations

import dataclasses
import math
import pathlib

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from fixture_files import write_arrays, write_json
from tiny_models import draw_weights, rope

LAYER_TENSORS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
TOP_TENSORS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}

# Bytes of a block, where its fp16 fields lie, and their values for weights of about 1/16, as 256 columns want.
RANDOM_BLOCKS = {
    Type.Q2_K: (84, {80: 6e-3, 82: 9e-3}),
    Type.Q3_K: (110, {108: 1.5e-3}),
    Type.Q4_K: (144, {0: 2.6e-4, 2: 1.95e-3}),
    Type.Q5_K: (176, {0: 1.3e-4, 2: 2.0e-3}),
    Type.Q6_K: (210, {208: 4.6e-5}),
    Type.IQ4_NL: (18, {0: 8e-4}),
    Type.IQ4_XS: (136, {0: 4.5e-5}),
}


@dataclasses.dataclass(frozen=True)
class TinyGguf:
    name: str
    arch: str
    config: dict
    # Storage type by the tensor's GGUF name without block number and suffix; "" is for all others. Vectors are F32.
    types: dict[str, Type]
    rows: int = 2
    length: int = 17


TINY_GGUFS = [
    TinyGguf(
        "llama_f16_bias", "llama",
        dict(vocab_size=37, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1,
             head_dim=8, attention_bias=True, mlp_bias=True, rms_norm_eps=1e-5, rope_parameters=rope("linear", theta=500.0, factor=2.0)),
        {"": Type.F16},
    ),
    TinyGguf(
        "llama_q8_0_tied", "llama",
        dict(vocab_size=41, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             tie_word_embeddings=True, rope_parameters=rope("default")),
        {"": Type.Q8_0},
    ),
    TinyGguf(
        "llama_wide_heads", "llama",
        dict(vocab_size=41, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
             head_dim=32, rope_parameters=rope("default", theta=5e5)),
        {"": Type.Q4_1, "token_embd": Type.Q8_0, "attn_v": Type.Q5_0, "ffn_down": Type.Q5_1, "output": Type.BF16, "attn_k": Type.F32},
    ),
    TinyGguf(
        "qwen2_q4_0", "qwen2",
        dict(vocab_size=43, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             rope_parameters=rope("default", theta=1e6)),
        {"": Type.Q4_0, "token_embd": Type.Q8_0, "output": Type.F16},
    ),
    TinyGguf(
        "llama3_rope", "llama",
        dict(vocab_size=37, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
             head_dim=16, rms_norm_eps=1e-5, max_position_embeddings=65536,
             rope_parameters=rope("llama3", theta=5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                  original_max_position_embeddings=8192)),
        {"": Type.Q8_0},
        rows=1,
        length=160,
    ),
    TinyGguf(
        "llama_k_quants", "llama",
        dict(vocab_size=32, hidden_size=256, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             head_dim=16, rope_parameters=rope("default")),
        {"": Type.Q4_K, "token_embd": Type.Q6_K, "output": Type.Q5_K, "attn_k": Type.Q3_K, "attn_v": Type.Q2_K, "ffn_up": Type.IQ4_XS,
         "attn_output": Type.IQ4_NL, "ffn_down": Type.Q5_1},
    ),
]


def gguf_names(config: dict) -> dict[str, str]:
    """Module in Transformers → tensor in GGUF, both without .weight or .bias."""
    names = dict(TOP_TENSORS)
    for layer in range(config["num_hidden_layers"]):
        names |= {f"model.layers.{layer}.{ours}": f"blk.{layer}.{theirs}" for ours, theirs in LAYER_TENSORS.items()}
    return names


def interleave(rows: np.ndarray, heads: int) -> np.ndarray:
    """Half-split rotary order → interleaved, as llama.cpp's converter permutes q and k."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def half_split(rows: np.ndarray, heads: int) -> np.ndarray:
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def random_blocks(kind: Type, rows: int, columns: int, generator: np.random.Generator) -> np.ndarray:
    block_bytes, scales = RANDOM_BLOCKS[kind]
    values, _ = gguf.GGML_QUANT_SIZES[kind]
    blocks = generator.integers(0, 256, (rows, columns // values, block_bytes), dtype=np.uint8)
    for offset, scale in scales.items():
        jitter = generator.uniform(0.8, 1.2, blocks.shape[:2])
        blocks[:, :, offset:offset + 2] = (scale * jitter).astype(np.float16)[..., None].view(np.uint8)
    return blocks.reshape(rows, -1)


def stored(tensor: np.ndarray, kind: Type, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of a tensor in the file, and the values they stand for."""
    if kind in RANDOM_BLOCKS:
        data = random_blocks(kind, *tensor.shape, generator)
    else:
        data = gguf.quantize(tensor, kind)
    return data, gguf.dequantize(data, kind).reshape(tensor.shape).astype(np.float32)


def add_hyperparameters(writer: gguf.GGUFWriter, config) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_rope_dimension_count(head_dim)
    if head_dim * config.num_attention_heads != config.hidden_size:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if config.rope_parameters["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_parameters["factor"])


def llama3_divisors(parameters: dict, head_dim: int) -> np.ndarray:
    """rope_freqs.weight as llama.cpp's converter computes it: what each frequency is divided by."""
    original, low, high = (parameters[key] for key in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor"))
    divisors = []
    for pair in range(head_dim // 2):
        wavelength = 2 * math.pi * parameters["rope_theta"] ** (2 * pair / head_dim)
        smooth = min(1.0, max(0.0, (original / wavelength - low) / (high - low)))
        divisors.append(1 / ((1 - smooth) / parameters["factor"] + smooth))
    return np.array(divisors, dtype=np.float32)


def write_file(spec: TinyGguf, model, path: pathlib.Path, seed: int) -> dict[str, torch.Tensor]:
    """Writes the file and returns the state dict it stands for."""
    generator = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, spec.arch)
    add_hyperparameters(writer, model.config)
    if model.config.rope_parameters["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_divisors(model.config.rope_parameters, model.config.head_dim))
    state = {}
    for module, base in gguf_names(spec.config).items():
        for suffix in ("weight", "bias"):
            name = f"{module}.{suffix}"
            if name not in model.state_dict() or (module == "lm_head" and spec.config.get("tie_word_embeddings")):
                continue
            tensor = model.state_dict()[name].numpy()
            heads = 0
            if spec.arch == "llama" and base.endswith(("attn_q", "attn_k")):
                heads = model.config.num_attention_heads if base.endswith("attn_q") else model.config.num_key_value_heads
                tensor = interleave(tensor, heads)
            kind = Type.F32 if tensor.ndim == 1 else spec.types.get(base.split(".")[-1], spec.types[""])
            data, values = stored(tensor, kind, generator)
            writer.add_tensor(f"{base}.{suffix}", data, raw_dtype=kind)
            state[name] = torch.from_numpy(half_split(values, heads) if heads else values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return state


def write_gguf_fixture(spec: TinyGguf, folder: pathlib.Path, seed: int) -> None:
    family, config_class = (Qwen2ForCausalLM, Qwen2Config) if spec.arch == "qwen2" else (LlamaForCausalLM, LlamaConfig)
    config = config_class(**spec.config, attn_implementation="eager")
    model = family(config).eval()
    draw_weights(model, torch.Generator().manual_seed(seed))
    state = write_file(spec, model, folder / f"{spec.name}.gguf", seed)
    model.load_state_dict(state, strict=not config.tie_word_embeddings)
    ids = torch.randint(config.vocab_size, (spec.rows, spec.length), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits
    write_json(folder / f"{spec.name}.json", {"config": spec.config, "inputIds": ids.tolist()})
    write_arrays(folder / f"{spec.name}.safetensors", {"logits": logits})


def write_gguf_fixtures(folder: pathlib.Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, spec in enumerate(TINY_GGUFS):
        write_gguf_fixture(spec, folder, 2000 + index)
