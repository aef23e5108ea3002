"""SmolLM2-135M as a bf16 safetensors folder, unpacked once from the GGUF file that lowrank trains on.

    python base_model.py FILE.gguf FOLDER
"""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys


def bf16_folder(gguf: pathlib.Path, cache: pathlib.Path) -> pathlib.Path:
    """The folder inside `cache`, made in a process of its own so that the caller's peak memory does not count it."""
    folder = cache / f"{gguf.stem}-bf16"
    if not (folder / "config.json").exists():
        cache.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, __file__, str(gguf), str(folder)], check=True, stdout=sys.stderr)
    return folder


def convert(gguf: pathlib.Path, folder: pathlib.Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    unfinished = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    unpacked = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # Transformers still calls the unpacked model quantised, and would not save it: its weights go into a plain one.
    config = type(unpacked.config).from_dict({key: value for key, value in unpacked.config.to_dict().items() if key != "quantization_config"})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(unpacked.state_dict())
    model.to(torch.bfloat16).save_pretrained(unfinished)
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


if __name__ == "__main__":
    convert(pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]))
