"""Learning rates of Transformers' schedulers, step by step -> test/fixtures/schedulers/schedulers.json

Made with transformers 5.24.0 and torch 2.15.0.   python test/reference/make_scheduler_fixture.py
"""

import itertools
import json
import pathlib

import torch
from transformers import get_scheduler

SCHEDULES = [
    ("linear", {}),
    ("cosine", {}),
    ("cosine", {"num_cycles": 1.25}),
    ("cosine_with_restarts", {}),
    ("cosine_with_restarts", {"num_cycles": 3}),
    ("polynomial", {}),
    ("polynomial", {"power": 2.5, "lr_end": 1e-5}),
    ("constant", {}),
    ("constant_with_warmup", {}),
    ("inverse_sqrt", {}),
    ("inverse_sqrt", {"timescale": 7}),
]
# (warm-up steps, all steps): none, some, one, more warm-up than training
LENGTHS = [(0, 23), (5, 37), (1, 2), (30, 20)]


def learning_rates(name, kwargs, peak, warmup, total):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=total, scheduler_specific_kwargs=kwargs)
    rates = []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


cases = []
for (name, kwargs), (warmup, total), peak in itertools.product(SCHEDULES, LENGTHS, [2e-4, 0.03]):
    rates = learning_rates(name, kwargs, peak, warmup, total)
    cases.append({"type": name, "kwargs": kwargs, "learningRate": peak, "warmupSteps": warmup, "totalSteps": total, "rates": rates})

folder = pathlib.Path(__file__).parent.parent / "fixtures" / "schedulers"
folder.mkdir(parents=True, exist_ok=True)
lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
(folder / "schedulers.json").write_text(f"[\n{lines}\n]\n")
