"""PEFT on the work that lowrank's training benchmark does: LoRA r=16 on all linear layers of SmolLM2-135M, full rows of random tokens,
all of them supervised, AdamW, clipping at 1. A bare training loop: nothing of Transformers' Trainer is in the time measured.

    python peft_train.py --gguf FILE --cache FOLDER [--threads 2] [--dtype fp32|bf16] [--batch 4] [--length 256] [--compile]

Stays alive, so that a driver can interleave it with others. Says {"ready": true, ...} on a line, then answers each line `run K` with one
JSON line about K timed steps; ends with its input. Everything else goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import resource
import statistics
import sys
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import peft
import torch
import torch._inductor.config
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from base_model import bf16_folder

RANK, ALPHA = 16, 32
LEARNING_RATE, MAX_GRAD_NORM = 2e-4, 1.0
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Training:
    """The model, its optimizer and one batch; step() is what is timed."""

    def __init__(self, folder: pathlib.Path, dtype: torch.dtype, batch: int, length: int, compiled: bool) -> None:
        torch.manual_seed(0)
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
        config = LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=ALPHA, target_modules="all-linear", lora_dropout=0.0)
        self.model = get_peft_model(base, config).train()
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=LEARNING_RATE, weight_decay=0.0, fused=True)
        self.ids = torch.randint(base.config.vocab_size, (batch, length))
        # As Trainer(bf16=True): the adapter's weights stay fp32 and are multiplied in bf16.
        self.autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)
        if os.environ.get("ATEN_CPU_CAPABILITY") == "avx2":
            # The compiler looks at the CPU, not at this variable; and its cache would hand out what was compiled for AVX-512.
            torch._inductor.config.cpp.simdlen = 256
        self.run = torch.compile(self.model) if compiled else self.model

    def step(self) -> float:
        with self.autocast:
            loss = self.run(input_ids=self.ids, labels=self.ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, MAX_GRAD_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


def peak_rss_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def measure(training: Training, steps: int) -> dict:
    milliseconds, loss = [], 0.0
    for _ in range(steps):
        begin = time.perf_counter()
        loss = training.step()
        milliseconds.append(1000.0 * (time.perf_counter() - begin))
    return {
        "tokens_per_second": 1000.0 * steps * training.ids.numel() / sum(milliseconds),
        "step_ms": {"best": min(milliseconds), "median": statistics.median(milliseconds)},
        "loss": loss,
        "peak_rss_bytes": peak_rss_bytes(),
    }


def steps_of(line: str) -> int:
    command, _, count = line.strip().partition(" ")
    if command != "run" or not count.isdigit() or int(count) == 0:
        sys.exit(f"peft_train.py: found {line.strip()!r}, expected 'run K'")
    return int(count)


def say(value: dict) -> None:
    print(json.dumps(value), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=pathlib.Path, required=True, help="SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--cache", type=pathlib.Path, required=True, help="folder for the unpacked bf16 model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--warmup", type=int, default=2, help="steps before the first timed one")
    parser.add_argument("--compile", action="store_true", help="torch.compile the model")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    folder = bf16_folder(options.gguf.resolve(), options.cache.resolve())
    training = Training(folder, DTYPES[options.dtype], options.batch, options.length, options.compile)
    for _ in range(options.warmup):
        training.step()
    versions = {"python": sys.version.split()[0], "torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
    say({"ready": True, "threads": options.threads, "dtype": options.dtype, "compile": options.compile, "versions": versions})
    for line in sys.stdin:
        if line.strip():
            say(measure(training, steps_of(line)) | {"versions": versions})


if __name__ == "__main__":
    main()
