"""Losses of a LoRA training with bitsandbytes' AdamW8bit, and with torch's AdamW, on the tiny model of make_qlora_fixture.py.

    python test/reference/make_adamw8bit_fixture.py test/fixtures/qlora

Needs the versions of requirements.txt. Reads base/ and training.json; writes adamw_8bit.json. The adapter's rank gives most of its matrices the 4,096
values from which states have 8 bits; value i of its matrix j (in the order of names) is AMPLITUDE * sin(i + 100 * j), which needs no file.
"""

from __future__ import annotations

import json
import pathlib
import sys

import bitsandbytes as bnb
import torch
from fixture_files import single_threaded, write_json
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

RANK, AMPLITUDE, LEARNING_RATE, EPOCHS = 64, 0.02, 2e-3, 3


def adapted(folder: pathlib.Path):
    base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    peft = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=RANK, target_modules="all-linear", lora_dropout=0.0))
    parameters = sorted((name, parameter) for name, parameter in peft.named_parameters() if "lora_" in name)
    for j, (_, parameter) in enumerate(parameters):
        places = torch.arange(parameter.numel(), dtype=torch.float64) + 100 * j
        parameter.data = (AMPLITUDE * torch.sin(places)).to(torch.float32).reshape(parameter.shape)
    return peft.train()


def train(folder: pathlib.Path, rows: torch.Tensor, make_optimizer) -> list[float]:
    model = adapted(folder)
    optimizer = make_optimizer([parameter for parameter in model.parameters() if parameter.requires_grad])
    losses = []
    for batch in rows.repeat(EPOCHS, 1, 1):
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def main(folder: pathlib.Path) -> None:
    single_threaded()
    training = json.loads((folder / "training.json").read_text())
    rows = torch.tensor(training["rows"]).reshape(-1, training["rowsPerStep"], len(training["rows"][0]))
    options = {"lr": LEARNING_RATE, "weight_decay": 0.0}
    write_json(folder / "adamw_8bit.json", {
        "rank": RANK,
        "amplitude": AMPLITUDE,
        "learningRate": LEARNING_RATE,
        "epochs": EPOCHS,
        "losses": train(folder, rows, lambda parameters: bnb.optim.AdamW8bit(parameters, **options)),
        "losses32": train(folder, rows, lambda parameters: torch.optim.AdamW(parameters, **options)),
    })


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
