"""A tiny model, the same in bitsandbytes' 4 and 8 bits, and what PEFT's training on these makes of an adapter.

    python test/reference/make_qlora_fixture.py test/fixtures/qlora

Needs the versions of requirements.txt. Writes
  base/           a Llama in bfloat16
  nf4/            the same as Transformers saves it with NF4 and double quantisation
  fp4/            and with FP4, one module of each layer left out
  int8/           and in 8 bits, row by row
  adapter/        a LoRA adapter as PEFT saves it
  training.json   rows of token ids, 20 losses of AdamW on nf4/ with fp32 arithmetic, and the logits of its numbers in fp32
  int8.json       the same losses and logits on int8/
"""

from __future__ import annotations

import pathlib
import sys

import bitsandbytes as bnb
import torch
from fixture_files import single_threaded, write_json
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

STEPS, ROWS, LENGTH, VOCABULARY = 20, 4, 24, 71
LEARNING_RATE, MAX_GRAD_NORM = 5e-3, 1.0
QUANTIZATIONS = {
    "nf4": dict(bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
    "fp4": dict(bnb_4bit_quant_type="fp4", llm_int8_skip_modules=["lm_head", "v_proj"]),
    "int8": dict(load_in_8bit=True),
}


def make_base(folder: pathlib.Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.2, tie_word_embeddings=False,
                         bos_token_id=1, eos_token_id=2, pad_token_id=0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def quantized(folder: pathlib.Path, **options):
    options = {"load_in_4bit": "load_in_8bit" not in options, "bnb_4bit_compute_dtype": torch.float32} | options
    config = BitsAndBytesConfig(**options)
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=torch.bfloat16, device_map="cpu")


def make_adapter(model, folder: pathlib.Path) -> None:
    peft = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear", lora_dropout=0.0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    peft.save_pretrained(folder)
    (folder / "README.md").unlink()


def load_packed(folder: pathlib.Path):
    """What is not quantised keeps bfloat16 in it, whatever dtype says: made fp32 here."""
    model = AutoModelForCausalLM.from_pretrained(folder, device_map="cpu")
    for parameter in model.parameters():
        if parameter.dtype == torch.bfloat16:
            parameter.data = parameter.data.float()
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.weight.quant_state.dtype = torch.float32  # of the numbers that it makes of its codes
    return model


def numbers_of(weight) -> torch.Tensor:
    if isinstance(weight, bnb.nn.Params4bit):
        return bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
    return bnb.functional.int8_vectorwise_dequant(weight.data, weight.SCB)


def dequantized_logits(folder: pathlib.Path, ids: torch.Tensor) -> torch.Tensor:
    """With fp32 numbers for the codes: bitsandbytes' own products of a few rows are of bf16 on a CPU."""
    model = load_packed(folder)
    for name, module in list(model.named_modules()):
        if isinstance(module, (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt)):
            plain = torch.nn.Linear(module.in_features, module.out_features, bias=False)
            plain.weight.data = numbers_of(module.weight)
            model.set_submodule(name, plain)
    with torch.no_grad():
        return model(input_ids=ids).logits


def train(folder: pathlib.Path, adapter: pathlib.Path) -> dict:
    """Everything but the codes in fp32, as lowrank has it."""
    base = load_packed(folder)
    generator = torch.Generator().manual_seed(2)
    rows = torch.randint(3, VOCABULARY, (STEPS, ROWS, LENGTH), generator=generator)
    rows[:, :, 1::2] = rows[:, :, ::2]  # something to learn
    logits = dequantized_logits(folder, rows[0, :1])
    peft = PeftModel.from_pretrained(base, adapter, is_trainable=True).train()
    parameters = [parameter for parameter in peft.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0)
    losses = []
    for batch in rows:
        loss = peft(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return {
        "options": {"learningRate": LEARNING_RATE, "weightDecay": 0, "maxGradNorm": MAX_GRAD_NORM, "lrSchedulerType": "constant"},
        "rows": rows.reshape(-1, LENGTH).tolist(),
        "rowsPerStep": ROWS,
        "losses": losses,
        "logits": logits.flatten().tolist(),
    }


def main(folder: pathlib.Path) -> None:
    single_threaded()
    make_base(folder / "base")
    for name, options in QUANTIZATIONS.items():
        quantized(folder / "base", **options).save_pretrained(folder / name)
    make_adapter(quantized(folder / "base", **QUANTIZATIONS["nf4"]), folder / "adapter")
    write_json(folder / "training.json", train(folder / "nf4", folder / "adapter"))
    of_int8 = train(folder / "int8", folder / "adapter")
    write_json(folder / "int8.json", {key: of_int8[key] for key in ("losses", "logits")})


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
