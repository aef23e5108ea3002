"""LoRA adapters on the tiny models, made, run and trained by PEFT: one for each way of saying what is adapted."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from transformers import Trainer, get_linear_schedule_with_warmup

from tiny_models import TinyModel, load_model, run_batch

STEPS = 20
WARMUP_STEPS = 3
LEARNING_RATE = 5e-3
WEIGHT_DECAY = 0.1
MAX_GRAD_NORM = 1.0


@dataclasses.dataclass(frozen=True)
class TinyAdapter:
    name: str
    model: str
    config: dict


TINY_ADAPTERS = [
    TinyAdapter("all_linear", "llama_tied", dict(r=4, lora_alpha=8, target_modules="all-linear")),
    TinyAdapter("default_rslora", "llama_tied", dict(r=5, lora_alpha=6, use_rslora=True)),
    TinyAdapter("tied_embedding", "llama_tied", dict(r=2, lora_alpha=4, target_modules=["o_proj"], modules_to_save=["embed_tokens"])),
    TinyAdapter("tied_head", "llama_tied", dict(r=2, lora_alpha=4, target_modules=["up_proj"], modules_to_save=["lm_head"])),
    TinyAdapter("bias_all", "llama_bias", dict(r=3, lora_alpha=6, target_modules=["q_proj", "down_proj"], bias="all")),
    TinyAdapter("bias_lora_only", "llama_bias", dict(r=3, lora_alpha=6, target_modules=["k_proj", "gate_proj"], bias="lora_only")),
    TinyAdapter("regex", "llama_bias", dict(r=1, lora_alpha=3, target_modules=r".*\.(self_attn\.[kvo]_proj|mlp\.up_proj)")),
    TinyAdapter("patterns", "llama_multi_query",
                dict(r=4, lora_alpha=8, target_modules="all-linear", rank_pattern={"q_proj": 6, r"layers.1.mlp.down_proj": 2, r"^model.layers.2.*k_proj": 1},
                     alpha_pattern={"q_proj": 3, "gate_proj": 32, r"layers\.0\..*o_proj": 5})),
    TinyAdapter("layers", "llama_multi_query",
                dict(r=3, lora_alpha=6, target_modules=["q_proj", "v_proj", "down_proj"], layers_to_transform=[0, 2], layers_pattern="layers")),
    TinyAdapter("all_linear", "llama_yarn", dict(r=7, lora_alpha=7, target_modules="all-linear")),
    TinyAdapter("all_linear", "llama_dynamic", dict(r=2, lora_alpha=4, target_modules="all-linear")),
    TinyAdapter("all_linear", "llama_smallest", dict(r=1, lora_alpha=2, target_modules="all-linear")),
    TinyAdapter("all_linear", "mistral_window", dict(r=4, lora_alpha=16, target_modules="all-linear")),
    TinyAdapter("head_and_embedding", "mistral_window",
                dict(r=3, lora_alpha=6, target_modules=["q_proj", "v_proj"], modules_to_save=["lm_head", "embed_tokens"])),
    TinyAdapter("rslora_patterns", "mistral_full",
                dict(r=4, lora_alpha=8, target_modules=["q_proj", "k_proj", "o_proj"], use_rslora=True, rank_pattern={"k_proj": 9}, alpha_pattern={"o_proj": 2})),
    TinyAdapter("norms", "qwen2_window", dict(r=3, lora_alpha=6, target_modules=["v_proj", "gate_proj"], modules_to_save=["norm"])),
    TinyAdapter("excluded", "qwen2_window", dict(r=4, lora_alpha=8, target_modules="all-linear", exclude_modules=["layers.1.self_attn.q_proj", "down_proj"])),
    TinyAdapter("bias_all", "qwen2_full", dict(r=3, lora_alpha=5, target_modules="all-linear", bias="all")),
]


def make_adapter(spec: TinyAdapter, model_spec: TinyModel, model_folder: pathlib.Path, folder: pathlib.Path, seed: int) -> None:
    """Saves an adapter whose every value differs from what the base or PEFT's initialisation would give."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = get_peft_model(load_model(model_spec, model_folder), LoraConfig(task_type="CAUSAL_LM", **spec.config))
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        noise = torch.randn(parameter.shape, generator=generator)
        if "lora_B" in name:
            parameter.data.copy_(0.15 * noise)
        elif "lora_A" not in name:
            parameter.data.add_(0.1 * noise)
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    make_reproducible(folder / "adapter_config.json")


def make_reproducible(path: pathlib.Path) -> None:
    """PEFT writes sets in hash order, and the path of the base model."""
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = None
    for key in ("target_modules", "exclude_modules"):
        if isinstance(config.get(key), list):
            config[key].sort()
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def load_adapter(model_spec: TinyModel, model_folder: pathlib.Path, folder: pathlib.Path, dtype: torch.dtype) -> PeftModel:
    base = load_model(model_spec, model_folder, dtype)
    return PeftModel.from_pretrained(base, folder, is_trainable=True, autocast_adapter_dtype=False).to(dtype).eval()


def trainable_by_file_key(model: PeftModel) -> dict[str, torch.nn.Parameter]:
    """Trainable parameters under the names they have in adapter_model.safetensors."""
    by_address = {parameter.data_ptr(): parameter for parameter in model.parameters() if parameter.requires_grad}
    saved = get_peft_model_state_dict(model, save_embedding_layers=False)
    found = {key: by_address[tensor.data_ptr()] for key, tensor in saved.items() if tensor.data_ptr() in by_address}
    missing = len(by_address) - len(found)
    if missing:
        raise RuntimeError(f"{missing} trainable parameters are not in the adapter's file")
    return found


def gradients(model: PeftModel, batch: dict) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    output = run_batch(model, batch)
    output.loss.backward()
    return output.loss.item(), {key: zero_or(parameter) for key, parameter in trainable_by_file_key(model).items()}


def zero_or(parameter: torch.nn.Parameter) -> torch.Tensor:
    """PEFT marks some parameters trainable that the loss never reaches; their gradient is none."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()


def train(model: PeftModel, batch: dict) -> dict:
    """STEPS steps of torch's AdamW as Transformers' Trainer sets it up: no decay on biases and norms, clipping, linear warm-up and decay."""
    decayed = set(Trainer.get_decay_parameter_names(None, model))
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for name, parameter in named if name in decayed], "weight_decay": WEIGHT_DECAY},
        {"params": [parameter for name, parameter in named if name not in decayed], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=LEARNING_RATE)
    scheduler = get_linear_schedule_with_warmup(optimizer, WARMUP_STEPS, STEPS)
    losses, norms, rates = [], [], []
    for _ in range(STEPS):
        rates.append(scheduler.get_last_lr()[0])
        loss = run_batch(model, batch).loss
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_([parameter for _, parameter in named], MAX_GRAD_NORM).item())
        optimizer.step()
        scheduler.step()
        model.zero_grad()
        losses.append(loss.item())
    return {"losses": losses, "gradNorms": norms, "learningRates": rates}
