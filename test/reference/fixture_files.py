"""How fixtures lie on disk: arrays in safetensors, everything else in JSON with one key a line, byte-equal from run to run."""

from __future__ import annotations

import json
import pathlib

import torch
from safetensors.torch import save_file


def write_arrays(path: pathlib.Path, arrays: dict[str, torch.Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.detach().contiguous().clone() for name, tensor in sorted(arrays.items())}, path)


def write_json(path: pathlib.Path, value: dict) -> None:
    """Top-level keys on lines of their own, long arrays compact."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"  {json.dumps(key)}: {json.dumps(item, separators=(',', ':'))}" for key, item in value.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def single_threaded() -> None:
    """Sums in one order, so that a rerun with the pinned versions gives the same bytes."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
