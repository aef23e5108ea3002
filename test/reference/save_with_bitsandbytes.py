"""Loads models in bitsandbytes' 4 or 8 bits with Transformers and saves their tensors again. Reads one JSON object a line from stdin,
{"model", "output"}, where `output` is a safetensors file; answers each with a line {"linear4bit", "linear8bit", "linear"}: how many
modules of each kind it loaded."""

from __future__ import annotations

import json
import os
import sys
import warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import bitsandbytes as bnb
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM


def main() -> None:
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        request = json.loads(line)
        model = AutoModelForCausalLM.from_pretrained(request["model"], device_map="cpu")
        kinds = [type(module) for module in model.modules()]
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, request["output"])
        counts = {"linear4bit": bnb.nn.Linear4bit, "linear8bit": bnb.nn.Linear8bitLt, "linear": torch.nn.Linear}
        print(json.dumps({name: kinds.count(kind) for name, kind in counts.items()}), flush=True)


if __name__ == "__main__":
    main()
