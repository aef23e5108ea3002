"""Logits of adapters as real PEFT loads them, or of models as Transformers does (without "adapter"). Reads one JSON object a line from stdin, {"model", "adapter", "inputIds", "attentionMask",
"output"}, and writes the logits [rows, length, vocabulary] to the safetensors file `output`; answers each with a line {"missing",
"unexpected"}: keys that PEFT did not find in the adapter's file, or found and did not use."""

from __future__ import annotations

import json
import os
import pathlib
import sys
import warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import torch
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tiny_models import positions_of


def load_model(model: str) -> tuple[torch.nn.Module, dict]:
    loaded, info = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    return loaded.eval(), {"missing": list(info["missing_keys"]), "unexpected": list(info["unexpected_keys"])}


def load_adapter(model: str, adapter: str) -> tuple[PeftModel, dict]:
    base, _ = load_model(model)
    peft = PeftModel.from_pretrained(base, adapter).eval()
    state = load_file(pathlib.Path(adapter) / "adapter_model.safetensors")
    result = set_peft_model_state_dict(peft, state)
    # PyTorch lists the frozen base's weights as missing; only the adapter's own matter.
    own = [key for key in result.missing_keys if "lora_" in key or "modules_to_save" in key]
    return peft, {"missing": own, "unexpected": list(result.unexpected_keys)}


def main() -> None:
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        request = json.loads(line)
        adapter = request.get("adapter")
        model, keys = load_adapter(request["model"], adapter) if adapter else load_model(request["model"])
        mask = torch.tensor(request["attentionMask"])
        with torch.no_grad():
            logits = model(input_ids=torch.tensor(request["inputIds"]), attention_mask=mask, position_ids=positions_of(mask), use_cache=False).logits
        save_file({"logits": logits.contiguous()}, request["output"])
        print(json.dumps(keys), flush=True)


if __name__ == "__main__":
    main()
