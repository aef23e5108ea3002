"""Writes test/fixtures/peft_targets/targets.json: what PEFT makes of LoRA configurations on tiny models.

For each case: the LoRA modules with their rank and scale, the keys and shapes of the saved adapter, and the trainable and total
number of parameters; or that PEFT refuses. Run with the versions pinned in test/reference/requirements.txt:

    python test/reference/make_peft_targets_fixture.py
"""
import json
import pathlib
import warnings

import peft
import torch
import transformers
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

MODELS = {
    "llama": dict(
        architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=11, hidden_size=12, intermediate_size=20, num_hidden_layers=12,
        num_attention_heads=3, num_key_value_heads=1, max_position_embeddings=64, tie_word_embeddings=False,
        attention_bias=True, mlp_bias=True, bos_token_id=1, eos_token_id=2,
    ),
    "mistral": dict(
        architectures=["MistralForCausalLM"], model_type="mistral", vocab_size=13, hidden_size=8, intermediate_size=10, num_hidden_layers=3,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False,
        bos_token_id=1, eos_token_id=2,
    ),
    "qwen2": dict(
        architectures=["Qwen2ForCausalLM"], model_type="qwen2", vocab_size=11, hidden_size=12, intermediate_size=20, num_hidden_layers=4,
        num_attention_heads=3, num_key_value_heads=1, max_position_embeddings=64, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=2,
    ),
}

CASES = [
    ("llama", dict()),
    ("mistral", dict()),
    ("qwen2", dict()),
    ("llama", dict(target_modules="all-linear")),
    ("qwen2", dict(target_modules="all-linear", r=3, lora_alpha=5)),
    ("mistral", dict(target_modules="all-linear", exclude_modules=["gate_proj", "model.layers.1.self_attn.q_proj"])),
    ("llama", dict(target_modules=["q_proj", "model.layers.3.mlp.down_proj"])),
    ("llama", dict(target_modules=["proj"])),
    ("llama", dict(target_modules=["self_attn"])),
    ("llama", dict(target_modules=r".*\.(q|k)_proj")),
    ("llama", dict(target_modules=r"(q|k)_proj")),
    ("llama", dict(target_modules=r"model\.layers\.[13579]\..*_proj", exclude_modules=r".*mlp.*")),
    ("llama", dict(target_modules=["q_proj"], layers_to_transform=[1, 3, 11])),
    ("llama", dict(target_modules=["q_proj"], layers_to_transform=1)),
    ("llama", dict(target_modules=["q_proj"], layers_to_transform=[1], layers_pattern="layers")),
    ("llama", dict(target_modules=["q_proj"], layers_to_transform=[1], layers_pattern=["blocks", "layers"])),
    ("llama", dict(target_modules=["q_proj"], layers_to_transform=[1], layers_pattern="blocks")),
    ("llama", dict(target_modules=["q_proj", "model.layers.0.self_attn.v_proj"], layers_to_transform=[2])),
    ("llama", dict(target_modules=["q_proj"], layers_to_transform=[99])),
    ("llama", dict(target_modules=["q_proj", "v_proj"], rank_pattern={"v_proj": 2, r"layers\.1\.self_attn\.q_proj": 5})),
    ("llama", dict(target_modules=["q_proj", "v_proj"], rank_pattern={r"layers.1\..*": 2, "layers.11.self_attn.q_proj": 7}, alpha_pattern={"q_proj": 32})),
    ("llama", dict(target_modules=["q_proj", "v_proj"], r=4, lora_alpha=6, use_rslora=True, rank_pattern={"v_proj": 9}, alpha_pattern={"v_proj": 3})),
    ("llama", dict(target_modules=["q_proj"], bias="all")),
    ("llama", dict(target_modules=["q_proj", "down_proj"], bias="lora_only")),
    ("qwen2", dict(target_modules=["o_proj", "q_proj"], bias="lora_only")),
    ("qwen2", dict(target_modules=["o_proj"], bias="all")),
    ("llama", dict(target_modules=["q_proj"], modules_to_save=["lm_head"])),
    ("llama", dict(target_modules=["q_proj"], modules_to_save=["lm_head", "embed_tokens"])),
    ("qwen2", dict(target_modules=["q_proj"], modules_to_save=["lm_head"])),
    ("qwen2", dict(target_modules=["q_proj"], modules_to_save=["embed_tokens"])),
    ("mistral", dict(target_modules=["q_proj"], modules_to_save=["norm"])),
    ("mistral", dict(target_modules=["q_proj"], modules_to_save=["input_layernorm", "model.layers.0.mlp.up_proj"])),
    ("qwen2", dict(target_modules="all-linear", modules_to_save=["k_proj"])),
    ("llama", dict(target_modules=["nothing_here"])),
    ("llama", dict(target_modules=["q_proj"], exclude_modules=["q_proj"])),
]


def build(name):
    config = dict(MODELS[name])
    architecture = getattr(transformers, config["architectures"][0])
    return architecture(architecture.config_class(**{k: v for k, v in config.items() if k not in ("architectures", "model_type")}))


def describe(name, options):
    torch.manual_seed(0)
    try:
        model = get_peft_model(build(name), LoraConfig(task_type="CAUSAL_LM", **options))
    except ValueError as error:
        return {"error": str(error).split("\n")[0][:160]}
    modules = {}
    for module_name, module in model.base_model.model.named_modules():
        if isinstance(module, peft.tuners.lora.layer.LoraLayer):
            modules[module_name] = {"r": module.r["default"], "scale": module.scaling["default"]}
    state = get_peft_model_state_dict(model)
    trainable, total = model.get_nb_trainable_parameters()
    return {
        "modules": modules,
        "saved": {key: list(value.shape) for key, value in sorted(state.items())},
        "trainable": trainable,
        "total": total,
    }


def main():
    warnings.simplefilter("ignore")
    cases = [{"model": name, "options": options, "expected": describe(name, options)} for name, options in CASES]
    fixture = {"peft": peft.__version__, "transformers": transformers.__version__, "models": MODELS, "cases": cases}
    path = pathlib.Path(__file__).parent.parent / "fixtures" / "peft_targets" / "targets.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(fixture, indent=1) + "\n")


if __name__ == "__main__":
    main()
