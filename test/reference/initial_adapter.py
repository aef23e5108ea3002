"""A LoRA initialisation that any language can compute: Kaiming-uniform A from a hash of its place, B zero.

    h = murmur3's 32-bit finaliser of (module · 0x9E3779B1 + element) mod 2³²
    A[element] = (2 · h / 2³² - 1) / sqrt(in_features), in double, rounded once to fp32

`element` counts A [r, in_features] row by row; `module` is layer · 7 + the place in MODULES. test/81.real_model.test.ts computes the same.
"""

from __future__ import annotations

import re

import numpy as np
import torch

MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def hash32(values: np.ndarray) -> np.ndarray:
    h = values.astype(np.uint32)
    h ^= h >> np.uint32(16)
    h *= np.uint32(0x85EBCA6B)
    h ^= h >> np.uint32(13)
    h *= np.uint32(0xC2B2AE35)
    h ^= h >> np.uint32(16)
    return h


def initial_lora_a(module: int, rank: int, in_features: int) -> np.ndarray:
    places = np.arange(rank * in_features, dtype=np.uint32) + np.uint32(module * 0x9E3779B1 & 0xFFFFFFFF)
    uniform = 2.0 * (hash32(places).astype(np.float64) / 2.0**32) - 1.0
    return (uniform / np.sqrt(in_features)).astype(np.float32).reshape(rank, in_features)


def set_initial_adapter(model: torch.nn.Module) -> None:
    for name, parameter in model.named_parameters():
        place = re.search(r"layers\.(\d+)\..*\.(\w+_proj)\.lora_([AB])\.", name)
        if not place:
            continue
        if place[3] == "B":
            parameter.data.zero_()
        else:
            module = int(place[1]) * len(MODULES) + MODULES.index(place[2])
            parameter.data.copy_(torch.from_numpy(initial_lora_a(module, *parameter.shape)))
