"""Weights and momentum after steps of torch.optim.Muon -> test/fixtures/muon/muon.{safetensors,json}

Made with torch 2.15.0.   python test/reference/make_muon_fixture.py
"""

import pathlib

import torch

from fixture_files import single_threaded, write_arrays, write_json

FOLDER = pathlib.Path(__file__).parent.parent / "fixtures" / "muon"
STEPS = 3
CASES = [
    {"rows": 24, "columns": 56, "adjust": "original", "lr": 0.02, "weight_decay": 0.1},
    {"rows": 56, "columns": 24, "adjust": "original", "lr": 0.02, "weight_decay": 0.0},
    {"rows": 33, "columns": 33, "adjust": "match_rms_adamw", "lr": 0.01, "weight_decay": 0.1},
    {"rows": 65, "columns": 7, "adjust": "spectral_unclamped", "lr": 0.02, "weight_decay": 0.05},
    {"rows": 1, "columns": 40, "adjust": "match_rms_adamw", "lr": 0.02, "weight_decay": 0.0},
]


def main():
    single_threaded()
    generator = torch.Generator().manual_seed(7)
    arrays = {}
    for i, case in enumerate(CASES):
        shape = (case["rows"], case["columns"])
        weight = torch.nn.Parameter(torch.randn(shape, generator=generator))
        optimizer = torch.optim.Muon(
            [weight], lr=case["lr"], weight_decay=case["weight_decay"], adjust_lr_fn=case["adjust"]
        )
        arrays[f"{i}.start"] = weight.detach().clone()
        for step in range(STEPS):
            weight.grad = torch.randn(shape, generator=generator)
            arrays[f"{i}.gradient.{step}"] = weight.grad.clone()
            optimizer.step()
            arrays[f"{i}.weight.{step}"] = weight.detach().clone()
        arrays[f"{i}.momentum"] = optimizer.state[weight]["momentum_buffer"].clone()
    write_arrays(FOLDER / "muon.safetensors", arrays)
    write_json(FOLDER / "muon.json", {"torch": torch.__version__, "steps": STEPS, "cases": CASES})


main()
